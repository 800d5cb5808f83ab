"""Start-up of the process that owns the queue: nothing that a crash left may be lost, sent twice or forgotten.

In this order, because each step relies on the one before:

1. remove what was never finished (unlocked USEC.PID, mode 0600), so only whole names are left
2. read what others will rely on: a power cut during a commit leaves a name and an envelope before the content, and
   such a file was promised to nobody; flush it (a kill leaves whole files that only the page cache has), then apply
   each child to its parent: marks, delay notice, maildrop file; flush; from then on it may be claimed
3. resolve ids that exist twice, and files whose name does not fit their inode (a restored spool)
4. move files into the right hash directory; active -> incoming, or deferred and due when it has reasons

Only incoming and hold are opened here: a child is claimed after its parent's marks are durable, so one that
reached active or deferred has been settled.  Every step may be repeated after another crash.  A file that cannot be
opened or moved now, or a child that is locked, is claimed by nobody, and tried again at each scan.  (The kernel lets go
of an asynchronous fsync's file a moment after it has said that it is done: a lock can outlive who held it.)

See also: mta/INTERNALS.md
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from mta.queue import queue_file
from mta.queue import queue_id as ids
from mta.queue.api import FencedError, Parent, Queue
from mta.queue.content_reader import check_content
from mta.queue.queue_reader import DamagedError, QueueFile, decode
from mta.queue.store_listing import SLICE, files
from mta.queue.store_maildrop import Maildrop
from mta.queue.store_spool import WRITING, is_ready, remove_unlocked
from mta.record import dataclass

if TYPE_CHECKING:
    from mta.queue.store import SpoolStore

TOGETHER = 100  # files flushed at a time
HASHED = (Queue.INCOMING, Queue.HOLD, Queue.DEFERRED, "defer")  # perhaps, now or before; nothing stays in active
PLACES = (Queue.ACTIVE, Queue.INCOMING, Queue.DEFERRED, Queue.HOLD)


@dataclass(frozen=True, slots=True)
class Found:
    """A message in incoming or hold that names a parent, or that its sender may ask for (submit_key)."""

    queue_id: str
    path: str
    parent: Parent | None
    key: str


class Recovery:
    """One run; made by SpoolStore.recover()."""

    def __init__(self, store: "SpoolStore") -> None:
        self._store, self._fsio, self._spool, self._log = store, store.fsio, store.spool, store.log
        self._maildrop = Maildrop(store.spool, store.fsio, store.clock, store.log)

    async def run(self) -> None:
        """All steps; OSError of a single file is logged and the others go on."""
        run = self._fsio.run
        await self._maildrop.scan()
        await run(self._sweep)
        found = await run(self._relied_on)
        for i in range(0, len(found), TOGETHER):
            batch = found[i : i + TOGETHER]
            durable = await asyncio.gather(*map(self._flush, batch))
            for each, flushed in zip(batch, durable, strict=True):
                if not flushed or not await self._settle(each):
                    self._put_off(each)
        await run(self._doubles)
        await run(self._misnamed)
        for queue in HASHED:
            walk = files(self._fsio, f"{self._spool.root}/{queue}")
            while await run(self._place, queue, walk):
                pass
        await run(self._empty_active)

    @contextlib.contextmanager
    def _logged(self, queue_id: str, again: Callable[[], Awaitable[bool]] | None = None) -> Iterator[None]:
        """again: what scans are to try until it is True, when this failed; nobody claims the message before."""
        try:
            yield
        except (FileNotFoundError, FencedError):
            pass
        except OSError as error:
            self._log.warning("qmgr", f"{queue_id}: recover: {error.strerror}")
            if again is not None:
                self._store.wait_locked(queue_id, -1, again)

    # -- 1 ------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        for queue in (Queue.INCOMING, Queue.HOLD, Queue.ACTIVE):
            for entry in list(files(self._fsio, f"{self._spool.root}/{queue}")):
                with self._logged(entry.name):
                    unfinished = entry.stat(follow_symlinks=False).st_mode & 0o7777 == WRITING
                    if ids.is_temporary(entry.name) or (unfinished and ids.is_queue_id(entry.name)):
                        remove_unlocked(self._fsio, entry.path)

    # -- 2 ------------------------------------------------------------------------------------------

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

    # -- 3 ------------------------------------------------------------------------------------------

    def _small_queues(self) -> Iterator[tuple[Queue, os.DirEntry[str]]]:
        """Regular files only: what else lies there is nobody's message, and keeps its name."""
        for queue in (Queue.HOLD, Queue.ACTIVE, Queue.INCOMING):
            for entry in list(files(self._fsio, f"{self._spool.root}/{queue}")):
                if ids.is_queue_id(entry.name) and entry.is_file(follow_symlinks=False):
                    yield queue, entry

    def _doubles(self) -> None:
        """One id in two queues."""
        seen: dict[str, str] = {}
        for _, entry in self._small_queues():
            with self._logged(entry.name):
                path = entry.path
                if other := seen.get(entry.name) or self._deferred(entry.name):
                    path = self._merge(entry.name, other, path)
                if path:
                    seen[os.path.basename(path)] = path

    def _misnamed(self) -> None:
        """A name that does not fit the inode."""
        for queue, entry in self._small_queues():
            with self._logged(entry.name):
                self._renamed(queue, entry.name, entry.path, entry.inode())

    def _deferred(self, queue_id: str) -> str:
        path = self._spool.path(Queue.DEFERRED, queue_id)
        return path if self._spool.exists(path) else ""

    def _merge(self, queue_id: str, first: str, second: str) -> str:
        """Two files of one id: return the path of `second` if it stays, "" when it was dropped."""
        a, b = self._fsio.lstat(first), self._fsio.lstat(second)
        if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino):
            self._fsio.unlink(second)
            return ""
        one, two = self._decoded(first), self._decoded(second)
        if one is not None and two is not None and one.uid and one.uid == two.uid:
            if _marks(two) > _marks(one):
                self._fsio.rename(second, first)
            else:
                self._fsio.unlink(second)
            return ""
        if ids.inode_of(queue_id) == b.st_ino and ids.inode_of(queue_id) != a.st_ino:
            self._rename(first, ids.with_inode(queue_id, a.st_ino))
            return second
        return self._rename(second, ids.with_inode(queue_id, b.st_ino))

    def _decoded(self, path: str) -> QueueFile | None:
        fd = self._fsio.open(path)
        try:
            return decode(lambda offset, size: self._fsio.pread(fd, size, offset))
        except DamagedError:
            return None
        finally:
            self._fsio.close_fd(fd)

    def _rename(self, path: str, name: str) -> str:
        """Give a file another name in its directory, unless that exists."""
        target = os.path.join(os.path.dirname(path), name)
        if target == path or self._spool.exists(target):
            return path
        self._fsio.rename(path, target)
        return target

    def _renamed(self, queue: str, name: str, path: str, inode: int) -> str:
        """Make the id fit the inode, as postsuper -s does, with the reasons; return the id it has now."""
        if ids.inode_of(name) in (None, inode):
            return name
        wanted = ids.with_inode(name, inode)
        if os.path.basename(self._rename(path, wanted)) != wanted:
            return name
        self._log.warning("qmgr", f"{name}: in {queue} with another file's id: renamed to {wanted}")
        with contextlib.suppress(FileNotFoundError, FencedError):
            self._spool.move(self._spool.path("defer", name), "defer", wanted)
        return wanted

    # -- 4 ------------------------------------------------------------------------------------------

    def _place(self, queue: str, walk: Iterator[os.DirEntry[str]]) -> bool:
        """Put files of a queue where their id says; deferred ones also under an id that fits their inode."""
        entries = list(islice(walk, SLICE))
        for entry in entries:
            if not ids.is_queue_id(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with self._logged(entry.name):
                name, path = entry.name, entry.path
                if queue is Queue.DEFERRED:
                    name = self._renamed(queue, name, path, entry.inode())
                    path = os.path.join(os.path.dirname(path), name)
                target = self._spool.path(queue, name)
                if path != target and not self._spool.exists(target):
                    self._spool.move(path, queue, name)
        return len(entries) == SLICE

    def _empty_active(self) -> None:
        for entry in list(files(self._fsio, f"{self._spool.root}/active")):
            if ids.is_queue_id(entry.name):
                with self._logged(entry.name, partial(self._free_again, entry.name, entry.path)):
                    if self._store.handler_crashed:
                        self._suspect(entry.path)
                    self._free(entry.name, entry.path)

    def _free(self, queue_id: str, path: str) -> None:
        if self._deferred_before(queue_id):
            self._fsio.utime(path, self._store.clock.now())
            self._spool.move(path, Queue.DEFERRED, queue_id)
        else:
            self._spool.move(path, Queue.INCOMING, queue_id)

    async def _free_again(self, queue_id: str, path: str) -> bool:
        try:
            self._free(queue_id, path)
        except (FileNotFoundError, FencedError):
            return True
        except OSError:
            return False
        return True

    def _suspect(self, path: str) -> None:
        """The process that delivered died alone, so it was hardly the machine: such a crash counts twice.

        An attempt makes the count odd, so an even one was not being tried.
        """
        fd = self._fsio.open(path, write=True)
        try:
            file = decode(lambda offset, size: self._fsio.pread(fd, size, offset))
            if file.crashes % 2 and file.crashes < queue_file.MAX_CRASHES:
                self._fsio.pwrite(fd, b"%d" % (file.crashes + 1), file.crashes_offset)
        except DamagedError:
            pass  # claim() will put it aside
        finally:
            self._fsio.close_fd(fd)

    def _deferred_before(self, queue_id: str) -> bool:
        """True when there are reasons: only deferred messages have some, finish() relies on it."""
        return self._spool.exists(self._spool.path("defer", queue_id))


def _marks(file: QueueFile) -> int:
    return sum(not r.todo for r in file.envelope.recipients)
