"""`os` and `fcntl` for the code under test, on simulated disks.

The modules of the MTA that touch a disk get these objects in place of the real modules (installed()), so every
line of theirs runs as it stands: short writes, flock, O_EXCL, O_TMPFILE, errors.  Whoever calls something that is not
simulated ends the run with UnsupportedCall.
"""

import contextlib
import errno
import fcntl
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mta.deliver.local
import mta.deliver.local_user
import mta.deliver.mailbox
import mta.deliver.maildir
import mta.deliver.mbox
import mta.deliver.mbox_lock
import mta.descriptors
import mta.fsio.fsio
import mta.queue.store_spool
import sendmail_compat.maildrop
from tests.sim.disk import PAGE, Disk, Inode, error
from tests.sim.process import FIRST_FD, OpenFile, Process, current

MODULES = (
    mta.fsio.fsio, mta.deliver.mailbox, mta.deliver.mbox, mta.deliver.mbox_lock, mta.deliver.maildir, mta.deliver.local,
    mta.deliver.local_user, mta.queue.store_spool, sendmail_compat.maildrop,
)  # fmt: skip
CONSTANTS = ("O_", "SEEK_", "RWF_", "MFD_", "EX_")
PLAIN = {"strerror", "fsencode", "fsdecode", "stat_result", "statvfs_result", "DirEntry", "sep", "memfd_create"}
OPEN_SELF = "/proc/self/fd/"


class UnsupportedCall(BaseException):
    """A system call that is not simulated."""


class Stat:
    """os.stat_result, as far as it is asked for."""

    __slots__ = ("st_atime", "st_ctime", "st_ctime_ns", "st_dev", "st_gid", "st_ino", "st_mode", "st_mtime",
                 "st_mtime_ns", "st_nlink", "st_size", "st_uid")  # fmt: skip

    def __init__(self, inode: Inode, disk: Disk) -> None:
        self.st_mode, self.st_ino, self.st_nlink = inode.mode, inode.ino, inode.nlink
        self.st_uid, self.st_gid, self.st_dev = inode.uid, inode.gid, disk.device
        self.st_size = len(inode.data)
        self.st_mtime_ns, self.st_ctime_ns = inode.mtime, inode.ctime
        self.st_mtime = self.st_atime = inode.mtime / 1e9
        self.st_ctime = inode.ctime / 1e9


class Entry:
    """os.DirEntry."""

    __slots__ = ("_disk", "_inode", "name", "path")

    def __init__(self, name: str, path: str, inode: Inode, disk: Disk) -> None:
        self.name, self.path, self._inode, self._disk = name, path, inode, disk

    def inode(self) -> int:
        return self._inode.ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.is_directory

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._inode.is_directory

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        return Stat(self._disk.find(self.path), self._disk)


class Machine:
    """Its disks, by the first part of their paths, and its processes by number.  now: wall time."""

    def __init__(self, disks: dict[str, Disk], now: Callable[[], float]) -> None:
        self.disks, self.now = disks, now
        self.processes: dict[int, Process] = {}

    def disk(self, path: str) -> Disk:
        """ENOENT for a path on no disk."""
        found = self.disks.get(path.split("/", 2)[1]) if path.startswith("/") else None
        if found is None:
            raise error(errno.ENOENT, path)
        return found


MACHINE: list[Machine] = []
"""The one that is simulated now."""


def _file(fd: int) -> OpenFile:
    found = current().files.get(fd)
    if found is None:
        raise error(errno.EBADF)
    return found


def _leave_trace(call: str, path: str) -> Process:
    """Count a change, which may be the end; OSError when it is to fail."""
    process = current()
    process.step()
    _fault(process, call, path)
    return process


def _fault(process: Process, call: str, path: str) -> None:
    failure = process.faults.error(call, path)
    if failure is not None:
        raise failure


class SimPath:
    """os.path; only what looks at the disk is ours."""

    join = staticmethod(posixpath.join)
    dirname = staticmethod(posixpath.dirname)
    basename = staticmethod(posixpath.basename)

    @staticmethod
    def abspath(path: str) -> str:
        return posixpath.normpath(path)

    @staticmethod
    def isdir(path: str) -> bool:
        current()
        try:
            return path == "/" or MACHINE[0].disk(path).find(path).is_directory
        except OSError:
            return False


