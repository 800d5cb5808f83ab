"""A second opinion on the kill matrix: the kernel kills one process of the MTA at its K-th call of a system call.

    python -m tests.crash.kill_strace [SCENARIO ...] [--role R] [--call C] [--most K] [--jobs J] [--table FILE]   (root)

strace attaches to the first process, the scheduler or the smtpd worker of a running MTA (uvloop, AIO, threads: as it
is installed, nothing of it is replaced) and injects SIGKILL; K = 1, 2, 3 ... until a run ends unharmed.  When K is
odd all the others are killed too and it is started again; when it is even they live, and the first process has to
bring the dead one back.  The ledger is that of the kill matrix.
"""

import argparse
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.crash.kill_matrix import Row, all_scenarios, table
from tests.crash.kill_scenarios import Scenario
from tests.crash.kill_world import LIMIT, SERVICE_LIMIT, HungError, World

ROLES = ("scheduler", "smtpd", "first")
CALLS = {
    "scheduler": (
        "openat", "flock", "pwrite64", "write", "fchmod", "utimensat", "rename", "unlink", "io_submit", "fdatasync",
        "fsync", "connect", "sendto", "recvfrom", "read", "accept4", "close", "epoll_wait,epoll_pwait", "sendmsg",
    ),
    "smtpd": (
        "openat", "flock", "write", "fchmod", "rename", "io_submit", "fsync", "accept4", "read", "recvfrom", "sendto",
        "close", "epoll_wait,epoll_pwait", "unlink",
    ),
    "first": ("wait4", "rt_sigtimedwait", "rt_sigtimedwait_time64", "clone", "write"),
}  # fmt: skip
DETACH = 5.0  # seconds strace has
CHOSEN = ("accept", "remote-mix", "report", "forward", "mailboxes-root")


def ensure_strace() -> None:
    """Install it where it is missing; needs root."""
    if shutil.which("strace") is None:
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "strace"]
        subprocess.run(
            install, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )


def children(pid: int) -> list[int]:
    """Processes whose parent it is, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = entry.joinpath("stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append((int(fields[19]), int(entry.name)))
    return [number for _, number in sorted(found)]


def process_of(world: World, role: str) -> int:
    """Its number.  The first process forks mta-local (as root), then the scheduler, then the worker."""
    assert world.process is not None
    if role == "first":
        return world.process.pid
    return children(world.process.pid)[-2 if role == "scheduler" else -1]


class Injected:
    """strace at work on one process."""

    def __init__(self, pid: int, call: str, when: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._strace = subprocess.Popen(
            ["strace", "-f", "-o", "/dev/null", "-p", str(pid), "-e", f"inject={call}:signal=KILL:when={when}"],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()
        if "attached" not in line:
            raise RuntimeError(f"strace: {line}")

    def died(self, seconds: float = 0.0) -> bool:
        """Is the traced process dead?"""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def end(self) -> None:
        """Detach."""
        os.close(self._pidfd)
        self._strace.terminate()
        try:
            self._strace.wait(DETACH)
        except subprocess.TimeoutExpired:  # it waits for a thread of a process that it has killed
            self._strace.kill()
            self._strace.wait()
        if self._strace.stderr is not None:
            self._strace.stderr.close()


def one_run(scenario: Scenario, world: World, role: str, call: str, when: int, row: Row) -> bool:
    """True when nobody was killed."""
    began = time.monotonic()
    scenario.begin(world, -1)
    what = f"{scenario.name} {role} {call} {when}"
    try:
        if not world.start():
            raise world.hung("a start")
        traced = Injected(process_of(world, role), call, when)
        try:
            for each in scenario.mails:
                each.give(world)
            while not (dead := traced.died()) and not world.settled():
                world.flush_deferred()
                if time.monotonic() > began + LIMIT:
                    raise world.hung("the end of all work, traced")
                time.sleep(0.005)
        finally:
            traced.end()
        if dead:
            row.kills += 1
            finish(scenario, world, all_die=bool(when % 2) or role == "first")
        elif not world.wait_until_settled():
            raise world.hung("an unharmed life")
        found = world.copies()
        wrong = world.account.verdict(found)
        if world.slowest_start > SERVICE_LIMIT:
            wrong.append(f"serves only {world.slowest_start:.1f} s after the start")
    except HungError as hung:
        wrong, found, dead = [str(hung)], world.copies(), True
    finally:
        world.stop()
    row.wrong += [f"{what}: {text}" for text in wrong]
    row.promised += sum(len(world.account.places[name]) for name, times in world.account.promised.items() if times)
    row.delivered += sum(count for copy, count in found.items() if " about " not in copy.place)
    row.reports += sum(count for copy, count in found.items() if " about " in copy.place)
    row.windows += world.account.windows
    row.runs, row.steps = row.runs + 1, max(row.steps, when)
    row.seconds += time.monotonic() - began
    row.start = max(row.start, world.slowest_start)
    return not dead


def finish(scenario: Scenario, world: World, *, all_die: bool) -> None:
    """After a death: of everybody, or of one whom the first process brings back."""
    if all_die:
        world.count_kill()
        scenario.after(world)
        return
    world.note_kill(helper_lives=True)
    deadline = time.monotonic() + LIMIT
    while not world.greets():
        if time.monotonic() > deadline:
            raise world.hung("service after one process died")
        time.sleep(0.02)
    scenario.repeat(world)


def every(name: str, role: str, call: str, most: int) -> Row:
    """K = 1, 2, ... until nobody dies."""
    row = Row(f"{name} {role}")
    scenario = next(s for s in all_scenarios() if s.name == name)
    world = scenario.world()
    try:
        for when in range(1, most + 1):
            if one_run(scenario, world, role, call, when, row):
                break
    finally:
        world.close()
    return row


def tasks(scenarios: tuple[str, ...], roles: tuple[str, ...], calls: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(scenario, role, call)."""
    for name in scenarios:
        for role in roles:
            yield from ((name, role, call) for call in calls or CALLS[role])


def matrix(chosen: list[tuple[str, str, str]], most: int, jobs: int) -> list[Row]:
    """One row per scenario and role."""
    rows: dict[str, Row] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for done in [pool.submit(every, *task, most) for task in chosen]:
            part = done.result()
            rows.setdefault(part.scenario, Row(part.scenario)).add(part)
    return list(rows.values())


def main() -> int:
    """Command line; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", default=list(CHOSEN))
    parser.add_argument("--role", nargs="*", default=list(ROLES), choices=ROLES)
    parser.add_argument("--call", nargs="*", default=[])
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    ensure_strace()
    began = time.monotonic()
    chosen = list(tasks(tuple(options.scenario), tuple(options.role), tuple(options.call)))
    rows = matrix(chosen, options.most, options.jobs)
    wrong = [line for row in rows for line in row.wrong]
    text = f"{table(rows)}\n{len(chosen)} x (scenario, process, call), {time.monotonic() - began:.0f} s\n"
    text += "".join(f"  {line}\n" for line in wrong[:100])
    print(text, end="")
    if options.table:
        options.table.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
