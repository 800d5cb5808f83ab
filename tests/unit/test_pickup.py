"""From maildrop to the queue: what is taken, what is left, and what nobody may smuggle in."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sendmail_compat.maildrop import LineRecords, record
from tests.sendmail.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as made:
        yield made


def drop(world: World, data: bytes, name: str = "A1", mode: int = 0o750) -> Path:
    path = world.queue / "maildrop" / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def message(
    *before: bytes, sender: bytes = b"alice", recipients: tuple[bytes, ...] = (b"bob",), text: bytes = b""
) -> bytes:
    lines = LineRecords()
    parts = [record(b"T", b"1800000000 0"), *before, record(b"S", sender)]
    parts += [record(b"R", r) for r in recipients]
    parts += [record(b"M", b""), lines.feed(text or b"Subject: s\n\nbody\n"), lines.end(), record(b"X", b"")]
    return b"".join([*parts, record(b"E", b"")])


async def test_a_complete_file_is_queued_once_and_removed(world: World) -> None:
    path = drop(world, message(record(b"A", b"rewrite_context=local"), record(b"F", b"Al X")))
    assert await world.pickup.scan() == 1
    assert not path.exists()
    (found,) = await world.queued()
    assert found.envelope.sender == "alice@example.test"
    assert found.header("From") == "From: Al X <alice@example.test>"
    assert found.headers[0].startswith(f"Received: by host.example.test (aiomta, from userid {os.getuid()})\n")
    assert await world.pickup.scan() == 0


async def test_unfinished_strange_and_damaged_files_stay_and_hold_nobody_up(world: World) -> None:
    folder = world.queue / "maildrop"
    drop(world, message(), "B1", mode=0o600)
    drop(world, b"garbage", "B2")
    drop(world, message()[:-2], "B3")  # no end
    drop(world, message(recipients=()), "B4")
    drop(world, message(sender=b"a\nb"), "B5")
    drop(world, message(recipients=(b"a\0b",)), "B6")
    os.mkfifo(folder / "B7", 0o750)
    (folder / "B8").symlink_to("/etc/passwd")
    (folder / "B9").mkdir()
    os.link(drop(world, message(), "C1"), folder / "C2")
    drop(world, message(), "Z9")
    assert await world.pickup.scan() == 1
    assert {p.name for p in folder.iterdir()} == {"B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "C1", "C2"}
    assert len(await world.queued()) == 1
    before = len(world.log)
    await world.pickup.scan()
    assert len(world.log) == before, "each refusal is logged once"


async def test_a_user_cannot_set_what_only_the_mta_knows(world: World) -> None:
    forged = message(
        record(b"A", b"log_client_address=192.0.2.9"), record(b"A", b"trace_flags=1"), record(b"A", b"sasl_username=x"),
        record(b"A", b"content_filter=smtp:evil"),
    )  # fmt: skip
    drop(world, forged)
    assert await world.pickup.scan() == 1
    (found,) = await world.queued()
    assert set(found.envelope.attributes) <= {"rewrite_context", "log_message_origin", "create_time"}


async def test_hops_over_the_limit_are_returned_to_the_sender(world: World) -> None:
    drop(world, message(text=b"Received: x\n" * 60 + b"\nbody\n"))
    assert await world.pickup.scan() == 1
    (found,) = await world.queued()
    assert found.envelope.attributes["content_filter"].startswith("error:5.4.6")


async def test_a_failing_table_leaves_the_file_for_the_next_scan() -> None:
    async with World(virtual_alias_maps=("fail:x",)) as world:
        path = drop(world, message())
        assert await world.pickup.scan() == 0
        assert path.exists()
        assert await world.queued() == []


async def test_a_file_that_cannot_be_removed_leaves_no_copy_behind(world: World) -> None:
    path = drop(world, message())

    def read_only(operation: str, target: str | int) -> None:
        if operation == "unlink" and target == str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    world.fsio.hook = read_only
    assert [await world.pickup.scan(), await world.pickup.scan()] == [0, 0]
    assert list((world.queue / "incoming").iterdir()) == []
    world.fsio.hook = None
    assert await world.pickup.scan() == 1
    assert len(await world.queued()) == 1
    assert not path.exists()


@pytest.mark.parametrize("time", [b"-9000000000000000 0", b"9000000000000000 0", b"0 0", b"-1 0"])
async def test_a_time_that_cannot_be_is_that_of_the_file_at_most_now(world: World, time: bytes) -> None:
    path = drop(world, message().replace(record(b"T", b"1800000000 0"), record(b"T", time)))
    os.utime(path, (1e9, 1e9))
    assert await world.pickup.scan() == 1
    (found,) = await world.queued()
    assert found.envelope.arrival == 1e9 or time[:1] == b"9"
    assert found.envelope.arrival <= world.clock.now()


async def test_an_envelope_that_would_fill_the_memory_is_not_read(world: World) -> None:
    path = drop(world, message(recipients=(b"b",) * 300_000))
    assert await world.pickup.scan() == 0
    assert path.exists()
    assert await world.queued() == []
    assert any("too many envelope records" in line for line in world.log)
