"""Where the processor time of our processes goes: py-spy's samples under load, by function and by stage.

py-spy samples each Python process while it is on a processor, and does not stop it for that, which would cost up to
four times the work.  Shares are scaled to the processor time that the kernel has counted for the process.  A sample
belongs to the stage of its innermost frame that has one: what asyncio, uvloop and the kernel do for a stage counts
there, what they do for nobody is "loop".
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.counters import TICKS, Group

RATE = 200  # samples per second
STAGES = ("accept", "restrictions", "cleanup", "commit", "schedule", "deliver", "settle", "log", "loop")
RULES: tuple[tuple[str, str, str], ...] = (
    # file, function, stage; the first that matches
    (r"mta/maillog", r"", "log"),
    (r"mta/fsio", r"^(?!_?read|pread|content)", "flush"),
    (r"mta/smtpd/(restrict|access|anvil)|mta/lookup/|mta/dns/", r"", "restrictions"),
    (r"mta/(cleanup/|trivial_rewrite|message)", r"", "cleanup"),
    (r"mta/queue/(store_draft|store_space|queue_file)", r"", "commit"),
    (r"mta/queue/store\.", r"^(draft|_create)$", "commit"),
    (r"mta/queue/store_job\.", r"^(content|header)$", "deliver"),
    (r"mta/queue/store_job\.", r"mark|finish|_remove|defer|_move_away|give_back|hold|_close|_let_go", "settle"),
    (r"mta/qmgr/", r"settle|notices|_defer|notify|forward|reasons", "settle"),
    (r"mta/qmgr/attempt", r"record|done", "deliver"),
    (r"mta/(qmgr|queue)/|mta/worker_link", r"", "schedule"),
    (r"mta/deliver/|mta/smtp/(client|commands)", r"", "deliver"),
    (r"mta/smtpd/|mta/smtp/|aiosmtpd", r"", "accept"),
    (r"mta/(pickup|submit)", r"", "accept"),
)
FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::(?P<line>\d+))?\)$")


@dataclass(slots=True)
class Profile:
    """One process: seconds it used, and samples by function and by stage."""

    title: str
    seconds: float
    functions: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)

    def add(self, stack: list[str], count: int) -> None:
        """One line of py-spy's raw output."""
        frames = [match for frame in stack if (match := FRAME.match(frame))]
        if not frames:
            return
        leaf = frames[-1]
        self.functions[f"{leaf['function']}  {short(leaf['file'])}"] += count
        self.lines[f"{leaf['function']}  {short(leaf['file'])}:{leaf['line']}"] += count
        self.stages[self.stage(frames)] += count

    def stage(self, frames: "list[re.Match[str]]") -> str:
        """The stage of the innermost frame that has one."""
        flushing = False
        for frame in reversed(frames):
            for file, function, stage in RULES:
                if re.search(file, frame["file"]) and re.search(function, frame["function"]):
                    if stage != "flush":
                        return stage
                    flushing = True
                    break
        if flushing:
            return "commit" if "smtpd" in self.title else "settle"
        return "loop"

    def per_message(self, counter: Counter[str], messages: int) -> list[tuple[str, float]]:
        """(what, microseconds per message), most first."""
        total = counter.total() or 1
        return [(what, count / total * self.seconds * 1e6 / messages) for what, count in counter.most_common()]


def short(file: str) -> str:
    """A path without its beginning."""
    return re.sub(r"^.*(?=(mta|uvloop|asyncio|aiosmtpd|aiofiles)/)", "", file)


def title(text: str, pid: int) -> str:
    """What one of our processes is, told by what it runs."""
    for word, name in (("run_worker", "smtpd"), ("run_scheduler", "scheduler"), ("master.local", "mta-local")):
        if word in text:
            return name
    return f"process {pid}"


def spent(pid: int) -> float:
    """Seconds of processor time so far, all threads; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def tool() -> str:
    """py-spy's path; the run ends when there is none."""
    near = Path(sys.executable).parent / "py-spy"
    found = str(near) if near.exists() else shutil.which("py-spy")
    return found or sys.exit("bench: --profile needs py-spy: .venv/bin/pip install py-spy")


