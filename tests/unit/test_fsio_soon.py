"""Names that went away: flushed within SOON, unless a later message's commit has made that durable."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.fsio.soon import SOON, Finished, Soon
from tests.queue_support import Spooled, spooled
from tests.virtual_time import run_virtual

A, B = 7, 8  # directories


class World:
    """A Soon with a flush that is always done at once, and what was asked of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.flushed: list[tuple[float, int]] = []
        self.begun = self.clock.monotonic()
        self.soon = Soon(self.clock, self.flush)
        self.ended: list[str] = []
        self.error: OSError | None = None

    def flush(self, directory: int, done: Finished) -> None:
        self.flushed.append((round(self.clock.monotonic() - self.begun, 4), directory))
        done(self.error)

    def gone(self, name: str, directory: int = A, *, ordered: bool = True) -> int:
        """Add one; a moment at which it was not yet gone."""
        before = self.clock.moment()
        self.soon.add(directory, lambda error: self.ended.append(f"{name} {error}"), ordered=ordered)
        return before


def test_what_nobody_else_makes_durable_is_flushed_once_for_each_directory() -> None:
    async def story(clock: Clock) -> None:
        world = World(clock)
        world.gone("one")
        await asyncio.sleep(SOON / 2)
        world.gone("two")
        world.gone("three", B)
        await asyncio.sleep(1)
        assert sorted(world.flushed) == [(SOON, A), (SOON, B)]
        assert sorted(world.ended) == ["one None", "three None", "two None"]

    run_virtual(story)


def test_a_message_named_later_makes_it_durable_and_one_named_earlier_does_not() -> None:
    async def story(clock: Clock) -> None:
        world = World(clock)
        before = world.gone("one")
        world.soon.durable(before)
        assert world.ended == []
        world.soon.durable(world.clock.moment() + 1)
        assert world.ended == ["one None"]
        await asyncio.sleep(1)
        assert world.flushed == []

    run_virtual(story)


def test_the_delay_is_that_of_the_oldest_which_is_not_durable() -> None:
    async def story(clock: Clock) -> None:
        world = World(clock)
        world.gone("one")
        await asyncio.sleep(SOON / 2)
        world.soon.durable(world.clock.moment() + 1)
        world.gone("two")
        await asyncio.sleep(1)
        assert world.flushed == [(SOON * 1.5, A)]
        assert world.ended == ["one None", "two None"]

    run_virtual(story)


def test_where_names_do_not_follow_files_only_a_flush_is_believed() -> None:
    async def story(clock: Clock) -> None:
        world = World(clock)
        world.gone("one", ordered=False)
        world.gone("two", B)
        world.soon.durable(world.clock.moment() + 1)
        assert world.ended == []
        await asyncio.sleep(1)
        assert sorted(world.flushed) == [(SOON, A), (SOON, B)]

    run_virtual(story)


def test_a_flush_that_failed_is_told_to_all_and_what_is_taken_is_left_alone() -> None:
    async def story(clock: Clock) -> None:
        world = World(clock)
        world.error = OSError("no")
        world.gone("one")
        world.gone("two")
        await asyncio.sleep(1)
        assert world.ended == ["one no", "two no"]
        world.gone("three")
        assert world.soon.take() == {A}
        await asyncio.sleep(1)
        assert len(world.flushed) == 1

    run_virtual(story)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool", fsio=Fsio(journal=True)) as made:
        yield made


@pytest.mark.parametrize("follow", [True, False])
async def test_an_accepted_message_takes_the_end_of_those_before_it_along(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch, follow: bool
) -> None:
    monkeypatch.setattr("mta.fsio.fsio.names_follow_files", lambda _: follow)
    monkeypatch.setattr("mta.fsio.soon.SOON", 3600.0)  # what is taken was not flushed by time
    queue_id = await spool.accept()
    job = await spool.store.claim(queue_id)
    assert job is not None
    spool.store.mark(job, job.envelope.recipients[0])
    active = spool.fsio.directory(f"{spool.root}/active")
    await spool.store.finish(job)
    await spool.accept(content=b"Subject: next\n\n")
    assert spool.fsio.soon.take() == (set() if follow else {active})
