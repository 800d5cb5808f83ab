"""`make flushes`: how often the disk has to empty its cache per message, ours beside Postfix, in one run (root).

    .venv/bin/python -m tests.powercut.flushes [--sessions 10]... [--messages 2000] [--rounds 2]

Both have their queue on one ext4 with a journal, on a loop device.  Counted are completed flush requests of this
device (field 16 of its stat file, Documentation/block/stat.rst) and commits of its journal (/proc/fs/jbd2).

accept      every message is held (static:HOLD), so that nothing but accepting happens
whole way   accepted and relayed to a sink; counted until 1 s after the last one has arrived
host        flushes of the device under the image in the same time: a flush of the loop device is an fsync of the
            image, so they reach it (and whatever else runs on this machine is in it, too)
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.choose import choose
from tests.bench.lab import Lab, enter
from tests.bench.receivers import Sink, wait
from tests.bench.run import Load, smtp
from tests.bench.systems import System

SIZE = 5000  # bytes per message
LIMIT = 1500.0  # seconds for everything
QUIET = 1.0  # seconds in which what follows the last message is counted, too
HOLD = {"smtpd_recipient_restrictions": "check_recipient_access static:HOLD"}
GOALS = {10: 0.5, 16: 0.3, 32: 0.3}  # of accepting, by sessions
_FLUSHES = 15  # index in /sys/dev/block/*/stat


@dataclass(frozen=True, slots=True)
class Count:
    """Flushes of the device, commits of its journal, flushes of the device under it."""

    flushes: float
    commits: float
    host: float

    def __sub__(self, other: "Count") -> "Count":
        return Count(self.flushes - other.flushes, self.commits - other.commits, self.host - other.host)

    def per(self, messages: int) -> "Count":
        """For one message."""
        return Count(self.flushes / messages, self.commits / messages, self.host / messages)


def flushes_of(device: int) -> int:
    """Completed flush requests of a block device, or of the disk a partition is on."""
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (path / "partition").exists():
        path = path.parent
    return int((path / "stat").read_text().split()[_FLUSHES])


def count(lab: Lab) -> Count:
    """As they stand now."""
    major, minor = lab.disk.device()
    under = lab.run.stat().st_dev
    host = flushes_of(under) if os.major(under) else 0  # no device of its own: tmpfs, overlay
    return Count(flushes_of(os.makedev(major, minor)), lab.disk.commits(), host)


def accept(lab: Lab, system: System, load: Load) -> Count:
    """Messages in, none out."""
    lab.disk.settle()
    before = count(lab)
    smtp(lab, system, load)
    return (count(lab) - before).per(load.messages)


def whole_way(lab: Lab, system: System, load: Load) -> Count:
    """In and out."""
    sink = Sink(lab, SIZE)
    try:
        lab.disk.settle()
        before = count(lab)
        smtp(lab, system, load)
        wait(sink, load.messages)
        time.sleep(QUIET)
        return (count(lab) - before).per(load.messages)
    finally:
        sink.close()


def line(what: str, sessions: int, name: str, counts: Sequence[Count], goal: float | None) -> tuple[str, bool]:
    """A line of the table, and whether the goal was reached."""
    flushes, commits, host = (statistics.median(getattr(c, n) for c in counts) for n in ("flushes", "commits", "host"))
    least, most = min(c.flushes for c in counts), max(c.flushes for c in counts)
    text = f"{what:10s} {sessions:8d} {name:8s} {flushes:8.3f} [{least:.3f}-{most:.3f}] {commits:8.3f} {host:7.3f}"
    if goal is None:
        return text, True
    reached = flushes <= goal
    return f"{text}  goal <= {goal:.3f}: {'reached' if reached else 'MISSED'}", reached


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces."""
    lab = Lab()
    systems = choose(lab, ["aiomta", "postfix"], None, None)
    missed = 0
    print("per message          flushes of the device")
    print(f"{'':10s} sessions {'':8s}   median [least-most]  commits    host", flush=True)
    for what, settings, measure in (("accept", HOLD, accept), ("whole way", {}, whole_way)):
        for system in systems:
            system.start(settings)
            measure(lab, system, Load(200, 10, SIZE))  # warm
        for sessions in options.sessions or GOALS:
            load, counts = Load(options.messages, sessions, SIZE), dict[str, list[Count]]()
            for _ in range(options.rounds):
                for system in systems:
                    counts.setdefault(system.name, []).append(measure(lab, system, load))
            theirs = statistics.median(c.flushes for c in counts["postfix"])
            goal = GOALS.get(sessions) if what == "accept" else theirs
            for name, several in counts.items():
                text, reached = line(what, sessions, name, several, goal if name == "aiomta" else None)
                missed += not reached
                print(text, flush=True)
        for system in systems:
            system.stop()
    return 1 if missed else 0


def main() -> int:
    """Status 1 when a goal was missed."""
    parser = argparse.ArgumentParser(
        prog="make flushes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, action="append", help="may be repeated (10, 16, 32)")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "AIOMTA_BENCH_RUN" in os.environ:
        return inside(options)
    return enter([sys.executable, "-m", "tests.powercut.flushes", *sys.argv[1:]], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
