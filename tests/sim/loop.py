"""An event loop without a selector, on virtual time, that forgets what the dead had planned.

Nothing is waited for: when nothing is ready the time moves to the next timer.  The order is asyncio's own, first come
first served, so a run depends on nothing but what it is given.
"""

import asyncio
import heapq
from typing import Any

from tests.sim.process import PROCESS


class StuckError(Exception):
    """Nothing is ready and no timer is set: whoever waits would wait for ever."""


class SimLoop(asyncio.BaseEventLoop):
    """Base class only, so no descriptor is opened.  Relies on asyncio's _ready, _scheduled and Handle."""

    def __init__(self) -> None:
        super().__init__()
        self._time = 0.0
        self._clock_resolution = 0.0
        self.turns = 0
        self.blocked: list[tuple[float, float]] = []  # when, and for how many seconds

    def time(self) -> float:
        return self._time

    def pass_time(self, seconds: float) -> None:
        """Somebody blocked so long.  Here that stops everybody, while a thread would have stopped by itself."""
        self.blocked.append((self._time, seconds))
        self._time += seconds

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        process = PROCESS.get()
        if process is None or process.alive:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise StuckError
            self._time = max(self._time, scheduled[0]._when)
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._time):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is None or process.alive:
                self.turns += 1
                handle._run()
        handle = None


def run(loop: SimLoop, main: Any) -> Any:
    """Run to the end of main and close the loop."""
    asyncio.set_event_loop(None)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