class SimOs:
    """The module os."""

    path = SimPath

    def __getattr__(self, name: str) -> Any:
        if name.startswith(CONSTANTS) or name in PLAIN:
            return getattr(os, name)
        raise UnsupportedCall(f"os.{name}")

    # -- descriptors ------------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        process = current()
        if path.startswith(OPEN_SELF) and int(path[len(OPEN_SELF) :]) < FIRST_FD:
            fd = os.open(path, flags, mode)
            process.real.add(fd)
            return fd
        disk = MACHINE[0].disk(path)
        _fault(process, "open", path)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            disk.find(path)
            return process.give_fd(OpenFile(disk.anonymous(mode, process.uid, process.uid), disk, path, append=False))
        try:
            inode = disk.find(path)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            _leave_trace("create", path)
            inode = disk.create(path, mode, process.uid, process.uid)
        else:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise error(errno.EEXIST, path)
            if flags & os.O_DIRECTORY and not inode.is_directory:
                raise error(errno.ENOTDIR, path)
            if inode.is_directory and flags & (os.O_WRONLY | os.O_RDWR):
                raise error(errno.EISDIR, path)
            if flags & os.O_TRUNC and inode.data:
                _leave_trace("truncate", path)
                disk.truncate(inode, 0)
        return process.give_fd(OpenFile(inode, disk, path, append=bool(flags & os.O_APPEND)))

    def close(self, fd: int) -> None:
        process = current()
        if fd < FIRST_FD:
            process.real.discard(fd)
            os.close(fd)
            return
        _file(fd)
        close(process, fd)

    def read(self, fd: int, size: int) -> bytes:
        if fd < FIRST_FD:
            return os.read(fd, size)
        file = _file(fd)
        data = self.pread(fd, size, file.position)
        file.position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd < FIRST_FD:
            return os.pread(fd, size, offset)
        file = _file(fd)
        return bytes(file.inode.data[offset : offset + size])

    def preadv(self, fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        data = self.pread(fd, len(buffers[0]), offset)
        if flags & os.RWF_NOWAIT and fd >= FIRST_FD:
            data = self._in_memory(data, offset)
        buffers[0][: len(data)] = data
        return len(data)

    def _in_memory(self, data: bytes, offset: int) -> bytes:
        """What a read gets that may not wait: now and then not all, up to some page, or some byte."""
        rng = current().rng
        if rng.random() > 0.05:
            return data
        if not rng.randrange(3):
            raise error(errno.EAGAIN)
        return data[: rng.choice((PAGE - offset % PAGE, 0, 1, 2, 3, rng.randrange(100)))]

    def write(self, fd: int, data: bytes) -> int:
        if fd < FIRST_FD:
            return os.write(fd, data)
        file = _file(fd)
        process = _leave_trace("write", file.path)
        if len(data) > PAGE and process.rng.random() < 0.1:
            data = data[: process.rng.randrange(1, len(data))]  # a short write
        position = len(file.inode.data) if file.append else file.position
        done = file.disk.write(file.inode, bytes(data), position)
        file.position = position + done
        return done

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        file = _file(fd)
        _leave_trace("write", file.path)
        return file.disk.write(file.inode, bytes(data), offset)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        file = _file(fd)
        file.position = offset + (len(file.inode.data) if whence == os.SEEK_END else 0)
        return file.position

    def ftruncate(self, fd: int, size: int) -> None:
        file = _file(fd)
        _leave_trace("truncate", file.path)
        file.disk.truncate(file.inode, size)

    def fstat(self, fd: int) -> Any:
        if fd < FIRST_FD:
            return os.fstat(fd)
        file = _file(fd)
        return Stat(file.inode, file.disk)

    def fchmod(self, fd: int, mode: int) -> None:
        file = _file(fd)
        _leave_trace("chmod", file.path)
        file.disk.set_meta(file.inode, mode=mode)

    def utime(self, target: str | int, *, ns: tuple[int, int]) -> None:
        if isinstance(target, int):
            file = _file(target)
            disk, inode, path = file.disk, file.inode, file.path
        else:
            disk, path = MACHINE[0].disk(target), target
            inode = disk.find(target)
        _leave_trace("utime", path)
        disk.set_meta(inode, mtime=ns[1])

    def fsync(self, fd: int, *, data_only: bool = False) -> None:
        file = _file(fd)
        process = current()
        process.step()
        try:
            _fault(process, "fsync", file.path)
        except OSError as failure:
            if failure.errno == errno.EIO:
                file.disk.fail_flush(file.inode)
            raise
        file.disk.fsync(file.inode, data_only=data_only)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd, data_only=True)

    # -- names ------------------------------------------------------------------------------------

    def lstat(self, path: str) -> Any:
        current()
        disk = MACHINE[0].disk(path)
        return Stat(disk.find(path), disk)

    def stat(self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Any:
        return self.lstat(path if dir_fd is None else f"{_file(dir_fd).path}/{path}")

    def scandir(self, path: str) -> contextlib.AbstractContextManager[Iterator[Any]]:
        process = current()
        disk = MACHINE[0].disk(path)
        _fault(process, "open", path)
        names = disk.find(path).names
        if names is None:
            raise error(errno.ENOTDIR, path)
        return contextlib.nullcontext(iter([Entry(n, f"{path}/{n}", inode, disk) for n, inode in names.items()]))

    def listdir(self, path: str) -> list[str]:
        with self.scandir(path) as entries:
            return [entry.name for entry in entries]

    def rename(self, source: str, target: str) -> None:
        disk = MACHINE[0].disk(source)
        if disk is not MACHINE[0].disk(target):
            raise error(errno.EXDEV, source)
        disk.find(source)
        _leave_trace("rename", source)
        disk.rename(source, target)

    def link(self, source: str, target: str, *, src_dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        disk = MACHINE[0].disk(target)
        inode = _file(int(source[len(OPEN_SELF) :])).inode if source.startswith(OPEN_SELF) else disk.find(source)
        _leave_trace("link", target)
        disk.link(inode, target)

    def unlink(self, path: str) -> None:
        disk = MACHINE[0].disk(path)
        disk.find(path)
        _leave_trace("unlink", path)
        disk.unlink(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        disk = MACHINE[0].disk(path)
        if disk.exists(path):
            raise error(errno.EEXIST, path)
        process = _leave_trace("create", path)
        disk.create(path, mode, process.uid, process.uid, directory=True)

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        at = ""
        for part in path.strip("/").split("/"):
            at += f"/{part}"
            if not SimPath.isdir(at):
                self.mkdir(at, mode)

    def chmod(self, path: str, mode: int) -> None:
        disk = MACHINE[0].disk(path)
        inode = disk.find(path)
        _leave_trace("chmod", path)
        disk.set_meta(inode, mode=mode)

    def statvfs(self, path: str) -> Any:
        disk = MACHINE[0].disk(path)
        free = max(0, disk.capacity - disk.used)
        return os.statvfs_result((PAGE, PAGE, disk.capacity, free, free, 0, 0, 0, 0, 255))

    # -- the rest ---------------------------------------------------------------------------------

    def memfd_create(self, name: str, flags: int = 0) -> int:
        process = current()
        _fault(process, "open", "memory")
        fd = os.memfd_create(name, flags)
        process.real.add(fd)
        return fd

    def urandom(self, size: int) -> bytes:
        return current().rng.randbytes(size)

    def getpid(self) -> int:
        return current().pid

    def geteuid(self) -> int:
        return current().uid

    def kill(self, pid: int, number: int) -> None:
        found = MACHINE[0].processes.get(pid)
        if found is None or not found.alive:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def close(process: Process, fd: int) -> None:
    """Let go of a descriptor, and of its lock."""
    file = process.files.pop(fd)
    inode = file.inode
    if inode.lock is file:
        inode.lock = None
        file.disk.locks.pop(inode, None)
    inode.opened -= 1
    file.disk.forget(inode)


class SimFcntl:
    """The module fcntl: one lock per file, held by an open file description."""

    LOCK_EX, LOCK_NB, LOCK_UN, F_WRLCK = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN, fcntl.F_WRLCK
    F_OFD_SETLK = fcntl.F_OFD_SETLK

    def flock(self, fd: int, operation: int) -> None:
        file = _file(fd)
        if operation & fcntl.LOCK_UN:
            if file.inode.lock is file:
                file.inode.lock = None
                file.disk.locks.pop(file.inode, None)
            return
        if file.inode.lock not in (None, file):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        file.inode.lock = file
        file.disk.locks[file.inode] = None

    def fcntl(self, fd: int, command: int, argument: bytes = b"") -> None:
        """F_OFD_SETLK: excludes other programs only, of which there are none; flock is what excludes ours."""
        _file(fd)


class SimTime:
    """The module time, for a program without a Clock."""

    @staticmethod
    def time() -> float:
        return MACHINE[0].now()

    @staticmethod
    def time_ns() -> int:
        return int(MACHINE[0].now() * 1e9)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Put the simulated calls into the modules, for the whole of a program or test."""
    saved: list[tuple[object, str, object]] = []

    def put(module: object, name: str, value: object) -> None:
        saved.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for each in MODULES:
        for name, simulated in (("os", SimOs()), ("fcntl", SimFcntl())):
            if hasattr(each, name):
                put(each, name, simulated)
    put(sendmail_compat.maildrop, "time", SimTime)
    put(sendmail_compat.maildrop, "poke", lambda queue: None)
    put(sendmail_compat.maildrop, "_SIGNALS", ())
    put(mta.descriptors, "spare", lambda: 1000)
    put(mta.descriptors, "scarce", lambda: False)
    try:
        yield
    finally:
        for module, name, value in reversed(saved):
            setattr(module, name, value)
