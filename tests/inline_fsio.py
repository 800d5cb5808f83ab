"""The disk without threads: the deterministic twin of mta.fsio.fsio.Fsio for tests on virtual time.

Files are real, on the real file system; only waiting is gone: blocking work runs at once, a flush is reported
on the next turn of the loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

from mta.fsio.flusher import Flusher
from mta.fsio.fsio import Fsio
from mta.fsio.linux_aio import Done

P = ParamSpec("P")
T = TypeVar("T")


class _InlineFlusher:
    """Says "done" one turn later; page cache is durable enough for a test that cuts no power."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, fd: int) -> None:
        return

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        results: list[OSError | None] = [None] * len(fds)
        self._loop.call_soon(done, results)

    def close(self) -> None:
        return


class _InlineExecutor(Executor):
    """Does it before submit() returns."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class InlineFsio(Fsio):
    """Fsio whose worker is the caller."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)

    def pool(self) -> Executor:
        return _InlineExecutor()

    def flusher(self, loop: asyncio.AbstractEventLoop) -> Flusher:
        return _InlineFlusher(loop)
