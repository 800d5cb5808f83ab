"""Whom a group commit waits for."""

from mta.clock import Clock
from mta.company import RECENT, Company


class SetClock(Clock):
    """Shows what it was set to."""

    time = 1000.0

    def monotonic(self) -> float:
        return self.time


def test_whoever_was_seen_is_expected_until_gone() -> None:
    company = Company(SetClock())
    assert not company.expected()
    company.here("a")
    company.here("b")
    assert company.expected()
    company.gone("a")
    company.gone("never seen")
    assert company.expected()
    company.gone("b")
    assert not company.expected()


def test_whoever_is_silent_is_forgotten_and_may_come_back() -> None:
    clock = SetClock()
    company = Company(clock)
    company.here("a")
    clock.time += 0.6 * RECENT
    company.here("b")
    clock.time += 0.6 * RECENT
    assert company.expected(), "b was here a moment ago"
    company.gone("b")
    assert not company.expected(), "a has been silent"
    company.here("a")
    assert company.expected()


def test_the_last_to_go_is_told_once() -> None:
    company = Company(SetClock())
    told: list[str] = []
    company.here("a")
    company.here("b")
    company.on_empty = lambda: told.append("empty")
    company.gone("a")
    assert told == []
    company.gone("b")
    company.here("c")
    company.gone("c")
    assert told == ["empty"]
