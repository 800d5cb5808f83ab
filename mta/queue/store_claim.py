"""Opening a message that is to be claimed: lock it and read its envelope, without stopping the loop.

What came just now, and most of what a scan has listed, is in memory and opened in the loop.  A thread that opens and
reads a file lets go of the interpreter at each system call, as the loop does at each of its own, and every time one of
those that wait is woken: a quarter of what flushing a long queue costs.  Only what the disk has to be asked for, and
an envelope of thousands of recipients, goes to a thread, and one visit is for a batch; other threads help when the disk
is slow.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from mta.fsio.flusher import WORKERS
from mta.fsio.fsio import Fsio
from mta.queue.api import Queue
from mta.queue.queue_reader import DamagedError, QueueFile, ReadAt, decode
from mta.queue.store_spool import Spool, is_ready

IN_LOOP = 512 * 1024  # octets of a message read in the loop: 2,000 recipients, 20 ms
BATCH = 20  # messages per visit
SLOW = 0.2  # seconds after which who waits does so for the disk, which can look for several files at once

Opened = tuple[int, QueueFile | str, os.stat_result | None] | None
"""(descriptor, file or what is wrong with it, its attributes); None: not ours."""


class Claims:
    """Opens messages of a spool for who claims them."""

    def __init__(self, fsio: Fsio, spool: Spool, drop: Callable[[int], None]) -> None:
        """drop: closes a descriptor for whom nobody waits any more."""
        self._fsio, self._spool = fsio, spool
        self._openers = {
            queue: Opener(fsio, partial(self.open, queue), drop) for queue in (Queue.INCOMING, Queue.DEFERRED)
        }

    async def claim(self, queue: Queue, queue_id: str) -> Opened:
        """As open(), in the loop when that does not take long; what is in INCOMING is in memory."""
        try:
            return self.open(queue, queue_id, in_loop=True)
        except BlockingIOError:
            return await self._openers[queue].open(queue_id)

    def open(self, queue: Queue, queue_id: str, *, in_loop: bool = False) -> Opened:
        """Lock a file and read its envelope.  in_loop: BlockingIOError when that would take long.

        FileNotFoundError and other OSError as from open(2): nothing is known of the message.
        """
        path = self._spool.path(queue, queue_id)
        try:
            fd = self._fsio.open(path, write=True)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO):
                return -1, f"unreadable: {error.strerror}", None
            raise
        try:
            found = self._fsio.fstat(fd)
            if not self._fsio.flock(fd) or not is_ready(found.st_mode) or found.st_nlink != 1:
                self._fsio.close_fd(fd)
                return None
            try:
                file: QueueFile | str = decode(self._reader(queue, fd, found.st_size, in_loop=in_loop))
            except DamagedError as error:
                file = str(error)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                file = f"unreadable: {error.strerror}"
        except OSError:
            self._fsio.close_fd(fd)
            raise
        return fd, file, found

    def _reader(self, queue: Queue, fd: int, end: int, *, in_loop: bool) -> ReadAt:
        if not in_loop:
            return lambda offset, size: self._fsio.pread(fd, size, offset)
        left = IN_LOOP

        def read_at(offset: int, size: int) -> bytes:
            nonlocal left
            left -= min(size, end - offset)
            if left < 0:
                raise BlockingIOError(errno.EAGAIN, "too much for the loop")
            if queue is Queue.INCOMING:
                return self._fsio.pread(fd, size, offset)
            return self._fsio.pread_cached(fd, size, offset, end)

        return read_at


class Opener:
    """Answers each caller with what open_one says of his message."""

    def __init__(self, fsio: Fsio, open_one: Callable[[str], Opened], drop: Callable[[int], None]) -> None:
        """open_one: runs in a thread.  drop: closes the descriptor for whom nobody waits any more."""
        self._fsio, self._open_one, self._drop = fsio, open_one, drop
        self._waiting: deque[tuple[str, asyncio.Future[Opened]]] = deque()
        self._visits: set[asyncio.Task[None]] = set()  # so that they are not collected
        self._visiting = 0  # of them those that will look into _waiting once more
        self._timed = False

    async def open(self, queue_id: str) -> Opened:
        """What open_one(queue_id) returns or raises."""
        answer: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._waiting.append((queue_id, answer))
        if not self._visiting:
            self._visit()
        if not self._timed:
            self._timed = True
            self._fsio.clock.call_later(SLOW, self._help)
        return await answer

    def _visit(self) -> None:
        self._visiting += 1
        visit = asyncio.get_running_loop().create_task(self._work())
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    def _help(self) -> None:
        self._timed = bool(self._waiting)
        if self._timed:
            if self._visiting < WORKERS:
                self._visit()
            self._fsio.clock.call_later(SLOW, self._help)

    async def _work(self) -> None:
        try:
            while batch := [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]:
                await self._visit_for(batch)
        finally:
            self._visiting -= 1

    async def _visit_for(self, batch: Sequence[tuple[str, asyncio.Future[Opened]]]) -> None:
        try:
            found = await self._fsio.run(self._open_all, [queue_id for queue_id, _ in batch])
        except Exception as error:  # no thread
            found = [error] * len(batch)
        for (_, answer), each in zip(batch, found, strict=True):
            if isinstance(each, BaseException):
                if not answer.done():
                    answer.set_exception(each)
            elif not answer.done():
                answer.set_result(each)
            elif each is not None:  # the caller was cancelled
                self._drop(each[0])

    def _open_all(self, queue_ids: Sequence[str]) -> list[Opened | BaseException]:
        found: list[Opened | BaseException] = []
        for queue_id in queue_ids:
            try:
                found.append(self._open_one(queue_id))
            except BaseException as error:  # his who asked, and no other's
                found.append(error)
        return found
