"""One disk operation fails, the first, the second, the third...: only QueueErrors come out, and the message arrives.

The method of SQLite's tests: n grows until a run meets no fault any more.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from mta.queue.api import FencedError, Job, Parent, Queue, QueueError, Reason
from mta.queue.store_draft import SpoolDraft, State
from tests.inline_fsio import InlineFsio
from tests.queue_support import NOW, Spooled, spooled
from tests.unit.test_store import fail_at


class Fault:
    """Fails the n-th disk operation, once."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.count = at, number, 0

    def __call__(self, op: str, _: str | int) -> None:
        self.count += 1
        if self.count == self.at and op != "close":
            raise OSError(self.number, os.strerror(self.number))


T = TypeVar("T")


async def again(spool: Spooled, work: Callable[[], Awaitable[T]]) -> T:
    """What callers do: a QueueError means "later"."""
    for _ in range(3):
        spool.store.space.next_probe = 0.0
        try:
            return await work()
        except FencedError:
            raise
        except QueueError:
            continue
    raise AssertionError("one fault, and no end of errors")


async def whole_life(spool: Spooled, delivered: list[str]) -> None:
    """Accept, deliver one of two, defer, bounce the other, deliver the bounce."""

    async def accept() -> str:
        return await spool.accept("ok@dst.test", "bad@dst.test")

    queue_id = await again(spool, accept)
    job = await claim(spool, queue_id)
    await again(spool, lambda: spool.store.begin_attempt(job))
    spool.store.mark(job, job.todo[0])
    delivered.append("ok@dst.test")
    await again(spool, lambda: spool.store.flush_marks(job))
    offset = job.todo[0].offset
    await again(spool, lambda: spool.store.defer(job, NOW, {offset: Reason("4.0.0", "later")}))
    second = await claim(spool, queue_id)

    async def bounce() -> SpoolDraft:
        draft = await spool.draft("a@src.test", sender="")
        await draft.commit(parent=Parent("bounce", second.uid, queue_id, (offset,)))
        return draft

    child = await again(spool, bounce)
    spool.store.mark(second, second.todo[0])
    await again(spool, lambda: spool.store.flush_marks(second))
    await spool.store.release([child])
    await again(spool, lambda: spool.store.finish(second))
    last = await claim(spool, child.queue_id)
    spool.store.mark(last, last.todo[0])
    delivered.append("bounce")
    await again(spool, lambda: spool.store.finish(last))


async def claim(spool: Spooled, queue_id: str) -> Job:
    for _ in range(3):
        job = await again(spool, lambda: spool.store.claim(queue_id))
        if job is not None:
            return job
    raise AssertionError(f"{queue_id} cannot be claimed")


@pytest.mark.parametrize("number", [
    errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.ENOMEM, errno.EINTR, errno.ESTALE, errno.EDQUOT,
    errno.ENFILE,
])  # fmt: skip
async def test_a_fault_at_any_operation_is_a_queue_error_and_nothing_is_lost(tmp_path: Path, number: int) -> None:
    n = 0
    while True:
        n += 1
        with spooled(tmp_path / str(n), fsio=InlineFsio()) as spool:
            fault = Fault(n, number)
            spool.fsio.hook = fault
            delivered: list[str] = []
            try:
                await whole_life(spool, delivered)
            except AssertionError as error:
                # one unreadable sector: the file is put aside, whole
                assert number == errno.EIO, (n, error)
                assert len(spool.names("corrupt")) == 1
                continue
            assert delivered == ["ok@dst.test", "bounce"]
            left = {q: spool.names(q) for q in ("incoming", "active", "deferred", "defer", "hold", "corrupt")}
            assert not any(left.values()), (n, left)
            if fault.count < n:
                assert n > 30
                return


