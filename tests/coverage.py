"""Branch coverage of what mail depends on, each part by its own test files alone: python -m tests.coverage [PART...]

A part that is not covered to the last branch fails, and the lines are shown.  What another test happens to run on
its way does not count: it would not notice a wrong result.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARALLEL = 2  # parts at a time


@dataclass(frozen=True)
class Part:
    """source, tests: patterns of files."""

    name: str
    source: tuple[str, ...]
    tests: str


PARTS = (
    Part("store", ("mta/queue/store*.py",), "test_store*.py"),
    Part("session", ("mta/smtpd/session*.py",), "test_session*.py"),
    Part("fsio", tuple(f"mta/fsio/{name}.py" for name in ("fsio", "flusher", "groups", "linux_aio")), "test_fsio*.py"),
    Part("queue_file", ("mta/queue/queue_file.py", "mta/queue/*_reader.py"), "test_queue_file*.py"),
    Part("client", ("mta/smtp/client.py", "mta/smtp/client_events.py", "mta/smtp/commands.py"), "test_client*.py"),
    Part("intake", ("mta/qmgr/intake.py",), "test_intake*.py"),
    Part("dsn", ("mta/bounce/dsn.py",), "test_dsn*.py"),
    Part("pickup", ("mta/pickup.py",), "test_pickup*.py"),
)


def measure(part: Part) -> tuple[bool, str]:
    """(covered and all tests passed, what to show)."""
    tests = sorted(str(p) for p in (ROOT / "tests/unit").glob(part.tests))
    include = ",".join(str(p) for pattern in part.source for p in sorted(ROOT.glob(pattern)))
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "COVERAGE_FILE": f"{scratch}/data"}
        coverage = [sys.executable, "-m", "coverage"]
        run = [*coverage, "run", "--branch", f"--include={include}", "-m", "pytest", "-q", "--loops", "asyncio"]
        tested = _call([*run, f"--basetemp={scratch}/tmp", *tests], environment)
        shown = _call([*coverage, "report", "--show-missing", "--skip-covered", "--fail-under=100"], environment)
    ok = tested.returncode == 0 and shown.returncode == 0
    text = shown.stdout if tested.returncode == 0 else tested.stdout[-6000:] + tested.stderr[-3000:]
    return ok, f"== {part.name}: {'complete' if ok else 'NOT COMPLETE'}\n{text}"


def _call(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)


def main(names: list[str]) -> int:
    """Measure the named parts, or all; exit 1 when one is not complete."""
    parts = [part for part in PARTS if not names or part.name in names]
    with ThreadPoolExecutor(PARALLEL) as pool:
        results = list(pool.map(measure, parts))
    for _, text in results:
        print(text, end="")
    return 0 if parts and all(ok for ok, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
