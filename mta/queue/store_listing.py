"""Looking over whole queues: scan, wake, and the rows of mailq.

Directories are read in the worker, some hundred entries at a time, so that a queue of 100,000 messages stops
neither the loop nor another thread for long.  scan and wake never open a file.

Whoever passes `failed` is told of each directory and file that cannot be read or changed, and gets all others.
"""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice

from mta.fsio.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import Listing, Queue
from mta.queue.maildrop_rules import MAX_RECORDS, file_limit
from mta.queue.queue_reader import DamagedError, decode
from mta.queue.reasons import decode_reasons
from mta.queue.store_spool import FORCE_EXPIRE, LEFTOVER_AGE, Spool, is_ready, remove_unlocked

SLICE = 500  # directory entries per visit to the worker
ORDER = (Queue.MAILDROP, Queue.ACTIVE, Queue.INCOMING, Queue.DEFERRED, Queue.HOLD)
REASONS_LIMIT = 4 << 20  # bytes of defer/ID
ROWS = 50  # of a listing per visit to the worker
RECIPIENTS = 10_000  # in these rows: more end the visit, so that few are in memory at once
DROPPED = 0o040  # in the mode of what an injector left in maildrop, 0750: there +0010 means nothing
MAX_DEPTH = 16  # of hash directories, Postfix's limit of hash_queue_depth
NO_REASON = "(description unavailable)"  # Postfix's words for an empty one
NO_MESSAGE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # a link, a directory, a socket

Failed = Callable[[str, OSError], None]  # takes a path, or a name in the spool, and the error


def files(
    fsio: Fsio, directory: str, failed: Failed | None = None, *, depth: int = MAX_DEPTH
) -> Iterator[os.DirEntry[str]]:
    """Entries of a queue directory and of its hash directories, down to `depth`; vanished directories are empty.

    OSError when one cannot be read and there is no `failed`.
    """
    todo = [(directory, depth)]
    for path, below in todo:
        try:
            for entry in fsio.scandir(path):
                if below and len(entry.name) == 1 and entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, below - 1))
                else:
                    yield entry
        except FileNotFoundError:
            continue
        except OSError as error:
            if failed is None:
                raise
            failed(path, error)


def queue_files(fsio: Fsio, root: str, queue: Queue, failed: Failed | None = None) -> Iterator[os.DirEntry[str]]:
    """files() of a queue; maildrop is never hashed: directories in there are somebody's, and are not entered."""
    return files(fsio, f"{root}/{queue}", failed, depth=0 if queue is Queue.MAILDROP else MAX_DEPTH)


class Lister:
    """Reads directories of one spool."""

    def __init__(self, spool: Spool, fsio: Fsio) -> None:
        self._spool, self._fsio = spool, fsio
        self._limit = file_limit(spool.settings.message_size_limit)

    def _below(self, failed: Failed) -> Failed:
        """Takes paths, and passes on what is below the queue directory."""
        return lambda path, error: failed(path.removeprefix(f"{self._spool.root}/"), error)

    async def scan(self, queue: Queue, now: float, limit: float) -> list[tuple[str, float]]:
        """Ids of complete messages with their times; a time after `limit` becomes `now`.  Removes old leftovers."""
        found: list[tuple[str, float]] = []
        walk = queue_files(self._fsio, self._spool.root, queue)
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

    async def wake(self, now: float, queue_ids: Sequence[str] | None, failed: Failed) -> int:
        """Make deferred messages due now; return how many were not yet (None), or how many there are of those named."""
        if queue_ids is None:
            waiting = await self.scan(Queue.DEFERRED, now, float("inf"))
            queue_ids = [queue_id for queue_id, when in waiting if when > now]
        count = 0
        for i in range(0, len(queue_ids), SLICE):
            count += await self._fsio.run(self._touch, queue_ids[i : i + SLICE], now, failed)
        return count

    def _touch(self, queue_ids: Sequence[str], now: float, failed: Failed) -> int:
        count = 0
        for queue_id in filter(ids.is_queue_id, queue_ids):
            try:
                self._fsio.utime(self._spool.path(Queue.DEFERRED, queue_id), now)
                count += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                failed(queue_id, error)
        return count

    async def listing(self, failed: Failed) -> AsyncIterator[Listing]:
        """Rows of mailq, each read when it is asked for; a message that moves meanwhile may be missed."""
        failed = self._below(failed)
        for queue in ORDER:
            walk = queue_files(self._fsio, self._spool.root, queue, failed)
            while rows := await self._fsio.run(self._rows, queue, walk, failed):
                for row in rows:
                    if row is not None:
                        yield row

    def _rows(self, queue: Queue, walk: Iterator[os.DirEntry[str]], failed: Failed) -> list[Listing | None]:
        rows: list[Listing | None] = []
        count = 0
        for entry in islice(walk, ROWS):
            row = self._row_or_error(queue, entry, failed)
            rows.append(row)
            count += len(row.recipients) if row is not None else 0
            if count > RECIPIENTS:
                break
        return rows

    def _row_or_error(self, queue: Queue, entry: os.DirEntry[str], failed: Failed) -> Listing | None:
        if not ids.is_queue_id(entry.name):
            return None
        try:
            return self._row(queue, entry)
        except (FileNotFoundError, DamagedError):
            return None
        except OSError as error:
            if error.errno not in NO_MESSAGE:
                failed(entry.path, error)
            return None

    def _row(self, queue: Queue, entry: os.DirEntry[str]) -> Listing | None:
        fd = self._fsio.open(entry.path)
        try:
            at = self._fsio.fstat(fd)
            if not is_ready(at.st_mode) or not stat.S_ISREG(at.st_mode) or at.st_nlink != 1:
                return None
            dropped = queue is Queue.MAILDROP  # by anybody, who may ask for a listing: what pickup refuses is no row
            if dropped and self._limit and at.st_size > self._limit:
                return None
            file = decode(lambda offset, size: self._fsio.pread(fd, size, offset), MAX_RECORDS if dropped else 0)
        finally:
            self._fsio.close_fd(fd)
        todo = [r.address for r in file.envelope.recipients if r.todo]
        reasons = self._reasons(entry.name) if queue in (Queue.ACTIVE, Queue.DEFERRED, Queue.HOLD) else {}
        waiting = frozenset(todo)
        first = [a for a in reasons if a in waiting]
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
        return {address: reason.text or NO_REASON for address, _, reason in decode_reasons(data)}
