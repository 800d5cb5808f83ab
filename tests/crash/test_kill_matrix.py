"""Killed at any step of any scenario, the MTA keeps its promises; a sample here, every step in make crash-full.

AIOMTA_STRIDE: each so many steps (default 25; make crash 5; make crash-full 1: all).  Which of them goes round with
the days, or AIOMTA_OFFSET says it.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crash import kill_matrix, kill_steps
from tests.crash.kill_ledger import Account, Copy
from tests.crash.kill_scenarios import Scenario
from tests.crash.kill_world import ROOT

STRIDE = int(os.environ.get("AIOMTA_STRIDE", "25"))
OFFSET = int(os.environ.get("AIOMTA_OFFSET", str(int(time.time() // 86400))))
SCENARIOS = kill_matrix.all_scenarios()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
def test_a_kill_at_any_step_loses_nothing_and_repeats_only_what_was_in_flight(
    scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    row = kill_matrix.every(scenario, 1 + OFFSET % STRIDE, STRIDE)
    with capsys.disabled():
        print(f"\n{kill_matrix.table([row])}".rpartition("\n")[0])
    assert row.wrong == []
    assert row.kills * STRIDE >= 25, "a scenario of so few steps shows nothing"


def test_steps_of_every_kind_are_counted() -> None:
    """What is not counted is not killed at."""
    scenario = next(s for s in SCENARIOS if s.name == "alias-leaves")
    world = scenario.world()
    try:
        scenario.begin(world, 0)
        assert scenario.live(world)
        kinds = {line[14:24].strip() for line in world.steps()}
    finally:
        world.close()
    assert len(world.account.promised) == 1
    disk = {"open", "write", "pwrite", "fchmod", "rename", "link", "unlink", "fsync", "aio-flush"}
    assert kinds >= disk | {"accept", "connect", "send", "recv", "recv_into"}


def test_the_ledger_sees_what_must_not_be() -> None:
    place = "sink:ok@sink.test"
    one = Copy("a", place, ("1",))
    bad: dict[str, tuple[list[list[Copy]], list[Copy]]] = {  # copies at each kill, copies in the end
        "lost": ([[]], []),
        "never asked for": ([], [one, Copy("a", "sink:x@sink.test", ("1",))]),
        "duplicate outside": ([], [one] * 2),
        "duplicate outside the": ([[]], [one] * 2),  # there was nothing that could be in flight
        "duplicate outside the windows": ([[one] * 2], [one] * 2),  # there twice before anybody was killed
        "made twice": ([[Copy("a", place, ("1", "2"))]], [Copy("a", place, ("1", "2")), Copy("a", place, ("1", "3"))]),
        "acceptances": ([[one]], [one, Copy("a", place, ("2",))]),
    }
    for word, (kills, after) in bad.items():
        account = Account({"a": {place}}, {"a": b"x\n"}, at_kills=[Counter(kill) for kill in kills])
        account.attempts["a"] = account.promised["a"] = 1
        assert any(word in line for line in account.verdict(Counter(after))), word
    for kills, after in (([[one]], [one] * 2), ([[one], [one] * 2], [one] * 3), ([[], [one]], [one] * 2)):
        account = Account({"a": {place}}, {"a": b"x\n"}, at_kills=[Counter(kill) for kill in kills])
        account.attempts["a"] = account.promised["a"] = 1
        assert account.verdict(Counter(after)) == []
        assert account.windows["W2"] == len(after) - 1


def test_the_ledger_knows_whether_a_copy_came_before_or_after_the_mark() -> None:
    place = "sink:ok@sink.test"
    one = Copy("a", place, ("1",))
    open_, done = {"1": {"ok@sink.test"}}, {"1": {"other@sink.test"}}
    for copies, todo, after, wrong in (
        ([1], [open_], 2, False),
        ([1], [done], 2, True),
        ([1, 2], [open_, done], 2, False),  # the second copy came in the second life, whose mark it was
        ([1, 2], [open_, done], 3, True),
        ([1, 2], [done, done], 2, True),  # marked in the first life
        ([1, 1], [open_, done], 2, True),
        ([1, 2], [done, {}], 2, True),  # removed since
    ):
        at_kills = [Counter({one: n}) for n in copies]
        account = Account({"a": {place}}, {"a": b"x\n"}, at_kills=at_kills, todo_at_kills=todo)
        account.attempts["a"] = account.promised["a"] = 1
        lines = account.verdict(Counter({one: after}))
        assert ["again after its mark" in line for line in lines] == [True] * wrong, (copies, todo, after, lines)


def test_processes_never_count_a_step_twice_and_none_passes_the_last(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.touch()
    script = (
        "import os\nfrom tests.crash import kill_steps\nos.setsid()\n"
        f"kill_steps.arm({str(counter)!r}, 150)\n[os.fork() for _ in range(2)]\n"
        "while True: kill_steps.step('test', 'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -9
    numbers = [int(line.split()[0]) for line in kill_steps.taken(str(counter))]
    assert numbers == list(range(1, 151))
