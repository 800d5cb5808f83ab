"""The one clock: what time it is, waiting, and date formats.

`now` is wall time (Unix seconds) for anything written down: arrival, next attempt, headers, log.  `monotonic`
is the running loop's time for anything measured or limited: deadlines, rates, delays.  They are never mixed,
so a clock that is set back can neither flood nor strand mail.

In tests the same class runs on an event loop with virtual time (tests/virtual_time.py): hours of retries pass
in milliseconds.  No other module imports time or calls asyncio.sleep, call_later or loop.time.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Clock:
    """System time; give `wall` to replace the source of wall time."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that ran last: asking for it costs a system call

    def now(self) -> float:
        """Unix time in seconds."""
        return self._wall()

    def monotonic(self) -> float:
        """Seconds of the running loop; only differences mean anything."""
        loop = self._loop
        if loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
        return loop.time()

    def bind(self) -> None:
        """From now on there is only the running loop: nobody looks for it at each question any more."""
        loop = asyncio.get_running_loop()
        self.monotonic = loop.time  # type: ignore[method-assign]
        self._loop = loop

    def moment(self) -> int:
        """Nanoseconds of the system's monotonic clock, now and not in the loop's last turn, alike in all processes."""
        return time.monotonic_ns()

    def seconds(self) -> float:
        """The same in seconds: for processes without a loop what monotonic() is for the others."""
        return self.moment() / 1e9

    async def sleep(self, seconds: float) -> None:
        """Wait; 0 or less lets other tasks run once."""
        await asyncio.sleep(max(0.0, seconds))

    def block(self, seconds: float) -> None:
        """Wait without a loop: for processes that have none (the supervisor, commands, the delivery helper)."""
        time.sleep(max(0.0, seconds))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Run callback once after so many seconds of loop time; cancel() on the handle forgets it."""
        return asyncio.get_running_loop().call_later(max(0.0, seconds), callback)

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        """`async with clock.timeout(30):` raises TimeoutError when the block lasts longer; None = no limit."""
        return asyncio.timeout(seconds)


async def others_run() -> None:
    """Pause in work that takes long: every other task that is ready has a turn."""
    await asyncio.sleep(0)


async def in_slices(steps: Generator[None, None, T]) -> T:
    """The result of work that pauses: whoever else waits for the loop has a turn at each."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await others_run()


def rfc5322_date(when: float) -> str:
    """Return "Sat, 21 Nov 2026 00:01:03 +0000 (UTC)", local zone, as in Date: and Received:.

    ValueError or OverflowError for a time that no mail has: its year does not have four digits.
    """
    local = time.localtime(when)
    if not 1000 <= local.tm_year <= 9999:
        raise ValueError(f"year {local.tm_year}")
    name = time.strftime("%Z", local)
    comment = f" ({name})" if name.isascii() and name.replace("+", "").replace("-", "").isalnum() else ""
    day = f"{_DAYS[local.tm_wday]}, {local.tm_mday:02d} {_MONTHS[local.tm_mon - 1]} {local.tm_year}"  # in no locale
    minutes = abs(local.tm_gmtoff) // 60
    zone = f"{'-' if local.tm_gmtoff < 0 else '+'}{minutes // 60:02d}{minutes % 60:02d}"
    return f"{day} {local.tm_hour:02d}:{local.tm_min:02d}:{local.tm_sec:02d} {zone}{comment}"


def stamp(when: float, form: str, *, utc: bool = False) -> str:
    """Return the time in a form of strftime(3)."""
    return time.strftime(form, (time.gmtime if utc else time.localtime)(when))


def mbox_date(when: float) -> str:
    """Return "Sat Nov 21 00:01:03 2026", local time: asctime(3), as in a From_ line and mailq."""
    return time.asctime(time.localtime(when))


def syslog_date(when: float) -> str:
    """Return "Nov 21 00:01:03", local time, day padded with a blank: RFC 3164 s4.1.2."""
    t = time.localtime(when)
    return f"{time.strftime('%b', t)} {t.tm_mday:2d} {time.strftime('%H:%M:%S', t)}"
