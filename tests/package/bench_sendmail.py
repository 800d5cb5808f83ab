"""`make bench-sendmail`: one `sendmail -t -i` of the installed .deb beside Debian's Postfix, in turn, one run, as root.

    python -m tests.package.bench_sendmail [--pairs 200] [--pause 0.05] [--to alice] [--deb FILE] [--against FILE]

Each mail system is installed in a root file system of its own; both queues lie on one ext4 with a journal that is made
for the run.  A starter inside each root (the same Python, `-IS`) starts `sendmail -t -i <message` by posix_spawn when
it is told to and says how many nanoseconds passed until it was reaped; the turns are A B A B, with a pause after each
in which the message is delivered.  Quote the ratio of the medians; in brackets the ratios of ten parts of the run.

See also: tests/bench/README.md
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.bench.lab import journaled
from tests.package.chroot import Chroot
from tests.package.conftest import build_deb
from tests.peers.build import PEOPLE, ROOT, mount
from tests.peers.machine import wait_for
from tests.peers.namespace import own_network, run_inside
from tests.peers.postfix import Postfix

LIMIT = 300.0  # seconds for everything
DISK = 1 << 30  # bytes
WARM = 10  # turns that do not count
PARTS = 10  # of the run, for the spread
USER = "bob"
SETTLED = 1.0  # seconds after the start of both
STARTER = """
import os, sys, time
action = [(os.POSIX_SPAWN_OPEN, 0, "/tmp/message", os.O_RDONLY, 0)]
while os.read(0, 1):
    begin = time.perf_counter_ns()
    pid = os.posix_spawn("/usr/sbin/sendmail", ["sendmail", "-t", "-i"], os.environ, file_actions=action)
    status = os.waitpid(pid, 0)[1]
    took = time.perf_counter_ns() - begin
    os.write(1, b"%d\\n" % (took if status == 0 else -status))
"""


class Side:
    """One mail system that runs, and its starter."""

    def __init__(self, name: str, root: Chroot, queue: str, disk: Path, to: str) -> None:
        """queue: its queue directory, which moves to the common disk."""
        self.name, self.root = name, root
        self.times: list[int] = []
        inside, outside = root.path(queue), disk / name
        mount("-t", "sysfs", "-o", "ro", "sysfs", root.root / "sys")
        subprocess.run(["cp", "-a", inside, outside], check=True, timeout=60)
        mount("--bind", outside, inside)
        root.write("/tmp/message", f"From: {USER}\nTo: {to}\nSubject: report\n\n" + "0123456789abcdef\n" * 60)

    def ready(self) -> None:
        """Start the starter: in a session of its own, because Linux shares the processors between sessions."""
        argv = ["chroot", str(self.root.root), "setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        self._starter = subprocess.Popen(
            [*argv, "/usr/bin/python3", "-IS", "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LOGNAME": USER, "HOME": "/tmp"},
            cwd="/",
            start_new_session=True,
        )

    def turn(self) -> None:
        """One message."""
        assert self._starter.stdin and self._starter.stdout
        self._starter.stdin.write(b"g")
        self._starter.stdin.flush()
        took = int(self._starter.stdout.readline())
        if took < 0:
            sys.exit(f"bench-sendmail: {self.name}: sendmail ended with {os.waitstatus_to_exitcode(-took)}")
        self.times.append(took)

    def end(self) -> None:
        """No more turns."""
        self._starter.communicate(timeout=10)

    def delivered(self, user: str, number: int) -> bool:
        """Are so many messages in the mailbox, and no more?"""
        return self.root.mailbox(user).count("\nSubject: ") == number


def ours(name: str, deb: Path, run: Path, disk: Path, to: str) -> Side:
    """The .deb, as its init script starts it."""
    root = Chroot(name, "python", run)
    root.run("sh", "-c", PEOPLE)
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    with root.path("/etc/mta/main.cf").open("a") as file:
        file.write("maillog_file = /var/log/mail.log\n")
    master = root.path("/etc/mta/master.cf")
    port = 2525 if name == "aiomta" else 2526
    master.write_text(master.read_text().replace("\nsmtp ", f"\n127.0.0.1:{port} ", 1))
    side = Side(name, root, "/var/spool/mta", disk, to)
    root.run("/etc/init.d/mta", "start")
    return side


def theirs(run: Path, disk: Path, to: str) -> Side:
    """Debian's Postfix with the same few settings."""
    root = Chroot("postfix", "postfix", run)
    postfix = Postfix(root)
    settings = {
        "compatibility_level": "3.6",
        "mydestination": "$myhostname, localhost.$mydomain, localhost",
        "inet_interfaces": "loopback-only",
        "alias_maps": "hash:/etc/aliases",
        "maillog_file": "/var/log/mail.log",
        "mailbox_size_limit": "0",
    }
    root.write("/etc/postfix/main.cf", "".join(f"{key} = {value}\n" for key, value in settings.items()))
    side = Side("postfix", root, "/var/spool/postfix", disk, to)
    postfix.start()
    return side


