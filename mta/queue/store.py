"""The spool store: the queue as Postfix queue files in directories, one rename per change of state.

One process owns the queue (scheduler); others (smtpd workers) only draft and commit into it.  The life of a
file, each step and what a crash leaves there is in mta/INTERNALS.md; that table and this code change together.

See also: mta/queue/store_job.py (what is done with a claimed message), store_draft.py, store_recover.py,
store_listing.py, store_maildrop.py
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import Draft, FencedError, Job, Listing, Queue, QueueError
from mta.queue.queue_reader import QueueFile
from mta.queue.store_claim import Claims
from mta.queue.store_draft import SpoolDraft
from mta.queue.store_job import Claimed, JobStore
from mta.queue.store_listing import Failed, Lister
from mta.queue.store_maildrop import Maildrop, MaildropFile
from mta.queue.store_recover import Recovery
from mta.queue.store_space import Space
from mta.queue.store_spool import (
    FORCE_EXPIRE,
    WRITING,
    QueueLog,
    Spool,
    StoreSettings,
    create_spool,
    queue_error,
)

__all__ = ["MaildropFile", "SpoolStore", "StoreSettings", "create_spool"]


class SpoolStore(JobStore):
    """Implements mta.queue.api.QueueStore."""

    def __init__(self, settings: StoreSettings, fsio: Fsio, clock: Clock, log: QueueLog, *, owner: bool = True) -> None:
        """owner: this process runs the queue; False for one that only drafts."""
        self.settings, self.fsio, self.clock, self.log = settings, fsio, clock, log
        self.spool = Spool(settings, fsio)
        self.arrived: Callable[[str, int], None] = lambda _id, _named: None
        self.owner = owner
        self.handler_crashed = False  # the last owner of the queue died alone: see Recovery
        self.submit_keys: dict[str, str] = {}  # key -> queue id of messages found by recover()
        self.space = Space(self.spool, fsio, clock, log, lambda: self._create()[:2])
        self._maildrop = Maildrop(self.spool, fsio, clock, log)
        self._lister = Lister(self.spool, fsio)
        self._claims = Claims(fsio, self.spool, self._close)
        self._locked: list[tuple[str, int, Callable[[], Awaitable[bool]]]] = []

    # -- messages coming in -------------------------------------------------------------------------

    async def recover(self) -> None:
        """See QueueStore."""
        self._check_owner()
        await Recovery(self).run()

    def _check_owner(self) -> None:
        if not self.owner:
            raise RuntimeError("this process only drafts")

    def keep_locked(self, queue_id: str, path: str, again: Callable[[], Awaitable[bool]]) -> None:
        """Keep a message that could not be settled from being claimed; scans try again() until it is True."""
        fd = -1  # when it cannot be opened now: claim() looks into the list
        try:
            fd = self.fsio.open(path, write=True)
            self.fsio.flock(fd)
        except OSError as error:
            self.log.warning("qmgr", f"{queue_id}: cannot be locked: {error.strerror}")
        self.wait_locked(queue_id, fd, again)

    def wait_locked(self, queue_id: str, fd: int, again: Callable[[], Awaitable[bool]]) -> None:
        """Keep an open, locked file (-1: none); see keep_locked."""
        self._locked.append((queue_id, fd, again))

    async def _settle_rest(self) -> None:
        for each in tuple(self._locked):  # claim() looks into the list meanwhile
            queue_id, fd, again = each
            if await again() and each in self._locked:
                self._locked.remove(each)
                self._close(fd)
                self.arrived(queue_id, 0)

    def close(self) -> None:
        """Let go of what recover() left locked."""
        for _, fd, _ in self._locked:
            self._close(fd)
        self._locked.clear()

    async def draft(self, arrival: float) -> SpoolDraft:
        """See QueueStore.  QueueFullError when the disk has no room, QueueError after a disk error."""
        await self.space.ready()
        if self._locked and not self.owner:  # who scans
            await self._settle_rest()
        self.space.check()
        fd, path, seconds, usec = self._create()
        try:
            self.fsio.flock(fd)
            inode = self.fsio.fstat(fd).st_ino
        except OSError as error:
            with contextlib.suppress(OSError):
                self.fsio.unlink(path)
            with contextlib.suppress(OSError):
                self.fsio.close_fd(fd)
            raise queue_error(error, "queue file write error") from error
        queue_id = self.spool.new_id(seconds, usec, inode)
        return SpoolDraft(self, fd, path, queue_id, self.fsio.entropy(16).hex())

    def _create(self) -> tuple[int, str, int, int]:
        seconds, usec = divmod(int(self.clock.now() * 1_000_000), 1_000_000)
        for _ in range(10_000):
            path = f"{self.spool.root}/incoming/{usec}.{self.fsio.pid}"
            try:
                return self.fsio.open_excl(path, WRITING), path, seconds, usec
            except FileExistsError:
                usec = (usec + 1) % 1_000_000
            except OSError as error:
                raise queue_error(error, "queue file write error") from error
        raise QueueError("no free name in incoming")

    # -- claiming -----------------------------------------------------------------------------------

    async def claim(self, queue_id: str) -> Job | None:
        """See QueueStore.  QueueError when it cannot be opened now (no descriptors)."""
        self._check_owner()
        if not ids.is_queue_id(queue_id) or any(queue_id == waiting for waiting, _, _ in self._locked):
            return None
        try:
            try:
                found = await self._claims.claim(Queue.INCOMING, queue_id)
                origin = Queue.INCOMING
            except FileNotFoundError:
                found = await self._claims.claim(Queue.DEFERRED, queue_id)
                origin = Queue.DEFERRED
            if found is None:
                return None
            return self._activate(queue_id, origin, *found)
        except (FileNotFoundError, FencedError):
            return None
        except PermissionError as error:
            self.log.warning("qmgr", f"{queue_id}: {error.strerror}: {error.filename}")
            return None
        except OSError as error:
            raise queue_error(error, f"{queue_id}: claim") from error

    def _activate(
        self, queue_id: str, origin: Queue, fd: int, file: QueueFile | str, found: os.stat_result | None
    ) -> Job | None:
        try:
            if isinstance(file, str) or found is None:
                self.to_corrupt(queue_id, origin, self.spool.path(origin, queue_id), fd, str(file))
                self._close(fd)
                return None
            path = self.spool.move(self.spool.path(origin, queue_id), Queue.ACTIVE, queue_id)
        except (OSError, QueueError):
            self._close(fd)
            raise
        with contextlib.suppress(OSError):
            self.fsio.directory(os.path.dirname(path))  # while its path leads there
        expire = bool(found.st_mode & FORCE_EXPIRE)
        return Job(
            queue_id, file.identity(found.st_ino), file.envelope, file.size, origin, file.crashes, expire,
            file.content_8bit, Claimed(fd, file, path, found.st_mtime, file.envelope.warn_time),
        )  # fmt: skip

    # -- children -----------------------------------------------------------------------------------

    async def release(self, children: Sequence[Draft]) -> None:
        """See QueueStore."""
        for child in children:
            if not isinstance(child, SpoolDraft):
                raise TypeError("a draft of another store")
            child.release()

    # -- the queue as a whole -----------------------------------------------------------------------

    async def scan(self, queue: Queue) -> list[tuple[str, float]]:
        """See QueueStore.  A time too far ahead (a clock that jumped) counts as now."""
        if queue is Queue.INCOMING and self._locked:
            await self._settle_rest()
        limit = self.clock.now() + self.settings.maximal_backoff_time
        try:
            return await self._lister.scan(queue, self.clock.now(), limit)
        except OSError as error:
            raise queue_error(error, f"scan of {queue}") from error

    async def wake(self, queue_ids: Sequence[str] | None = None) -> int:
        """See QueueStore."""
        try:
            return await self._lister.wake(self.clock.now(), queue_ids, self._not_woken)
        except OSError as error:
            raise queue_error(error, "wake") from error

    def _not_woken(self, name: str, error: OSError) -> None:
        self.log.warning("qmgr", f"{name}: flush: {error.strerror}")

    def listing(self, failed: Failed | None = None) -> AsyncIterator[Listing]:
        """See QueueStore."""
        return self._lister.listing(failed or (lambda name, error: None))

    # -- maildrop -----------------------------------------------------------------------------------

    async def scan_maildrop(self) -> list[str]:
        """Names of complete-looking files; leftovers of dead injectors are removed on the way."""
        return await self._maildrop.scan()

    async def open_maildrop(self, name: str) -> MaildropFile | None:
        """Open one with every check that does not need its content; None: gone, not complete, or refused."""
        return await self._maildrop.open(name)

    async def remove_maildrop(self, file: MaildropFile) -> None:
        """Unlink it and flush the directory: its copy may be released.

        QueueError: the file is still there, or was changed or removed meanwhile, so the copy must be aborted.  A
        flush that fails after the unlink is no reason to lose or to park the copy, which is durable: at worst a power
        cut brings the file back.
        """
        self._maildrop.remove(file)
        try:
            await self._maildrop.flush()
        except OSError as error:
            self.space.failed(error)
