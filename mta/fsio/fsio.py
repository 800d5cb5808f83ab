"""The one disk: every operation of the queue on files, the one fsync, and the worker for blocking disk work.

What the store does goes through one Fsio object, so that a simulated disk can take its place, and a test can
count the operations and kill the process, or fail, at the n-th (`hook`).

Flushing is done in groups: mta/fsio/groups.py.  For names that went away see mta/fsio/soon.py.  With Linux AIO the
kernel flushes; without, 8 threads with one fsync each, never one thread in turn (each would pay for a journal commit of
its own).

Never flush a descriptor again after an error: the kernel marks the pages clean and the second call lies.

Make one per process and event loop, after fork; the first flush starts it.

See also: mta/fsio/linux_aio.py, mta/INTERNALS.md "commit points"
"""

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from mta.clock import Clock
from mta.company import Company
from mta.fsio.flusher import WORKERS, Flusher, ThreadFlusher, in_thread
from mta.fsio.groups import NOT_SUPPORTED, Groups
from mta.fsio.linux_aio import FDSYNC, FSYNC, LinuxAio
from mta.fsio.linux_writeback import names_follow_files
from mta.fsio.soon import Finished, Soon

P = ParamSpec("P")
T = TypeVar("T")

ENTROPY = 1024  # random bytes asked of the system at once
LEAST = 64  # bytes that read() gives at least where there are so many: more than the head of a record

Hook = Callable[[str, str | int], None]  # (operation, path or descriptor), called before each; may raise OSError


