"""The disk: group commit by AIO and by threads, errors per file, the hook, the worker."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from mta.fsio import Fsio, ThreadFlusher
from mta.linux_aio import CONTEXT_SIZE, FSYNC, Done, LinuxAio


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


async def test_a_group_waits_a_moment_for_drafts_that_are_about_to_commit(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    directory = fsio.directory(str(tmp_path))
    fds = [fsio.open_excl(f"{tmp_path}/{i}", 0o600) for i in range(2)]
    order: list[str] = []
    fsio.hook = lambda op, _: order.append(op)
    fsio.drafts = 1
    first = committed(fsio, fds[0], directory)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == [], "one draft is open"
    fsio.drafts = 0
    await asyncio.gather(first, committed(fsio, fds[1], directory))
    assert order == ["flush", "flush", "flush_directory"], "both in one group"
    fsio.drafts = 1
    assert await committed(fsio, fds[0], directory) is None, "a draft that stalls holds up nobody"
    for fd in fds:
        fsio.close_fd(fd)


async def test_directories_that_lost_names_are_flushed_once_for_all(tmp_path: Path, opener: Opener) -> None:
    fsio = opener()
    directory = fsio.directory(str(tmp_path))
    order: list[str | int] = []
    fsio.hook = lambda _, fd: order.append(fd)
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    for _ in range(3):
        fsio.flush_soon(directory, done.set_result)
    assert await done is None
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
    fsio = Fsio()
    await fsio.flush(fsio.directory(str(tmp_path)))
    fsio.close()
    fsio.close()
    await fsio.flush(fsio.directory(str(tmp_path)))
    fsio.close()


class _NoFsyncInAio:
    """A kernel whose AIO knows no flush."""

    def __init__(self) -> None:
        self.closed = False

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        results: list[OSError | None] = [OSError(errno.EINVAL, "io_submit") for _ in fds]
        asyncio.get_running_loop().call_soon(done, results)

    def close(self) -> None:
        self.closed = True


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
