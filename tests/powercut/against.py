"""The power fails while mail servers accept: how many of the messages they said 250 to are still there?

    tests/crash/against.sh [--rounds N] [--seed N] [--disk ext4|ext4-writeback|xfs] [aiomta|postfix|exim|opensmtpd]...
    tests/crash/against.sh --port 2525 --spool /var/spool/mymta --start 'mymta -f' [--deliver 'mymtactl flush'] own

A round: a fresh file system (an image that is journaled) becomes the spool; clients send messages of 5 KB over SMTP,
the next hop is down.  In every other round the power fails at once after a client has read the 250 of message m, in
the others at a random moment; all processes are stopped first, so that nobody says anything after it.  Then it is
switched on, the server is started again, the next hop is up, and what it gets is compared with what clients were
promised.  Before these rounds comes one in which everything is written before the cut: as kill -9 of all processes.

    acked    messages whose client had read 250            lost     acked, and never delivered after the start
    control  lost in that first round: not 0 means that the script, not the disk, loses messages
    partial  lost, but pieces of it are on the disk; or delivered with another content
    unacked  delivered although no client had read 250 (permitted)         twice   delivered more than once
    on disk  what was flushed between the end of data and the 250, as strace saw it in a run without a cut

Your own server must listen on 127.0.0.1:PORT, keep its queue in the directory given (which becomes a mount point, in a
namespace that ends with the script; what it contains is copied) and relay all mail to 127.0.0.1:2599.
"""

import argparse
import os
import random
import shutil
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.namespace import own_network, run_inside
from tests.powercut import strace
from tests.powercut.disk import KINDS, Cut, Disk
from tests.powercut.message import compose
from tests.powercut.servers import (
    KNOWN,
    RELAY,
    Own,
    Server,
    build_layers,
    copy_tree,
    freeze_everybody,
    kill_everybody,
    wait_greeting,
)
from tests.powercut.sink import Sink

SIZE = 5000  # bytes
LIMIT = 7200.0  # seconds for everything
QUIET = 6.0  # seconds without a delivery, then the rest is lost


NAMES = ("acked", "lost", "partial", "unacked", "twice")


@dataclass
class Total:
    """Of all rounds of one server."""

    rounds: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    losing: int = 0


class Clients:
    """Senders in threads; the one that has read 250 number `at` calls cut() at once."""

    def __init__(self, port: int, tag: str, sessions: int, at: int, cut: Callable[[], None]) -> None:
        self._port, self._tag, self._at, self._cut = port, tag, at, cut
        self._lock = threading.Lock()
        self.acked: set[str] = set()
        self.sent: set[str] = set()
        self.reached = threading.Event()
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(sessions)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """After the server was killed."""
        self.ended.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self, number: int) -> None:
        count = 0
        try:
            client = smtplib.SMTP("127.0.0.1", self._port, "client.test", timeout=20)
            client.ehlo()
            while not self.ended.is_set():
                count += 1
                name = f"{self._tag}-{number}-{count}"
                with self._lock:
                    self.sent.add(name)
                client.mail("back@sink.test")
                client.rcpt("ok@sink.test")
                if client.data(compose(name, SIZE))[0] == 250:
                    self._ack(name)
        except (OSError, smtplib.SMTPException):
            return

    def _ack(self, name: str) -> None:
        with self._lock:
            self.acked.add(name)
            if len(self.acked) == self._at:
                self._cut()
                self.reached.set()


def power_fails(server: Server, disk: Disk, rng: random.Random, sessions: int, number: int) -> Clients:
    """Let clients send, and cut: in even rounds at a 250, in odd ones at a random moment; round -1 is the control."""
    server.start()
    wait_greeting(server.port)
    at = rng.randrange(1, 80) if number % 2 == 0 else 0

    def cut() -> None:
        freeze_everybody()
        disk.cut(Cut.NOLOGFLUSH if number >= 0 else Cut.SYNC)

    clients = Clients(server.port, f"{server.name}{number}", sessions, at, cut)
    if at and not clients.reached.wait(60):
        raise RuntimeError(f"{server.name} does not accept: {len(clients.acked)} of {at}")
    if not at:
        time.sleep(rng.uniform(0.05, 1.0))
        cut()
    kill_everybody()
    clients.stop()
    return clients


