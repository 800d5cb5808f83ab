"""The disk: group commit by AIO and by threads, errors per file, the hook, the worker."""

import asyncio
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import pytest

from mta.fsio.flusher import ThreadFlusher
from mta.fsio.fsio import ENTROPY, LEAST, Fsio, fsync_now
from mta.fsio.groups import TOGETHER
from mta.fsio.linux_aio import CONTEXT_SIZE, FDSYNC, FSYNC, Done, LinuxAio
from mta.fsio.linux_writeback import names_follow_files


class Opener(Protocol):
    def __call__(self, *, aio: bool = True) -> Fsio: ...


@pytest.fixture
def opener() -> Iterator[Opener]:
    made: list[Fsio] = []

    def make(*, aio: bool = True) -> Fsio:
        made.append(Fsio(aio=aio))
        return made[-1]

    yield make
    for fsio in made:
        fsio.close()


def committed(fsio: Fsio, fd: int, directory: int) -> asyncio.Future[OSError | None]:
    waiter: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    fsio.commit(fd, directory, waiter.set_result)
    return waiter


async def test_what_is_in_a_directory_is_found_where_the_directory_was_moved_to(tmp_path: Path, opener: Opener) -> None:
    fsio = opener(aio=False)
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "message").touch()
    directory = fsio.directory(str(spool))
    spool.rename(tmp_path / "away")
    assert fsio.entry(directory, "message").st_ino == (tmp_path / "away/message").stat().st_ino
    (tmp_path / "away/message").unlink()
    with pytest.raises(FileNotFoundError):
        fsio.entry(directory, "message")


@pytest.mark.parametrize("aio", [True, False])
async def test_many_commits_share_few_flushes(tmp_path: Path, opener: Opener, aio: bool) -> None:
    fsio = opener(aio=aio)
    groups: list[str] = []
    fsio.hook = lambda op, _: groups.append(op) if op.startswith("flush") else None
    directory = fsio.directory(str(tmp_path))
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(300)]
    assert await asyncio.gather(*(committed(fsio, fd, directory) for fd in fds)) == [None] * 300
    assert groups.count("flush") == 300
    assert groups.count("flush_directory") == 1, "the directory once per group"
    for fd in fds:
        fsio.close_fd(fd)


@pytest.mark.parametrize("follows", [True, False])
async def test_a_directory_is_flushed_unless_the_journal_holds_names_together_with_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    monkeypatch.setattr("mta.fsio.fsio.names_follow_files", lambda _: follows)
    fsio = Fsio(journal=True)
    operations: list[str] = []
    fsio.hook = lambda op, _: operations.append(op) if op.startswith("flush") else None
    directory = fsio.directory(str(tmp_path))
    for name in ("1", "2"):
        fd = fsio.open_excl(f"{tmp_path}/{name}", 0o600)
        assert await committed(fsio, fd, directory) is None
        fsio.close_fd(fd)
    assert operations == (["flush"] if follows else ["flush", "flush_directory"]) * 2
    fsio.close()


@pytest.mark.parametrize(
    ("kind", "journal", "follows"),
    [
        (0x58465342, None, True),
        (0xEF53, "12345\n", True),
        (0xEF53, "<none>\n", False),  # made without a journal
        (0xEF53, None, False),  # sysfs is not there
        (0x01021994, "1\n", False),  # tmpfs
        (-1, "1\n", False),  # no such descriptor
    ],
)
def test_only_xfs_and_ext4_with_a_journal_are_trusted_with_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, journal: str | None, follows: bool
) -> None:
    def fstatfs(_fd: int, found: ctypes.Array[ctypes.c_char]) -> int:
        ctypes.c_long.from_buffer(found).value = kind
        return -1 if kind < 0 else 0

    opened: Callable[..., object] = open
    text = tmp_path / "journal_task"
    if journal is not None:
        text.write_text(journal)
    monkeypatch.setattr("mta.fsio.linux_writeback.ctypes.CDLL", lambda _: SimpleNamespace(fstatfs=fstatfs))
    monkeypatch.setattr("builtins.open", lambda name: opened(text) if "/sys/fs/ext4/" in name else opened(name))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert names_follow_files(fd) is follows
    finally:
        os.close(fd)


