"""Where things are in a spool: directories, their modes, paths of messages, moves between queues.

See also: mta/INTERNALS.md (table of directories)
"""

import errno
import os
import stat
from typing import Protocol

from mta.fsio.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import FencedError, QueueError, QueueFullError
from mta.record import dataclass

READY = 0o700  # of a complete message
WRITING = 0o600
LEFTOVER_AGE = 3600.0  # seconds after which an unfinished file that nobody writes is removed while we run
CORRUPT_MODE = 0o400
FORCE_EXPIRE = 0o010  # set by postsuper -e
DIRECTORIES = {  # every directory of a spool
    "active": 0o700, "bounce": 0o700, "corrupt": 0o700, "defer": 0o700, "deferred": 0o700, "flush": 0o700,
    "hold": 0o700, "incoming": 0o700, "maildrop": 0o3733, "pid": 0o755, "private": 0o700, "public": 0o755,
    "saved": 0o700, "trace": 0o700,
}  # fmt: skip
_HEX = "0123456789ABCDEF"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class QueueLog(Protocol):
    """What the store needs of mta.maillog.maillog.Maillog."""

    def warning(self, service: str, text: str) -> None:
        """One line for the administrator."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """postconf(5)."""

    queue_directory: str
    enable_long_queue_ids: bool
    hash_queue_names: tuple[str, ...]
    hash_queue_depth: int
    message_size_limit: int
    queue_minfree: int
    maximal_backoff_time: float
    backwards_bounce_logfile_compatibility: bool


def queue_error(error: OSError, doing: str) -> QueueError:
    """The QueueError for a failed disk operation; its text is for the log."""
    kind = QueueFullError if error.errno in _NO_SPACE else QueueError
    return kind(f"{doing}: {error.strerror or error}")


class Spool:
    """Paths and moves.  Knows nothing of what is in the files."""

    def __init__(self, settings: StoreSettings, fsio: Fsio) -> None:
        self.settings = settings
        self.fsio = fsio
        self.root = os.path.abspath(settings.queue_directory)
        self._depth = {name: settings.hash_queue_depth for name in settings.hash_queue_names}

    def directory(self, queue: str, queue_id: str) -> str:
        """The directory of an id in a queue, ending in "/"."""
        depth = self._depth.get(queue, 0)
        return f"{self.root}/{queue}/{ids.hash_directories(queue_id, depth) if depth else ''}"

    def path(self, queue: str, queue_id: str) -> str:
        """Where a message or log of a queue ("incoming", "defer"...) belongs."""
        if queue not in self._depth:
            return f"{self.root}/{queue}/{queue_id}"
        return self.directory(queue, queue_id) + queue_id

    def exists(self, path: str) -> bool:
        """Is there anything of this name?"""
        try:
            self.fsio.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def new_id(self, seconds: int, microseconds: int, inode: int) -> str:
        """The id of a file created at this Unix time."""
        return ids.make(seconds, microseconds, inode, long=self.settings.enable_long_queue_ids)

    def move(self, source: str, queue: str, queue_id: str) -> str:
        """Rename a file into a queue and return its path; FencedError when it is gone, OSError otherwise."""
        target = self.path(queue, queue_id)
        try:
            self.fsio.rename(source, target)
        except FileNotFoundError:
            if not self.make_hashed(queue, queue_id):
                raise FencedError(f"{queue_id}: not there any more") from None
            try:
                self.fsio.rename(source, target)
            except FileNotFoundError:
                raise FencedError(f"{queue_id}: not there any more") from None
        return target

    def make_hashed(self, queue: str, queue_id: str) -> bool:
        """Make the hash directories of an id; False when there was nothing to make."""
        made = False
        at = f"{self.root}/{queue}"
        for part in ids.hash_directories(queue_id, self._depth.get(queue, 0)).split("/")[:-1]:
            at += f"/{part}"
            made |= self._mkdir(at, 0o700)
        return made

    def _mkdir(self, path: str, mode: int) -> bool:
        try:
            self.fsio.mkdir(path, mode)
        except FileExistsError:
            return False
        return True

    def create(self, owner: tuple[int, int] | None) -> None:
        """Make and repair the directories; owner: (uid, gid) to give them to, None = leave as they are."""
        missing = []
        parent = os.path.dirname(self.root)
        while not os.path.isdir(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for directory in reversed(missing):
            self._mkdir(directory, 0o755)
        self._repair(self.root, 0o755, owner)
        for name, mode in DIRECTORIES.items():
            self._repair(f"{self.root}/{name}", mode, owner)
        for name in ("defer", "deferred"):
            if self._depth.get(name, 0) == 1:
                for digit in _HEX:
                    self._repair(f"{self.root}/{name}/{digit}", 0o700, owner)

    def _repair(self, path: str, mode: int, owner: tuple[int, int] | None) -> None:
        self._mkdir(path, mode)
        found = self.fsio.lstat(path)
        if path != self.root and not stat.S_ISDIR(found.st_mode):  # mail_owner's link to what root shall not change
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if owner is not None and (found.st_uid, found.st_gid) != owner:
            self.fsio.chown(path, *owner)
            found = self.fsio.lstat(path)  # chown clears the set-gid bit
        if found.st_mode & 0o7777 != mode:
            self.fsio.chmod(path, mode)


def create_spool(settings: StoreSettings, fsio: Fsio, owner: tuple[int, int] | None = None) -> None:
    """Make or repair queue_directory and everything in it; OSError when that is not possible.

    owner: uid and gid of mail_owner when root calls.  maildrop has the set-gid bit, so that files dropped
    there belong to its group and the unprivileged daemon can read them.
    """
    Spool(settings, fsio).create(owner)


def is_ready(mode: int) -> bool:
    """True when the mode of a file says that the message is complete."""
    return mode & 0o700 == READY


def remove_unlocked(fsio: Fsio, path: str) -> None:
    """Remove a file unless somebody has it locked: he writes it."""
    fd = fsio.open(path)
    try:
        if fsio.flock(fd):
            fsio.unlink(path)
    finally:
        fsio.close_fd(fd)