def work_off(server: Server, wanted: set[str]) -> list[str]:
    """Start it again with a next hop; the names of what arrives, altered ones with a "!"."""
    sink = Sink(RELAY)
    try:
        server.start()
        wait_greeting(server.port)
        last, seen = time.monotonic(), 0
        while time.monotonic() < last + QUIET:
            server.deliver()
            time.sleep(0.3)
            copies = sink.copies()
            if len(copies) > seen:
                last, seen = time.monotonic(), len(copies)
            if wanted <= {copy.name for copy in copies} and time.monotonic() > last + 1.0:
                break
        return [copy.name if copy.whole else f"!{copy.name}" for copy in sink.copies()]
    finally:
        kill_everybody()
        sink.close()


def fresh(server: Server, kind: str, work: Path) -> Disk:
    """A new file system under the spool, with what belongs there."""
    disk = Disk(kind, work / "image", server.spool)
    disk.make()
    subprocess.run(["cp", "-a", f"{work}/template/.", server.spool], check=True, timeout=60)
    disk.sync()
    return disk


def one_round(server: Server, kind: str, work: Path, rng: random.Random, sessions: int, number: int) -> dict[str, int]:
    """What NAMES count."""
    disk = fresh(server, kind, work)
    try:
        clients = power_fails(server, disk, rng, sessions, number)
        disk.power_on()
        found = _pieces(server.spool, clients.acked)
        arrived = work_off(server, clients.acked)
    finally:
        kill_everybody()
        disk.umount()
    lost = clients.acked - set(arrived)
    return {
        "acked": len(clients.acked),
        "lost": len(lost),
        "partial": len(lost & found) + sum(name.startswith("!") for name in arrived),
        "unacked": len(set(arrived) - clients.acked),
        "twice": len(arrived) - len(set(arrived)),
    }


def _pieces(spool: Path, names: set[str]) -> set[str]:
    """Which of them appear anywhere in the spool."""
    text = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file() and not path.is_symlink())
    return {name for name in names if f"X-Test-Id: {name}".encode() in text or f"{name} 0123".encode() in text}


def inside(options: argparse.Namespace) -> int:
    """All servers in turn."""
    own_network()
    run = Path(os.environ["AIOMTA_PEERS_RUN"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "against", run], check=True)
    heads = f"{'server':10s} {'version':20s} {'rounds':>6s} " + " ".join(f"{n:>8s}" for n in NAMES)
    print(f"seed {options.seed}, {options.disk}, {options.sessions} sessions")
    print(f"{heads} {'losing rounds':>14s} control  on disk", flush=True)
    for name in options.servers or KNOWN:
        work = run / f"work-{name}"
        work.mkdir()
        server: Server = (
            Own(options.port, options.spool, options.start, options.deliver) if name == "own" else KNOWN[name](run)
        )
        copy_tree(server.spool, work / "template")
        rng, total = random.Random(options.seed), Total()
        control = one_round(server, options.disk, work, rng, options.sessions, -1)["lost"]
        for number in range(options.rounds):
            counts = one_round(server, options.disk, work, rng, options.sessions, number)
            total.rounds += 1
            total.losing += counts["lost"] > 0
            for key, value in counts.items():
                total.counts[key] += value
        disk = fresh(server, options.disk, work)
        seen = strace.before_the_answer(server)
        disk.umount()
        numbers = " ".join(f"{total.counts[key]:8d}" for key in NAMES)
        line = f"{name:10s} {server.version():20s} {total.rounds:6d} {numbers} {total.losing:14d} {control:7d}  {seen}"
        print(line, flush=True)
        shutil.rmtree(work)
    return 0


def main() -> int:
    """Build the chroots that are missing, enter namespaces, run."""
    parser = argparse.ArgumentParser(
        prog="against.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="*", choices=[[], *KNOWN, "own"], help="default: all but own")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--disk", choices=list(KINDS), default="ext4")
    parser.add_argument("--port", type=int, default=25)
    parser.add_argument("--spool", type=Path)
    parser.add_argument("--start", default="")
    parser.add_argument("--deliver", default="")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("against.sh: needs root (chroots, loop devices, namespaces)")
    if "own" in options.servers and not (options.spool and options.start):
        parser.error("own needs --spool, --port and --start")
    layers = [name for name in options.servers or KNOWN if name in ("postfix", "exim", "opensmtpd")]
    if options.build:
        build_layers(layers)
        return 0
    if "AIOMTA_PEERS_RUN" in os.environ:
        return inside(options)
    here = [sys.executable, "-m", "tests.powercut.against", *sys.argv[1:]]
    subprocess.run(["unshare", "--mount", "--propagation", "private", *here, "--build"], check=True)
    return run_inside(here, LIMIT)


if __name__ == "__main__":
    sys.exit(main())
