"""What a caller may leave closed, full, short or strange around sendmail: an exit status that is true, and a line."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sendmail.world import Done, World

MESSAGE = b"To: bob@r.test\nSubject: s\n\nbody\n"
BIG = MESSAGE + b"xxxxxxxxx\n" * 150_000  # more than is kept in memory


def closed(*fds: int) -> Callable[[], None]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


def full(fd: int) -> Callable[[], None]:
    def put() -> None:
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, fd)
        os.close(device)

    return put


def unread(fd: int) -> Callable[[], None]:
    def put() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, fd)
        os.close(reader)
        os.close(writer)

    return put


def limited(what: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (value, value))


def one_line(done: Done, text: str) -> None:
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("fds", [(1,), (2,), (1, 2), (0, 1, 2)])
async def test_a_message_is_queued_whatever_else_is_closed(fds: tuple[int, ...], world: World) -> None:
    argv = ["-t", "-i"] if 0 not in fds else ["bob@r.test"]  # a closed stdin is an empty message
    assert (await world.run(argv, MESSAGE, before=closed(*fds))).status == 0
    assert len(await world.queued()) == 1


@pytest.mark.parametrize(("program", "argv"), [("mailq", []), ("sendmail", ["-bp"]), ("sendmail", ["--help"])])
async def test_nobody_is_told_where_stdout_is_closed(program: str, argv: list[str], world: World) -> None:
    done = await world.run(argv, program=program, before=closed(1))
    assert done.status == 0, done
    assert done.stderr == ""


FROM_UUCP = b"From a@b Sat Nov 21 00:00:00 2026 remote from peer\n" + MESSAGE


@pytest.mark.parametrize("fds", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(("program", "argv", "stdin", "queued"), [
    ("rmail", ["bob@r.test"], FROM_UUCP, 1),
    ("rsmtp", [], b"HELO x\nMAIL FROM:<a@b.test>\nRCPT TO:<bob@r.test>\nDATA\nSubject: s\n\nx\n.\nQUIT\n", 1),
    ("postqueue", ["-p"], b"", 0), ("postsuper", ["-h", "ALL"], b"", 0), ("qshape", [], b"", 0),
    ("postlog", ["x"], b"", 0), ("postdrop", [], b"", 0),
])  # fmt: skip
async def test_a_tool_does_its_work_whatever_is_closed(
    program: str, argv: list[str], stdin: bytes, queued: int, fds: tuple[int, ...], world: World
) -> None:
    world.write_config(maillog_file=str(world.root / "maillog"))
    (world.root / "maillog").touch()
    done = await world.run(argv, stdin, program=program, before=closed(*fds))
    if 0 not in fds:
        assert done.status == 0, done
        assert len(await world.queued()) == queued
    assert "internal error" not in done.stderr and done.status != 70


@pytest.mark.parametrize(("argv", "where", "status", "text"), [
    (["version"], ">&-", 0, ""), (["queue", "list"], ">&-", 0, ""), (["queue", "list"], "2>&-", 0, ""),
    (["version"], ">/dev/full", 74, "mta: fatal: output write error: No space left on device\n"),
    (["version"], "| sleep 0", 0, ""),
])  # fmt: skip
async def test_mta_shows_no_traceback_where_its_output_is_lost(
    argv: list[str], where: str, status: int, text: str, world: World
) -> None:
    command = ["sh", "-c", f"{sys.executable} -m mta -c {world.config} {' '.join(argv)} {where}"]
    environ = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ["PATH"]}
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environ, timeout=60)
    assert (done.returncode, done.stderr.decode()) == (status, text)


@pytest.mark.parametrize(
    ("argv", "status", "who"),
    [
        (["-d0", "-bp"], 74, "sendmail"), (["-bp"], 69, "postqueue"), (["--help"], 74, "sendmail"),
        (["--version"], 74, "sendmail"),
    ],
)  # fmt: skip
async def test_output_that_is_lost_is_an_error(argv: list[str], status: int, who: str, world: World) -> None:
    done = await world.run(argv, before=full(1))
    assert done.status == status, done
    one_line(done, f"{who}: fatal: output write error: No space left on device")


async def test_the_queue_id_of_v_may_be_lost_and_the_message_is_not(world: World) -> None:
    assert (await world.run(["-v", "-t"], MESSAGE, before=full(1))).status == 0
    assert len(await world.queued()) == 1


@pytest.mark.parametrize("stdout", [unread(1), full(1)], ids=["unread", "full"])
async def test_postdrop_keeps_the_message_whose_sender_does_not_hear_it_and_no_other(
    stdout: Callable[[], None], world: World
) -> None:
    def record(kind: bytes, data: bytes = b"") -> bytes:
        return kind + bytes([len(data)]) + data

    people = record(b"S", b"alice") + record(b"R", b"bob@r.test")
    whole = people + record(b"M") + record(b"N", b"Subject: x") + record(b"X") + record(b"E")
    assert (await world.run([], whole, program="postdrop", before=stdout)).status == 0
    assert await world.pickup.scan() == 1
    assert (await world.run([], record(b"C", b"1") + whole, program="postdrop", before=stdout)).status == 1
    assert await world.pickup.scan() == 0


async def test_what_nobody_reads_ends_no_work_with_success(world: World) -> None:
    assert (await world.run(["-d0", "-t"], MESSAGE, before=unread(1))).status == 0
    assert len(await world.queued()) == 1
    table = world.root / "table"
    done = await world.run(["-v", "hash", str(table)], b"key value\n" * 9, program="makemap", before=unread(1))
    assert done.status == 70 or table.with_suffix(".cdb").exists(), done
    assert (await world.run(["-p"], program="postqueue", before=unread(1))).status == 0


async def test_what_is_in_maildrop_is_queued_though_the_terminal_has_gone_away(world: World) -> None:
    await world.stop()

    def run() -> int:
        master, terminal = os.openpty()
        with subprocess.Popen(
            [world.stub, "-v", "-t"], stdin=subprocess.PIPE, stdout=terminal, stderr=subprocess.DEVNULL,
            env={"MAIL_CONFIG": str(world.config)},
        ) as process:  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(MESSAGE * 20_000)  # more than a pipe holds: when it is written, somebody reads
            process.stdin.flush()
            os.close(master)
            os.close(terminal)
            process.stdin.close()
            return process.wait(30)

    assert await asyncio.to_thread(run) == 0
    assert len(os.listdir(world.queue / "maildrop")) == 1


def standing_for(fd: int, path: str, flags: int) -> Callable[[], None]:
    def put() -> None:
        os.dup2(os.open(path, flags), fd)

    return put


def hung_up() -> None:
    """stdin is a terminal whose other end is gone."""
    near, far = os.openpty()
    os.close(far)
    os.dup2(near, 0)


@pytest.mark.parametrize("argv", [["-t"], ["-i", "bob@r.test"], ["-bm", "bob@r.test"]])
@pytest.mark.parametrize("before", [standing_for(0, "/dev/null", os.O_WRONLY), hung_up], ids=["write-only", "EIO"])
async def test_a_message_that_cannot_be_read_is_not_queued(
    before: Callable[[], None], argv: list[str], world: World
) -> None:
    done = await world.run(argv, before=before)
    assert done.status == 66, done
    one_line(done, "sendmail: fatal: cannot read the message; nothing was queued")
    assert await world.queued() == []


async def test_a_directory_as_input_is_refused_by_the_interpreter_itself(world: World) -> None:
    """Python does not start on one, so the status is its own; nothing of ours has run."""
    done = await world.run(["bob@r.test"], before=standing_for(0, "/", os.O_RDONLY))
    assert done.status == 1, done
    assert "<stdin> is a directory" in done.stderr
    assert await world.queued() == []


async def test_a_message_over_the_callers_own_limit_is_too_big(world: World) -> None:
    done = await world.run(["-t"], BIG, before=limited(resource.RLIMIT_FSIZE, 0))
    assert done.status == 65, done
    one_line(done, "message file too big")
    assert await world.queued() == []


@pytest.mark.parametrize("argv", [["-t"], ["-bp"]])
async def test_nobody_waits_for_a_configuration_in_a_fifo(argv: list[str], world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "main.cf")
    done = await world.run(argv, MESSAGE, env={"MAIL_CONFIG": str(tmp_path)})
    assert done.status == 78, done
    one_line(done, "main.cf: not a regular file")


async def test_a_variable_that_is_too_long_counts_as_missing(world: World) -> None:
    assert (await world.run(["-t"], MESSAGE, env={"NAME": "x" * 70_000})).status == 0
    (message,) = await world.queued()
    assert message.header("From") == 'From: "Alice Q. Tester" <alice@example.test>'


async def test_a_command_line_that_is_too_long_for_the_socket_goes_by_maildrop_without_a_word(world: World) -> None:
    recipients = [f"u{n}@r.test" for n in range(6000)]
    done = await world.run(["-i", *recipients], MESSAGE)
    assert done.status == 0
    assert done.stderr == ""
    assert await world.pickup.scan() == 1
    (message,) = await world.queued()
    assert len(message.envelope.recipients) == 6000


def lists(count: int) -> list[str]:
    """Words with so many addresses."""
    return [",".join(f"u{n}" for n in range(at, min(at + 1000, count))) for at in range(0, count, 1000)]


async def test_what_is_too_long_for_the_socket_is_taken_with_the_most_recipients_and_the_smallest_limit() -> None:
    async with World(message_size_limit=20_000) as world:
        assert (await world.run(["-i", "-N", "success", *lists(130_000)], MESSAGE)).status == 0
        (name,) = os.listdir(world.queue / "maildrop")
        file = await world.store.open_maildrop(name)
        assert file is not None
        assert len((await file.read()).envelope.recipients) == 130_000
        file.close()


@pytest.mark.parametrize(("argv", "header", "status"), [
    (lists(250_001), "", 65),
    (["-t"], ",".join(["a"] * 250_001), 75),
], ids=["command line", "header, the daemon takes it later"])  # fmt: skip
async def test_more_recipients_than_pickup_takes_are_refused_at_once(
    argv: list[str], header: str, status: int, world: World
) -> None:
    await world.stop()
    done = await world.run(argv, f"To: {header or 'x'}\n\nbody\n")
    assert done.status == status, done
    one_line(done, "too many recipients")
    assert os.listdir(world.queue / "maildrop") == []


async def test_a_last_line_that_passes_the_limit_with_its_end_is_too_big_for_maildrop_too() -> None:
    async with World(message_size_limit=20_000) as world:
        await world.stop()
        for size, status in ((19_999, 0), (20_000, 65)):
            done = await world.run(["bob@r.test"], b"Subject: s\n\n".ljust(size, b"x"))
            assert done.status == status, done
        assert await world.pickup.scan() == 1


async def test_a_variable_whose_name_is_no_text_is_nobodys_business(world: World) -> None:
    await world.stop()
    assert (await world.run(["bob@r.test"], MESSAGE, env={"\udcff": "x", "NAME": "Al"})).status == 0
    assert await world.pickup.scan() == 1
    (message,) = await world.queued()
    assert "Al <" in str(message.header("From"))


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
async def test_arguments_are_the_bytes_of_the_caller_in_every_locale(down: bool, world: World, tmp_path: Path) -> None:
    command = ["sh", "-c", f"localedef -f ISO-8859-1 -i de_DE {tmp_path}/de_DE.ISO-8859-1"]
    made = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip("localedef cannot make the locale")
    if down:
        await world.stop()
    argv = ["-F", "Jörg", "-f", os.fsdecode(b"j\xfcrg@s.test"), "jörg@r.test"]
    env = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.ISO-8859-1", "LANG": ""}
    assert (await world.run(argv, b"Subject: s\n\nx\n", env=env)).status == 0
    await world.pickup.scan()
    (message,) = await world.queued()
    assert message.envelope.sender == os.fsdecode(b"j\xfcrg@s.test")
    assert [r.address for r in message.envelope.recipients] == ["jörg@r.test"]
    assert (message.header("From") or "").startswith("From: Jörg <")


async def test_newaliases_does_not_wait_for_a_fifo(world: World) -> None:
    (world.root / "aliases").unlink()
    os.mkfifo(world.root / "aliases")
    done = await world.run([], program="newaliases")
    assert done.status == 66, done
    one_line(done, "not a regular file")


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from sendmail_compat import maildrop, slow
name, number, real = sys.argv[2], int(sys.argv[3]), getattr(os, sys.argv[2], None) or maildrop.poke
def call(*args):
    result = real(*args)
    os.kill(os.getpid(), number)
    return result
setattr(maildrop if name == "poke" else os, name, call)
signal.signal(number, signal.SIG_IGN if sys.argv[5:] else signal.SIG_DFL)
status = slow.run(["sendmail", "-C", sys.argv[4], "bob@r.test"], sys.argv[4], None)
os._exit(status)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGQUIT])
@pytest.mark.parametrize(("after", "ignored", "queued"), [
    ("fchmod", "", 0), ("rename", "", 1), ("fsync", "", 1), ("poke", "", 1), ("fchmod", "ignored", 1),
])  # fmt: skip
async def test_a_signal_leaves_nothing_or_a_message_and_the_status_says_which(
    number: signal.Signals, after: str, ignored: str, queued: int, world: World
) -> None:
    """Sent right after this call; from the rename on pickup may have the message."""
    await world.stop()
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", INTERRUPTED, root, after, str(int(number)), str(world.config), *ignored.split()]
    done = await asyncio.to_thread(subprocess.run, command, input=MESSAGE, capture_output=True, timeout=60)
    assert done.returncode == (0 if queued else 128 + number), done
    assert len(os.listdir(world.queue / "maildrop")) == queued


async def test_a_mistake_of_ours_is_for_later_and_no_error_for_good(world: World) -> None:
    world.write_config(message_size_limit="\u00b2")  # a digit, and no number
    done = await world.run(["bob@r.test"], MESSAGE)
    assert done.status == 75, "70 is a bounce where another mail system has called"
    assert await world.queued() == []