class Profiler:
    """Samples every process of a group until end()."""

    def __init__(self, group: Group, directory: Path, *, native: bool = False) -> None:
        self._before = {pid: spent(pid) for pid in group.processes()}
        self._samplers: dict[int, tuple[Path, subprocess.Popen[bytes]]] = {}
        for pid in self._before:
            out = directory / f"profile.{pid}"
            options = ["-r", str(RATE), "-d", "3600", "-f", "raw", "--nonblocking", *(["--native"] if native else [])]
            argv = [tool(), "record", *options, "-p", str(pid), "-o", str(out)]
            null = subprocess.DEVNULL
            self._samplers[pid] = out, subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
        time.sleep(1.5)  # it looks for the interpreter first

    def end(self) -> list[Profile]:
        """What was seen, the busiest first."""
        profiles = []
        used = {pid: max(0.0, spent(pid) - before) for pid, before in self._before.items()}
        for _, sampler in self._samplers.values():
            sampler.send_signal(signal.SIGINT)
        for pid, (out, sampler) in self._samplers.items():
            sampler.wait(60)
            text = out.read_text() if out.exists() else ""
            profile = Profile(title(text, pid), used[pid])
            for line in text.splitlines():
                stack, _, count = line.rpartition(" ")
                profile.add(stack.split(";"), int(count))
            profiles.append(profile)
        return sorted(profiles, key=lambda profile: -profile.seconds)


def report(profiles: list[Profile], messages: int, *, top: int = 45) -> str:
    """Tables: stages of all processes together, then functions of each."""
    stages: Counter[str] = Counter()
    for profile in profiles:
        for stage, cost in profile.per_message(profile.stages, messages):
            stages[stage] += cost  # type: ignore[assignment]  # a Counter adds floats as well
    lines = [f"{messages} messages; microseconds of processor time per message", "", "stages"]
    lines += [f"  {stage:14s} {stages[stage]:8.1f}" for stage in STAGES]
    lines += [f"  {'all':14s} {sum(stages.values()):8.1f}"]
    for profile in profiles:
        if not profile.functions:
            continue
        lines += [
            "",
            f"{profile.title}: {profile.seconds * 1e6 / messages:.0f} us, {profile.functions.total()} samples",
        ]
        shares = [f"{stage} {cost:.0f}" for stage, cost in profile.per_message(profile.stages, messages)]
        lines += [f"  {', '.join(shares)}"]
        lines += [f"  {cost:8.1f}  {what}" for what, cost in profile.per_message(profile.functions, messages)[:top]]
    return "\n".join(lines) + "\n"


class Symbols:
    """perf's view of the same processes: what Python, uvloop and the kernel themselves cost."""

    def __init__(self, group: Group, directory: Path) -> None:
        self._data = directory / "perf.data"
        self._group = group
        self._before = {pid: spent(pid) for pid in group.processes()}
        argv = ["perf", "record", "-q", "-F", "997", "-p", ",".join(map(str, self._before)), "-o", str(self._data)]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
        time.sleep(0.5)

    def end(self, messages: int, *, top: int = 25) -> str:
        """For each process that did anything: its heaviest symbols, microseconds per message."""
        used = {pid: max(0.0, spent(pid) - before) for pid, before in self._before.items()}
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        argv = ["perf", "report", "-i", str(self._data), "--stdio", "--sort", "pid,dso,sym", "-g", "none"]
        out = subprocess.run(argv, capture_output=True, text=True, timeout=120).stdout
        symbols: dict[int, list[tuple[float, str]]] = {}
        for share, pid, symbol in re.findall(r"^\s+([\d.]+)%\s+(\d+):\S+\s+(\S.*?)\s*$", out, re.MULTILINE):
            symbols.setdefault(int(pid), []).append((float(share), " ".join(symbol.split())))
        text = ""
        for number, seconds in sorted(used.items(), key=lambda item: -item[1]):
            rows = symbols.get(number, [])
            if seconds < max(used.values()) / 10 or not rows:
                continue
            cost = seconds * 1e6 / messages
            scale = cost / sum(share for share, _ in rows)
            kernel = sum(share for share, symbol in rows if "[k]" in symbol) * scale
            text += f"\nperf, process {number}: {cost:.0f} us, in the kernel {kernel:.0f}\n"
            text += "".join(f"  {share * scale:8.1f}  {symbol}\n" for share, symbol in rows[:top])
        return text
