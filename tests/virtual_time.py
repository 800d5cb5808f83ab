"""An event loop whose clock jumps: hours of retries pass in milliseconds.

`VirtualLoop` is a selector loop; when nothing is ready and no real I/O is under way it moves its time to the
next timer instead of waiting.  Real sockets still work: while I/O is registered it first polls for a moment
of real time, so a test may mix a loopback peer with virtual hours.  `virtual_clock(loop)` is the Clock whose
wall time follows the loop.
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mta.clock import Clock

EPOCH = 1_800_000_000.0  # wall time at loop time 0
T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Polls for real events for at most `patience` seconds, then lets virtual time pass."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.patience = patience
        self.offset = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(min(timeout, self.patience))
        if not ready:
            self.offset += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop on virtual time; patience: real seconds to wait for I/O before time jumps."""

    def __init__(self, patience: float = 0.02) -> None:
        self._jumping = _JumpingSelector(patience)
        self._virtual_start = 0.0
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.offset


def virtual_clock(loop: VirtualLoop) -> Clock:
    """A Clock whose now() is EPOCH plus loop time."""
    return Clock(wall=lambda: EPOCH + loop.time())


def run_virtual(main: Callable[[Clock], Awaitable[T]], patience: float = 0.02) -> T:
    """Run an async function on a fresh VirtualLoop and return its result."""
    loop = VirtualLoop(patience)

    async def wrapped() -> T:
        return await main(virtual_clock(loop))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(wrapped())