class Fsio:
    """Disk operations.  Paths are absolute; OSError as from the system call."""

    def __init__(
        self, *, aio: bool = True, hook: Hook | None = None, clock: Clock | None = None, journal: bool = False
    ) -> None:
        """aio: False takes threads even where the kernel has AIO.

        journal: where the journal makes a name durable with its file, its directory is not flushed.
        """
        self.hook = hook
        self.clock = clock or Clock()
        self.company = Company(self.clock)  # each of them may join the next group
        self.pid = os.getpid()
        self._want_aio = aio
        self._flusher: Flusher | None = None
        self._retired: Flusher | None = None  # may still have other requests in flight
        self._commits = Groups(self, FSYNC)
        self._marks = Groups(self, FDSYNC)
        self._workers: ThreadPoolExecutor | None = None
        self._directories: dict[str, int] = {}
        self._journal = journal
        self._follows: dict[int, bool] = {}  # by directory: names_follow_files()
        self.soon = Soon(self.clock, lambda directory, done: self._commits.add(directory, -1, done))
        self._nowait = True
        self._page = bytearray()  # what read() reads into
        self._entropy = b""

    # -- files ------------------------------------------------------------------------------------

    def open_excl(self, path: str, mode: int) -> int:
        """Create a file that must not exist, for reading and writing."""
        if self.hook:
            self.hook("open_excl", path)
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def open(self, path: str, *, write: bool = False) -> int:
        """Open what exists; never follows a link in the last place, never blocks on a FIFO."""
        if self.hook:
            self.hook("open", path)
        access = os.O_RDWR if write else os.O_RDONLY
        return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def close_fd(self, fd: int) -> None:
        """Close a descriptor, and with it let go of its lock (but see unlock())."""
        if self.hook:
            self.hook("close", fd)
        os.close(fd)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it."""
        if self.hook:
            self.hook("write", fd)
        done = os.write(fd, data)
        while done < len(data):
            done += os.write(fd, memoryview(data)[done:])

    def write_file(self, path: str, data: bytes, mode: int) -> None:
        """Replace a small file that nobody's mail depends on."""
        if self.hook:
            self.hook("write_file", path)
        fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def read_file(self, path: str, limit: int) -> bytes:
        """At most `limit` bytes of a small file."""
        fd = self.open(path)
        try:
            return os.read(fd, limit)
        finally:
            os.close(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Overwrite in place."""
        if self.hook:
            self.hook("pwrite", fd)
        if os.pwrite(fd, data, offset) != len(data):
            raise OSError(errno.EIO, "short write")

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read from a position; shorter only at the end of the file."""
        return os.pread(fd, size, offset)

    def pread_cached(self, fd: int, size: int, offset: int, end: int) -> bytes:
        """As pread, and never waits: BlockingIOError when not all of it is in memory.  end: size of the file."""
        size = max(0, min(size, end - offset))
        found = self._in_memory(fd, size, offset)
        if found is None:
            return self.pread(fd, size, offset)
        if len(found) < size:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return found

    async def read(self, fd: int, size: int, offset: int) -> bytes:
        """Read without stopping the loop: what is in memory at once, anything else in the worker.

        Fewer bytes than `size` say only that the next page was not in memory; fewer than LEAST, that the file ends.
        """
        found = self._in_memory(fd, size, offset)
        if found is None:
            return os.pread(fd, size, offset)
        if len(found) < min(size, LEAST):
            return await self.run(os.pread, fd, size, offset)
        return found

    def _in_memory(self, fd: int, size: int, offset: int) -> bytes | None:
        """What the page cache holds from there on, up to `size` bytes; None where one cannot ask, nor needs to."""
        if not self._nowait:
            return None
        if size > len(self._page):
            self._page = bytearray(size)
        buffer = memoryview(self._page)[:size]
        try:
            return bytes(buffer[: os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)])
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            self._nowait = False  # tmpfs has no such call, and needs none
            return None

    def fchmod(self, fd: int, mode: int) -> None:
        """fchmod(2)."""
        if self.hook:
            self.hook("fchmod", fd)
        os.fchmod(fd, mode)

    def fstat(self, fd: int) -> os.stat_result:
        """fstat(2)."""
        return os.fstat(fd)

    def lstat(self, path: str) -> os.stat_result:
        """lstat(2)."""
        return os.lstat(path)

    def entry(self, directory: int, name: str) -> os.stat_result:
        """lstat(2) of a name in a directory(), wherever that is now."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def flock(self, fd: int) -> bool:
        """Take the lock on a file without waiting; False when another description holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, fd: int) -> None:
        """Let go of the lock of flock(): now, not when the file is closed for good.

        The kernel keeps a file open until its worker is done with a flush that has been reported already, so after
        close_fd() alone the lock may still be held for some milliseconds.
        """
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)

    def utime(self, target: str | int, when: float) -> None:
        """Set access and modification time of a path or descriptor, Unix seconds."""
        if self.hook:
            self.hook("utime", target)
        ns = round(when * 1_000_000) * 1000
        os.utime(target, ns=(ns, ns))

    # -- names ------------------------------------------------------------------------------------

    def rename(self, source: str, target: str) -> None:
        """rename(2): one name instead of the other, never none."""
        if self.hook:
            self.hook("rename", source)
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        if self.hook:
            self.hook("unlink", path)
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory with exactly this mode, whatever the umask is."""
        if self.hook:
            self.hook("mkdir", path)
        os.mkdir(path, 0o700)
        os.chmod(path, mode)

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2) of a directory."""
        if self.hook:
            self.hook("chmod", path)
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """chown(2) of a directory."""
        if self.hook:
            self.hook("chown", path)
        os.chown(path, uid, gid, follow_symlinks=False)

    def scandir(self, path: str) -> Iterator[os.DirEntry[str]]:
        """Entries of a directory in its own order; it is closed with the generator, whoever stops in the middle."""
        with os.scandir(path) as entries:
            yield from entries

    def statvfs(self, path: str) -> os.statvfs_result:
        """Free space of a file system."""
        return os.statvfs(path)

    def directory(self, path: str) -> int:
        """A descriptor of a directory, to flush it with; kept open until close()."""
        fd = self._directories.get(path)
        if fd is None:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._directories[path] = fd
        return fd

    def is_directory(self, fd: int) -> bool:
        """Is it one of directory()?"""
        return fd in self._directories.values()

    def entropy(self, size: int) -> bytes:
        """Random bytes of the system, at most ENTROPY of them."""
        if len(self._entropy) < size:
            self._entropy = os.urandom(ENTROPY)
        taken, self._entropy = self._entropy[:size], self._entropy[size:]
        return taken

    # -- durability -------------------------------------------------------------------------------

    def commit(self, fd: int, directory: int, done: Finished, *, large: bool = False) -> None:
        """Flush a file, then the directory that holds its name; done(None) when both are on the device.

        The descriptor must stay open until then.  `done` is called on the loop and must not raise.
        The second flush is left out where the first does it: it would commit what others have begun meanwhile.
        large: so much was written that the device had better begin at once.
        """
        directory = -1 if self._ordered(directory) else directory
        self._commits.add(fd, directory, done)
        self._commits.write(fd, now=large)

    def flush_soon(self, directory: int, done: Finished) -> None:
        """Make it durable that a name has gone; done(error) is called on the loop, see mta/fsio/soon.py."""
        self.soon.add(directory, done, ordered=self._ordered(directory))

    def _ordered(self, directory: int) -> bool:
        """Do names follow files there?"""
        if self._journal and directory not in self._follows:
            self._follows[directory] = names_follow_files(directory)
        return self._follows.get(directory, False)

    async def flush(self, fd: int) -> None:
        """Wait until a file or directory is on the device with all its attributes."""
        await self._wait(self._commits, fd)

    async def flush_data(self, fd: int) -> None:
        """Wait until bytes overwritten in place are on the device; no journal commit, unlike flush()."""
        await self._wait(self._marks, fd)

    async def _wait(self, groups: Groups, fd: int) -> None:
        waiter: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()

        def done(error: OSError | None) -> None:
            if not waiter.done():
                waiter.set_result(error)

        groups.add(fd, -1, done)
        if (error := await waiter) is not None:
            raise error

    def flusher(self, loop: asyncio.AbstractEventLoop) -> Flusher:
        """The way to flush, chosen at its first use."""
        if self._flusher is None:
            if self._want_aio:
                with contextlib.suppress(OSError):
                    self._flusher = LinuxAio(loop)
            self._flusher = self._flusher or ThreadFlusher(loop)
        return self._flusher

    def without_aio(self) -> bool:
        """The kernel does not do this kind of flush: use threads from now on.  False when we already do."""
        if isinstance(self._flusher, ThreadFlusher) or self._flusher is None:
            return False
        self._retired, self._flusher, self._want_aio = self._flusher, None, False
        return True

    # -- the worker -------------------------------------------------------------------------------

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something that blocks on the disk in a thread, for all rooms; OSError when there is none."""
        return await in_thread(asyncio.get_running_loop(), self.pool(), lambda: fn(*args, **kwargs))

    def pool(self) -> Executor:
        """The worker's threads, for a library that wants an executor (aiofiles)."""
        if self._workers is None:
            self._workers = ThreadPoolExecutor(WORKERS, "disk")
        return self._workers

    def close(self) -> None:
        """Finish what is in flight and release threads and descriptors."""
        for directory in self.soon.take():
            with contextlib.suppress(OSError):
                os.fsync(directory)
        for flusher in (self._flusher, self._retired):
            if flusher is not None:
                flusher.close()
        self._flusher = self._retired = None
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)
            self._workers = None
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()


def fsync_now(fd: int) -> None:
    """Flush one file in the caller's own time: for processes without a loop (mailbox delivery)."""
    os.fsync(fd)
