"""The disk without threads: the deterministic twin of mta.fsio.Fsio for tests on virtual time.

Files are real, on the real file system; only waiting is gone: blocking work runs at once, a flush is reported
on the next turn of the loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from mta.fsio import Flusher, Fsio
from mta.linux_aio import Done

P = ParamSpec("P")
T = TypeVar("T")


class _InlineFlusher:
    """Says "done" one turn later; page cache is durable enough for a test that cuts no power."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        results: list[OSError | None] = [None] * len(fds)
        self._loop.call_soon(done, results)

    def close(self) -> None:
        return


class InlineFsio(Fsio):
    """Fsio whose worker is the caller."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)

    async def read_small(self, path: str, limit: int) -> bytes:
        return self.read_file(path, limit)

    def flusher(self, loop: asyncio.AbstractEventLoop) -> Flusher:
        return _InlineFlusher(loop)