async def test_a_group_waits_a_moment_for_those_who_are_about_to_commit(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("company.RECENT", "fsio.groups.GATHER"):
        monkeypatch.setattr(f"mta.{name}", 60.0)  # a moment is long, so that no pause of the machine ends it
    fsio = opener()
    directory = fsio.directory(str(tmp_path))
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(3)]
    order: list[str] = []
    fsio.hook = lambda op, _: order.append(op)
    both = ["flush", "flush", "flush_directory"]
    fsio.company.here("a client")
    first = committed(fsio, fds[0], directory)
    await asyncio.sleep(0)
    assert order == [], "one is in the middle of something"
    fsio.company.gone("a client")
    await asyncio.gather(first, committed(fsio, fds[1], directory))
    assert order == both, "both in one group"
    fsio.company.here("a client")
    first = committed(fsio, fds[0], directory)
    await asyncio.sleep(0)
    fsio.company._seen.clear()  # it went silent
    await asyncio.gather(first, committed(fsio, fds[2], directory))
    assert order == both * 2, "who commits sees that nobody else is left"
    for fd in fds:
        fsio.close_fd(fd)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_who_stalls_or_goes_on_and_on_holds_up_nobody_for_long(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    if goes_on:  # looked for again and again, and always there
        for name, seconds in (("company.RECENT", 60.0), ("fsio.groups.RECENT", 0.0), ("fsio.groups.GATHER", 0.2)):
            monkeypatch.setattr(f"mta.{name}", seconds)
    fsio = opener()
    fd = fsio.open_excl(f"{tmp_path}/0", 0o600)
    fsio.company.here("a client")
    waiting = committed(fsio, fd, fsio.directory(str(tmp_path)))
    assert await asyncio.wait_for(waiting, 30) is None
    fsio.close_fd(fd)


async def test_directories_that_lost_names_are_flushed_once_for_all(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    directory = fsio.directory(str(tmp_path))
    order: list[str | int] = []
    fsio.hook = lambda _, fd: order.append(fd)
    loop = asyncio.get_running_loop()
    done: list[asyncio.Future[OSError | None]] = [loop.create_future() for _ in range(3)]
    for each in done:
        fsio.flush_soon(directory, each.set_result)
    assert await asyncio.gather(*done) == [None, None, None]
    assert order == [directory]


async def test_who_comes_while_a_group_is_in_flight_joins_the_next(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    directory = fsio.directory(str(tmp_path))
    order: list[str] = []
    fsio.hook = lambda op, _: order.append(op)
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(3)]
    order.clear()
    first = committed(fsio, fds[0], directory)
    await asyncio.sleep(0)  # its group is on the way
    rest = [committed(fsio, fd, directory) for fd in fds[1:]]
    await asyncio.gather(first, *rest)
    assert order == ["flush", "flush_directory", "flush", "flush", "flush_directory"]
    for fd in fds:
        fsio.close_fd(fd)


@pytest.mark.parametrize("aio", [True, False])
async def test_an_error_belongs_to_one_file(tmp_path: Path, opener: Opener, aio: bool) -> None:
    fsio = opener(aio=aio)
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    read_end, write_end = os.pipe()  # cannot be flushed: EINVAL
    directory = fsio.directory(str(tmp_path))
    good, bad = await asyncio.gather(committed(fsio, fd, directory), committed(fsio, write_end, directory))
    assert good is None
    assert bad is not None
    assert bad.errno == errno.EINVAL
    with pytest.raises(OSError, match="Invalid argument"):
        await fsio.flush(write_end)
    with pytest.raises(OSError, match="Invalid argument"):
        await fsio.flush_data(write_end)
    for each in (fd, read_end, write_end):
        os.close(each)


async def test_a_closed_descriptor_is_an_error_and_the_others_go_on(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    await fsio.flush(fsio.directory(str(tmp_path)))
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(3)]
    waiting = [asyncio.ensure_future(fsio.flush(fd)) for fd in fds]
    os.close(fds[1])
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] is None
    assert results[2] is None
    assert isinstance(results[1], OSError)
    assert results[1].errno == errno.EBADF
    await fsio.flush(fds[0])
    os.close(fds[0])
    os.close(fds[2])


async def test_more_requests_than_the_context_holds_wait_their_turn(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    aio = LinuxAio(loop)
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(CONTEXT_SIZE + 50)]
    done: asyncio.Future[list[OSError | None]] = loop.create_future()
    aio.submit(fds, FSYNC, done.set_result)
    assert await done == [None] * len(fds)
    aio.close()
    for fd in fds:
        os.close(fd)


async def test_a_hook_can_fail_a_flush(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)

    def fail(op: str, _: str | int) -> None:
        if op == "flush_directory":
            raise OSError(errno.EIO, "Input/output error")

    fsio.hook = fail
    error = await committed(fsio, fd, fsio.directory(str(tmp_path)))
    assert error is not None
    assert error.errno == errno.EIO
    fsio.close_fd(fd)


async def test_a_bug_in_one_callback_is_not_the_others_problem(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)

    def bug(_: OSError | None) -> None:
        raise ZeroDivisionError

    fsio.commit(fd, -1, bug)
    assert await committed(fsio, fd, -1) is None
    assert isinstance(seen[0], ZeroDivisionError)
    fsio.close_fd(fd)


async def test_threads_flush_where_there_is_no_aio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: LinuxAio, __: asyncio.AbstractEventLoop) -> None:
        raise OSError(errno.ENOSYS, "io_setup")

    monkeypatch.setattr(LinuxAio, "__init__", refused)
    fsio = Fsio()
    assert isinstance(fsio.flusher(asyncio.get_running_loop()), ThreadFlusher)
    await fsio.flush(fsio.directory(str(tmp_path)))
    fsio.close()


