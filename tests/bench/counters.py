"""What a run costs: processor time and memory of one program's processes, journal commits and flushes of one disk.

Processor time comes from a control group per program (cgroup v2's cpu.stat counts without any controller): it is
exact, and children that ended are in it, which a walk through /proc would miss in programs that fork per message.
Memory is PSS: what is shared counts once.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = next(
    (p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None
)
TICKS = os.sysconf("SC_CLK_TCK")
FSYNC = "ext4:ext4_sync_file_enter"
FLUSH = "block:block_rq_issue"


class Group:
    """The processes of one program and all their descendants."""

    def __init__(self, name: str) -> None:
        if CGROUPS is None:
            raise RuntimeError("no cgroup2 hierarchy is mounted on this machine")
        self.path = CGROUPS / f"aiomta-bench-{os.environ['AIOMTA_BENCH_RUN']}-{name}"
        self.path.mkdir(exist_ok=True)

    def command(self, argv: Sequence[object]) -> list[str]:
        """The command that runs argv in the group.

        And in a session of its own, as a daemon is: with sched_autogroup_enabled the kernel shares the processors
        between sessions.  Postfix's master makes one; what stayed in ours would share with generator and sink.
        """
        return ["/bin/sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec setsid "$@"', "sh", *map(str, argv)]

    def cpu(self) -> float:
        """Seconds of processor time, user and system, of everything that ever ran in it."""
        return int((self.path / "cpu.stat").read_text().split()[1]) / 1e6

    def processes(self) -> list[int]:
        """Process ids."""
        return [int(word) for word in (self.path / "cgroup.procs").read_text().split()]

    def pss(self) -> int:
        """KiB of memory of all its processes together."""
        return sum(memory(pid) for pid in self.processes())


def memory(pid: int) -> int:
    """PSS of one process in KiB; 0 when it has ended."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) if found else 0


def remove_groups(run: str, limit: float = 5.0) -> None:
    """Remove the groups of a run whose processes were killed; they need a moment to be gone."""
    deadline = time.monotonic() + limit
    while left := list(CGROUPS.glob(f"aiomta-bench-{run}-*") if CGROUPS else ()):
        for path in left:
            with contextlib.suppress(OSError):
                path.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def machine_cpu() -> float:
    """Seconds that the processors of this machine were busy since it started."""
    user, nice, system, _idle, _wait, irq, soft, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / TICKS


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that all spools are on."""

    path: Path

    def device(self) -> tuple[int, int]:
        """Major and minor number."""
        number = self.path.stat().st_dev
        return os.major(number), os.minor(number)

    def commits(self) -> int:
        """Journal commits so far; RuntimeError when it has no journal."""
        major, minor = self.device()
        name = Path(f"/sys/dev/block/{major}:{minor}").resolve().name
        for path in Path("/proc/fs/jbd2").glob(f"{name}-*/info"):
            return int(path.read_text().split()[0])
        raise RuntimeError(f"{self.path}: no journal")

    def settle(self) -> None:
        """Write back what the run before left, so that nobody pays for another's."""
        subprocess.run(["sync", "-f", self.path], check=True, timeout=120)


class Watch:
    """Counts fsync calls (also those through io_submit) and device flushes of one disk; needs perf, else None."""

    def __init__(self, disk: Disk) -> None:
        major, minor = disk.device()
        number = major << 20 | minor  # as the kernel's tracepoints show it
        self._out = tempfile.NamedTemporaryFile("r", suffix=".perf")  # noqa: SIM115  (closed in end())
        events = [("-e", FSYNC, "--filter", f"dev == {number}")]
        events += [("-e", FLUSH, "--filter", f'dev == {number} && rwbs ~ "F*"')]
        words = [word for event in events for word in event]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                ["perf", "stat", "-a", "-x", ",", "-o", self._out.name, *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            self._process = None
            return
        time.sleep(0.3)  # it says nothing when it has begun to count

    def end(self) -> tuple[int | None, int | None]:
        """(fsyncs, flushes).  The second time it does nothing, and knows nothing."""
        if self._process is None:
            return None, None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)
        self._process = None
        text = self._out.read()
        self._out.close()
        found = [re.search(rf"^(\d+),[^\n]*{event}", text, re.MULTILINE) for event in (FSYNC, FLUSH)]
        fsyncs, flushes = (int(match[1]) if match else None for match in found)
        return fsyncs, flushes
