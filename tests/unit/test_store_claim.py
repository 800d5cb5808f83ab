"""Claiming many deferred messages at once: in memory or from the disk, and no message pays for another."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from mta.clock import Clock
from mta.fsio.flusher import WORKERS
from mta.fsio.fsio import Fsio
from mta.queue.api import QueueError, Reason
from mta.queue.store_claim import BATCH, SLOW, Opened, Opener
from tests.inline_fsio import InlineFsio
from tests.queue_support import Spooled, spooled
from tests.virtual_time import run_virtual

P = ParamSpec("P")
T = TypeVar("T")


class Counted(Fsio):
    """Counts visits to a thread; cold: nothing is in memory; warm: octets that are, otherwise.

    go: when visits may begin.  trouble: instead of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visits = 0
        self.cold = True
        self.warm = 1 << 30
        self.go = threading.Event()
        self.go.set()
        self.begun = asyncio.Event()
        self.trouble: Exception | None = None

    def pread_cached(self, fd: int, size: int, offset: int, end: int) -> bytes:
        if self.cold or min(end, offset + size) > self.warm:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return super().pread_cached(fd, size, offset, end)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.visits += 1
        self.begun.set()
        if self.trouble is not None:
            raise self.trouble
        await asyncio.get_running_loop().run_in_executor(self.pool(), self.go.wait)
        return await super().run(fn, *args, **kwargs)


@pytest.fixture
def disk() -> Counted:
    return Counted()


@pytest.fixture
def spool(tmp_path: Path, disk: Counted) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool", fsio=disk) as made:
        yield made


async def deferred(spool: Spooled, number: int) -> list[str]:
    found = []
    for _ in range(number):
        job = await spool.store.claim(await spool.accept())
        assert job is not None
        await spool.store.defer(job, spool.now, {})
        found.append(job.queue_id)
    return found


async def test_messages_that_are_in_memory_need_no_thread(spool: Spooled, disk: Counted) -> None:
    disk.cold = False
    waiting = await deferred(spool, 3 * BATCH)
    disk.visits = 0
    jobs = await asyncio.gather(*map(spool.store.claim, waiting))
    assert [job and job.queue_id for job in jobs] == waiting
    assert disk.visits == 0


@pytest.mark.parametrize(("recipients", "visits"), [(1000, 0), (10_000, 1)])
async def test_the_loop_does_not_stand_still_for_a_message_to_thousands(
    spool: Spooled, disk: Counted, recipients: int, visits: int
) -> None:
    disk.cold = False
    job = await spool.store.claim(await spool.accept(*(f"{'a' * 50}{n}@dst.test" for n in range(recipients))))
    assert job is not None
    await spool.store.defer(job, spool.now, {})
    disk.visits = 0
    again = await spool.store.claim(job.queue_id)
    assert again is not None and again.envelope == job.envelope
    assert disk.visits == visits


async def test_nor_when_it_came_just_now(spool: Spooled, disk: Counted) -> None:
    few, many = await spool.accept("b@dst.test"), await spool.accept(*(f"{n}@dst.test" for n in range(10_000)))
    assert await spool.store.claim(few) is not None and disk.visits == 0, "it is in memory"
    job = await spool.store.claim(many)
    assert job is not None and len(job.todo) == 10_000 and disk.visits == 1


async def test_nor_for_the_reasons_of_thousands(spool: Spooled, disk: Counted) -> None:
    for count, visits in ((10, 0), (5000, 1)):
        job = await spool.store.claim(await spool.accept(*(f"{n}@dst.test" for n in range(count))))
        assert job is not None
        reasons = {r.offset: Reason("4.4.1", "later") for r in job.todo}
        await spool.store.defer(job, spool.now, reasons)
        assert disk.visits == visits
        assert await spool.store.reasons(job) == reasons
        disk.visits = 0


async def test_a_message_of_which_only_a_part_is_in_memory_is_claimed_whole(spool: Spooled, disk: Counted) -> None:
    recipients = [f"{'a' * 50}{n}@dst.test" for n in range(1000)]
    job = await spool.store.claim(await spool.accept(*recipients))
    assert job is not None
    await spool.store.defer(job, spool.now, {})
    disk.cold, disk.warm, disk.visits = False, 20_000, 0
    again = await spool.store.claim(job.queue_id)
    assert again is not None and again.envelope == job.envelope
    assert disk.visits == 1


async def test_messages_that_are_due_together_share_visits_to_a_thread(spool: Spooled, disk: Counted) -> None:
    waiting = await deferred(spool, 3 * BATCH)
    disk.visits = 0
    jobs = await asyncio.gather(*map(spool.store.claim, waiting))
    assert [job and job.queue_id for job in jobs] == waiting
    assert spool.names("active") == sorted(waiting)
    assert disk.visits == 3


