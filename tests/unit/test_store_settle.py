"""Marks, attempts, deferral, hold, removal: one step each, and what a disk error between them does."""

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mta.queue.api import FencedError, Job, Parent, Queue, QueueError, Reason
from mta.queue.queue_file import MAX_CRASHES
from mta.queue.store_spool import create_spool
from tests.queue_support import NOW, Spooled, spooled
from tests.unit.test_queue_file import decoded
from tests.unit.test_store import fail_at

WHY = Reason("4.4.1", "connect to mx[192.0.2.1]:25: Connection refused")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool") as made:
        yield made


async def claimed(spool: Spooled, *recipients: str, warn_time: float = 0.0) -> Job:
    job = await spool.store.claim(await spool.accept(*recipients, warn_time=warn_time))
    assert job is not None
    return job


async def again(spool: Spooled, queue_id: str) -> Job:
    job = await spool.store.claim(queue_id)
    assert job is not None
    return job


async def test_a_mark_is_one_byte_in_place(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    before = spool.only("active").read_bytes()
    spool.store.mark(job, job.todo[1])
    await spool.store.flush_marks(job)
    after = spool.only("active").read_bytes()
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [(ord("R"), ord("D"))]
    assert [r.address for r in job.todo] == ["b@dst.test"]
    await spool.store.give_back(job)
    assert [r.address for r in (await again(spool, job.queue_id)).todo] == ["b@dst.test"]


async def test_a_recipient_without_a_record_is_marked_in_memory_only(spool: Spooled) -> None:
    job = await claimed(spool)
    job.todo[0].offset = 0
    spool.store.mark(job, job.todo[0])
    await spool.store.flush_marks(job)
    assert job.todo == []


async def test_marks_that_did_not_reach_the_disk_are_written_again(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    for operation in ("pwrite", "flush"):
        spool.fsio.hook = fail_at(operation, errno.EIO)
        spool.store.mark(job, job.todo[0])
        with pytest.raises(QueueError):
            await spool.store.flush_marks(job)
        with pytest.raises(QueueError):
            await spool.store.defer(job, NOW, {})
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.store.flush_marks(job)
    assert steps == ["pwrite", "pwrite", "flush"]
    raw = spool.only("active").read_bytes()
    assert [r.state for r in decoded(raw).envelope.recipients] == ["D", "D"]
    await spool.store.flush_marks(job)
    assert len(steps) == 3, "nothing left to flush"
    await spool.store.finish(job)


async def test_a_mark_made_during_a_flush_is_not_taken_for_durable(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test", "d@dst.test")
    flushes = []
    for recipient in job.todo[:2]:
        spool.store.mark(job, recipient)
        flushes.append(asyncio.ensure_future(spool.store.flush_marks(job)))
        await asyncio.sleep(0)
    spool.store.mark(job, job.todo[0])
    await asyncio.gather(*flushes)
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.store.flush_marks(job)
    assert steps == ["flush"]


async def test_the_unlink_is_the_mark_of_all_and_its_flush_follows_within_a_moment(spool: Spooled) -> None:
    job = await claimed(spool)
    steps: list[str] = []
    flushed = asyncio.Event()

    def hook(operation: str, _: str | int) -> None:
        steps.append(operation)
        if operation == "flush":
            flushed.set()

    spool.fsio.hook = hook
    spool.store.mark(job, job.todo[0])
    await spool.store.finish(job)
    assert steps == ["pwrite", "unlink", "close"], "nobody waits"
    await flushed.wait()
    assert steps[3:] == ["flush"], "of the directory"
    assert spool.names("active") == []
    with pytest.raises(FencedError):
        await spool.store.finish(job)


@pytest.mark.parametrize("step", ["finish", "defer", "hold", "give_back"])
async def test_a_message_whose_spool_was_moved_away_is_settled_when_it_is_back(spool: Spooled, step: str) -> None:
    """Or something else is mounted where it was: what is there has the same directories and not the message."""
    job = await claimed(spool)
    away = spool.root.with_name("away")
    spool.root.rename(away)
    create_spool(spool.store.settings, spool.fsio)
    settle = {
        "finish": partial(spool.store.finish, job),
        "defer": partial(spool.store.defer, job, NOW, {}),
        "hold": partial(spool.store.hold, job),
        "give_back": partial(spool.store.give_back, job),
    }[step]
    with pytest.raises(QueueError, match="was moved away") as trouble:
        await settle()
    assert not isinstance(trouble.value, FencedError), "it is still ours"
    shutil.rmtree(spool.root)
    away.rename(spool.root)
    await settle()
    assert spool.names("active") == []
    assert spool.names("deferred") == ([job.queue_id] if step == "defer" else [])


async def test_a_deferred_message_waits_with_its_reasons(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    spool.store.mark(job, job.todo[0])
    offset = job.todo[0].offset
    await spool.store.defer(job, NOW + 300.25, {offset: WHY})
    assert spool.names("active") == []
    assert await spool.store.scan(Queue.DEFERRED) == [(job.queue_id, NOW + 300.25)]
    assert spool.path("deferred", job.queue_id).parent.name == job.queue_id[0]
    job = await again(spool, job.queue_id)
    assert job.origin_queue is Queue.DEFERRED
    assert await spool.store.reasons(job) == {offset: WHY}
    spool.store.mark(job, job.todo[0])
    await spool.store.finish(job)
    assert spool.names("defer") == spool.names("active") == []


async def test_reasons_of_recipients_that_were_not_tried_stay(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test", "d@dst.test")
    b, c, d = (r.offset for r in job.todo)
    await spool.store.defer(job, NOW, {b: WHY, c: WHY})
    job = await again(spool, job.queue_id)
    spool.store.mark(job, job.todo[0])
    other = Reason("4.7.1", "greylisted", diag_type="smtp", diag_text="450 4.7.1 greylisted", mta_name="mx.dst.test")
    await spool.store.defer(job, NOW, {d: other})
    job = await again(spool, job.queue_id)
    assert await spool.store.reasons(job) == {c: WHY, d: other}


async def test_the_steps_of_a_deferral_are_in_order(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.begin_attempt(job)
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.store.defer(job, NOW, {job.todo[0].offset: WHY})
    assert steps == ["pwrite", "write_file", "utime", "rename", "close"]


@pytest.mark.parametrize("operation", ["write_file", "utime", "rename"])
async def test_a_deferral_that_fails_can_be_repeated(spool: Spooled, operation: str) -> None:
    job = await claimed(spool)
    spool.fsio.hook = fail_at(operation, errno.ENOSPC)
    with pytest.raises(QueueError):
        await spool.store.defer(job, NOW, {job.todo[0].offset: WHY})
    spool.fsio.hook = None
    await spool.store.defer(job, NOW, {job.todo[0].offset: WHY})
    assert await spool.store.reasons(await again(spool, job.queue_id))


async def test_hash_directories_are_made_when_missing(spool: Spooled) -> None:
    job = await claimed(spool)
    for name in ("defer", "deferred"):
        for directory in (spool.root / name).iterdir():
            directory.rmdir()
    await spool.store.defer(job, NOW, {job.todo[0].offset: WHY})
    assert spool.names("deferred") == spool.names("defer") == [job.queue_id]


async def test_deeper_hashing_and_none(tmp_path: Path) -> None:
    for depth in (0, 2):
        with spooled(tmp_path / str(depth), depth=depth) as spool:
            job = await claimed(spool)
            await spool.store.defer(job, NOW, {job.todo[0].offset: WHY})
            path = spool.only("deferred")
            assert len(path.relative_to(spool.root / "deferred").parts) == depth + 1
            assert await spool.store.claim(path.name) is not None


async def test_attempts_that_never_end_are_counted(spool: Spooled) -> None:
    job = await claimed(spool)
    for n in range(12):
        assert job.crashes == min(n, MAX_CRASHES)
        await spool.store.begin_attempt(job)
        await spool.store.give_back(job, crashed=True)
        job = await again(spool, job.queue_id)


async def test_an_attempt_that_ends_is_not_a_crash(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.begin_attempt(job)
    await spool.store.give_back(job)
    job = await again(spool, job.queue_id)
    assert job.crashes == 0
    await spool.store.begin_attempt(job)
    await spool.store.defer(job, NOW, {})
    assert (await again(spool, job.queue_id)).crashes == 0


async def test_an_attempt_that_cannot_be_recorded_does_not_begin(spool: Spooled) -> None:
    job = await claimed(spool)
    spool.fsio.hook = fail_at("pwrite", errno.EIO)
    with pytest.raises(QueueError):
        await spool.store.begin_attempt(job)


async def test_hold_parks_a_message_and_forgets_its_crashes(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.begin_attempt(job)
    await spool.store.hold(job)
    assert spool.names("hold") == [job.queue_id]
    assert b"crashes=0" in spool.only("hold").read_bytes()


async def test_giving_back_restores_queue_and_time(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.defer(job, NOW + 500, {})
    job = await again(spool, job.queue_id)
    await spool.store.begin_attempt(job)
    await spool.store.give_back(job)
    assert await spool.store.scan(Queue.DEFERRED) == [(job.queue_id, NOW + 500)]
    job = await claimed(spool)
    await spool.store.give_back(job)
    assert [i for i, _ in await spool.store.scan(Queue.INCOMING)] == [job.queue_id]


async def test_a_sent_delay_notice_is_recorded_with_the_marks(spool: Spooled) -> None:
    job = await claimed(spool, warn_time=NOW + 60)
    assert job.envelope.warn_time == NOW + 60
    job.envelope.warn_time = 0.0
    await spool.store.flush_marks(job)
    await spool.store.give_back(job)
    assert (await again(spool, job.queue_id)).envelope.warn_time == 0.0


@pytest.mark.parametrize("step", ["finish", "defer", "hold", "give_back"])
async def test_a_message_somebody_else_removed_is_forgotten_not_made_again(spool: Spooled, step: str) -> None:
    job = await claimed(spool)
    spool.only("active").unlink()
    with pytest.raises(FencedError):
        match step:
            case "finish":
                await spool.store.finish(job)
            case "defer":
                await spool.store.defer(job, NOW, {})
            case "hold":
                await spool.store.hold(job)
            case _:
                await spool.store.give_back(job)
    assert not any(spool.names(q) for q in ("incoming", "active", "deferred", "hold"))


async def test_a_parent_that_forwards_and_finishes_in_order(spool: Spooled) -> None:
    job = await claimed(spool, "list@dst.test")
    child = await spool.draft("leaf@dst.test")
    await child.commit(parent=Parent("forward", job.uid, job.queue_id, (job.todo[0].offset,)))
    spool.store.mark(job, job.todo[0])
    await spool.store.flush_marks(job)
    await spool.store.release([child])
    await spool.store.finish(job)
    assert (await again(spool, child.queue_id)).envelope.recipients[0].address == "leaf@dst.test"


async def test_an_adopted_file_has_a_stable_stand_in_for_its_uid(spool: Spooled) -> None:
    raw = (Path(__file__).parents[1] / "golden/queue/milter.bin").read_bytes()
    path = spool.path("incoming", "ABC99")
    path.write_bytes(raw)
    path.chmod(0o700)
    job = await again(spool, "ABC99")
    assert len(job.todo) == 3
    for name in ("bounce", "trace"):
        (spool.root / name / "ABC99").write_text("left by another MTA")
    uid = job.uid
    assert uid
    await spool.store.begin_attempt(job)
    await spool.store.give_back(job)
    job = await again(spool, "ABC99")
    assert job.uid == uid
    for recipient in job.todo:
        spool.store.mark(job, recipient)
    await spool.store.finish(job)
    assert spool.names("bounce") == spool.names("trace") == []


async def test_wake_makes_deferred_messages_due(spool: Spooled) -> None:
    found = []
    for n in range(3):
        job = await claimed(spool)
        await spool.store.defer(job, NOW + 100 * n, {})
        found.append(job.queue_id)
    assert await spool.store.wake([found[2], "ABC", "../x"]) == 1
    assert dict(await spool.store.scan(Queue.DEFERRED)) == {found[0]: NOW, found[1]: NOW + 100, found[2]: NOW}
    assert await spool.store.wake() == 1
    assert {when for _, when in await spool.store.scan(Queue.DEFERRED)} == {NOW}


async def test_a_time_far_ahead_counts_as_now(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.defer(job, NOW + 10 * 365 * 86400, {})
    assert await spool.store.scan(Queue.DEFERRED) == [(job.queue_id, NOW)]


async def test_scan_sees_only_complete_messages(spool: Spooled) -> None:
    queue_id = await spool.accept()
    draft = await spool.draft()
    (spool.root / "incoming" / "ABC").write_bytes(b"")
    os.chmod(spool.root / "incoming" / "ABC", 0o600)
    (spool.root / "incoming" / "D").mkdir(mode=0o700)
    (spool.root / "incoming" / "DIR").mkdir(mode=0o700)
    assert [i for i, _ in await spool.store.scan(Queue.INCOMING)] == [queue_id]
    draft.abort()


async def test_a_row_of_the_listing_takes_time_in_proportion_to_its_recipients(spool: Spooled) -> None:
    async def spent(count: int) -> float:
        job = await claimed(spool, *(f"{n}@dst.test" for n in range(count)))
        await spool.store.defer(job, NOW, {r.offset: WHY for r in job.todo})
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            (row,) = [row async for row in spool.store.listing()]
            best = min(best, time.process_time() - begun)
        assert len(row.recipients) == len(row.reasons) == count
        spool.path("deferred", job.queue_id).unlink()
        return best

    few, many = await spent(2500), await spent(10_000)
    assert many < 7 * few


async def test_the_listing_is_in_the_order_of_mailq(spool: Spooled) -> None:
    raw = (Path(__file__).parents[1] / "golden/queue/maildrop.bin").read_bytes()
    dropped = spool.root / "maildrop" / "ABC0"
    dropped.write_bytes(raw)
    dropped.chmod(0o750)
    job = await claimed(spool, "b c@dst.test", "c@dst.test", "d@dst.test")
    spool.store.mark(job, job.todo[0])
    await spool.store.defer(job, NOW, {job.todo[1].offset: WHY})
    held = await claimed(spool, "held@dst.test")
    await spool.store.hold(held)
    active = await claimed(spool, "active@dst.test")
    waiting = await spool.accept("in@dst.test", sender="")
    (spool.root / "incoming" / "BAD").write_bytes(b"no queue file")
    os.chmod(spool.root / "incoming" / "BAD", 0o700)
    rows = [row async for row in spool.store.listing()]
    assert [(row.queue, row.queue_id) for row in rows] == [
        (Queue.MAILDROP, "ABC0"), (Queue.ACTIVE, active.queue_id), (Queue.INCOMING, waiting),
        (Queue.DEFERRED, job.queue_id), (Queue.HOLD, held.queue_id),
    ]  # fmt: skip
    deferred = rows[3]
    assert deferred.recipients == ("d@dst.test", "c@dst.test"), "those with a reason come first"
    assert dict(deferred.reasons) == {"d@dst.test": WHY.text}
    assert (deferred.size, deferred.arrival, deferred.sender) == (job.size, NOW, "a@src.test")
    assert rows[0].size == len(raw)
    assert rows[2].sender == ""
