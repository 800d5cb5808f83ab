"""Who flushes, and how threads do it where the kernel does not.

See also: mta/fsio/linux_aio.py (how the kernel does it), mta/fsio/fsio.py
"""

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from mta.fsio.linux_aio import FSYNC, Done
from mta.fsio.linux_writeback import start_writing

T = TypeVar("T")

WORKERS = 8  # threads for blocking work, and as many for flushing where there is no AIO


class Flusher(Protocol):
    """Flushes descriptors and says how it went, on the loop."""

    def begin(self, fd: int) -> None:
        """This one will be flushed in a moment: its data may be on the way already.  Never fails."""

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        """op is FSYNC or FDSYNC."""

    def close(self) -> None:
        """Wait for what is in flight."""


def in_thread(loop: asyncio.AbstractEventLoop, pool: Executor, fn: Callable[[], T]) -> asyncio.Future[T]:
    """Have it called in a thread; OSError when the system starts none: then it is not called later either."""
    wanted = [fn]
    try:
        return loop.run_in_executor(pool, lambda: wanted.pop()())
    except RuntimeError as error:  # the pool keeps it for a thread that it has
        wanted.clear()
        raise OSError(errno.EAGAIN, str(error)) from error


class ThreadFlusher:
    """For systems without Linux AIO."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(WORKERS, "flush")

    def begin(self, fd: int) -> None:
        """See Flusher."""
        start_writing(fd)

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        """One thread per descriptor, at most WORKERS at a time."""
        results: list[OSError | None] = [None] * len(fds)
        missing = len(fds)

        def finished(i: int, future: asyncio.Future[None]) -> None:
            nonlocal missing
            error = future.exception()
            if error is not None:
                results[i] = error if isinstance(error, OSError) else OSError(errno.EIO, repr(error))
            missing -= 1
            if not missing:
                done(results)

        for i, fd in enumerate(fds):
            try:
                future = in_thread(self._loop, self._pool, partial(os.fsync if op == FSYNC else os.fdatasync, fd))
            except OSError as error:
                future = self._loop.create_future()
                future.set_exception(error)
            future.add_done_callback(partial(finished, i))

    def close(self) -> None:
        """Let the threads finish."""
        self._pool.shutdown()
