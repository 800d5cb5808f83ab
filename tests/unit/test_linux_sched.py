"""Slices of the processor."""

import os
import platform
import re
import signal
from collections.abc import Callable

import pytest

from mta.linux_sched import BACKGROUND, set_slice, slice_of, stay_in_the_background

LINUX = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
needs_slices = pytest.mark.skipif(LINUX < (6, 12), reason="before Linux 6.12 nobody has slices of his own")


def in_a_child(work: Callable[[], None], look: Callable[[int], None]) -> None:
    """Do one thing there and look at it from here, so that the tests' own process stays as it is."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
            os.write(tell, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(told, 1) == b"1", "the child has failed"
        look(child)
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_slices
def test_in_the_background_slices_are_long() -> None:
    def look(child: int) -> None:
        assert slice_of(child) == BACKGROUND

    in_a_child(stay_in_the_background, look)
    assert slice_of(os.getpid()) < BACKGROUND


def test_the_priority_stays() -> None:
    def work() -> None:
        os.nice(3)
        stay_in_the_background()

    def look(child: int) -> None:
        assert os.getpriority(os.PRIO_PROCESS, child) == min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
        assert os.sched_getscheduler(child) == os.SCHED_OTHER

    in_a_child(work, look)


def test_another_policy_stays() -> None:
    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        stay_in_the_background()

    def look(child: int) -> None:
        assert os.sched_getscheduler(child) == os.SCHED_BATCH

    in_a_child(work, look)


def test_a_machine_without_the_call_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.linux_sched._NUMBERS", {})
    with pytest.raises(OSError, match="unknown machine"):
        set_slice(BACKGROUND)
    stay_in_the_background()
    with pytest.raises(OSError, match="unknown machine"):
        slice_of(0)


def test_a_process_that_is_gone_has_none() -> None:
    with pytest.raises(ProcessLookupError):
        slice_of(2**22 + 1)
