"""What the fast path loads, what it does when the daemon is away, silent or gone in the middle."""

import asyncio
import os
import subprocess

import pytest

from mta.submit.wire import decode_hello, encode
from tests.sendmail.world import World

# The whole list: an interpreter that was just started, _socket, and fast.py itself.
LOADED = {
    "__main__", "_abc", "_codecs", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io", "_signal",
    "_socket", "_thread", "_warnings", "_weakref", "abc", "builtins", "codecs", "encodings", "encodings.aliases",
    "encodings.utf_8", "io", "marshal", "posix", "sys", "time", "zipimport",
    "fast",
}  # fmt: skip
MESSAGE = b"To: bob@r.test\nSubject: s\n\nbody\n"


def listing(stub: str, report: str) -> str:
    """The stub, changed so that it writes the names of all modules to report and kills itself in place of its end."""
    call = "fast.start()\n"
    assert stub.endswith(f"\n{call}")
    hook = (
        f"fast.posix._exit = lambda _: (open({report!r}, 'w').write(' '.join(sys.modules)),"
        " fast.posix.kill(fast.posix.getpid(), 9))\n"
    )
    return stub.removesuffix(call) + hook + call


async def test_the_fast_path_loads_nothing_but_this_list(world: World) -> None:
    report = world.root / "modules"
    world.stub.write_text(listing(world.stub.read_text(), str(report)))
    await world.run(["-t", "-i"], MESSAGE)
    assert set(report.read_text().split()) == LOADED
    assert len(await world.queued()) == 1


@pytest.mark.parametrize("state", ["running", "stopped", "too big"])
async def test_a_file_as_input_is_announced_before_it_is_read(state: str) -> None:
    """The daemon is asked once, and what happens is what happens with a pipe."""
    async with World(message_size_limit=20_000) as world:
        path = world.root / "message"
        path.write_bytes(MESSAGE + (b"x" * 99 + b"\n") * (1000 if state == "too big" else 1))
        if state == "stopped":
            await world.stop()
        command, environ = ["sh", "-c", f"{world.stub} -t -i <{path}"], {"MAIL_CONFIG": str(world.config)}
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environ, timeout=30)
        assert done.returncode == (65 if state == "too big" else 0), done
        assert len(await world.queued()) == (state == "running")
        assert len(os.listdir(world.queue / "maildrop")) == (state == "stopped")
        if state != "stopped":
            assert (await world.run(["-t", "-i"], MESSAGE)).status == 0, "and the daemon takes the next one"


async def test_stopped_daemon_keeps_the_message_in_maildrop_and_pickup_queues_it_once(world: World) -> None:
    await world.stop()
    done = await world.run(["-t", "-i", "-f", "a@s.test", "carol"], MESSAGE)
    assert done.status == 0
    assert done.stdout == ""
    assert "maildrop" in done.stderr
    (name,) = os.listdir(world.queue / "maildrop")
    assert len(name) == 32
    await world.start()
    assert await world.pickup.scan() == 1
    (message,) = await world.queued()
    assert message.envelope.sender == "a@s.test"
    assert [r.address for r in message.envelope.recipients] == ["carol@example.test", "bob@r.test"]
    assert message.header("From") is not None
    assert message.body == ["body"]
    assert os.listdir(world.queue / "maildrop") == []
    assert f"{message.queue_id}: uid={os.getuid()} from=<a@s.test>" in world.log


async def test_unwritable_maildrop_is_exit_75_with_one_line(world: World) -> None:
    await world.stop()
    os.rmdir(world.queue / "maildrop")
    done = await world.run(["bob@r.test"], MESSAGE)
    assert done.status == 75
    assert done.stderr.count("\n") == 1


async def test_lost_connection_is_asked_about_and_answered_from_the_key(world: World) -> None:
    """The daemon queues the message and dies before it says so; the next one knows the key."""
    await world.stop()
    seen: list[bytes] = []

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(5)
        hello = decode_hello(await reader.readexactly(int.from_bytes(head[1:], "big")))
        if hello.mode == "a":
            writer.write(encode(b"R", b"\0") if seen == [hello.key] else encode(b"U", b"12345678"))
        else:
            seen.append(hello.key)
            writer.write(encode(b"G", b"12345678"))
            await writer.drain()
            while (await reader.readexactly(5))[:1] != b"E":
                await reader.readexactly(len(MESSAGE))
        writer.close()

    server = await asyncio.start_unix_server(dying, str(world.queue / "public" / "submit"))
    done = await world.run(["-t", "-i"], MESSAGE)
    server.close()
    assert (done.status, done.stderr) == (0, "")
    assert len(seen) == 1
    assert os.listdir(world.queue / "maildrop") == []


