"""The other end of launch.py: arm the counter, wait for the step, read what happened."""

import mmap
import os
import select
from dataclasses import dataclass
from pathlib import Path

from tests.powercut.launch import COUNTERS

NEVER = 1 << 40  # a step nobody comes to


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the trace; times of the monotonic clock.  number: of the step, 0 for a flush that has ended."""

    number: int
    begun: float
    ended: float
    name: str
    detail: str


class Steps:
    """The shared files in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for name in ("steps", "lock", "trace"):
            (directory / name).write_bytes(bytes(COUNTERS.size) if name == "steps" else b"")
            (directory / name).chmod(0o666)
        os.mkfifo(directory / "cut")
        (directory / "cut").chmod(0o666)
        self._fifo = os.open(directory / "cut", os.O_RDWR | os.O_NONBLOCK)
        with (directory / "steps").open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), COUNTERS.size)

    def close(self) -> None:
        """No more."""
        os.close(self._fifo)

    def arm(self, stop_before: int, delay: float) -> None:
        """Count from now on; delay: seconds to hold up each flush of marks."""
        os.truncate(self.directory / "trace", 0)
        COUNTERS.pack_into(self._shared, 0, 0, stop_before, delay)

    def disarm(self) -> int:
        """Stop counting; how many steps there were."""
        count, _, _ = COUNTERS.unpack_from(self._shared)
        COUNTERS.pack_into(self._shared, 0, 0, 0, 0.0)
        return int(count)

    def reached(self, timeout: float) -> bool:
        """Wait so many seconds for the step."""
        if not select.select([self._fifo], [], [], timeout)[0]:
            return False
        os.read(self._fifo, 16)
        return True

    def trace(self) -> list[Record]:
        """What happened so far."""
        found = []
        for line in (self.directory / "trace").read_text(errors="surrogateescape").splitlines():
            first, when, _, name, detail = line.split(" ", 4)
            if name == "synced":
                found.append(Record(0, float(first), float(when), name, detail))
            else:
                found.append(Record(int(first), float(when), float(when), name, detail))
        return found
