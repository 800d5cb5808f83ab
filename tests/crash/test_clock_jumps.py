"""The wall clock jumps while mail waits: nothing is given back as too old, nothing is stranded, nothing comes twice."""

import asyncio
from pathlib import Path

import pytest

from tests.crash.errno_faults import Faults
from tests.crash.errno_world import Life, Outcome, World
from tests.virtual_time import VirtualLoop

HOUR, DAY = 3600.0, 86400.0


class JumpingLife(Life):
    """The peer answers 450 to some until a minute after the jump."""

    by = 0.0

    async def _story(self) -> None:
        *first, last = self.world.mails
        self.peer.busy = True
        await asyncio.gather(*(self._give(each) for each in first if each.door == "smtp"))
        await self.clock.sleep(25)
        self.jump = self.by
        await self.clock.sleep(60)
        self.peer.busy = False
        await self._give(last)


def live(root: Path, by: float) -> Outcome:
    """One life in which the clock is set forward by so many seconds."""
    world = World(root)
    (root / "mail").mkdir()
    (root / "data").mkdir()
    loop = VirtualLoop(0.0)
    life = JumpingLife(world, Faults(), loop)
    life.by = by
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(life.run())


@pytest.mark.parametrize(
    "by", [DAY, -DAY, 10 * 365 * DAY, 8 * HOUR, 6 * DAY, -10 * 365 * DAY],
    ids=["+1d", "-1d", "+10y", "suspended 8 h", "suspended 6 d", "-10y"],
)  # fmt: skip
def test_a_clock_that_jumps_gives_nothing_back_and_strands_nothing(tmp_path: Path, by: float) -> None:
    outcome = live(tmp_path / "w", by)
    assert outcome.wrong == []
    assert outcome.duplicates == 0
    assert "expired" not in outcome.log
    assert outcome.done < 85 + 60 + 10 + 5  # the longest back-off and a look at the queue after the peer gave way
    assert ("the clock went forward by" in outcome.log) == (by > HOUR)