async def test_reading_gives_what_is_there(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    fd = fsio.open(f"{tmp_path}/a")
    assert await fsio.read(fd, 5, 255) == b"\xff\x00\x01\x02\x03"
    assert await fsio.read(fd, 5, 256_000) == b""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert len(await fsio.read(fd, 100_000, 0)) in range(1, 100_001)
    fsio.close_fd(fd)


async def test_opening_neither_follows_a_link_nor_waits_for_a_fifo(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="symbolic links"):
        fsio.open(f"{tmp_path}/link")
    fsio.close_fd(fsio.open(f"{tmp_path}/fifo"))


async def test_a_lock_excludes_another_description_and_ends_with_close(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    other = fsio.open(f"{tmp_path}/a")
    assert fsio.flock(fd)
    assert not fsio.flock(other)
    fsio.close_fd(fd)
    assert fsio.flock(other)
    fsio.close_fd(other)


async def test_write_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsio = Fsio()
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda f, data: whole(f, bytes(data)[:3]))
        fsio.write(fd, b"0123456789")
    assert fsio.pread(fd, 100, 0) == b"0123456789"
    fsio.close_fd(fd)


async def test_a_directory_gets_its_mode_whatever_the_umask_is(tmp_path: Path, opener: Opener) -> None:
    old = os.umask(0o077)
    try:
        opener().mkdir(f"{tmp_path}/d", 0o755)
    finally:
        os.umask(old)
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o755


async def test_the_worker_is_another_thread_and_errors_come_back(opener: Opener) -> None:
    fsio = opener()
    assert await fsio.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(FileNotFoundError):
        await fsio.run(os.stat, "/nonexistent")


async def test_close_waits_for_what_is_in_flight_and_a_new_start_works(tmp_path: Path) -> None:
    flushed: list[str] = []
    fsio = Fsio(hook=lambda operation, _: flushed.append(operation))
    before = len(os.listdir("/proc/self/fd"))
    for number in (1, 2):
        waiting = asyncio.ensure_future(fsio.flush(fsio.directory(str(tmp_path))))
        await waiting
        fsio.close()
        fsio.close()
        assert flushed == ["flush"] * number
    assert len(os.listdir("/proc/self/fd")) == before


class _NoFsyncInAio:
    """A kernel whose AIO knows no flush."""

    def __init__(self) -> None:
        self.closed = False

    def begin(self, fd: int) -> None:
        return

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        results: list[OSError | None] = [OSError(errno.EINVAL, "io_submit") for _ in fds]
        asyncio.get_running_loop().call_soon(done, results)

    def close(self) -> None:
        self.closed = True


class _Recorder:
    """A device that is always done at once, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def begin(self, fd: int) -> None:
        self.asked.append(("begin", [fd]))

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        self.asked.append(("flush", sorted(fds)))
        results: list[OSError | None] = [None] * len(fds)
        asyncio.get_running_loop().call_soon(done, results)

    def close(self) -> None:
        return


async def test_files_begin_to_be_written_some_at_a_time_before_their_group_is_flushed_and_large_ones_at_once() -> None:
    fsio, device = Fsio(), _Recorder()
    fsio._flusher = device
    loop = asyncio.get_running_loop()

    def commit(fd: int, *, large: bool = False) -> asyncio.Future[OSError | None]:
        waiter: asyncio.Future[OSError | None] = loop.create_future()
        fsio.commit(fd, -1, waiter.set_result, large=large)
        return waiter

    try:
        alone = commit(100)
        assert await alone is None
        assert device.asked == [("flush", [100])], "alone it gains nothing"
        device.asked.clear()
        waiting = [commit(fd) for fd in range(101, 101 + TOGETHER)]
        some = [("begin", [fd]) for fd in range(101, 101 + TOGETHER)]
        assert device.asked == some
        waiting += [commit(201), commit(202, large=True)]
        some += [("begin", [201]), ("begin", [202])]
        assert device.asked == some
        waiting.append(commit(301))
        await asyncio.gather(*waiting)
        assert device.asked[:-1] == [*some, ("begin", [301])]
        assert device.asked[-1] == ("flush", [*range(101, 101 + TOGETHER), 201, 202, 301])
    finally:
        fsio.close()


async def test_a_kernel_whose_aio_cannot_flush_is_served_by_threads(tmp_path: Path) -> None:
    fsio, kernel = Fsio(), _NoFsyncInAio()
    fsio._flusher = kernel
    fd = fsio.open_excl(str(tmp_path / "f"), 0o600)
    try:
        await fsio.flush(fd)
        await fsio.flush_data(fd)
        assert isinstance(fsio._flusher, ThreadFlusher)
    finally:
        fsio.close_fd(fd)
        fsio.close()
    assert kernel.closed


class Files:
    """A directory with a file "a" that is open for writing, for tests of single operations."""

    def __init__(self, root: Path, fsio: Fsio) -> None:
        self.root, self.fsio = root, fsio
        self.a = f"{root}/a"
        (root / "d").mkdir(mode=0o700)
        (root / "a").write_bytes(b"0123456789")
        (root / "a").chmod(0o600)
        self.fd = os.open(self.a, os.O_RDWR)

    def state(self) -> list[tuple[str, int, int, bytes]]:
        """All that an operation could change."""
        found = sorted(self.root.iterdir())
        return [(p.name, p.stat().st_mode, p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
                for p in found]  # fmt: skip


OPERATIONS: dict[str, tuple[Callable[[Files], object], Callable[[Files], object], object]] = {
    "open_excl": (lambda f: os.close(f.fsio.open_excl(f"{f.root}/new", 0o640)),
                  lambda f: oct((f.root / "new").stat().st_mode), "0o100640"),
    "open": (lambda f: os.close(f.fsio.open(f.a, write=True)), lambda f: None, None),
    "close": (lambda f: f.fsio.close_fd(os.dup(f.fd)), lambda f: os.fstat(f.fd).st_size, 10),
    "write": (lambda f: f.fsio.write(f.fd, b"xyz"), lambda f: Path(f.a).read_bytes(), b"xyz3456789"),
    "write_file": (lambda f: f.fsio.write_file(f.a, b"new", 0o600), lambda f: f.fsio.read_file(f.a, 2), b"ne"),
    "pwrite": (lambda f: f.fsio.pwrite(f.fd, b"xyz", 5), lambda f: f.fsio.pread(f.fd, 4, 4), b"4xyz"),
    "fchmod": (lambda f: f.fsio.fchmod(f.fd, 0o700), lambda f: oct(f.fsio.fstat(f.fd).st_mode), "0o100700"),
    "utime": (lambda f: f.fsio.utime(f.a, 1.8e9 + 0.123456), lambda f: f.fsio.lstat(f.a).st_mtime_ns,
              1_800_000_000_123_456_000),
    "rename": (lambda f: f.fsio.rename(f.a, f"{f.root}/b"), lambda f: {e.name for e in f.fsio.scandir(str(f.root))},
               {"b", "d"}),
    "unlink": (lambda f: f.fsio.unlink(f.a), lambda f: [e.name for e in f.fsio.scandir(str(f.root))], ["d"]),
    "mkdir": (lambda f: f.fsio.mkdir(f"{f.root}/e", 0o3733), lambda f: oct((f.root / "e").stat().st_mode), "0o43733"),
    "chmod": (lambda f: f.fsio.chmod(f"{f.root}/d", 0o750), lambda f: oct((f.root / "d").stat().st_mode), "0o40750"),
    "chown": (lambda f: f.fsio.chown(f"{f.root}/d", os.getuid(), os.getgid()), lambda f: (f.root / "d").owner() != "",
              True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_its_name_says_and_nothing_when_the_hook_fails_it(name: str, tmp_path: Path) -> None:
    do, look, expected = OPERATIONS[name]
    files = Files(tmp_path, Fsio())
    asked: list[str] = []

    def fail(operation: str, _: str | int) -> None:
        asked.append(operation)
        raise OSError(errno.EROFS, "Read-only file system")

    before = files.state()
    files.fsio.hook = fail
    with pytest.raises(OSError, match="Read-only"):
        do(files)
    assert asked == [name]
    assert files.state() == before
    files.fsio.hook = None
    do(files)
    assert look(files) == expected
    os.close(files.fd)


def test_a_short_write_in_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsio = Fsio()
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    whole = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda f, data, offset: whole(f, data[:1], offset))
        with pytest.raises(OSError, match="short write"):
            fsio.pwrite(fd, b"12", 0)
    fsio.close_fd(fd)


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    assert Fsio().statvfs(str(tmp_path)).f_frsize == os.statvfs(tmp_path).f_frsize


def test_a_directory_is_opened_once_and_closed_at_the_end(tmp_path: Path) -> None:
    fsio = Fsio()
    fd = fsio.directory(str(tmp_path))
    assert fsio.directory(str(tmp_path)) == fd
    fsio.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_random_bytes_are_never_given_twice() -> None:
    fsio = Fsio()
    taken = [fsio.entropy(16) for _ in range(ENTROPY // 16 * 3)]
    assert len(set(taken)) == len(taken)
    assert {len(t) for t in taken} == {16}


def test_flushing_at_once_is_for_files_that_can_be_flushed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    fsync_now(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fsync_now(fd)


class Reads:
    """preadv as a file system without RWF_NOWAIT, with cold pages, or with a bad disk."""

    def __init__(self, error: OSError) -> None:
        self.error, self.count = error, 0

    def __call__(self, *_: object) -> int:
        self.count += 1
        raise self.error


async def test_what_is_not_in_memory_is_read_in_the_worker(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio, cold = opener(), Reads(BlockingIOError(errno.EAGAIN, "would block"))
    (tmp_path / "a").write_bytes(b"0123456789")
    fd = fsio.open(f"{tmp_path}/a")
    threads: list[int] = []
    read = os.pread

    def noted(*args: int) -> bytes:
        threads.append(threading.get_ident())
        return read(*args)

    monkeypatch.setattr(os, "preadv", cold)
    monkeypatch.setattr(os, "pread", noted)
    assert [await fsio.read(fd, 4, 3), await fsio.read(fd, 4, 8)] == [b"3456", b"89"]
    assert cold.count == 2 and threading.get_ident() not in threads
    fsio.close_fd(fd)


async def test_a_few_bytes_that_are_in_memory_are_not_taken_for_the_end_of_a_file(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio = opener()
    (tmp_path / "a").write_bytes(bytes(1000))
    fd = fsio.open(f"{tmp_path}/a")
    for count, got in [(0, 1000), (1, 1000), (LEAST - 1, 1000), (LEAST, LEAST), (1000, 1000)]:
        monkeypatch.setattr(os, "preadv", lambda *_, count=count: count)
        assert len(await fsio.read(fd, 1000, 0)) == got, count
    monkeypatch.setattr(os, "preadv", lambda *_: 2)
    assert len(await fsio.read(fd, 2, 0)) == 2
    fsio.close_fd(fd)


async def test_reading_from_memory_gives_all_that_was_asked_for_or_nothing(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio = opener()
    (tmp_path / "a").write_bytes(b"0123456789")
    fd = fsio.open(f"{tmp_path}/a")
    fsio.pread(fd, 10, 0)
    assert fsio.pread_cached(fd, 4, 3, 10) == b"3456"
    assert fsio.pread_cached(fd, 100, 8, 10) == b"89"
    assert fsio.pread_cached(fd, 100, 10, 10) == fsio.pread_cached(fd, 100, 11, 10) == b""
    for count in (0, 3):  # of a file that ends behind what is in memory
        monkeypatch.setattr(os, "preadv", lambda *_, count=count: count)
        with pytest.raises(BlockingIOError):
            fsio.pread_cached(fd, 4, 3, 10)
    monkeypatch.setattr(os, "preadv", Reads(BlockingIOError(errno.EAGAIN, "would block")))
    with pytest.raises(BlockingIOError):
        fsio.pread_cached(fd, 4, 3, 10)
    monkeypatch.setattr(os, "preadv", Reads(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        fsio.pread_cached(fd, 4, 3, 10)
    monkeypatch.setattr(os, "preadv", Reads(OSError(errno.EOPNOTSUPP, "no such thing here")))
    assert fsio.pread_cached(fd, 4, 3, 10) == b"3456"
    fsio.close_fd(fd)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
async def test_a_file_system_without_nowait_is_asked_once(
    number: int, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio, tmpfs = opener(), Reads(OSError(number, "no such thing here"))
    (tmp_path / "a").write_bytes(b"0123456789")
    fd = fsio.open(f"{tmp_path}/a")
    monkeypatch.setattr(os, "preadv", tmpfs)
    assert [await fsio.read(fd, 4, 3), await fsio.read(fd, 4, 8)] == [b"3456", b"89"]
    assert tmpfs.count == 1
    fsio.close_fd(fd)


async def test_an_error_of_the_disk_while_reading_is_an_error(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio = opener()
    (tmp_path / "a").write_bytes(b"0123456789")
    fd = fsio.open(f"{tmp_path}/a")
    monkeypatch.setattr(os, "preadv", Reads(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        await fsio.read(fd, 4, 3)
    fsio.close_fd(fd)


async def test_who_stopped_waiting_for_a_flush_disturbs_nobody(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    tired = asyncio.ensure_future(fsio.flush(fd))
    patient = asyncio.ensure_future(fsio.flush(fd))
    await asyncio.sleep(0)
    tired.cancel()
    await patient
    assert tired.cancelled() and seen == []
    fsio.close_fd(fd)


async def test_a_directory_that_was_to_be_flushed_soon_is_flushed_by_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio = Fsio()
    directory = fsio.directory(str(tmp_path))
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    fsio.flush_soon(directory, lambda _: None)
    fsio.close()
    assert flushed == [directory]


@pytest.mark.parametrize("aio", [True, False])
async def test_a_file_system_that_cannot_flush_directories_is_no_error(
    aio: bool, tmp_path: Path, opener: Opener
) -> None:
    """The name counts as safe when the file is: the device has nothing else to offer.  A pipe stands for both."""
    fsio = opener(aio=aio)
    fd = fsio.open_excl(f"{tmp_path}/a", 0o600)
    read_end, write_end = os.pipe()
    assert await committed(fsio, fd, write_end) is None
    for each in (fd, read_end, write_end):
        os.close(each)


async def test_a_thread_that_fails_in_another_way_is_an_error_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(_: int) -> None:
        raise RuntimeError("no more threads")

    monkeypatch.setattr(os, "fdatasync", bug)
    flusher = ThreadFlusher(asyncio.get_running_loop())
    done: asyncio.Future[list[OSError | None]] = asyncio.get_running_loop().create_future()
    flusher.submit([0, 1], FDSYNC, done.set_result)
    errors = await done
    assert [e.errno if e else 0 for e in errors] == [errno.EIO, errno.EIO]
    flusher.close()


class NoThreads:
    """The system starts no thread (pids.max, RLIMIT_NPROC) while `short`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.short = False
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if self.short:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)


