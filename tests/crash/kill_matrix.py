"""The MTA killed at every step of each scenario:

    python -m tests.crash.kill_matrix [SCENARIO ...] [--stride K] [--offset I] [--jobs J] [--twice] [--table FILE]

n = 1, 2, 3 ... until no run dies any more; after each death it is started again, lets its clients repeat what they
were not promised, works until the queue is empty, and the ledger judges.  --stride K takes each K-th n, beginning
at --offset.  Prints a table, and each violation with the step it died at.
"""

import argparse
import os
import pwd
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.kill_scenarios import Scenario, scenarios
from tests.crash.kill_world import SERVICE_LIMIT, HungError, World

SECOND = 60  # steps of the second life in which it dies again, with --twice: start, recovery, first deliveries
MOST = 3000  # steps; a scenario that takes more does not end
UNHARMED = 2  # runs in a row that end the count: the number of steps differs a little from run to run
COLUMNS = ("scenario", "steps", "kills", "promised", "delivered", "reports", "W1", "W2", "W3", "violations", "start",
           "s/run")  # fmt: skip


@dataclass
class Row:
    """What one scenario gave.  steps: of the run that ended unharmed.  start: slowest, seconds."""

    scenario: str
    steps: int = 0
    kills: int = 0
    promised: int = 0
    delivered: int = 0
    reports: int = 0
    windows: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    start: float = 0.0
    runs: int = 0
    seconds: float = 0.0

    def add(self, other: "Row") -> None:
        """Put together what two processes found."""
        self.steps = max(self.steps, other.steps)
        for name in ("kills", "promised", "delivered", "reports", "runs", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.windows += other.windows
        self.kinds += other.kinds
        self.wrong += other.wrong
        self.start = max(self.start, other.start)

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        w = self.windows
        return (self.scenario, *(str(x) for x in (
            self.steps, self.kills, self.promised, self.delivered, self.reports, w["W1"], w["W2"], w["W3"],
            len(self.wrong))), f"{self.start:.2f}", f"{self.seconds / max(1, self.runs):.2f}")  # fmt: skip


def one_run(scenario: Scenario, world: World, n: int, row: Row, *, twice: bool = False) -> bool:
    """Die at step n, twice: and again in the life after it; True when it did not come to that."""
    began = time.monotonic()
    scenario.begin(world, n)
    try:
        unharmed = scenario.live(world) and not world.dead()
        at = "unharmed"
        if not unharmed:
            world.count_kill()
            died = world.steps()
            at = died[n - 1] if len(died) >= n else f"step {n} was never counted: it died of something else"
            row.kinds[at[14:24].strip()] += 1
            scenario.after(world, 1 + n * 7 % SECOND if twice else 0)
        found = world.copies()
        wrong = world.account.verdict(found)
        if world.slowest_start > SERVICE_LIMIT:
            wrong.append(f"serves only {world.slowest_start:.1f} s after the start")
    except HungError as hung:
        at, wrong, found = world.steps()[-1] if world.steps() else "", [str(hung)], Counter()
        unharmed = False
    finally:
        world.stop()
    row.kills += world.account.kills
    row.wrong += [f"{scenario.name} n={n} ({' '.join(at.split())}): {text}" for text in wrong]
    row.promised += sum(len(world.account.places[name]) for name, times in world.account.promised.items() if times)
    row.delivered += sum(count for copy, count in found.items() if " about " not in copy.place)
    row.reports += sum(count for copy, count in found.items() if " about " in copy.place)
    row.windows += world.account.windows
    row.steps = max(row.steps, len(world.steps()) if unharmed else 0)
    row.runs += 1
    row.seconds += time.monotonic() - began
    row.start = max(row.start, world.slowest_start)
    return unharmed


def every(scenario: Scenario, first: int, stride: int, last: int = MOST, *, twice: bool = False) -> Row:
    """n = first, first + stride, ... until runs end unharmed."""
    row, unharmed = Row(scenario.name), 0
    world = scenario.world()
    try:
        for n in range(first, last + 1, stride):
            unharmed = unharmed + 1 if one_run(scenario, world, n, row, twice=twice) else 0
            if unharmed == UNHARMED:
                break
        else:
            row.wrong.append(f"{scenario.name}: no end after {last} steps")
    finally:
        world.close()
    return row


def all_scenarios() -> list[Scenario]:
    """What this user can run."""
    return scenarios(root=os.getuid() == 0, user=pwd.getpwuid(os.getuid()).pw_name)


def _task(name: str, first: int, stride: int, twice: bool) -> Row:
    scenario = next(s for s in all_scenarios() if s.name == name)
    return every(scenario, first, stride, twice=twice)


def matrix(names: list[str], stride: int, offset: int, jobs: int, *, twice: bool = False) -> list[Row]:
    """Each scenario in `jobs` interleaved parts."""
    chosen = [s.name for s in all_scenarios() if not names or s.name in names]
    rows = {name: Row(name) for name in chosen}
    with ProcessPoolExecutor(jobs) as pool:
        parts = [
            (name, pool.submit(_task, name, 1 + offset % stride + stride * i, stride * jobs, twice))
            for name in chosen for i in range(jobs)
        ]  # fmt: skip
        for name, part in parts:
            rows[name].add(part.result())
    return list(rows.values())


def table(rows: list[Row]) -> str:
    """As text."""
    total = Row("all")
    for row in rows:
        total.add(row)
    total.steps = sum(row.steps for row in rows)
    lines = [COLUMNS, *(row.cells() for row in rows), total.cells()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def main() -> int:
    """Command line; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--twice", action="store_true", help="die again, soon after the start that follows")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    rows = matrix(options.scenario, options.stride, options.offset, options.jobs, twice=options.twice)
    kinds: Counter[str] = sum((row.kinds for row in rows), Counter())
    text = f"{table(rows)}\nkilled at: {', '.join(f'{k} {n}' for k, n in kinds.most_common())}\n"
    text += f"{time.monotonic() - began:.0f} s, {options.jobs} at a time, every {options.stride}. n\n"
    wrong = [line for row in rows for line in row.wrong]
    text += "".join(f"  {line}\n" for line in wrong[:100])
    print(text, end="")
    if options.table:
        options.table.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
