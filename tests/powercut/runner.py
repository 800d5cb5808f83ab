"""Cut the power at step n of a scenario, switch it on again, judge; n = 1, 2, 3 ... until a run ends unharmed."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.powercut.disk import Cut
from tests.powercut.judge import Cutoff, judge
from tests.powercut.scenarios import SCENARIOS, Scenario
from tests.powercut.steps import NEVER
from tests.powercut.world import EMPTY_LIMIT, QUEUES, World, unfinished

COUNTS = ("promised", "delivered", "bounced", "W1", "W2", "W3", "corrupt")


@dataclass
class Row:
    """What all cuts of one scenario on one file system showed.  steps: of a run that was let alone."""

    scenario: str
    kind: str
    how: Cut
    steps: int = 0
    cuts: int = 0
    slowest: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        numbers = " ".join(f"{self.counts[name]:9d}" for name in COUNTS)
        return (
            f"{self.scenario:14s} {self.kind:14s} {self.how.name:10s} {self.steps:5d} {self.cuts:5d} {numbers} "
            f"{self.slowest:6.2f} {len(self.wrong):5d}"
        )


def heading() -> str:
    """The first line of the table."""
    names = " ".join(f"{name:>9s}" for name in COUNTS)
    return f"{'scenario':14s} {'disk':14s} {'cut':10s} {'steps':>5s} {'cuts':>5s} {names} {'start':>6s} {'wrong':>5s}"


def cut_everywhere(name: str, kind: str, how: Cut, directory: Path, only: Iterable[int] | None = None) -> Row:
    """All steps, or only those; directory: empty, on a tmpfs."""
    scenario, row = SCENARIOS[name], Row(name, kind, how)
    world = World(directory, kind, scenario.two)
    try:
        world.system.start()
        run(world, scenario, row, NEVER)  # unharmed, and everything that is done once only is done now
        first = row.wrong or row.steps < scenario.least
        if first:
            row.wrong.append(f"undisturbed: {row.steps} steps, at least {scenario.least}")
            return row
        for n in _numbers(only, row.steps):
            if not run(world, scenario, row, n):
                break
    finally:
        world.close()
    return row


def _numbers(only: Iterable[int] | None, steps: int) -> Iterator[int]:
    return itertools.count(1) if only is None else (n for n in only if n <= steps)


def run(world: World, scenario: Scenario, row: Row, n: int) -> bool:
    """One run with a cut before step n; False: there was no such step."""
    name = f"{row.scenario}{'' if n == NEVER else n}-{time.monotonic_ns() // 1000 % 10**9}"
    world.steps.arm(n, scenario.delay)
    client = threading.Thread(target=scenario.run, args=(world, name), daemon=True)
    client.start()
    was_cut = _watch(world, client)
    when = time.monotonic() if was_cut else float("inf")
    trace = world.steps.trace()
    if was_cut:
        world.power_cut(row.how)
        client.join(60)
        steps = world.steps.disarm()
        world.power_on()
        row.cuts += 1
    else:
        steps = row.steps = world.steps.disarm()
    where = f"{row.scenario}, {row.kind}, {row.how.name}, before step {n} of {steps}"
    restarted = time.monotonic() if was_cut else float("inf")
    wrong = []
    if not world.wait_empty():
        wrong.append(f"queue not empty after {EMPTY_LIMIT:.0f} s")
    verdict = judge(world.promises, world.copies(), Cutoff(when, restarted, trace))
    row.counts += verdict.counts
    wrong += verdict.wrong + _left(world, row)
    row.slowest = max(row.slowest, world.restart_seconds)
    if wrong:
        tail = [f"    {r.number} {r.name} {r.detail}" for r in trace[-12:]]
        row.wrong.append("\n".join([where, *(f"  {text}" for text in wrong), *tail]))
    world.clean()
    return was_cut


def _watch(world: World, client: threading.Thread) -> bool:
    """Until the step is reached (True), or the scenario has ended and all its mail is out (False)."""
    deadline = time.monotonic() + 2 * EMPTY_LIMIT
    while time.monotonic() < deadline:
        if world.steps.reached(0.02):
            return True
        if not client.is_alive() and world.empty():
            return world.steps.reached(0.1)
    raise RuntimeError("the scenario does not end")


def _left(world: World, row: Row) -> list[str]:
    """I6: nothing stays behind, except a torn file of a message that nobody was promised."""
    wrong = []
    for queue in QUEUES:
        for path in world.files(queue):
            if queue == "corrupt" and not _named(path, world.promises.kept):
                row.counts["corrupt"] += 1
            elif not unfinished(path):
                wrong.append(f"left behind: {path}")
    return wrong


def _named(path: Path, names: Iterable[str]) -> bool:
    content = path.read_bytes()
    return any(f"X-Test-Id: {name}".encode() in content for name in names)
