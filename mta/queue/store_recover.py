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

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from mta.queue import queue_file
from mta.queue import queue_id as ids
from mta.queue.api import FencedError, Queue
from mta.queue.queue_reader import DamagedError, decode
from mta.queue.store_listing import SLICE, files
from mta.queue.store_maildrop import Maildrop
from mta.queue.store_recover_children import Children
from mta.queue.store_recover_names import Names
from mta.queue.store_recover_step import Step
from mta.queue.store_spool import WRITING, remove_unlocked

if TYPE_CHECKING:
    from mta.queue.store import SpoolStore

HASHED = (Queue.INCOMING, Queue.HOLD, Queue.DEFERRED, "defer")  # perhaps, now or before; nothing stays in active


class Recovery(Step):
    """One run; made by SpoolStore.recover()."""

    def __init__(self, store: "SpoolStore") -> None:
        super().__init__(store)
        self._names = Names(store)
        self._maildrop = Maildrop(store.spool, store.fsio, store.clock, store.log)

    async def run(self) -> None:
        """All steps; OSError of a single file is logged and the others go on."""
        run = self._fsio.run
        await self._maildrop.scan()
        await run(self._sweep)
        await Children(self._store, self._maildrop).settle()
        await run(self._names.doubles)
        await run(self._names.misnamed)
        for queue in HASHED:
            walk = files(self._fsio, f"{self._spool.root}/{queue}")
            while await run(self._place, queue, walk):
                pass
        await run(self._empty_active)

    # -- 1 ------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        for queue in (Queue.INCOMING, Queue.HOLD, Queue.ACTIVE):
            for entry in list(files(self._fsio, f"{self._spool.root}/{queue}")):
                with self._logged(entry.name):
                    unfinished = entry.stat(follow_symlinks=False).st_mode & 0o7777 == WRITING
                    if ids.is_temporary(entry.name) or (unfinished and ids.is_queue_id(entry.name)):
                        remove_unlocked(self._fsio, entry.path)

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
                    name = self._names.renamed(queue, name, path, entry.inode())
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
