"""How long a worker looks for an answer before it sleeps."""

import asyncio
from collections.abc import Callable
from typing import cast

from mta.awake import FEW, LOOKS, MOST, Awake


class Turns:
    """A loop of which only the turns are counted."""

    def __init__(self) -> None:
        self._ready: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def until_asleep(self, most: int = 10_000) -> int:
        """Turns until there is nothing to do, or `most`."""
        turns = 0
        while self._ready and turns < most:
            turns += 1
            ready, self._ready = self._ready, []
            for callback in ready:
                callback()
        return turns


def made(processors: int = 2) -> tuple[Awake, Turns]:
    turns = Turns()
    return Awake(cast(asyncio.AbstractEventLoop, turns), processors), turns


def test_it_looks_some_times_and_sleeps() -> None:
    awake, turns = made()
    awake.said(1)
    assert awake.looking
    assert turns.until_asleep() == LOOKS
    assert not awake.looking


def test_an_answer_ends_it_and_the_next_reply_is_looked_after_again() -> None:
    awake, turns = made()
    for _ in range(5):
        awake.said(1)
        assert turns.until_asleep(10) == 10
        awake.heard()
        assert turns.until_asleep() == 1
        assert not awake.looking


def test_two_replies_are_looked_after_once() -> None:
    awake, turns = made()
    awake.said(1)
    assert turns.until_asleep(10) == 10
    awake.said(2)
    assert turns.until_asleep() == LOOKS


def test_where_nobody_answers_more_and_more_replies_go_without() -> None:
    awake, turns = made()
    without, asleep = list[int](), 0
    while len(without) < 9:
        awake.said(1)
        if turns.until_asleep():
            without.append(asleep)
            asleep = 0
        else:
            asleep += 1
    assert without == [0, 1, 2, 4, 8, 16, 32, MOST, MOST]


def test_an_answer_in_time_begins_anew() -> None:
    awake, turns = made()
    for _ in range(1 + 1 + 1 + 2):  # each second one of these looks, then each third
        awake.said(1)
        turns.until_asleep()
    awake.said(1)
    awake.heard()
    assert turns.until_asleep() == 1
    looked = list[bool]()
    for _ in range(3):
        awake.said(1)
        looked.append(turns.until_asleep() > 0)
    assert looked == [True, False, True]


def test_an_answer_that_comes_late_counts_for_nothing() -> None:
    awake, turns = made()
    awake.said(1)
    assert turns.until_asleep() == LOOKS
    awake.heard()
    awake.said(1)
    assert turns.until_asleep() == 0, "this one goes without"


def test_with_many_clients_or_one_processor_it_sleeps_at_once() -> None:
    awake, turns = made()
    awake.said(FEW + 1)
    assert turns.until_asleep() == 0
    awake, turns = made(processors=1)
    awake.said(1)
    assert turns.until_asleep() == 0


async def test_the_loop_really_turns() -> None:
    awake = Awake(asyncio.get_running_loop(), 2)
    awake.said(1)
    for _ in range(LOOKS):
        assert awake.looking
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not awake.looking
