"""A message that was named later takes along what was removed before it: python -m tests.powercut.order [--rounds 100]

What mta/fsio/soon.py believes, without the MTA: files are removed, then another one gets its name and is flushed, while
a third is flushed all the time or nobody else is there.  The power fails at once.  What comes back is printed.
--control: files are removed after the other one was flushed, so they may well come back.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mta.fsio.linux_writeback import names_follow_files, start_writing
from tests.powercut.disk import KINDS, Cut, Disk, unusable

_INSIDE = "AIOMTA_POWERCUT_ORDER"
REMOVED = 5  # files in each round


def rounds(kind: str, place: Path, count: int, rng: random.Random, *, control: bool) -> tuple[int, int]:
    """How many removed files came back, and how many flushed ones were lost."""
    disk = Disk(kind, place / f"{kind}.img", place / kind)
    disk.make()
    active, incoming = disk.mountpoint / "active", disk.mountpoint / "incoming"
    active.mkdir()
    incoming.mkdir()
    fd = os.open(active, os.O_RDONLY)
    if not names_follow_files(fd):
        raise RuntimeError(f"{kind}: names do not follow files")
    os.close(fd)
    back = lost = 0
    for number in range(count):
        removed = [active / f"{number}-{i}" for i in range(REMOVED)]
        for path in removed:
            path.write_bytes(b"old" * 100)
        disk.sync()
        with _busy(incoming / "busy") if number % 2 else contextlib.nullcontext():
            _one(incoming / f"N{number}", removed, rng, control=control)
            disk.cut(Cut.NOLOGFLUSH if number % 3 else Cut.LOGFLUSH)
        disk.power_on()
        back += sum(path.exists() for path in removed)
        lost += not (incoming / f"N{number}").exists()
    disk.umount()
    return back, lost


def _one(target: Path, removed: list[Path], rng: random.Random, *, control: bool) -> None:
    """What two processes do: one ends messages, the other accepts one; its text was written before or is not yet."""
    draft = target.with_name("1.2")
    fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.write(fd, b"new" * rng.randrange(10, 3000))
        if rng.random() < 0.5:
            start_writing(fd)
        time.sleep(rng.choice((0, 0.003, 0.01)))
        if control:
            draft.rename(target)
            os.fsync(fd)
        for path in removed:
            path.unlink()
        time.sleep(rng.choice((0, 0, 0.01)))
        if not control:
            draft.rename(target)
            start_writing(fd)
            os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _busy(path: Path) -> Iterator[None]:
    """Somebody who writes and flushes a file of his own all the time, until the power fails."""

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                fd = os.open(path, os.O_CREAT | os.O_RDWR)
                try:
                    os.write(fd, b"x" * 5000)
                    os.fsync(fd)
                finally:
                    os.close(fd)

    other = threading.Thread(target=work)
    other.start()
    try:
        yield
    finally:
        other.join()


def main() -> int:
    """A line for each kind of disk; status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        with tempfile.TemporaryDirectory(prefix="aiomta-order-", dir="/var/tmp") as place:
            namespace = ["unshare", "--mount", "--propagation", "private"]
            again = [sys.executable, "-m", "tests.powercut.order", *sys.argv[1:]]
            return subprocess.run(namespace + again, env={**os.environ, _INSIDE: place}, check=False).returncode
    directory = Path(os.environ[_INSIDE])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "order", directory], check=True)
    print(f"seed {options.seed}, {options.rounds} cuts with {REMOVED} removed files each", flush=True)
    wrong = 0
    for kind in KINDS:
        if why := unusable(kind):
            print(f"{kind}: {why}", flush=True)
            continue
        rng = random.Random(options.seed)
        back, lost = rounds(kind, directory, options.rounds, rng, control=options.control)
        print(f"{kind}: {back} came back, {lost} lost", flush=True)
        wrong += back + lost
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
