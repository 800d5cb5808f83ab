"""From maildrop to the queue: what is taken, what is left, and what nobody may smuggle in."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta import pickup as pickup_module
from mta.lookup import source
from mta.lookup.table import TableError
from mta.pickup import Pickup, PickupSettings
from mta.queue import maildrop_rules
from mta.submit.limits import UserLimits, UserLimitSettings
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


async def test_a_file_that_goes_away_while_it_is_copied_was_taken_back(world: World) -> None:
    path = drop(world, message())

    def take_back(operation: str, target: str | int) -> None:
        if operation == "rename":  # of the copy, which is complete
            path.unlink(missing_ok=True)

    world.fsio.hook = take_back
    assert await world.pickup.scan() == 0
    assert list((world.queue / "incoming").iterdir()) == []


async def test_a_file_that_changes_while_it_is_copied_is_copied_again_and_queued_once(world: World) -> None:
    path = drop(world, message())
    changes = [0o751]

    def change(operation: str, target: str | int) -> None:
        if operation == "rename" and changes:
            path.chmod(changes.pop())

    world.fsio.hook = change
    assert [await world.pickup.scan(), await world.pickup.scan()] == [0, 1]
    assert len(await world.queued()) == 1
    assert not path.exists()


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


@pytest.mark.parametrize(("count", "said"), [(250_001, "too many recipients"), (760_000, "too many envelope records")])
async def test_an_envelope_that_would_fill_the_memory_is_not_read(count: int, said: str, world: World) -> None:
    path = drop(world, message(recipients=(b"b",) * count))
    assert await world.pickup.scan() == 0
    assert path.exists()
    assert await world.queued() == []
    assert any(said in line for line in world.log)


@pytest.mark.parametrize("limit", ["MAX_RECORDS", "MAX_RECIPIENTS"])
async def test_a_requeued_message_may_have_more_recipients_than_what_is_taken_in(
    limit: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maildrop_rules, limit, 3)
    settings = world.settings(PickupSettings)
    owners = Pickup(settings, world.store, world.cleanup, os.getuid(), world.maillog, world.clock)
    drop(world, message(recipients=(b"a", b"b", b"c", b"d")))
    assert await owners.scan() == 1
    (found,) = await world.queued()
    assert len(found.envelope.recipients) == 4


@pytest.mark.parametrize(("sender", "recipient", "asked"), [
    (b"alice", b"bob", False), ("jürgen".encode(), b"bob", True), (b"alice", "jürgen@x.test".encode(), True),
])  # fmt: skip
async def test_an_address_that_is_not_ascii_asks_for_smtputf8_as_from_the_socket(
    sender: bytes, recipient: bytes, asked: bool, world: World
) -> None:
    drop(world, message(sender=sender, recipients=(b"carol", recipient)))
    assert await world.pickup.scan() == 1
    (found,) = await world.queued()
    assert found.envelope.smtputf8 is asked


@pytest.mark.parametrize(("orcpt", "kept"), [
    (b"rfc822;a b@c", True), (b"rfc822\r\nRCPT TO:<inj@y.test>\r\nX;a@b", False), (b"rfc822;a\0b", False),
    (b"rfc822", False), (b";a@b", False), (b"rfc822;", False), (b"rfc822;" + b"x" * 600, False),
])  # fmt: skip
async def test_a_detail_that_smtp_could_not_say_is_left_out(orcpt: bytes, kept: bool, world: World) -> None:
    given = message(
        record(b"A", b"envelope_id=x\r\nRSET"), record(b"A", b"encoding=8bit" + (b"" if kept else b"\r\nX")),
        record(b"O", b"o\nX: 1"),
        record(b"A", b"dsn_orig_rcpt=" + orcpt),
    )  # fmt: skip
    drop(world, given)
    assert await world.pickup.scan() == 1
    (found,) = await world.queued()
    (recipient,) = found.envelope.recipients
    assert recipient.dsn_orig_rcpt == (orcpt.decode() if kept else "rfc822;bob@example.test")
    assert found.envelope.encoding == ("8bit" if kept else "")
    assert "\n" not in recipient.original + found.envelope.envelope_id


async def test_it_scans_at_once_when_poked_and_every_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: asyncio.Queue[str] = asyncio.Queue()
    world.store.arrived = lambda queue_id, _: arrived.put_nowait(queue_id)
    drop(world, message(), "A1")
    task = asyncio.ensure_future(world.pickup.run())
    try:
        async with asyncio.timeout(20):
            await arrived.get()
            drop(world, message(), "A2")
            await asyncio.sleep(0.05)
            assert arrived.empty(), "a minute has not passed"
            world.pickup.poke()
            await arrived.get()
            monkeypatch.setattr(pickup_module, "SCAN_INTERVAL", 0.01)
            world.pickup.poke()  # the wait that is under way still lasts a minute
            for name in ("A3", "A4"):
                drop(world, message(), name)
                await arrived.get()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(await world.queued()) == 4


async def test_a_maildrop_that_cannot_be_read_is_a_line_in_the_log_and_no_end(world: World) -> None:
    folder = world.queue / "maildrop"
    folder.rename(world.queue / "elsewhere")
    assert await world.pickup.scan() == 0
    world.maillog.flush()
    assert any("maildrop: [Errno 2]" in line for line in world.log)
    (world.queue / "elsewhere").rename(folder)
    drop(world, message())
    assert await world.pickup.scan() == 1


async def test_a_message_over_the_limit_is_refused_once_and_stays_with_its_owner() -> None:
    async with World(message_size_limit=2000) as world:
        path = drop(world, message(text=b"Subject: s\n\n" + b"a line of text\n" * 1000))
        assert [await world.pickup.scan(), await world.pickup.scan()] == [0, 0]
        assert path.exists()
        assert await world.queued() == []
        world.maillog.flush()
        (line,) = [line for line in world.log if "maildrop/A1" in line]
        assert "552 5.3.4" in line


async def test_a_requeued_message_may_be_longer_than_what_is_taken_in() -> None:
    """It was taken in before: our Received makes it longer, a bounce has no limit, and the limit may have changed."""
    async with World(message_size_limit=2000) as world:
        path = drop(world, message(text=b"Subject: s\n\n" + b"a line of text\n" * 1000))
        pickup = Pickup(PickupSettings(50), world.store, world.cleanup, os.getuid(), world.maillog, world.clock)
        assert await pickup.scan() == 1
        assert not path.exists()
        (found,) = await world.queued()
        assert found.body == ["a line of text"] * 1000


async def test_a_header_that_cannot_be_looked_up_leaves_the_file_for_the_next_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "CHECK_INTERVAL", 0.0)
    table = tmp_path / "canonical"
    classes = ("header_sender", "header_recipient")
    async with World(canonical_maps=(f"hash:{table}",), canonical_classes=classes) as world:
        path = drop(world, message(text=b"From: alice\n\nbody\n"))
        assert await world.pickup.scan() == 0
        assert path.exists()
        table.write_text("alice@example.test al@example.test\n")
        os.utime(table, (1e9, 1e9))
        assert await world.pickup.scan() == 1
        (found,) = await world.queued()
        assert found.header("From") == "From: al@example.test"


async def test_a_bug_costs_one_file_and_not_the_service(world: World) -> None:
    path = drop(world, message(), "A1")

    def bug(operation: str, _: str | int) -> None:
        if operation == "open_excl":
            world.fsio.hook = None
            raise LookupError("a bug")

    world.fsio.hook = bug
    drop(world, message(), "A2")
    assert await world.pickup.scan() == 1
    assert sum(p.exists() for p in (path, path.with_name("A2"))) == 1
    world.maillog.flush()
    assert any("internal error: LookupError: a bug" in line for line in world.log)


async def test_a_file_that_its_owner_cuts_off_meanwhile_leaves_nothing_in_the_queue(world: World) -> None:
    path = drop(world, message(text=b"Subject: s\n\n" + b"a line of text\n" * 10_000))

    def owner(operation: str, _: str | int) -> None:
        if operation == "open_excl":  # its recipients are known, its text is to be copied
            os.truncate(path, 40_000)

    world.fsio.hook = owner
    assert await world.pickup.scan() == 0
    assert list((world.queue / "incoming").iterdir()) == []
    world.maillog.flush()
    assert any("not a message: " in line for line in world.log)


async def test_a_file_of_mail_owner_is_a_requeued_message_and_keeps_its_envelope(world: World) -> None:
    given = message(record(b"A", b"log_client_address=192.0.2.9"), record(b"A", b"rewrite_context=remote"))
    for owner, kept in ((os.getuid(), True), (os.getuid() + 1, False)):
        drop(world, given)
        pickup = Pickup(PickupSettings(50), world.store, world.cleanup, owner, world.maillog, world.clock)
        assert await pickup.scan() == 1
        found = (await world.queued())[-1]
        assert ("log_client_address" in found.envelope.attributes) is kept
        if kept:
            assert found.envelope.arrival == 1_800_000_000
        else:
            assert found.envelope.arrival <= time.time()


async def test_a_requeued_message_that_was_delivered_meanwhile_is_removed_and_a_user_s_like_it_stays(
    world: World,
) -> None:
    """Put on hold during its last delivery, it is done for everybody when it is requeued."""
    done = message().replace(record(b"R", b"bob"), record(b"D", b"bob"))
    for owner, left in ((os.getuid(), False), (os.getuid() + 1, True)):
        path = drop(world, done)
        pickup = Pickup(PickupSettings(50), world.store, world.cleanup, owner, world.maillog, world.clock)
        assert await pickup.scan() == (0 if left else 1)
        assert path.exists() is left
        assert any(line == f"{path.name}: removed" for line in world.log) is not left
        world.sink.lines.clear()
    assert await world.queued() == []
    drop(world, message(recipients=()))
    owners = Pickup(PickupSettings(50), world.store, world.cleanup, os.getuid(), world.maillog, world.clock)
    assert await owners.scan() == 0, "one that never had any is no message"


@pytest.mark.parametrize(("hops", "pad", "returned"), [(49, 0, False), (50, 0, True), (50, 1000, True)])
async def test_hops_are_counted_to_the_end_of_the_header(hops: int, pad: int, returned: bool, world: World) -> None:
    """Also when the header is longer than one piece, or all there is."""
    text = b"X-Pad: 0123456789012345678901234567890123456789\n" * pad + b"Received: x\n" * hops
    for i, end in enumerate((b"\nbody\n", b"")):
        drop(world, message(text=text + end), f"A{i}")
    assert await world.pickup.scan() == 2
    for found in await world.queued():
        assert ("content_filter" in found.envelope.attributes) is returned


async def test_a_flood_is_taken_in_parts_until_nothing_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickup_module, "AT_ONCE", 2)
    drop(world, b"garbage", "B1")
    assert await world.pickup.scan() == 0
    for n in range(5):
        drop(world, message(), f"A{n}")
    again: list[bool] = []
    monkeypatch.setattr(world.pickup, "poke", lambda: again.append(True))
    assert [await world.pickup.scan() for _ in range(4)] == [2, 2, 1, 0]
    assert again == [True, True], "scans at once while there is more, and not for what it has refused"
    assert len(await world.queued()) == 5


async def test_after_a_file_that_took_long_it_looks_who_has_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickup_module, "LONG", 0.0)
    for n in range(3):
        drop(world, message() if n else b"garbage", f"A{n}")
    again: list[bool] = []
    monkeypatch.setattr(world.pickup, "poke", lambda: again.append(True))
    assert sorted([await world.pickup.scan() for _ in range(3)]) == [0, 1, 1]
    assert again == [True, True]
    assert await world.pickup.scan() == 0 and again == [True, True]


class ForAll(UserLimits):
    """Limits also whoever runs the tests, root or not."""

    def exempt(self, uid: int) -> bool:
        return False


class Answers:
    """Access that says this of everybody."""

    def __init__(self, answer: str | TableError | None) -> None:
        self.answer = answer

    async def denied(self, allowed: object, uid: int) -> str | None:
        if isinstance(self.answer, TableError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(("answer", "said", "later"), [
    (None, "", 0), ("alice", "User alice(", 0), (TableError("hash:x", "cannot be read"), "will try again", 1),
])  # fmt: skip
async def test_whether_its_owner_may_submit_decides_over_a_file(
    world: World, answer: str | TableError | None, said: str, later: int
) -> None:
    """One that may not stays where it is; a table that fails says nothing about anybody."""
    path = drop(world, message())
    world.pickup._access = Answers(answer)  # type: ignore[assignment]  # as Access
    assert await world.pickup.scan() == (answer is None)
    assert path.exists() is (answer is not None)
    world.maillog.flush()
    assert said in "\n".join(world.log)
    world.pickup._access = Answers(None)  # type: ignore[assignment]
    assert await world.pickup.scan() == later


async def test_a_user_over_his_limit_waits_and_mail_owner_does_not(world: World) -> None:
    for name in ("A1", "A2", "A3"):
        drop(world, message(), name)
    world.pickup._limits = ForAll(UserLimitSettings(submit_user_message_limit=1), world.clock)
    assert await world.pickup.scan() == 1
    world.maillog.flush()
    assert sum("too many messages, try again later" in line for line in world.log) == 1
    owner = Pickup(PickupSettings(50), world.store, world.cleanup, os.getuid(), world.maillog, world.clock,
                   limits=world.pickup._limits)  # fmt: skip
    assert await owner.scan() == 2
