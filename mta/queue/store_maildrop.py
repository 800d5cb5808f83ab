"""The maildrop: files that any local user may have put there, and that their owners can still change.

Nothing is believed.  A file is opened without following links and without waiting on a FIFO, must be a
regular file with one name and the "complete" bit, and is copied, never moved.  What is read may be anything:
whoever copies it checks every record.

See also: mta/INTERNALS.md states D1 to D3, pickup(8)
"""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterable
from itertools import zip_longest

from mta.clock import Clock, others_run
from mta.fsio.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import QueueError
from mta.queue.content_reader import ContentReader
from mta.queue.maildrop_rules import envelope_of, file_limit
from mta.queue.queue_reader import QueueFile
from mta.queue.store_spool import LEFTOVER_AGE, QueueLog, Spool, queue_error
from mta.record import dataclass

COMPLETE = stat.S_IXUSR  # set by the injector as the last thing
READ_SIZE = 32768
MAX_COMPLAINTS = 1000  # names remembered, so that each refusal is logged once
_REFUSED = (errno.ELOOP, errno.ENXIO, errno.EISDIR)


@dataclass(slots=True)
class MaildropFile:
    """An opened file.  uid: identity for Parent("maildrop", uid, name).  owner: uid of whoever dropped it."""

    name: str
    fd: int
    owner: int
    uid: str
    size: int
    mtime: float
    fsio: Fsio

    async def read(self, *, requeued: bool = False) -> QueueFile:
        """Decode the envelope; DamagedError when it is no message.  Of what it says only maildrop_rules is checked."""
        return await self.fsio.run(envelope_of, self._read_at, requeued=requeued)

    def _read_at(self, offset: int, size: int) -> bytes:
        return self.fsio.pread(self.fd, max(0, min(size, self.size - offset)), offset)

    async def content(self, file: QueueFile) -> AsyncIterator[bytes]:
        """Message text as LF lines in chunks <= 64 KiB; DamagedError when it ends early.

        After each piece others have a turn, also when it held nothing but empty records, which take the longest.
        """
        reader = ContentReader(file.content_offset)
        while not reader.done:
            await others_run()
            size = max(0, min(READ_SIZE, self.size - reader.offset))
            text = reader.feed(await self.fsio.read(self.fd, size, reader.offset) if size else b"")
            if text:
                yield text

    def close(self) -> None:
        """Let go of the descriptor; may be called twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with contextlib.suppress(OSError):  # it was only read
                self.fsio.close_fd(fd)


def in_turns(groups: Iterable[list[str]]) -> list[str]:
    """One of each group, the smallest first, then the next of each: who drops ten thousand files delays nobody else."""
    return [name for turn in zip_longest(*sorted(groups, key=len)) for name in turn if name is not None]


class Maildrop:
    """The directory maildrop/ of one spool."""

    def __init__(self, spool: Spool, fsio: Fsio, clock: Clock, log: QueueLog) -> None:
        self._root = f"{spool.root}/maildrop"
        self._limit = file_limit(spool.settings.message_size_limit)
        self._fsio, self._clock, self._log = fsio, clock, log
        self._complained: set[str] = set()

    async def scan(self) -> list[str]:
        """See SpoolStore.scan_maildrop."""
        return await self._fsio.run(self._scan, self._clock.now())

    def _scan(self, now: float) -> list[str]:
        by_owner: dict[int, list[str]] = {}
        for entry in self._fsio.scandir(self._root):
            if ids.is_temporary(entry.name):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_ctime < now - LEFTOVER_AGE:
                        self._fsio.unlink(entry.path)
            elif ids.is_queue_id(entry.name):
                with contextlib.suppress(OSError):  # somebody has removed it meanwhile
                    by_owner.setdefault(entry.stat(follow_symlinks=False).st_uid, []).append(entry.name)
        return in_turns(by_owner.values())

    async def open(self, name: str) -> MaildropFile | None:
        """See SpoolStore.open_maildrop."""
        if not ids.is_queue_id(name):
            return None
        return await self._fsio.run(self._open, name)

    def _open(self, name: str) -> MaildropFile | None:
        try:
            fd = self._fsio.open(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _REFUSED or isinstance(error, PermissionError):
                self._refuse(name, error.strerror or "cannot be opened")
                return None
            raise queue_error(error, f"maildrop/{name}") from error
        found = self._fsio.fstat(fd)
        problem = self._problem(found)
        if problem is None:
            uid = f"{found.st_dev}.{found.st_ino}.{found.st_ctime_ns}"
            return MaildropFile(name, fd, found.st_uid, uid, found.st_size, found.st_mtime, self._fsio)
        self._fsio.close_fd(fd)
        if problem:
            self._refuse(name, problem)
        return None

    def _problem(self, found: os.stat_result) -> str | None:
        """What is wrong with a file; "" = not complete yet; None = nothing."""
        if not stat.S_ISREG(found.st_mode):
            return "not a regular file"
        if not found.st_mode & COMPLETE:
            return ""
        if found.st_nlink != 1:
            return f"{found.st_nlink} links"
        if self._limit and found.st_size > self._limit:
            return "too large"
        return None

    def _refuse(self, name: str, why: str) -> None:
        if name not in self._complained:
            if len(self._complained) >= MAX_COMPLAINTS:
                self._complained.clear()
            self._complained.add(name)
            self._log.warning("pickup", f"maildrop/{name}: refused: {why}")

    def remove(self, file: MaildropFile) -> None:
        """Unlink a file that was copied, and close it; flush() must follow.

        QueueError, too, when it is not that file any more: who has removed it meanwhile wants nothing sent (a
        sendmail whose flush failed has said so), and what was changed would be queued a second time.
        """
        try:
            if not self.unlink_if_same(file.name, file.uid):
                raise QueueError("is not any more what was copied")
        except OSError as error:
            raise queue_error(error, f"maildrop/{file.name}") from error
        finally:
            file.close()

    def unlink_if_same(self, name: str, uid: str) -> bool:
        """Unlink a file that is still the one that was copied.

        The device number is not compared: it may change from one boot to the next.
        """
        try:
            if not self.is_same(name, uid):
                return False
            self._fsio.unlink(f"{self._root}/{name}")
        except FileNotFoundError:
            return False
        return True

    def is_same(self, name: str, uid: str) -> bool:
        """Is the file that was copied still there?"""
        if not ids.is_queue_id(name):
            raise QueueError(f"no name of a maildrop file: {name!r}")
        try:
            found = self._fsio.lstat(f"{self._root}/{name}")
        except FileNotFoundError:
            return False
        return uid.split(".")[1:] == [str(found.st_ino), str(found.st_ctime_ns)]

    async def flush(self) -> None:
        """Make unlinks durable."""
        await self._fsio.flush(self._fsio.directory(self._root))
