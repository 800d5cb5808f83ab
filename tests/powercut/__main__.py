"""Power cuts at every step: python -m tests.powercut [--scenario NAME]... [--disk KIND]... [--cut HOW]... [--every N]

Prints one line per scenario, file system and kind of cut; exit 1 when a promise was broken.  Needs root.

    steps   system calls of an undisturbed run that change a disk, flush it, or write to a TCP connection
    cuts    runs in which the power failed before step 1, 2, 3 ... (--every 5: 1, 6, 11 ...)
    start   the slowest start afterwards, in seconds, until the server greets
    wrong   runs with something lost, altered, wrongly returned, or delivered twice outside W1 to W3
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.powercut.disk import KINDS, Cut, unusable
from tests.powercut.runner import cut_everywhere, heading
from tests.powercut.scenarios import SCENARIOS

_INSIDE = "AIOMTA_POWERCUT"  # in a namespace: its directory and its row


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--disk", action="append", choices=list(KINDS))
    parser.add_argument("--cut", action="append", choices=[cut.name.lower() for cut in Cut])
    parser.add_argument("--every", type=int, default=1, help="take every Nth step")
    parser.add_argument("--first", type=int, default=1, help="begin with this step")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time; most of the time is waiting")
    parser.add_argument("--step", type=int, help="this step only")
    parser.add_argument("--table", type=Path, help="write all that is printed to this file, too")
    return parser.parse_args()


class Printer:
    """Prints lines, and writes them to a file if there is one."""

    def __init__(self, table: Path | None) -> None:
        self._table = table
        if table:
            table.write_text("")

    def __call__(self, *lines: object) -> None:
        """Print them."""
        print(*lines, sep="\n", flush=True)
        if self._table:
            with self._table.open("a") as file:
                print(*lines, sep="\n", file=file)


Job = tuple[str, str, str]  # scenario, kind of disk, kind of cut


def inside(directory: Path, wanted: argparse.Namespace, job: Job) -> int:
    """In the namespace: one row."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "powercut", directory], check=True)
    name, kind, cut = job
    place = directory / "world"
    place.mkdir()
    only = None if wanted.every == 1 else range(wanted.first, 100_000, wanted.every)
    row = cut_everywhere(name, kind, Cut[cut.upper()], place, [wanted.step] if wanted.step else only)
    print(row, *row.wrong, sep="\n", flush=True)
    return 1 if row.wrong else 0


def in_namespace(job: Job) -> tuple[int, str]:
    """Status and output of a row; mounts, loop devices and processes end with its namespace."""
    directory = tempfile.mkdtemp(prefix="aiomta-powercut-", dir="/var/tmp")
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.powercut", *sys.argv[1:]]
    environ = {**os.environ, _INSIDE: " ".join([directory, *job]), "PYTHONDONTWRITEBYTECODE": ""}
    environ["PYTHONPYCACHEPREFIX"] = f"{directory}/compiled"  # hundreds of starts, and nothing left in the checkout
    process = subprocess.Popen([*unshare, *shell], env=environ, stdout=subprocess.PIPE, text=True)
    _running.append(process)
    try:
        text, _ = process.communicate()
        return process.returncode, text.rstrip() or f"{job}: ended with status {process.returncode}"
    finally:
        process.kill()
        shutil.rmtree(directory)


_running: list["subprocess.Popen[str]"] = []


def main() -> int:
    """All rows, in order."""
    if os.geteuid() != 0:
        sys.exit("powercut: needs root (mounts, loop devices)")
    wanted = options()
    if _INSIDE in os.environ:
        directory, *job = os.environ[_INSIDE].split()
        return inside(Path(directory), wanted, (job[0], job[1], job[2]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is removed
    say = Printer(wanted.table)
    say(heading())
    jobs: list[Job] = []
    for kind in wanted.disk or KINDS:
        if why := unusable(kind):
            say(f"{kind}: skipped, {why}")
            continue
        for cut in wanted.cut or ["nologflush", "logflush"]:
            jobs += [(name, kind, cut) for name in wanted.scenario or SCENARIOS]
    broken = 0
    with ThreadPoolExecutor(wanted.jobs) as pool:
        try:
            for status, text in pool.map(in_namespace, jobs):
                say(text)
                broken += status != 0
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in _running:
                process.kill()
    say(f"rows with something wrong: {broken} of {len(jobs)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
