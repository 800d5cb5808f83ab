"""Deadlines of many with one timer: who is late is told, when and how often, and at what cost."""

import asyncio
import socket

import pytest

from mta.clock import Clock
from mta.deadlines import Deadlines
from tests.virtual_time import run_virtual


class Peer:
    """Counts when it was told; goes on for `more` seconds each time, and ends when there are none left."""

    def __init__(self, deadlines: Deadlines, clock: Clock, deadline: float, *more: float) -> None:
        self.deadline, self.told = deadline, list[float]()
        self._deadlines, self._clock, self._more = deadlines, clock, list(more)
        deadlines.watch(self)

    def expired(self) -> None:
        self.told.append(round(self._clock.monotonic(), 2))
        if self._more:
            self.deadline = self._clock.monotonic() + self._more.pop(0)
            self._deadlines.earlier(self.deadline)
        else:
            self._deadlines.forget(self)


class CountingClock(Clock):
    timers = 0

    def call_later(self, seconds: float, callback: object) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_later(seconds, callback)  # type: ignore[arg-type]


def test_each_is_told_once_when_it_is_late() -> None:
    async def main(clock: Clock) -> None:
        deadlines = Deadlines(clock)
        peers = [Peer(deadlines, clock, float(when)) for when in (300, 20, 100, 20, 7)]
        await clock.sleep(1000)
        assert [peer.told for peer in peers] == [[300.0], [20.0], [100.0], [20.0], [7.0]]

    run_virtual(main, patience=0.0)  # no I/O to wait for


def test_a_deadline_that_moves_on_costs_no_timer() -> None:
    async def main(given: Clock) -> None:
        loop = asyncio.get_running_loop()
        clock = CountingClock(loop.time)
        deadlines = Deadlines(clock)
        peer, other = Peer(deadlines, clock, 300.0), Peer(deadlines, clock, 300.0)
        for _ in range(1000):
            await clock.sleep(1)
            peer.deadline = clock.monotonic() + 300
        assert peer.told == [] and other.told == [300.0]
        assert clock.timers <= 6
        deadlines.forget(peer)
        await clock.sleep(10_000)
        assert peer.told == []

    run_virtual(main, patience=0.0)  # no I/O to wait for


def test_an_earlier_deadline_is_kept_by_the_one_timer() -> None:
    async def main(clock: Clock) -> None:
        deadlines = Deadlines(clock)
        slow, closing = Peer(deadlines, clock, 300.0), Peer(deadlines, clock, 300.0)
        await clock.sleep(50)
        closing.deadline = 60.0
        deadlines.earlier(60.0)
        await clock.sleep(500)
        assert closing.told == [60.0] and slow.told == [300.0]

    run_virtual(main, patience=0.0)  # no I/O to wait for


def test_who_goes_on_is_told_again() -> None:
    async def main(clock: Clock) -> None:
        deadlines = Deadlines(clock)
        peer = Peer(deadlines, clock, 10.0, 5.0, 100.0)
        await clock.sleep(1000)
        assert peer.told == [10.0, 15.0, 115.0]

    run_virtual(main, patience=0.0)  # no I/O to wait for


def test_a_bug_of_one_takes_no_deadline_from_the_others() -> None:
    class Broken(Peer):
        def expired(self) -> None:
            self._deadlines.forget(self)
            raise RuntimeError("bug")

    async def main(clock: Clock) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        deadlines = Deadlines(clock)
        peers = [Broken(deadlines, clock, 5.0), Peer(deadlines, clock, 5.0), Peer(deadlines, clock, 6.0)]
        await clock.sleep(100)
        assert [peer.told for peer in peers] == [[], [5.0], [6.0]]

    run_virtual(main, patience=0.0)  # no I/O to wait for


def test_nobody_left_means_no_timer() -> None:
    async def main(given: Clock) -> None:
        loop = asyncio.get_running_loop()
        clock = CountingClock(loop.time)
        deadlines = Deadlines(clock)
        Peer(deadlines, clock, 5.0)
        await clock.sleep(10)
        before = clock.timers
        await clock.sleep(10_000)
        assert clock.timers == before

    run_virtual(main, patience=0.0)  # no I/O to wait for


async def test_a_block_ends_at_its_time_and_not_before_what_has_come_was_read() -> None:
    deadlines = Deadlines(Clock())
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def read() -> bytes:
        async with deadlines.timeout(0.01):
            return await loop.sock_recv(ours, 10)

    with ours, theirs:
        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        theirs.sendall(b"x")
        Clock().block(0.02)
        assert await reading == b"x"
        with pytest.raises(TimeoutError):
            await read()
        async with deadlines.timeout(0.01):  # it is late and ends before it is told
            Clock().block(0.02)
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
