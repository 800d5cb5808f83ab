"""A table's text file, parsed and kept in memory, read again when it has changed.

State: the parsed value, the file's signature (inode, size, mtime, ctime) and when to look again.  stat(2) at
most once a second, and only when somebody asks.  A file that changed less than a second ago is read when it
has rested, because an editor may be in the middle of writing it; until then the old content answers, for
UNFINISHED_REST when the text is empty or ends in the middle of a line: a program that makes the table anew truncates it
first, and what it has not written yet must not become unknown.  Where there is no old content, the first look waits:
FIRST_REST, or CHECK_INTERVAL when the file is empty or ends in the middle of a line, in which it must not change;
LONGEST_REST at most, then every lookup fails.  A file that is missing or cannot be read fails every lookup
(TableError), it is never "nothing in there": a mistyped name must not turn existing users into unknown ones.
"""

import asyncio
import os
import stat
from collections.abc import Callable
from typing import Generic, TypeVar

from mta.lookup.context import LookupContext
from mta.lookup.lines import Warnings
from mta.lookup.table import TableError

T = TypeVar("T")

CHECK_INTERVAL = 1.0  # seconds between two looks at the file, and how long a changed file must rest
FIRST_REST = 0.1  # seconds that a file just written must rest before it is believed by who knows nothing yet
UNFINISHED_REST = 10.0  # seconds that a text without an end must rest before it replaces what is known
LONGEST_REST = 3.0  # seconds to wait for that
MAX_SIZE = 1 << 30  # octets of a table source
_Signature = tuple[int, int, int, int]


class _RestlessError(Exception):
    """The file was written a moment ago.  rest: seconds after which it must have the same signature."""

    def __init__(self, signature: _Signature, rest: float) -> None:
        super().__init__()
        self.signature, self.rest = signature, rest


class Source(Generic[T]):
    """One file behind one table; parse runs in a worker thread and must not touch shared state.

    lines: it is text, whose last line has an end.
    """

    def __init__(
        self, name: str, path: str, parse: Callable[[bytes, Warnings], T], context: LookupContext, *, lines: bool = True
    ) -> None:
        self._name, self._path, self._parse, self._context, self._lines = name, path, parse, context, lines
        self._value: T | None = None
        self._signature: _Signature | None = None
        self._error = ""
        self._next_check = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    def current(self) -> T | None:
        """The value when it needs no look at the file now, else None: the way that does not wait."""
        return self._value if self._context.clock.monotonic() < self._next_check else None

    async def get(self) -> T:
        """The value of the file as it is; TableError when it cannot be read."""
        if self._context.clock.monotonic() >= self._next_check:
            if self._refreshing is None:
                self._refreshing = asyncio.ensure_future(self._refresh())
                self._refreshing.add_done_callback(self._refreshed)
            await asyncio.shield(self._refreshing)
        if self._value is None:
            raise TableError(f"{self._name}: {self._error}")
        return self._value

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()

    async def _refresh(self) -> None:
        warnings = Warnings(self._path)
        try:
            found = await self._rested(warnings)
        except (OSError, MemoryError, RecursionError) as error:
            self._failed(_describe(error, self._path))
        else:
            if found is not None:
                self._signature, self._value = found
                self._error = ""
        self._next_check = self._context.clock.monotonic() + CHECK_INTERVAL
        for text in warnings:
            self._context.warn(text)
        if warnings.more:
            self._context.warn(f"{self._path}: {warnings.more} more warnings of this kind")

    async def _rested(self, warnings: Warnings) -> tuple[_Signature, T] | None:
        """As _load(), when nobody is writing."""
        clock, seen = self._context.clock, None
        end = clock.monotonic() + LONGEST_REST
        while True:
            try:
                return await self._context.fsio.run(self._load, self._signature, seen, clock.now(), warnings)
            except _RestlessError as error:
                if clock.monotonic() >= end:
                    raise OSError(f"{self._path} is being written") from None
                seen, rest = error.signature, error.rest
            await clock.sleep(rest)

    def _failed(self, error: str) -> None:
        if error != self._error:
            self._context.warn(f"{self._name} is unavailable. {error}")
        self._value, self._signature, self._error = None, None, error

    def _load(
        self, known: _Signature | None, seen: _Signature | None, now: float, warnings: Warnings
    ) -> tuple[_Signature, T] | None:
        """In a worker: None when the content in memory still stands, else (signature, value).

        seen: of the look before, when that was one of a file just written; _RestlessError: look again.
        """
        info = os.stat(self._path)
        signature = _signature(info)
        age = now - info.st_mtime
        young = 0 <= age < CHECK_INTERVAL
        if signature == known or (known is not None and young):
            return None
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{self._path} is not a regular file")
        if info.st_size > MAX_SIZE:
            raise OSError(f"{self._path} is too large")
        with open(self._path, "rb") as file:
            data = file.read(MAX_SIZE)
            after = _signature(os.fstat(file.fileno()))
        if known is not None and self._lines and not data.endswith(b"\n") and 0 <= age < UNFINISHED_REST:
            return None
        if young and signature != seen:
            raise _RestlessError(signature, FIRST_REST if data.endswith(b"\n") else CHECK_INTERVAL)
        if after != signature:  # somebody has begun to write, or put another file there
            if known is not None:
                return None
            raise _RestlessError(signature, CHECK_INTERVAL)
        return signature, self._parse(data, warnings)


def _signature(info: os.stat_result) -> _Signature:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _describe(error: BaseException, path: str) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    text = f"open {path}: {os.strerror(error.errno)}"
    if isinstance(error, FileNotFoundError):
        text += "; the text file is read, a .db or .lmdb beside it is not"
    return text