def percentile(times: Sequence[int], part: float) -> float:
    """In ms."""
    return sorted(times)[min(len(times) - 1, int(len(times) * part))] / 1e6


def report(first: Side, other: Side) -> str:
    """Medians, spread and ratio."""
    lines = []
    for side in (first, other):
        low, middle, high = (percentile(side.times, part) for part in (0.1, 0.5, 0.9))
        number = len(side.times)
        lines.append(f"{side.name:10s} median {middle:6.2f} ms   10% {low:6.2f}   90% {high:6.2f}   n {number}")
    size = len(first.times) // PARTS
    parts = [
        statistics.median(first.times[at : at + size]) / statistics.median(other.times[at : at + size])
        for at in range(0, size * PARTS, size)
    ]
    ratio = statistics.median(first.times) / statistics.median(other.times)
    lines.append(f"{first.name} / {other.name}: {ratio:.2f} [{min(parts):.2f}-{max(parts):.2f}]")
    return "\n".join(lines)


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces."""
    run = Path(os.environ["AIOMTA_PEERS_RUN"])
    own_network()
    disk = journaled(run, DISK)
    deb = options.deb or build_deb(run / "deb")
    sides = [ours("aiomta", deb, run, disk.path, options.to)]
    if options.against:
        sides.append(ours("against", options.against, run, disk.path, options.to))
    sides.append(theirs(run, disk.path, options.to))
    for side in sides:
        side.ready()
    time.sleep(SETTLED)
    disk.settle()
    for number in range(-WARM, options.pairs):
        for side in sides:
            if number == 0:
                side.times.clear()
            side.turn()
            time.sleep(options.pause)
    for side in sides:
        side.end()
        wait_for(f"{side.name} has delivered all", partial(side.delivered, options.to, options.pairs + WARM))
    for other in sides[1:]:
        print(report(sides[0], other), flush=True)
    if options.then:
        subprocess.run(["sh", options.then], check=False, env={**os.environ, "RUN": str(run)})
    return 0


def main() -> int:
    """Enter the namespaces and measure there."""
    parser = argparse.ArgumentParser(prog="python -m tests.package.bench_sendmail", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="turns of each that count (200)")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds after each turn (0.05)")
    parser.add_argument("--to", default="alice", help="local user")
    parser.add_argument("--deb", type=Path, help="this package (default: that of this checkout)")
    parser.add_argument("--against", type=Path, help="another package of ours to compare with")
    parser.add_argument("--then", type=Path, help="shell script to run at the end, while all run, with $RUN/NAME/root")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options)
    if os.geteuid() != 0:
        sys.exit("bench-sendmail: needs root (chroots, a loop device, namespaces)")
    subprocess.run([sys.executable, "-m", "tests.package.roots"], check=True, cwd=ROOT)
    return run_inside([sys.executable, "-m", "tests.package.bench_sendmail", *sys.argv[1:], "--inside"], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