async def test_same_key_is_queued_once(world: World) -> None:
    key = os.urandom(16)
    words = [b"sendmail", b"-i", b"bob@r.test"]
    hello = encode(b"H", key + b"m" + len(words).to_bytes(4, "big") + b"".join(w + b"\0" for w in words))
    body = encode(b"D", MESSAGE) + encode(b"E", len(MESSAGE).to_bytes(8, "big"))
    for wanted in (b"G", b"R"):
        reader, writer = await asyncio.open_unix_connection(str(world.queue / "public" / "submit"))
        writer.write(hello)
        assert (await reader.readexactly(1)) == wanted
        if wanted == b"G":
            await reader.readexactly(12)
            writer.write(body)
            assert await reader.readexactly(6) == encode(b"R", b"\0")
        writer.close()
        await writer.wait_closed()
    assert len(await world.queued()) == 1


async def test_garbage_on_the_submit_socket_ends_only_its_own_connection(world: World) -> None:
    path = str(world.queue / "public" / "submit")
    for junk in (b"\0" * 100, b"H\xff\xff\xff\xff", encode(b"H", b"x"), encode(b"D", b"x"), b"GET / HTTP/1.0\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(junk)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
    done = await world.run(["-t"], MESSAGE)
    assert done.status == 0
    assert len(await world.queued()) == 1


async def test_message_over_the_limit_is_65_and_nothing_is_queued() -> None:
    async with World(message_size_limit=20_000) as world:
        done = await world.run(["-i", "bob@r.test"], b"Subject: s\n\n" + b"x" * 30_000 + b"\n")
        assert done.status == 65
        assert "message file too big" in done.stderr
        assert await world.queued() == []


async def test_verbose_prints_the_queue_id(world: World) -> None:
    done = await world.run(["-v", "-i", "bob@r.test"], MESSAGE)
    (message,) = await world.queued()
    assert done.stdout == f"{message.queue_id}\n"


async def test_user_who_may_not_submit_gets_77() -> None:
    async with World(authorized_submit_users=("!alice", "static:all")) as world:
        done = await world.run(["-i", "bob@r.test"], MESSAGE)
        if os.getuid() == 0:
            assert done.status == 0  # root is not asked
        else:
            assert done.status == 77
            assert "User alice" in done.stderr


async def test_failing_table_is_75_and_nothing_is_queued() -> None:
    async with World(virtual_alias_maps=("fail:1",)) as world:
        done = await world.run(["-i", "bob@r.test"], MESSAGE)
        assert done.status == 75
        assert await world.queued() == []


async def test_large_message_travels_through_a_memfd(world: World) -> None:
    body = b"".join(b"%07d\n" % i for i in range(400_000))
    done = await world.run(["-i", "bob@r.test"], b"Subject: s\n\n" + body)
    assert done.status == 0, done
    (message,) = await world.queued()
    assert "\n".join(message.body) + "\n" == body.decode()


async def test_mailq_prints_the_layout_of_postfix_and_flush_answers(world: World) -> None:
    await world.run(["-i", "-f", "a b@s.test", "bob@r.test"], MESSAGE)  # two words: refused
    await world.run(["-i", "-f", "a@s.test", "bob@r.test", "carol"], MESSAGE)
    done = await world.run([], program="mailq")
    lines = done.stdout.splitlines()
    assert lines[0] == "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------"
    assert lines[1].endswith(" a@s.test")
    assert len(lines[1]) == 17 + 1 + 8 + 1 + 19 + 1 + len("a@s.test")
    assert lines[2:5] == [" " * 47 + "bob@r.test", " " * 47 + "carol@example.test", ""]
    assert lines[5] == "-- 0 Kbytes in 1 Request."
    assert (await world.run(["-q"])).status == 0
    await world.stop()
    down = await world.run([], program="mailq")
    assert down.status == 0 if os.access(world.queue / "incoming", os.R_OK) else down.status == 69
    assert "ail system is down" in down.stderr
    flush = await world.run(["-q"])
    assert (flush.status, flush.stderr) == (69, "postqueue: fatal: Cannot flush mail queue - mail system is down\n")


async def test_newaliases_names_the_wrong_line(world: World) -> None:
    (world.root / "aliases").write_text('# comment\nroot: alice\nthis is wrong\nlist: a,\n  b\nx: "y\n')
    done = await world.run([], program="newaliases")
    assert done.status == 65
    assert f"{world.root}/aliases, line 3: need name:value pair" in done.stderr
    assert "line 6: unbalanced quotes" in done.stderr
