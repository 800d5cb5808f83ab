"""What one user may hand in, on the socket and in maildrop."""

import asyncio
import os
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.submit import submit
from mta.submit.limits import UserLimits, UserLimitSettings
from mta.submit.results import Results
from mta.submit.wire import encode
from sendmail_compat.fast import words
from tests.queue_support import spooled
from tests.sendmail.world import World

MESSAGE = b"Subject: s\n\nbody\n"


class Ticks(Clock):
    """Loop time that stands still until it is told."""

    at = 1000.0

    def monotonic(self) -> float:
        return self.at


async def test_messages_are_counted_per_user_and_interval() -> None:
    clock = Ticks()
    limits = UserLimits(UserLimitSettings(submit_user_message_limit=2), clock, owner=7)
    assert [limits.refusal(uid) for uid in (5, 5, 6)] == [None, None, None]
    assert limits.refusal(5) == "too many messages, try again later"
    assert [limits.refusal(uid) for uid in (0, 0, 0, 7, 7, 7, 6)] == [None] * 7, "root, mail_owner, another user"
    clock.at += 60
    assert limits.refusal(5) is None


async def test_a_full_disk_is_for_root_and_the_network() -> None:
    free = 4.0
    limits = UserLimits(UserLimitSettings(), Clock(), lambda: free)
    assert limits.refusal(5) == "the queue is nearly full, try again later"
    assert limits.refusal(0) is None
    free = 6.0
    assert limits.refusal(5) is None


class Counted(UserLimits):
    """Takes this process for an ordinary user, also when it is root."""

    def exempt(self, uid: int) -> bool:
        return False


async def limited(world: World, clock: Clock | None = None, **settings: int) -> None:
    """Have this world's daemon and pickup limit the user."""
    limits = Counted(UserLimitSettings(**settings), clock or Ticks())
    world.submit._limits = limits
    world.pickup._limits = limits


async def test_the_excess_gets_75_and_the_next_interval_is_free() -> None:
    async with World() as world:
        await limited(world, submit_user_message_limit=2)
        done = [await world.run(["-i", "bob@r.test"], MESSAGE) for _ in range(3)]
        assert [d.status for d in done] == [0, 0, 75]
        assert "too many messages, try again later" in done[2].stderr
        assert len(await world.queued()) == 2
        assert os.listdir(world.queue / "maildrop") == []


