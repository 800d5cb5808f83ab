"""Where the benchmark runs: namespaces of its own, one ext4 with a journal for all spools, the tools of Postfix.

Everything is mounted, started and bound in mount, network and process namespaces and ends with them; the image and
the directories are removed at the end.  Root file systems are those of the peers laboratory (tests/peers/build.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.counters import Disk, remove_groups
from tests.peers.build import LAYERS, PEERS, mount, recipe
from tests.peers.machine import Machine
from tests.peers.namespace import build, own_network

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(os.environ.get("AIOMTA_BENCH", "/var/tmp/aiomta-bench"))
IMAGE = 3 << 30  # bytes
PEOPLE = {"aiomta": 7000, "bench": 7001, "_smtpd": 7002}
"""Users that exist in the namespace only: owner of our queue, owner of mailboxes, OpenSMTPD's."""


MESSAGE = b"From: bench@mx.bench.test\nTo: b@dst.test\nSubject: bench\n\n" + b"0123456789abcdef\n" * 60
CERTIFICATE = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /key.pem -out /cert.pem -days 30 "
    "-subj /CN=mx.bench.test"
)


def built() -> bool:
    """True when the laboratory's layers are there and up to date."""
    stamps = {name: PEERS / "layers" / name / "stamp" for name in LAYERS}
    return all(stamp.exists() and stamp.read_text() == recipe(name) for name, stamp in stamps.items())


def enter(command: Sequence[str], limit: float, *, need_opensmtpd: bool = False) -> int:
    """Run a command in namespaces of its own; returns its status, 124 after limit seconds."""
    if os.geteuid() != 0:
        sys.exit("bench: needs root (chroots, a loop device, namespaces)")
    if not built():
        build()
    BENCH.mkdir(parents=True, exist_ok=True)
    if need_opensmtpd and not (BENCH / "layers/opensmtpd/stamp").exists():
        subprocess.run([sys.executable, "-m", "tests.bench.layer"], check=True, cwd=ROOT)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH))
    run.chmod(0o755)
    environ = {**os.environ, "AIOMTA_BENCH_RUN": run.name.removeprefix("run-"), "AIOMTA_PEERS_RUN": str(run)}
    # a shell as process 1 collects the daemons that lose their parents
    unshare = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen([*unshare, "/bin/sh", "-c", '"$@"; exit $?', "sh", *command], cwd=ROOT, env=environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"bench: stopped after {limit:.0f} s", file=sys.stderr)
        return 124
    finally:
        process.kill()  # of unshare, and with it of everything inside
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        remove_groups(environ["AIOMTA_BENCH_RUN"])
        shutil.rmtree(run, ignore_errors=True)


def tune_network() -> None:
    """Enough ports for a connection per message: closed ones stay in TIME_WAIT for a minute."""
    for name, value in {
        "ip_local_port_range": "3000 65000",
        "tcp_tw_reuse": "1",
        "tcp_max_syn_backlog": "4096",
    }.items():
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys/net/ipv4", name).write_text(value)
    Path("/proc/sys/net/core/somaxconn").write_text("4096")


def names(run: Path) -> None:
    """Users, and names that need no resolver: nobody answers here, and everybody is refused at once."""
    for name, line in {"passwd": f"{{0}}:x:{{1}}:{{1}}::{run}/journal/home:/bin/sh\n", "group": "{0}:x:{1}:\n"}.items():
        text = Path("/etc", name).read_text()
        text = text if text.endswith("\n") else text + "\n"
        copy = run / name
        copy.write_text(text + "".join(line.format(*person) for person in PEOPLE.items()))
        mount("--bind", copy, f"/etc/{name}")
    for name, text in {
        "hosts": f"127.0.0.1 localhost {os.uname().nodename}\n",
        "resolv.conf": "nameserver 127.0.0.53\n",
    }.items():
        (run / name).write_text(text)
        mount("--bind", run / name, f"/etc/{name}")


def journaled(run: Path, size: int = IMAGE) -> Disk:
    """An ext4 with a journal on a loop device, ready: nothing is left to be initialised in the background."""
    image, path = run / "image", run / "journal"
    path.mkdir()
    subprocess.run(["fallocate", "-l", str(size), image], check=True, timeout=60)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "400000", "-E", lazy, image], check=True, timeout=120)
    mount("-o", "loop,relatime", image, path)
    disk = Disk(path)
    disk.commits()
    return disk


class Lab:
    """What all cases share."""

    def __init__(self) -> None:
        own_network()
        tune_network()
        self.run = Path(os.environ["AIOMTA_PEERS_RUN"])
        names(self.run)
        self.disk = journaled(self.run)
        self.tools = Machine("tools", "127.0.0.1", "postfix", self.run)
        self.mail, self.home = self.spool("mail"), self.spool("home")
        self.mail.chmod(0o1777)
        os.chown(self.home, PEOPLE["bench"], PEOPLE["bench"])
        self.message, self.certificate = self.run / "message", self.run / "tls.pem"
        self.message.write_bytes(MESSAGE)
        self.tools.run("openssl", *CERTIFICATE.split())
        self.certificate.write_text(self.tools.read("/key.pem") + self.tools.read("/cert.pem"))

    def share(self, machine: Machine) -> None:
        """What a mail system in a chroot sees under the same path: mailboxes, the message to inject, users."""
        for path in (self.mail, self.home):
            inside = machine.path(str(path))
            inside.mkdir(parents=True)
            mount("--bind", path, inside)
        for path in (self.message, self.certificate):
            machine.write(str(path), path.read_bytes(), 0o600 if path == self.certificate else 0o644)
        machine.write("/etc/hosts", Path("/etc/hosts").read_text())
        for name in ("passwd", "group"):
            lines = [line for line in Path("/etc", name).read_text().splitlines() if line.startswith("bench:")]
            machine.write(f"/etc/{name}", machine.read(f"/etc/{name}") + "\n".join(lines) + "\n")

    def layers(self, layer: str) -> Path:
        """Where a layer was built: the laboratory's or ours."""
        return (PEERS if layer in LAYERS else BENCH) / "layers"

    def spool(self, name: str) -> Path:
        """A directory on the common disk."""
        path = self.disk.path / name
        path.mkdir(exist_ok=True)
        return path
