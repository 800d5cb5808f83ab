"""Looking over whole queues: scan, wake, and the rows of mailq.

Directories are read in the worker, some hundred entries at a time, so that a queue of 100,000 messages stops
neither the loop nor another thread for long.  scan and wake never open a file.
"""

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

from mta.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import Listing, Queue
from mta.queue.queue_reader import DamagedError, decode
from mta.queue.reasons import decode_reasons
from mta.queue.store_spool import FORCE_EXPIRE, LEFTOVER_AGE, Spool, is_ready, remove_unlocked

SLICE = 500  # directory entries per visit to the worker
ORDER = (Queue.MAILDROP, Queue.ACTIVE, Queue.INCOMING, Queue.DEFERRED, Queue.HOLD)
REASONS_LIMIT = 4 << 20  # bytes of defer/ID
DROPPED = 0o040  # in the mode of what an injector left in maildrop, 0750: there +0010 means nothing


def files(fsio: Fsio, directory: str) -> Iterator[os.DirEntry[str]]:
    """Entries of a queue directory and of its hash directories, to any depth; vanished directories are empty."""
    try:
        entries = fsio.scandir(directory)
    except FileNotFoundError:
        return
    for entry in entries:
        if len(entry.name) == 1 and entry.is_dir(follow_symlinks=False):
            yield from files(fsio, entry.path)
        else:
            yield entry


class Lister:
    """Reads directories of one spool."""

    def __init__(self, spool: Spool, fsio: Fsio) -> None:
        self._spool, self._fsio = spool, fsio

    async def scan(self, queue: Queue, now: float, limit: float) -> list[tuple[str, float]]:
        """Ids of complete messages with their times; a time after `limit` becomes `now`.  Removes old leftovers."""
        found: list[tuple[str, float]] = []
        walk = files(self._fsio, f"{self._spool.root}/{queue}")
        while await self._fsio.run(self._scan_slice, walk, found, now, limit):
            pass
        return found

    def _scan_slice(
        self, walk: Iterator[os.DirEntry[str]], found: list[tuple[str, float]], now: float, limit: float
    ) -> bool:
        seen = 0
        for entry in islice(walk, SLICE):
            seen += 1
            if not ids.is_queue_id(entry.name):
                self._remove_leftover(entry, now)
                continue
            try:
                at = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if is_ready(at.st_mode) and stat.S_ISREG(at.st_mode):
                found.append((entry.name, at.st_mtime if at.st_mtime <= limit else now))
        return seen == SLICE

    def _remove_leftover(self, entry: os.DirEntry[str], now: float) -> None:
        """What a worker that was killed had begun."""
        with contextlib.suppress(OSError):
            if ids.is_temporary(entry.name) and entry.stat(follow_symlinks=False).st_ctime < now - LEFTOVER_AGE:
                remove_unlocked(self._fsio, entry.path)

    async def wake(self, now: float, queue_ids: Sequence[str] | None) -> int:
        """Make deferred messages due now; return how many were not yet (None), or how many there are of those named."""
        if queue_ids is None:
            waiting = await self.scan(Queue.DEFERRED, now, float("inf"))
            queue_ids = [queue_id for queue_id, when in waiting if when > now]
        count = 0
        for i in range(0, len(queue_ids), SLICE):
            count += await self._fsio.run(self._touch, queue_ids[i : i + SLICE], now)
        return count

    def _touch(self, queue_ids: Sequence[str], now: float) -> int:
        count = 0
        for queue_id in filter(ids.is_queue_id, queue_ids):
            try:
                self._fsio.utime(self._spool.path(Queue.DEFERRED, queue_id), now)
                count += 1
            except FileNotFoundError:
                continue
        return count

    async def listing(self) -> AsyncIterator[Listing]:
        """Rows of mailq, each read when it is asked for; a message that moves meanwhile may be missed."""
        for queue in ORDER:
            walk = files(self._fsio, f"{self._spool.root}/{queue}")
            while rows := await self._fsio.run(self._rows, queue, walk):
                for row in rows:
                    if row is not None:
                        yield row

    def _rows(self, queue: Queue, walk: Iterator[os.DirEntry[str]]) -> list[Listing | None]:
        return [self._row(queue, entry) for entry in islice(walk, 50)]

    def _row(self, queue: Queue, entry: os.DirEntry[str]) -> Listing | None:
        if not ids.is_queue_id(entry.name):
            return None
        try:
            fd = self._fsio.open(entry.path)
        except OSError:
            return None
        try:
            at = self._fsio.fstat(fd)
            if not is_ready(at.st_mode) or not stat.S_ISREG(at.st_mode) or at.st_nlink != 1:
                return None
            file = decode(lambda offset, size: self._fsio.pread(fd, size, offset))
        except (DamagedError, OSError):
            return None
        finally:
            self._fsio.close_fd(fd)
        todo = [r.address for r in file.envelope.recipients if r.todo]
        reasons = self._reasons(entry.name) if queue in (Queue.ACTIVE, Queue.DEFERRED, Queue.HOLD) else {}
        first = [a for a in reasons if a in todo]
        return Listing(
            queue, entry.name, file.envelope.arrival or at.st_mtime, file.size or at.st_size,
            at.st_mode & (FORCE_EXPIRE | DROPPED) == FORCE_EXPIRE, file.envelope.sender,
            (*first, *(a for a in todo if a not in reasons)), {a: reasons[a] for a in first},
        )  # fmt: skip

    def _reasons(self, queue_id: str) -> dict[str, str]:
        try:
            data = self._fsio.read_file(self._spool.path("defer", queue_id), REASONS_LIMIT)
        except OSError:
            return {}
        return {address: reason.text for address, _, reason in decode_reasons(data)}