async def test_a_flush_for_which_there_is_no_thread_is_an_error_and_the_next_group_goes_on(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio, system = opener(aio=False), NoThreads(monkeypatch)
    directory = fsio.directory(str(tmp_path))
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(3)]
    system.short = True
    errors = await asyncio.wait_for(asyncio.gather(*(committed(fsio, fd, directory) for fd in fds)), 20)
    assert [error.errno if error else 0 for error in errors] == [errno.EAGAIN] * 3
    system.short = False
    assert await asyncio.wait_for(asyncio.gather(*(committed(fsio, fd, directory) for fd in fds)), 20) == [None] * 3
    for fd in fds:
        fsio.close_fd(fd)


async def test_work_for_which_there_is_no_thread_is_an_error_of_the_disk_and_is_not_done_later(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio, system, done = opener(), NoThreads(monkeypatch), list[str]()
    go = threading.Event()
    first = asyncio.ensure_future(fsio.run(go.wait))
    await asyncio.sleep(0)
    system.short = True
    with pytest.raises(OSError, match="thread") as caught:
        await fsio.run(done.append, "never")
    assert caught.value.errno == errno.EAGAIN
    go.set()
    await first
    system.short = False
    await fsio.run(done.append, "later")
    assert done == ["later"]


def test_an_unknown_machine_has_no_aio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="z80"))
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(OSError, match="unknown machine"):
            LinuxAio(loop)
    finally:
        loop.close()


