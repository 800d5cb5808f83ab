"""Whatever call fails, with whatever errno, once or for a while: 4xx, nothing lost, nothing twice, back in 5 s.

AIOMTA_ERRNO_STRIDE: each so many calls (default 8; make crash 1: all); which of them goes round with the days.
"""

import errno
import os
import time
from pathlib import Path

import pytest

from tests.crash import errno_matrix
from tests.crash.errno_faults import Faults
from tests.crash.errno_world import Outcome, World

STRIDE = int(os.environ.get("AIOMTA_ERRNO_STRIDE", "8"))
OFFSET = int(os.environ.get("AIOMTA_OFFSET", str(int(time.time() // 86400))))


@pytest.mark.parametrize("kind", errno_matrix.KINDS)
def test_a_call_that_fails_costs_time_and_nothing_else(kind: str) -> None:
    row = errno_matrix.part(kind, errno_matrix.chosen(kind, ()), 1 + OFFSET % STRIDE, STRIDE)
    assert row.wrong == []
    assert row.runs >= 16


def test_the_story_makes_calls_of_nearly_every_kind(tmp_path: Path) -> None:
    """A kind that never occurs is not tested: none of these may get lost from the story."""
    outcome = World(tmp_path / "w").live(Faults())
    assert outcome.wrong == []
    never = {kind for kind in errno_matrix.KINDS if not outcome.counts[kind]}
    assert never <= {"link", "mkdir", "chmod", "box-rename", "box-ftruncate", "statvfs"}


def live(tmp_path: Path, kind: str, at: int, number: int, *, lasting: bool = False) -> Outcome:
    """One run."""
    return World(tmp_path / "w").live(Faults(kind, number, at, lasting=lasting))


def test_after_a_failed_flush_nothing_is_accepted_until_a_probe_was_flushed(tmp_path: Path) -> None:
    outcome = live(tmp_path, "flush", 2, errno.EIO, lasting=True)
    assert outcome.wrong == []
    closed = outcome.log.index("flush failed (Input/output error), accepting no mail")
    opened = outcome.log.index("flush works again, accepting mail")
    between = outcome.log[closed:opened]
    assert "disk error, queue closed" in between  # clients asked, and heard 451
    assert not [line for line in between.splitlines() if "client=" in line]  # no queue file was begun for them
    assert "client=" in outcome.log[opened:]


def test_the_laboratory_sees_a_fault_that_costs_more_than_time(tmp_path: Path) -> None:
    """A peer's answer that is lost is a second copy; were it not for the window it would be a violation."""
    outcome = live(tmp_path, "net-recv-client", 9, errno.ECONNRESET, lasting=True)
    assert outcome.hits >= 1
    assert outcome.wrong == []
    found = [live(tmp_path / str(at), "net-recv-client", at, errno.ECONNRESET).duplicates for at in range(1, 61)]
    assert sum(found) >= 1
