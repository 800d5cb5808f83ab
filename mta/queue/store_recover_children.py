"""Step 2 of a recovery: what others rely on is whole and durable before they do, and what each child answers for.

A child (mta/INTERNALS.md "children") is applied to its parent: marks, delay notice, maildrop file; these are flushed,
and from then on it may be claimed.  One that cannot be settled now is claimed by nobody, and tried again at each scan.

See also: mta/queue/store_recover.py
"""

import asyncio
import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from mta.queue import queue_file
from mta.queue import queue_id as ids
from mta.queue.api import FencedError, Parent, Queue
from mta.queue.content_reader import check_content
from mta.queue.queue_reader import DamagedError, QueueFile, decode
from mta.queue.store_listing import files
from mta.queue.store_maildrop import Maildrop
from mta.queue.store_recover_step import Step
from mta.queue.store_spool import is_ready
from mta.record import dataclass

if TYPE_CHECKING:
    from mta.queue.store import SpoolStore

TOGETHER = 100  # files flushed at a time
PLACES = (Queue.ACTIVE, Queue.INCOMING, Queue.DEFERRED, Queue.HOLD)


@dataclass(frozen=True, slots=True)
class Found:
    """A message in incoming or hold that names a parent, or that its sender may ask for (submit_key)."""

    queue_id: str
    path: str
    parent: Parent | None
    key: str


class Children(Step):
    """See the module."""

    def __init__(self, store: "SpoolStore", maildrop: Maildrop) -> None:
        super().__init__(store)
        self._maildrop = maildrop

    async def settle(self) -> None:
        """All that there are; those for which it cannot be done now wait for a scan."""
        found = await self._fsio.run(self._relied_on)
        for i in range(0, len(found), TOGETHER):
            batch = found[i : i + TOGETHER]
            durable = await asyncio.gather(*map(self._flush, batch))
            for each, flushed in zip(batch, durable, strict=True):
                if not flushed or not await self._settle(each):
                    self._put_off(each)

    def _relied_on(self) -> list[Found]:
        found = []
        for queue in (Queue.INCOMING, Queue.HOLD):
            for entry in list(files(self._fsio, f"{self._spool.root}/{queue}")):
                if not ids.is_queue_id(entry.name):
                    continue
                with self._logged(entry.name, partial(self._look_again, queue, entry.name, entry.path)):
                    if one := self._needed(queue, entry.name, entry.path):
                        found.append(one)
        return found

    def _needed(self, queue: Queue, queue_id: str, path: str) -> Found | None:
        file = self._examine(queue_id, queue, path)
        if file is None:
            return None
        key = file.others.get("submit_key", "")
        return Found(queue_id, path, file.parent, key) if key or file.parent is not None else None

    async def _look_again(self, queue: Queue, queue_id: str, path: str) -> bool:
        try:
            found = await self._fsio.run(self._needed, queue, queue_id, path)
        except (FileNotFoundError, FencedError):
            return True
        except OSError:
            return False
        return found is None or await self._again(found)

    def _put_off(self, found: Found) -> None:
        """Not settled now.  A parent that knows nothing of it repeats it; else it waits, locked, for the next scan."""
        if found.parent is None:
            return
        with self._logged(found.queue_id):
            if self._untouched(found.parent):
                self._fsio.unlink(found.path)
                return
        self._store.keep_locked(found.queue_id, found.path, partial(self._again, found))

    def _untouched(self, parent: Parent) -> bool:
        """Is the parent there, with everything still to do that the child answers for?"""
        if parent.kind == "maildrop":
            return self._maildrop.is_same(parent.queue_id, parent.uid)
        for queue in PLACES:
            with contextlib.suppress(FileNotFoundError):
                file = self._decoded(self._spool.path(queue, parent.queue_id))
                if file is None or file.uid != parent.uid or parent.kind == "delay":
                    return False
                return {r.offset for r in file.envelope.recipients if r.todo} >= set(parent.recipients)
        return False

    async def _again(self, found: Found) -> bool:
        return await self._flush(found) and await self._settle(found)

    async def _flush(self, found: Found) -> bool:
        """Make a file and its name durable, so that others may rely on it."""
        try:
            fd = self._fsio.open(found.path)
            try:
                await self._fsio.flush(fd)
                await self._fsio.flush(self._fsio.directory(os.path.dirname(found.path)))
            finally:
                self._fsio.close_fd(fd)
        except OSError as error:
            self._log.warning("qmgr", f"{found.queue_id}: recover: {error.strerror}")
            return False
        if found.key:
            self._store.submit_keys[found.key] = found.queue_id
        return True

    def _examine(self, queue_id: str, queue: Queue, path: str) -> QueueFile | None:
        """Read the envelope of an unlocked, complete file; a damaged one goes to corrupt.

        BlockingIOError for a child that somebody has locked: he may be gone in a moment, and its parent is not marked.
        """
        fd = self._fsio.open(path)
        try:
            if not is_ready(self._fsio.fstat(fd).st_mode):
                return None
            if not self._fsio.flock(fd):
                self._no_child(fd)
                return None

            def read_at(offset: int, size: int) -> bytes:
                return self._fsio.pread(fd, size, offset)

            try:
                file = decode(read_at)
                if file.parent is not None or "submit_key" in file.others:
                    check_content(read_at, file)
            except DamagedError as error:
                self._store.to_corrupt(queue_id, queue, path, fd, str(error))
                return None
            return file
        finally:
            self._fsio.close_fd(fd)

    def _no_child(self, fd: int) -> None:
        with contextlib.suppress(DamagedError):
            if decode(lambda offset, size: self._fsio.pread(fd, size, offset)).parent is not None:
                raise BlockingIOError(errno.EWOULDBLOCK, "locked by somebody else, looked at again later")

    async def _settle(self, child: Found) -> bool:
        """Apply a child to its parent; False: not now."""
        parent = child.parent
        if parent is None or not ids.is_queue_id(parent.queue_id):
            return True
        try:
            if parent.kind == "maildrop":
                self._maildrop.unlink_if_same(parent.queue_id, parent.uid)
                await self._maildrop.flush()  # also when it is gone: who knows whether that is durable
                return True
            for queue in PLACES:
                if await self._apply(parent, queue, self._spool.path(queue, parent.queue_id)):
                    break
        except OSError as error:
            self._log.warning("qmgr", f"{child.queue_id}: not released, its parent {parent.queue_id}: {error.strerror}")
            return False
        return True

    async def _apply(self, parent: Parent, queue: Queue, path: str) -> bool:
        """Write a child's marks into its parent, if that is what this file is, and flush them."""
        try:
            fd = self._fsio.open(path, write=True)
        except FileNotFoundError:
            return False
        try:
            found = self._fsio.fstat(fd)
            try:
                file = decode(lambda offset, size: self._fsio.pread(fd, size, offset))
            except DamagedError:
                return False  # claim() will put it aside
            if file.identity(found.st_ino) != parent.uid:
                return False
            answered = frozenset(parent.recipients)
            marks = [(r.offset, b"D") for r in file.envelope.recipients if r.offset in answered]
            if parent.kind == "delay":
                marks = []
                if file.warn_offset and file.envelope.warn_time:
                    marks = [(file.warn_offset + queue_file.WARN_DATA, queue_file.warn_digits(0))]
            for offset, data in marks:
                self._fsio.pwrite(fd, data, offset)
            await self._fsio.flush_data(fd)  # marks that are there may be in the page cache only
            if marks and queue is Queue.DEFERRED:
                self._fsio.utime(fd, found.st_mtime)
            return True
        finally:
            self._fsio.close_fd(fd)