class Refusing(LinuxAio):
    """A kernel that says EAGAIN to io_submit some times."""

    refusals = 0

    def _call(self, name: str, *args: object) -> int:
        if name == "io_submit" and self.refusals:
            self.refusals -= 1
            raise OSError(errno.EAGAIN, "io_submit: Resource temporarily unavailable")
        return super()._call(name, *args)


async def test_a_kernel_that_is_short_of_requests_gets_the_rest_when_some_have_ended(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    aio = Refusing(loop)
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    first, second = loop.create_future(), loop.create_future()
    aio.submit(fds[:1], FSYNC, first.set_result)
    aio.refusals = 1
    aio.submit(fds[1:], FSYNC, second.set_result)
    assert not second.done()
    assert [await first, await second] == [[None], [None]]
    aio.close()
    for fd in fds:
        os.close(fd)


async def test_a_kernel_that_takes_nothing_at_all_is_an_error_of_that_request(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    aio = Refusing(loop)
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    aio.refusals = 1
    done = loop.create_future()
    aio.submit(fds, FSYNC, done.set_result)
    refused, fine = await done
    assert refused.errno == errno.EAGAIN and fine is None
    aio.close()
    for fd in fds:
        os.close(fd)


async def test_a_call_that_fails_says_which_and_why() -> None:
    aio = LinuxAio(asyncio.get_running_loop())
    with pytest.raises(OSError, match="io_destroy: Invalid argument"):
        aio._call("io_destroy", aio._destroy, ctypes.c_ulong(1))
    aio.close()


async def test_where_directories_cannot_be_flushed_that_is_no_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "fsync")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    fsio = Fsio(aio=False)
    try:
        directory = fsio.directory(str(tmp_path))
        await fsio.flush(directory)
        heard: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        fsio.flush_soon(directory, heard.set_result)
        assert await heard is None
    finally:
        fsio.close()