async def test_a_fault_at_any_operation_of_recovery_only_postpones(tmp_path: Path) -> None:
    n = 0
    while True:
        n += 1
        with spooled(tmp_path / str(n), fsio=InlineFsio()) as spool:
            job = await claim(spool, await spool.accept("ok@dst.test", "bad@dst.test"))
            child = await spool.draft("a@src.test", sender="")
            await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
            (spool.root / "incoming" / "99.99").write_bytes(b"torn")
            os.close(child._fd)
            os.close(getattr(job.handle, "fd", -1))
            fault = Fault(n, errno.EIO)
            spool.fsio.hook = fault
            await spool.store.recover()
            spool.fsio.hook = None
            spool.store.close()
            await spool.store.recover()
            assert spool.names("active") == []
            parent = await spool.store.claim(job.queue_id)
            if parent is None:  # it could not be read: aside
                assert len(spool.names("corrupt")) == 1
                assert child.queue_id in spool.names("incoming")
            elif child.queue_id in spool.names("incoming") + spool.names("corrupt"):
                assert [r.address for r in parent.todo] == ["bad@dst.test"]
            else:  # removed, because its parent knew nothing of it and repeats it
                assert [r.address for r in parent.todo] == ["ok@dst.test", "bad@dst.test"]
            if fault.count < n:
                return


async def test_a_queue_that_cannot_be_read_is_a_queue_error(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:
        await spool.accept()

        def refuse(*_: object) -> object:
            raise OSError(errno.EACCES, "Permission denied")

        spool.fsio.__dict__["scandir"] = refuse
        with pytest.raises(QueueError):
            await spool.store.scan(Queue.INCOMING)
        with pytest.raises(QueueError):
            await spool.store.wake()


async def test_a_lock_that_fails_or_a_space_that_is_unknown_refuses_the_draft(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:

        def refuse(*_: object) -> object:
            raise OSError(errno.ENOLCK, "No locks available")

        for name in ("statvfs", "flock"):
            spool.fsio.__dict__[name] = refuse
            with pytest.raises(QueueError):
                await spool.draft()
            del spool.fsio.__dict__[name]
        assert len(spool.names("incoming")) <= 1


async def test_a_close_that_fails_is_logged(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:
        job = await claim(spool, await spool.accept())
        spool.fsio.hook = fail_at("close", errno.EIO)
        await spool.store.give_back(job)
        assert "close" in spool.log.lines[0]


async def test_only_drafts_of_this_store_can_be_released(tmp_path: Path) -> None:
    class Other:
        queue_id = uid = ""
        size = 0

    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool, pytest.raises(TypeError):
        await spool.store.release([Other()])  # type: ignore[list-item]  # that is the point


async def test_a_child_that_can_neither_be_removed_nor_changed_is_not_claimed_and_removed_later(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:
        job = await claim(spool, await spool.accept("ok@dst.test"))
        child = await spool.draft("a@src.test", sender="")

        def broken(operation: str, _: str | int) -> None:
            if operation in ("flush", "unlink") or (operation == "fchmod" and child.state is not State.OPEN):
                raise OSError(errno.EIO, "Input/output error")

        spool.fsio.hook = broken
        with pytest.raises(QueueError):
            await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
        assert await spool.store.claim(child.queue_id) is None
        spool.fsio.hook = None
        await spool.store.scan(Queue.INCOMING)
        assert spool.names("incoming") == []


async def test_a_child_that_can_neither_be_removed_nor_marked_stays_locked_until_a_scan_can_remove_it(
    tmp_path: Path,
) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:
        child = await spool.draft()
        child.write(b"Subject: x\n\n")
        await child.commit(parent=Parent("bounce", "00" * 16, "ABC", (1,)))

        def broken(operation: str, _: str | int) -> None:
            if operation in ("unlink", "fchmod"):
                raise OSError(errno.EIO, "Input/output error")

        spool.fsio.hook = broken
        child.abort()
        await spool.store.scan(Queue.INCOMING)
        assert spool.names("incoming") == [child.queue_id]
        assert await spool.store.claim(child.queue_id) is None, "its parent makes another one"
        spool.fsio.hook = None
        await spool.store.scan(Queue.INCOMING)
        assert spool.names("incoming") == []


async def test_a_worker_removes_what_it_could_not_with_its_next_message(tmp_path: Path) -> None:
    with spooled(tmp_path / "spool", fsio=InlineFsio()) as spool:
        spool.store.owner = False  # it does not scan
        failed = await spool.draft()

        def broken(operation: str, _: str | int) -> None:
            if operation in ("unlink", "fchmod"):
                raise OSError(errno.EIO, "Input/output error")

        spool.fsio.hook = broken
        failed.abort()
        spool.fsio.hook = None
        assert len(spool.names("incoming")) == 1
        following = await spool.draft()
        assert len(spool.names("incoming")) == 1, "the new one"
        following.abort()
        assert spool.names("incoming") == []