async def test_a_user_with_all_connections_waits_and_then_uses_maildrop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        await limited(world, submit_user_connection_limit=1)
        reader, writer = await asyncio.open_unix_connection(str(world.queue / "public" / "submit"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(world.run(["-i", "bob@r.test"], MESSAGE))
        await asyncio.sleep(1.0)
        assert not waiting.done(), "it asks again while the daemon is busy"
        writer.close()
        await writer.wait_closed()
        assert (await waiting).status == 0
        assert len(await world.queued()) == 1
        assert os.listdir(world.queue / "maildrop") == []
        assert await reader.read() == b""


async def smtp_session(world: World) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a dialogue as `sendmail -bs` does; with it the kind of the first answer."""
    reader, writer = await asyncio.open_unix_connection(str(world.queue / "public" / "submit"))
    writer.write(encode(b"H", os.urandom(16) + b"s\0\0\0\2" + b"sendmail\0-bs\0"))
    return (await reader.readexactly(1)), reader, writer


async def test_dialogues_on_stdin_count_as_connections_for_as_long_as_they_last() -> None:
    async with World() as world:
        await limited(world, submit_user_connection_limit=2)
        sessions = [await smtp_session(world) for _ in range(2)]
        for _, reader, _ in sessions:
            await reader.readuntil(b"220 ")
        refused = await smtp_session(world)
        assert [kind for kind, _, _ in (*sessions, refused)] == [b"G", b"G", b"B"]
        refused[2].close()
        for _, reader, writer in sessions:
            writer.write(b"QUIT\r\n")
            await reader.read()
            writer.close()
        while world.submit._open:  # noqa: ASYNC110  nothing else says so
            await asyncio.sleep(0)
        kind, reader, writer = await smtp_session(world)
        assert kind == b"G"
        writer.close()
        await reader.read()


async def test_a_message_that_takes_its_time_does_not_have_the_answers_of_all_others_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit, "MAX_KEYS", 3)

    async def begin(world: World, key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(world.queue / "public" / "submit"))
        writer.write(encode(b"H", key + b"m" + words(["sendmail", "-i", "bob@r.test"])))
        assert (await reader.readexactly(13))[:1] == b"G"
        return reader, writer

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(b"D", MESSAGE) + encode(b"E", len(MESSAGE).to_bytes(8, "big")))
        assert await reader.read() == encode(b"R", b"\0")
        writer.close()

    async with World() as world:
        slow = await begin(world, b"slow".ljust(16))
        for n in range(10):
            await end(*await begin(world, bytes([n]) * 16))
        assert set(world.submit._answers) == {b"slow".ljust(16), b"\x08" * 16, b"\x09" * 16}
        await end(*slow)


async def test_pickup_takes_what_the_limit_allows_and_the_rest_later() -> None:
    async with World() as world:
        await world.stop()
        for _ in range(4):
            assert (await world.run(["-i", "bob@r.test"], MESSAGE)).status == 0
        clock = Ticks()
        await limited(world, clock, submit_user_message_limit=3)
        assert await world.pickup.scan() == 3
        assert len(os.listdir(world.queue / "maildrop")) == 1
        world.maillog.flush()
        assert sum("too many messages" in line for line in world.log) == 1
        clock.at += 60
        assert await world.pickup.scan() == 1


async def test_pickup_asks_whether_the_owner_may_submit() -> None:
    async with World() as world:
        await world.stop()
        assert (await world.run(["-i", "bob@r.test"], MESSAGE)).status == 0

        class Nobody:
            async def denied(self, allowed: object, uid: int) -> str | None:
                return "alice"

        world.pickup._access = Nobody()  # type: ignore[assignment]  # as Access
        assert await world.pickup.scan() == 0
        world.maillog.flush()
        assert any("User alice" in line and "is not allowed to submit mail" in line for line in world.log)
        assert len(os.listdir(world.queue / "maildrop")) == 1


@pytest.mark.needs_root
async def test_the_files_of_many_users_are_taken_in_turn(tmp_path: Path) -> None:
    with spooled(tmp_path / "q") as spool:
        for uid, count in ((1001, 6), (1002, 2)):
            for n in range(count):
                path = tmp_path / "q" / "maildrop" / f"{uid}X{n}"
                path.write_bytes(b"x")
                os.chown(path, uid, uid)
        names = await spool.store.scan_maildrop()
        assert {name.partition("X")[0] for name in names[:2]} == {"1001", "1002"}
        assert {name.partition("X")[0] for name in names[2:4]} == {"1001", "1002"}
        assert len(names) == 8


async def test_v_tells_what_becomes_of_the_message() -> None:
    async with World() as world:
        world.submit._results = True
        running = asyncio.create_task(world.run(["-v", "-i", "bob@r.test"], MESSAGE))
        queue_id = ""
        while not queue_id:
            await asyncio.sleep(0.02)
            queue_id = next((line.split(":")[0] for line in world.log if ": uid=" in line), "")
        while not world.maillog.watchers:  # noqa: ASYNC110  nothing else says so
            await asyncio.sleep(0.02)
        world.maillog.write("smtp", "OTHER: to=<x@y>, relay=none, dsn=4.0.0, status=deferred (no)")
        world.maillog.write("smtp", f"{queue_id}: to=<bob@r.test>, relay=mx:25, dsn=2.0.0, status=sent (250 ok)")
        world.maillog.write("qmgr", f"{queue_id}: removed")
        done = await running
        assert (done.status, done.stdout) == (0, f"{queue_id}\nbob@r.test... sent (250 ok)\n")
        assert world.maillog.watchers == []
        assert len(await world.queued()) == 1


async def test_results_end_with_the_patience(tmp_path: Path) -> None:
    async with World() as world:
        results = Results(world.maillog)
        assert await results.next("X", world.clock, world.clock.monotonic() + 0.1) is None
        results.close()
        results.close()
        assert encode(b"O", b"") == b"O\0\0\0\0"
