"""Who runs: Postfix's own locks, so that a second start and a running Postfix exclude each other.

master(8) holds flock(2) on $queue_directory/pid/master.pid (its pid is the content) and on
$data_directory/master.lock for its whole life.  We take the same two.  The lock, not the number in the file,
says whether somebody runs: a stale pid file means nothing.
"""

import contextlib
import errno
import fcntl
import os

from mta.clock import Clock

ALREADY_RUNNING = "the Postfix mail system is already running"
NOT_RUNNING = "the Postfix mail system is not running"


class AlreadyRunningError(Exception):
    """Another master holds the lock; args[0] is its pid or 0."""


def lock_paths(queue_directory: str, data_directory: str) -> tuple[str, str]:
    """The two lock files, in the order they are taken."""
    return os.path.join(queue_directory, "pid", "master.pid"), os.path.join(data_directory, "master.lock")


def _flock(path: str, mode: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise AlreadyRunningError(read_pid(path)) from None
        raise
    return fd


def take(queue_directory: str, data_directory: str) -> tuple[int, int]:
    """Take both locks for life and write our pid; AlreadyRunningError when either is held, OSError when impossible."""
    pid_path, data_path = lock_paths(queue_directory, data_directory)
    pid_fd = _flock(pid_path, 0o644)
    try:
        data_fd = _flock(data_path, 0o600)
    except BaseException:
        os.close(pid_fd)
        raise
    write_pid(pid_fd)
    return pid_fd, data_fd


def write_pid(fd: int) -> None:
    """Write our pid right-adjusted, as Postfix does; again after each fork that changes it."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid():10d}\n".encode(), 0)


def read_pid(path: str) -> int:
    """The pid in a lock file, 0 when there is none."""
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        return int(file.read(32))
    return 0


def running(queue_directory: str) -> int:
    """The pid of the master that holds the lock, 0 when nobody does; PermissionError when we may not look."""
    path = os.path.join(queue_directory, "pid", "master.pid")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        raise
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return read_pid(path)
    finally:
        os.close(fd)
    return 0


def wait_until_stopped(queue_directory: str, clock: Clock, seconds: float, pause: float = 0.05) -> bool:
    """Wait for the lock to be free; False when it still is not after so many seconds."""
    deadline = clock.seconds() + seconds
    while running(queue_directory):
        if clock.seconds() >= deadline:
            return False
        clock.block(pause)
    return True
