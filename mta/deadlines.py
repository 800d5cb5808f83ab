"""The deadlines of many connections, with one timer for all of them.

A deadline moves with nearly everything that a peer does and hardly ever passes, so nothing is done when it moves to a
later time.  The timer stands at the earliest deadline that was known when it was set; when it looks, it calls whoever
is late and sets itself to the earliest of the others.

State: who is watched, and when the timer will look.  One Deadlines per listener, agent or helper, of one loop.
Whoever is late is called in a turn of its own, so a bug in one takes no deadline from the others; and not in the first
one: a process that was stopped (SIGSTOP, docker pause) finds that the time is over together with what has come
meanwhile, and uvloop looks at timers before sockets.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Protocol

from mta.clock import Clock

RESOLUTION = 0.001  # seconds by which loops wake too early
NEVER = float("inf")


class Watched(Protocol):
    """deadline: monotonic seconds.  It may move to a later time at will; earlier() must hear of any other move."""

    deadline: float

    def expired(self) -> None:
        """The deadline had passed a moment ago.  Give a new one to earlier(), or end and be forgotten."""


class _Limit:
    """The end of a block; see Deadlines.timeout."""

    def __init__(self, deadline: float, block: asyncio.Timeout) -> None:
        self.deadline, self._block = deadline, block

    def expired(self) -> None:
        """See Watched."""
        with contextlib.suppress(RuntimeError):  # the block has ended meanwhile
            self._block.reschedule(0.0)


class Deadlines:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = NEVER  # when the timer looks

    def watch(self, who: Watched) -> None:
        """Call it when it is late."""
        self._watched.add(who)
        self.earlier(who.deadline)

    def forget(self, who: Watched) -> None:
        """It has ended; no harm if it is not known."""
        self._watched.discard(who)

    def earlier(self, deadline: float) -> None:
        """A deadline was set that may be the earliest of all."""
        if deadline < self._at:
            if self._timer is not None:
                self._timer.cancel()
            self._at = deadline
            self._timer = self._clock.call_later(deadline - self._clock.monotonic(), self._look)

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        """As clock.timeout(), for what must not be overlooked when it came while the process stood still."""
        async with self._clock.timeout(None) as block:
            limit = _Limit(self._clock.monotonic() + seconds, block)
            self.watch(limit)
            try:
                yield
            finally:
                self.forget(limit)

    def _look(self) -> None:
        self._timer, self._at = None, NEVER
        now = self._clock.monotonic() + RESOLUTION
        nearest = NEVER
        for who in self._watched:
            if who.deadline <= now:
                self._clock.call_later(0.0, partial(self._next_turn, who.expired))
            elif who.deadline < nearest:
                nearest = who.deadline
        self.earlier(nearest)

    def _next_turn(self, tell: Callable[[], None]) -> None:
        """Between two turns the loop reads its sockets."""
        self._clock.call_later(0.0, tell)
