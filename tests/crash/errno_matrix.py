"""Every call of every kind fails, with every errno, once and for a while:

    python -m tests.crash.errno_matrix [--kind K] [--errno NAME] [--stride K] [--offset I] [--jobs J] [--table FILE]

The method of SQLite's tests: call n = 1, 2, 3 ... of a kind fails until a run meets no fault any more.  Each run is
the story of errno_world.py on virtual time.  What must hold: the client hears 4xx or loses its connection, nothing
is lost, altered, there twice, or falsely returned; nobody flushes a descriptor again after an error; the service is
back within 5 s (virtual) of the end of the fault.
"""

import argparse
import errno
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.errno_faults import BOX, Faults
from tests.crash.errno_world import World

ERRNOS = ("ENOSPC", "EDQUOT", "EIO", "EMFILE", "ENFILE", "EROFS", "ENOMEM", "EINTR", "ESTALE")
NET_ERRNOS = ("EMFILE", "ENFILE", "ENOMEM", "EINTR", "EIO", "ECONNRESET", "ETIMEDOUT", "EPIPE")
DISK = ("open_excl", "open", "close", "write", "write_file", "pwrite", "pread", "read", "fchmod", "fstat", "lstat",
        "flock", "utime", "rename", "link", "unlink", "mkdir", "chmod", "scandir", "statvfs", "directory",
        "flush", "flush_directory")  # fmt: skip
NET = ("net-connect", "net-accept", "net-send-client", "net-recv-client", "net-send-server", "net-recv-server")
KINDS = (*DISK, *(f"box-{name}" for name in (*BOX, "fsync")), *NET)
MOST = 200  # calls of one kind


@dataclass
class Row:
    """What one kind gave.  calls: the most that a run made.  back: slowest return of the service, seconds."""

    kind: str
    calls: int = 0
    runs: int = 0
    hits: int = 0
    twice: int = 0
    back: float = 0.0
    done: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: "Row") -> None:
        """Put two parts together."""
        self.calls = max(self.calls, other.calls)
        self.runs, self.hits, self.twice = self.runs + other.runs, self.hits + other.hits, self.twice + other.twice
        self.back, self.done = max(self.back, other.back), max(self.done, other.done)
        self.wrong += other.wrong


def part(kind: str, names: tuple[str, ...], first: int, stride: int) -> Row:
    """Calls first, first + stride, ... of a kind, with each errno, once and lasting."""
    row = Row(kind)
    with tempfile.TemporaryDirectory(prefix="errno-", dir=shared_memory()) as directory:
        world = World(Path(directory) / "w")
        for at, name, lasting in combinations(names, first, stride, row):
            one(world, row, Faults(kind, getattr(errno, name), at, lasting=lasting), f"{kind} {at} {name}")
    return row


def combinations(names: tuple[str, ...], first: int, stride: int, row: Row) -> Iterator[tuple[int, str, bool]]:
    """Until no run was hit any more."""
    for at in range(first, MOST, stride):
        before = row.hits
        for name in names:
            for lasting in (False, True):
                yield at, name, lasting
        if row.hits == before:
            return


def one(world: World, row: Row, faults: Faults, what: str) -> None:
    """One run."""
    what += " lasting" if faults.lasting else ""
    try:
        found = world.live(faults)
    except Exception as error:  # the laboratory's own, or one that escaped a room
        row.wrong.append(f"{what}: {type(error).__name__}: {error}")
        row.hits += faults.hits > 0
        return
    row.calls = max(row.calls, found.counts[row.kind])
    row.runs += 1
    row.hits += found.hits > 0
    row.twice += found.duplicates
    row.back, row.done = max(row.back, found.back), max(row.done, found.done)
    row.wrong += [f"{what}: {text}" for text in found.wrong]


def shared_memory() -> str | None:
    """Where files cost nothing; None = the usual place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def matrix(kinds: tuple[str, ...], names: tuple[str, ...], stride: int, offset: int, jobs: int) -> list[Row]:
    """All kinds, in `jobs` processes."""
    rows = {kind: Row(kind) for kind in kinds}
    with ProcessPoolExecutor(jobs) as pool:
        parts = [
            (kind, pool.submit(part, kind, chosen(kind, names), 1 + offset % stride + stride * i, stride * jobs))
            for kind in kinds for i in range(jobs)
        ]  # fmt: skip
        for kind, future in parts:
            rows[kind].add(future.result())
    return list(rows.values())


def chosen(kind: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The errnos that a kind is tried with."""
    if kind.startswith("box-"):  # a quota that is used up is the mailbox's: 5.2.2, as in Postfix
        return tuple(name for name in names or ERRNOS if name != "EDQUOT")
    return names or (NET_ERRNOS if kind.startswith("net-") else ERRNOS)


def table(rows: list[Row]) -> str:
    """As text."""
    total = Row("all")
    for row in rows:
        total.add(row)
    total.calls = sum(row.calls for row in rows)
    lines: list[tuple[str, ...]] = [("kind", "calls", "runs", "hit", "twice", "back", "done", "violations")]
    for row in [*rows, total]:
        counts = (row.calls, row.runs, row.hits, row.twice, f"{row.back:.1f}", f"{row.done:.0f}", len(row.wrong))
        lines.append((row.kind, *map(str, counts)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def main() -> int:
    """Command line; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--errno", nargs="*", default=[])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    rows = matrix(tuple(options.kind), tuple(options.errno), options.stride, options.offset, options.jobs)
    wrong = [line for row in rows for line in row.wrong]
    words: Counter[str] = Counter(line.partition(": ")[2][:60] for line in wrong)
    text = f"{table(rows)}\n{time.monotonic() - began:.0f} s, {options.jobs} at a time, every {options.stride}. call\n"
    text += "".join(f"  {n} x {word}\n" for word, n in words.most_common(30))
    print(text + "".join(f"  {line}\n" for line in wrong[:50]), end="")
    if options.table:
        options.table.write_text(text + "".join(f"  {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
