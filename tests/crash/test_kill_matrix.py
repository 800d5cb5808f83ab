"""Killed at any step of any scenario, the MTA keeps its promises; a sample here, every step in make crash-full.

AIOMTA_STRIDE: each so many steps (default 25; make crash 5; make crash-full 1: all).  Which of them goes round with
the days, or AIOMTA_OFFSET says it.
"""

import os
import subprocess
import sys
import time
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
    bad: dict[str, tuple[int, list[Copy], list[Copy]]] = {  # kills, copies at the kill, copies in the end
        "lost": (1, [], []),
        "never asked for": (0, [], [Copy("a", place, ("1",)), Copy("a", "sink:x@sink.test", ("1",))]),
        "duplicate outside": (1, [], [Copy("a", place, ("1",))] * 2),
        "duplicate outside the": (1, [Copy("a", place, ("1",))] * 2, [Copy("a", place, ("1",))] * 3),
        "made twice": (1, [Copy("a", place, ("1", "2"))], [Copy("a", place, ("1", "2")), Copy("a", place, ("1", "3"))]),
        "acceptances": (1, [Copy("a", place, ("1",))], [Copy("a", place, ("1",)), Copy("a", place, ("2",))]),
    }
    for word, (kills, before, after) in bad.items():
        account = Account({"a": {place}}, {"a": b"x\n"}, kills=kills)
        account.attempts["a"] = account.promised["a"] = 1
        account.at_kill.update(before)
        found = account.at_kill.__class__(after)
        assert any(word in line for line in account.verdict(found)), word
    good = Account({"a": {place}}, {"a": b"x\n"}, kills=1)
    good.attempts["a"] = good.promised["a"] = 1
    good.at_kill.update([Copy("a", place, ("1",))])
    assert good.verdict(good.at_kill.__class__([Copy("a", place, ("1",))] * 2)) == []
    assert good.windows == {"W1": 0, "W2": 1}


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