async def test_one_that_cannot_be_claimed_keeps_none_of_its_batch_from_it(spool: Spooled, disk: Counted) -> None:
    one, gone, locked, bad, damaged, last = await deferred(spool, 6)
    spool.path("deferred", gone).unlink()
    other = disk.open(str(spool.path("deferred", locked)))
    disk.flock(other)
    os.truncate(spool.path("deferred", damaged), 100)

    def hook(operation: str, target: str | int) -> None:
        if operation == "open" and str(target) == str(spool.path("deferred", bad)):
            raise OSError(24, "Too many open files")

    disk.hook = hook
    claims = map(spool.store.claim, (one, gone, locked, bad, damaged, last))
    got = await asyncio.gather(*claims, return_exceptions=True)
    disk.close_fd(other)
    assert [type(each).__name__ for each in got] == ["Job", "NoneType", "NoneType", "QueueError", "NoneType", "Job"]
    assert isinstance(got[3], QueueError)
    assert spool.names("deferred") == sorted((locked, bad))
    assert spool.names("corrupt") == [damaged]
    assert spool.names("active") == sorted((one, last))


async def test_a_claim_that_is_cancelled_leaves_its_message_to_the_next(spool: Spooled, disk: Counted) -> None:
    one, gone, other, locked = await deferred(spool, 4)
    held = disk.open(str(spool.path("deferred", locked)))
    disk.flock(held)
    spool.path("deferred", gone).unlink()
    disk.go.clear()
    claims = [asyncio.ensure_future(spool.store.claim(each)) for each in (one, gone, other, locked)]
    disk.begun.clear()
    await disk.begun.wait()
    for claim in (claims[0], claims[1], claims[3]):
        claim.cancel()
    await asyncio.gather(*claims[:2], claims[3], return_exceptions=True)
    disk.go.set()
    assert await claims[2] is not None
    disk.close_fd(held)
    assert await spool.store.claim(one) is not None  # nobody holds its lock
    assert await spool.store.claim(locked) is not None


async def test_what_happens_to_one_between_the_look_and_the_visit_is_his_alone(disk: Counted) -> None:
    dropped: list[int] = []

    def open_one(queue_id: str) -> Opened:
        if queue_id.startswith("gone"):
            raise FileNotFoundError(queue_id)
        return None if queue_id.startswith("locked") else (len(queue_id), "file", None)

    opener = Opener(disk, open_one, dropped.append)
    disk.go.clear()
    names = ("one", "gone", "locked", "cancelled", "gone and cancelled", "locked and cancelled")
    waiting = [asyncio.ensure_future(opener.open(name)) for name in names]
    await disk.begun.wait()
    for each in waiting[3:]:
        each.cancel()
    disk.go.set()
    got = await asyncio.gather(*waiting, return_exceptions=True)
    await opener.open("another")  # the visit is over
    assert got[0] == (3, "file", None) and got[2] is None
    assert [type(each).__name__ for each in got] == ["tuple", "FileNotFoundError", "NoneType", *["CancelledError"] * 3]
    assert dropped == [len("cancelled")]


async def test_where_no_thread_is_to_be_had_the_claims_fail_and_the_next_do_not(spool: Spooled, disk: Counted) -> None:
    waiting = await deferred(spool, 3)
    disk.trouble = RuntimeError("can't start new thread")
    got = await asyncio.gather(*map(spool.store.claim, waiting), return_exceptions=True)
    assert [str(each) for each in got] == ["can't start new thread"] * 3
    disk.trouble = None
    assert None not in await asyncio.gather(*map(spool.store.claim, waiting))


class SlowDisk(InlineFsio):
    """Each visit takes a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(aio=False, clock=clock)
        self.now, self.most = 0, 0

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.clock.sleep(1.0)
        self.now -= 1
        return fn(*args, **kwargs)


def test_while_the_disk_is_slow_it_is_asked_for_several_batches_at_once() -> None:
    async def main(clock: Clock) -> tuple[float, int]:
        disk = SlowDisk(clock)
        opener = Opener(disk, lambda _: None, lambda _: None)
        begun = clock.monotonic()
        await asyncio.gather(*(opener.open(str(n)) for n in range(4 * WORKERS * BATCH)))
        return clock.monotonic() - begun, disk.most

    seconds, most = run_virtual(main)
    assert most == WORKERS
    assert 4.0 <= seconds <= 4.0 + WORKERS * SLOW  # alone it would have been 32


def test_who_comes_while_a_slow_visit_is_under_way_does_not_wait_for_its_end() -> None:
    async def main(clock: Clock) -> float:
        opener = Opener(SlowDisk(clock), lambda _: None, lambda _: None)
        first = asyncio.ensure_future(opener.open("one"))
        await clock.sleep(2 * SLOW)
        begun = clock.monotonic()
        await opener.open("two")
        await first
        return clock.monotonic() - begun

    assert run_virtual(main) == pytest.approx(1.0 + SLOW)


def test_who_asks_for_one_after_the_other_waits_for_the_disk_alone() -> None:
    async def main(clock: Clock) -> float:
        opener = Opener(SlowDisk(clock), lambda _: None, lambda _: None)
        begun = clock.monotonic()
        for n in range(5):
            await opener.open(str(n))
        return clock.monotonic() - begun

    assert run_virtual(main) == pytest.approx(5.0)
