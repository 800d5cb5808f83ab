"""Step 3 of a recovery: ids that exist twice, and files whose name does not fit their inode (a restored spool).

See also: mta/queue/store_recover.py
"""

import contextlib
import os
from collections.abc import Iterator

from mta.queue import queue_id as ids
from mta.queue.api import FencedError, Queue
from mta.queue.queue_reader import QueueFile
from mta.queue.store_listing import files
from mta.queue.store_recover_step import Step


class Names(Step):
    """See the module."""

    def _small_queues(self) -> Iterator[tuple[Queue, os.DirEntry[str]]]:
        """Regular files only: what else lies there is nobody's message, and keeps its name."""
        for queue in (Queue.HOLD, Queue.ACTIVE, Queue.INCOMING):
            for entry in list(files(self._fsio, f"{self._spool.root}/{queue}")):
                if ids.is_queue_id(entry.name) and entry.is_file(follow_symlinks=False):
                    yield queue, entry

    def doubles(self) -> None:
        """One id in two queues."""
        seen: dict[str, str] = {}
        for _, entry in self._small_queues():
            with self._logged(entry.name):
                path = entry.path
                if other := seen.get(entry.name) or self._deferred(entry.name):
                    path = self._merge(entry.name, other, path)
                if path:
                    seen[os.path.basename(path)] = path

    def misnamed(self) -> None:
        """A name that does not fit the inode."""
        for queue, entry in self._small_queues():
            with self._logged(entry.name):
                self.renamed(queue, entry.name, entry.path, entry.inode())

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

    def _rename(self, path: str, name: str) -> str:
        """Give a file another name in its directory, unless that exists."""
        target = os.path.join(os.path.dirname(path), name)
        if target == path or self._spool.exists(target):
            return path
        self._fsio.rename(path, target)
        return target

    def renamed(self, queue: str, name: str, path: str, inode: int) -> str:
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


def _marks(file: QueueFile) -> int:
    return sum(not r.todo for r in file.envelope.recipients)
