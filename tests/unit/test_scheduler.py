"""Windows, turns and dead destinations of the scheduler."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.config import Config
from mta.config.main_cf import Setting
from mta.envelope import Recipient
from mta.master.build import transport_limits
from mta.qmgr.scheduler import Entry, Scheduler, SchedulerSettings, TransportLimits
from mta.smtp.reply import Reply

DOWN = Reply(451, "4.4.1", "connect to mx[10.0.0.1]:25: Connection refused")


def limits(concurrency: int = 20, processes: int = 100, initial: int = 5, cohorts: int = 1) -> TransportLimits:
    return TransportLimits(processes, concurrency, 50, initial, cohorts)


def scheduler(concurrency: int = 20, processes: int = 100, initial: int = 5) -> Scheduler:
    return Scheduler(SchedulerSettings(300.0), {}, limits(concurrency, processes, initial))


def entry(job: str, site: str = "a.test") -> Entry:
    return Entry(job, "smtp", site, (Recipient(f"x@{site}"),), site)


def drain(s: Scheduler) -> list[Entry]:
    taken = []
    while (e := s.next(0.0)) is not None:
        taken.append(e)
    return taken


def test_a_new_destination_starts_with_the_initial_window() -> None:
    s = scheduler()
    for i in range(30):
        assert s.enqueue(entry(f"j{i}"), 0.0) is None
    assert len(drain(s)) == 5
    assert len(s.withdraw()) == 25


def test_the_window_grows_by_one_per_cohort_of_successes_up_to_the_limit() -> None:
    s = scheduler(concurrency=7)
    for i in range(200):
        s.enqueue(entry(f"j{i}"), 0.0)
    running = drain(s)
    for _ in range(100):
        s.finished(running.pop(0), 0.0)
        running += drain(s)
    assert len(running) == 7


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (3, 3), (5, 5), (20, 5), (0, 5)])
def test_a_destination_starts_with_no_more_than_its_limit(limit: int, at_once: int) -> None:
    s = scheduler(concurrency=limit)
    for now in (0.0, 400.0, 800.0):  # a new one, one that was dead, one that is so again
        for i in range(20):
            s.enqueue(entry(f"j{i}"), now)
        running = drain(s)
        assert len(running) == at_once
        s.withdraw()
        for e in running:
            s.finished(e, now, failure=DOWN)
        assert s.enqueue(entry("late"), now + 1.0) is not None
        if now:
            s.forget_dead(now + 301.0)


def test_each_transport_has_its_own_first_window_and_number_of_failures() -> None:
    own = {"one": limits(initial=1), "hardy": limits(initial=1, cohorts=3), "never": limits(initial=1, cohorts=0)}
    s = Scheduler(SchedulerSettings(300.0), own, limits())
    tried = {}
    for name in ("other", *own):
        for i in range(20):
            s.enqueue(Entry(f"j{i}", name, "a.test", (), "a.test"), 0.0)
        first = len(drain(s))
        ended = 0
        while ended < 20 and not s.finished(Entry("", name, "a.test", (), "a.test"), 0.0, failure=DOWN):
            ended += 1
            drain(s)
        tried[name] = (first, ended)
        s.withdraw()
    assert {n: first for n, (first, _) in tried.items()} == {"other": 5, "one": 1, "hardy": 1, "never": 1}
    assert [tried[n][1] for n in own] == [0, 2, 20]


def test_limits_of_a_transport_are_its_own_or_the_general_ones() -> None:
    values = {
        "slow_destination_concurrency_limit": "1", "slow_initial_destination_concurrency": "2",
        "slow_destination_concurrency_failed_cohort_limit": "7", "initial_destination_concurrency": "4",
        "default_destination_concurrency_failed_cohort_limit": "3",
    }  # fmt: skip
    config = Config("/etc/mta", {n: Setting(n, v, "main.cf", 1) for n, v in values.items()})
    assert transport_limits(config, "slow") == TransportLimits(100, 1, 50, 2, 7)
    assert transport_limits(config, "smtp") == transport_limits(config, "default") == TransportLimits(100, 20, 50, 4, 3)


def test_destinations_take_turns_within_the_process_limit() -> None:
    s = scheduler(processes=4)
    for i in range(10):
        s.enqueue(entry(f"big{i}", "big.test"), 0.0)
    s.enqueue(entry("small", "small.test"), 0.0)
    started = drain(s)
    assert len(started) == 4
    assert "small" in {e.job_id for e in started[:2]}


def test_a_big_job_does_not_stand_before_a_single_letter() -> None:
    s = scheduler(initial=1, concurrency=1)
    for _ in range(100):
        s.enqueue(entry("mailing"), 0.0)
    s.enqueue(entry("letter"), 0.0)
    first = drain(s)
    s.finished(first[0], 0.0)
    assert [e.job_id for e in drain(s)] == ["letter"]


def test_a_cohort_of_site_failures_kills_the_destination_and_gives_back_what_waits() -> None:
    s = scheduler(initial=2)
    for i in range(6):
        s.enqueue(entry(f"j{i}"), 0.0)
    running = drain(s)
    assert len(running) == 2
    assert s.finished(running[0], 1.0, failure=DOWN) == []
    dropped = []
    for e in [running[1], *drain(s)]:
        dropped += s.finished(e, 1.0, failure=DOWN)
    assert dropped
    assert all(reason.text.startswith("delivery temporarily suspended: connect to mx") for _, reason in dropped)
    refused = s.enqueue(entry("late"), 2.0)
    assert refused is not None
    assert refused.is_temporary
    assert s.enqueue(entry("later"), 302.0) is None


def test_a_flush_gives_a_dead_destination_another_chance() -> None:
    s = scheduler(initial=1)
    s.enqueue(entry("j"), 0.0)
    s.finished(drain(s)[0], 0.0, failure=DOWN)
    assert s.enqueue(entry("k"), 1.0) is not None
    s.forget_dead(1.0, even_if_not_due=True)
    assert s.enqueue(entry("l"), 1.0) is None


def test_idle_destinations_leave_no_memory() -> None:
    s = scheduler()
    for i in range(1000):
        s.enqueue(entry("j", f"d{i}.test"), 0.0)
        for e in drain(s):
            s.finished(e, 0.0)
    assert s.withdraw() == []
    assert sum(len(t.destinations) for t in s._transports.values()) == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=80))
def test_every_entry_comes_out_exactly_once_and_no_window_is_exceeded(
    steps: list[tuple[int, int, bool]],
) -> None:
    s = scheduler(concurrency=3, processes=6, initial=2)
    running: list[Entry] = []
    entered = ended = 0
    now = 0.0
    for site, action, bad in steps:
        now += 1.0
        if action <= 2:
            refused = s.enqueue(entry(f"j{site}", f"d{site}.test"), now)
            entered += refused is None
        elif running:
            dropped = s.finished(running.pop(0), now, failure=DOWN if bad else None)
            ended += 1 + len(dropped)
        while (e := s.next(now)) is not None:
            running.append(e)
        assert len(running) <= 6
        for d in range(4):
            assert sum(e.nexthop == f"d{d}.test" for e in running) <= 3
    while running:
        ended += 1 + len(s.finished(running.pop(0), now))
        while (e := s.next(now)) is not None:
            running.append(e)
    assert ended == entered
