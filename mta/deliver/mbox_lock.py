"""The locks of an mbox, in the two ways programs look for them: a file beside it, and a lock on the open file.

PATH.lock names its holder's process from its first moment, so that one left behind by a crash is known for dead and
removed.  Each way is tried deliver_lock_attempts times, deliver_lock_delay seconds apart; a lock that is still held
then is 4.2.0.  State: only what is locked, for as long as one delivery takes.

See also: mta/deliver/mbox.py, postconf(5) mailbox_delivery_lock, lockfile_create(3)
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial

from mta.deliver.mailbox import FLAGS, MailboxError, MailboxSettings, System, failure

LOCK_MODE = 0o444  # others may read whose it is
EMPTY_LOCK = 2.0  # seconds until a lock of ours without content was left by a power cut
_FLOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: the whole file


class MboxLocks:
    """Takes them for one delivery."""

    def __init__(self, path: str, settings: MailboxSettings, system: System) -> None:
        self._path, self._settings, self._system = path, settings, system

    @contextlib.contextmanager
    def file(self) -> Iterator[None]:
        """PATH.lock, for programs that look at nothing else; one left behind by a crash is removed."""
        if "dotlock" not in self._settings.mailbox_delivery_lock:
            yield
            return
        lock = f"{self._path}.lock"
        self._make(lock)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)

    def _make(self, lock: str) -> None:
        def make() -> bool:
            try:
                _create_lock(lock)
            except FileExistsError:
                self._remove_stale(lock)
                return False
            return True

        self._patiently(make, f"unable to create lock file {lock}", errno.EEXIST)

    def _remove_stale(self, lock: str) -> None:
        """Remove a lock that is too old, or names a process that is dead (a machine or daemon that was killed).

        Between the look and the unlink somebody else may take the lock; the file lock is behind this one.
        """
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(lock)
            age = self._system.now() - found.st_ctime  # far in the future: the clock was set back
            old = abs(age) > self._settings.stale_lock_time
            if (old or self._holder_is_dead(lock, found)) and os.lstat(lock).st_ino == found.st_ino:
                os.unlink(lock)

    def _holder_is_dead(self, lock: str, found: os.stat_result) -> bool:
        """True when a lock of this user holds the pid of no process; as lockfile_create(3) judges.

        A power cut can leave the name of a lock without its content.
        """
        if found.st_uid != self._system.uid or not stat.S_ISREG(found.st_mode):
            return False
        try:
            fd = os.open(lock, os.O_RDONLY | FLAGS)
            try:
                words = os.read(fd, 64).split()
            finally:
                os.close(fd)
            if not words and not found.st_mode & 0o222:
                return self._system.now() > found.st_ctime + EMPTY_LOCK
            os.kill(int(words[0]), 0)
            return len(words) > 1 and words[1] != _start_time(int(words[0]))  # another process with this number
        except ProcessLookupError:
            return True
        except (OSError, ValueError, OverflowError, IndexError):
            return False

    def lock(self, fd: int) -> None:
        """Lock the open file in all ways asked for; the locks end when it is closed."""
        ways = self._settings.mailbox_delivery_lock
        for way, take in (("fcntl", _fcntl_lock), ("flock", _flock)):
            if way in ways:
                self._patiently(partial(take, fd), "unable to lock for exclusive access", errno.EAGAIN)

    def _patiently(self, take: Callable[[], bool], what: str, held: int) -> None:
        """Try until it says True; MailboxError."""
        for attempt in range(max(1, self._settings.deliver_lock_attempts)):
            if attempt:
                self._system.wait(self._settings.deliver_lock_delay)
                self._system.check_wanted()
            try:
                if take():
                    return
            except OSError as error:
                raise failure(error, what) from error
        raise MailboxError(450, "4.2.0", f"{what}: {os.strerror(held)}")


def _start_time(pid: int) -> bytes:
    """When a process began, in clock ticks since boot: numbers of processes are used again, soon on a busy machine."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19]
    return b""


def _create_lock(lock: str) -> None:
    """Make a lock file that has our pid in it from its first moment; FileExistsError when there is one.

    It is written without a name and linked: a process killed in between leaves nothing.  Where the file system
    cannot do that, a lock that was left behind empty is stale after EMPTY_LOCK.
    """
    pid = b"%d\n%b\n" % (os.getpid(), _start_time(os.getpid()))
    try:
        fd = os.open(os.path.dirname(lock), os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, LOCK_MODE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, LOCK_MODE)
        linked = True
    else:
        linked = False
    try:
        os.write(fd, pid)
        if not linked:
            os.link(f"/proc/self/fd/{fd}", lock, src_dir_fd=fd)  # a directory makes it linkat(2), which follows
    finally:
        os.close(fd)


def _fcntl_lock(fd: int) -> bool:
    """Lock the open file description: like a POSIX lock to other programs, but two threads exclude each other."""
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes: fcntl(2)
        return False
    return True


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
