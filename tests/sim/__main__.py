"""python -m tests.sim --seeds 0-2000 [--jobs 2] [--out FILE]: play seeds, print what is broken and the figures.

--seed N --trace prints the event log of one.  With --out the run can be interrupted and started again: FILE holds one
line per finished block of seeds, and at its end the figures.  A failing seed is made as small as possible and
printed with its event log.  Exit status 1: something is broken.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.sim.minimise import describe, smaller
from tests.sim.plan import make
from tests.sim.syscalls import installed
from tests.sim.world import play

BLOCK = 50  # seeds per task
SHOWN = 3  # failing seeds that are minimised


def block(first: int, last: int) -> dict[str, object]:
    """Play seeds [first, last); runs in a process of its own."""
    gc.freeze()
    counts: Counter[str] = Counter()
    failed: dict[int, list[str]] = {}
    began = time.process_time()
    with installed():
        for seed in range(first, last):
            outcome = play(make(seed))
            counts += outcome.counts
            if outcome.wrong:
                failed[seed] = outcome.wrong
    return {"first": first, "last": last, "failed": failed, "counts": counts, "cpu": time.process_time() - began}


def show(seed: int, *, trace: bool) -> bool:
    """Play one seed; print the smallest plan that still fails, or the log.  True when it is clean."""
    with installed():
        plan = make(seed)
        outcome = play(make(seed))
        if outcome.wrong and not trace:
            plan, outcome = smaller(plan)
    print(f"seed {seed}: {len(outcome.wrong)} violations, log {outcome.digest[:16]}")
    print(describe(plan))
    print("\n".join(event[:300] for event in outcome.events))
    print("\n".join(f"VIOLATION {text}" for text in outcome.wrong))
    print(dict(sorted(outcome.counts.items())))
    return not outcome.wrong


class Record:
    """Figures of what was played, in a file when there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.blocks = path, list[dict[str, object]]()
        if path is not None and path.exists():
            lines = path.read_text().splitlines()
            self.blocks = [json.loads(line) for line in lines if line.startswith("{")]
        self.done = {int(str(b["first"])) for b in self.blocks}

    def add(self, found: dict[str, object]) -> None:
        """One block is done."""
        self.blocks.append(found)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(found, sort_keys=True) + "\n")

    def figures(self, wall: float) -> str:
        """What is to be reported."""
        seeds = cpu = 0.0
        failed, counts = 0, Counter[str]()
        for found in self.blocks:
            seeds += int(str(found["last"])) - int(str(found["first"]))
            cpu += float(str(found["cpu"]))
            blocks_failed, blocks_counts = found["failed"], found["counts"]
            assert isinstance(blocks_failed, dict) and isinstance(blocks_counts, dict)
            failed += len(blocks_failed)
            counts.update(blocks_counts)
        lines = [f"seeds {seeds:.0f}, with violations {failed}, {cpu:.0f} s of CPU ({1000 * cpu / max(1, seeds):.1f} "
                 f"ms per seed), {wall:.0f} s wall"]  # fmt: skip
        lines += [f"  {count:8d}  {what}" for what, count in sorted(counts.items())]
        return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seeds", metavar="FROM-TO", default="0-200")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.seed is not None:
        return 0 if show(options.seed, trace=options.trace) else 1
    first, last = map(int, options.seeds.split("-"))
    record = Record(options.out)
    began = time.monotonic()
    starts = [s for s in range(first, last, BLOCK) if s not in record.done]
    failing: list[int] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for future in as_completed([pool.submit(block, s, min(s + BLOCK, last)) for s in starts]):
            found = future.result()
            record.add(found)
            broken = found["failed"]
            assert isinstance(broken, dict)
            for seed, wrong in sorted(broken.items()):
                failing.append(seed)
                print(f"seed {seed}: {wrong}", flush=True)
    text = f"{_version()}\n{record.figures(time.monotonic() - began)}"
    print(text)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(text + "\n")
    for seed in sorted(failing)[:SHOWN]:
        show(seed, trace=False)
    return 1 if '"failed": {"' in json.dumps(record.blocks) else 0


def _version() -> str:
    """Which code was played."""
    told = os.environ.get("SIM_COMMIT", "")
    if not told:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        told = asked.stdout.strip()
    return f"code {told or 'unknown'}"


if __name__ == "__main__":
    sys.exit(main())
