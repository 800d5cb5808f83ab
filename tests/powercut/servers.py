"""The mail servers whose accept side is judged by against.py: how each is set up, started and told to deliver.

All relay everything to RELAY.  Debian's run in chroots on the peers laboratory's base (tests/peers/build.py), ours
from this checkout, your own as its command line says.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tests.peers import build
from tests.peers.machine import Machine
from tests.peers.postfix import main_cf

RELAY = 2599  # port on 127.0.0.1
START = 30.0  # seconds until a server greets

build.LAYERS["opensmtpd"] = (
    ("printf '%s\\n' 'opensmtpd opensmtpd/mailname string mx.test' | debconf-set-selections",), ("opensmtpd",), (),
)  # fmt: skip

POSTFIX = {
    "compatibility_level": "3.6", "myhostname": "mx.test", "mydestination": "", "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1", "inet_protocols": "ipv4", "relayhost": f"[127.0.0.1]:{RELAY}",
    "disable_dns_lookups": "yes", "smtp_tls_security_level": "none", "smtpd_tls_security_level": "none",
    "alias_maps": "", "minimal_backoff_time": "1s", "maximal_backoff_time": "2s", "queue_run_delay": "1s",
}  # fmt: skip
EXIM = f"""\
keep_environment =
primary_hostname = mx.test
local_interfaces = <; 127.0.0.1.2512
daemon_smtp_ports = 2512
acl_smtp_rcpt = accept
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
queue_only
log_file_path = /var/log/exim4/%slog
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = remote
begin transports
remote:
  driver = smtp
  port = {RELAY}
begin retry
* * F,2h,1m
"""
OPENSMTPD = f"""\
listen on 127.0.0.1 port 2513 hostname mx.test
action "relay" relay host smtp://127.0.0.1:{RELAY}
match from any for any action "relay"
"""


class Server(Protocol):
    """One mail server.  spool: the directory that is put on a disk of its own."""

    name: str
    port: int
    spool: Path

    def start(self) -> None:
        """Start it in the background."""

    def deliver(self) -> None:
        """Try everything in the queue now."""

    def version(self) -> str:
        """For the table."""


class _Chrooted:
    """Debian's package in a chroot."""

    name: str
    port: int
    queue: str
    package: str
    files: dict[str, str]
    start_command: tuple[str, ...]
    deliver_command: tuple[str, ...]

    def __init__(self, run: Path) -> None:
        self.machine = Machine(self.name, "127.0.0.1", self.name, run)
        self.spool = self.machine.path(self.queue)
        if not self.spool.exists():  # OpenSMTPD makes it at its first start
            self.spool.mkdir(mode=0o711)
            self.spool.chmod(0o711)
        self._deliverer: subprocess.Popen[bytes] | None = None
        for name, text in self.files.items():
            self.machine.write(name, text)

    def start(self) -> None:
        """See Server."""
        self.machine.spawn(*self.start_command)

    def deliver(self) -> None:
        """See Server."""
        if self._deliverer is None or self._deliverer.poll() is not None:  # Exim's takes as long as its deliveries
            self._deliverer = self.machine.spawn(*self.deliver_command)

    def version(self) -> str:
        """The package's."""
        return self.machine.output("dpkg-query", "-W", "-f=${Version}", self.package).strip()


class Postfix(_Chrooted):
    """Postfix as Debian configures it, not chrooted once more."""

    name, port, queue, package = "postfix", 2511, "/var/spool/postfix", "postfix"
    files = {"/etc/postfix/main.cf": main_cf({**POSTFIX, "maillog_file": "/var/log/mail.log"})}  # noqa: RUF012
    start_command, deliver_command = ("postfix", "start-fg"), ("postqueue", "-f")

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.machine.run("postconf", "-F", "*/*/chroot=n")
        self.machine.run("postconf", "-M#", "smtp/inet")
        self.machine.run("postconf", "-Me", f"127.0.0.1:{self.port}/inet=127.0.0.1:{self.port} inet n - n - - smtpd")
        self.machine.run("postconf", "-Me", "postlog/unix-dgram=postlog unix-dgram n - n - 1 postlogd")


class Exim(_Chrooted):
    """Exim; it only queues, so that nothing else is going on."""

    name, port, queue, package = "exim", 2512, "/var/spool/exim4", "exim4-daemon-light"
    files = {"/etc/exim4/exim4.conf": EXIM}  # noqa: RUF012
    start_command, deliver_command = ("exim4", "-bdf"), ("exim4", "-qff")

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.machine.run("chown", "root:Debian-exim", "/etc/exim4/exim4.conf")


class OpenSmtpd(_Chrooted):
    """OpenSMTPD."""

    name, port, queue, package = "opensmtpd", 2513, "/var/spool/smtpd", "opensmtpd"
    files = {"/etc/smtpd.conf": OPENSMTPD, "/etc/aliases": "", "/etc/mail/aliases": ""}  # noqa: RUF012
    start_command, deliver_command = ("smtpd", "-d"), ("smtpctl", "schedule", "all")


class Aiomta:
    """This checkout, started by root."""

    name, port = "aiomta", 2525

    def __init__(self, run: Path) -> None:
        here = run / "aiomta"
        self.spool, self._etc = here / "spool", here / "etc"
        for path in (self.spool, self._etc, here / "data"):
            path.mkdir(parents=True)
        own = {
            "mail_owner": "nobody", "queue_directory": str(self.spool), "data_directory": str(here / "data"),
            "maillog_file": str(here / "maillog"), "maillog_file_prefixes": "/",
        }  # fmt: skip
        (self._etc / "main.cf").write_text(main_cf({**POSTFIX, **own}))
        lines = (build.ROOT / "conf/master.cf").read_text().splitlines()
        services = [line for line in lines if line.split()[1:2] != ["inet"] and not line.startswith((" ", "\t"))]
        listener = f"127.0.0.1:{self.port} inet n - n - - smtpd"
        (self._etc / "master.cf").write_text("\n".join([listener, *services]) + "\n")

    def start(self) -> None:
        """See Server."""
        argv = [sys.executable, "-m", "mta", "-c", str(self._etc), "start-fg"]
        subprocess.Popen(argv, cwd=build.ROOT, stdin=subprocess.DEVNULL)

    def deliver(self) -> None:
        """It tries by itself (minimal_backoff_time)."""

    def version(self) -> str:
        """The package's."""
        from mta import __version__

        return __version__


class Own:
    """Any server on this machine that relays to RELAY."""

    name = "own"

    def __init__(self, port: int, spool: Path, start: str, deliver: str) -> None:
        self.port, self.spool, self._start, self._deliver = port, spool, start, deliver

    def start(self) -> None:
        """See Server."""
        subprocess.Popen(self._start, shell=True, stdin=subprocess.DEVNULL)  # noqa: S602  the caller's own command

    def deliver(self) -> None:
        """See Server."""
        if self._deliver:
            subprocess.run(self._deliver, shell=True, check=False, timeout=60)  # noqa: S602  the same

    def version(self) -> str:
        """Unknown."""
        return ""


KNOWN: dict[str, Callable[[Path], Server]] = {
    "aiomta": Aiomta, "postfix": Postfix, "exim": Exim, "opensmtpd": OpenSmtpd,
}  # fmt: skip


def build_layers(names: Sequence[str]) -> None:
    """Build what is missing of the chroots; in a mount namespace of our own (against.py starts us so)."""
    build.PEERS.mkdir(parents=True, exist_ok=True)
    with (build.PEERS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build.build_base(build.PEERS / "build.log")
        for name in names:
            build.build_layer(name, build.PEERS / "build.log")


def wait_greeting(port: int) -> None:
    """Until something says 220."""
    deadline = time.monotonic() + START
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                sock.settimeout(5)
                if sock.recv(4) == b"220 ":
                    sock.sendall(b"QUIT\r\n")
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing greets on port {port}")
        time.sleep(0.05)


def everybody() -> list[int]:
    """All processes of this namespace but its first and us."""
    return [int(n) for n in os.listdir("/proc") if n.isdigit() and int(n) not in (1, os.getpid())]


def freeze_everybody() -> None:
    """SIGSTOP for all that the servers have started: nobody does or says anything after the power has failed."""
    _signal_all(signal.SIGSTOP, "TtZX")


def kill_everybody() -> None:
    """kill -9 for all that the servers have started."""
    _signal_all(signal.SIGKILL, "ZX")
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signal_all(number: int, until: str) -> None:
    """Until every process is in one of these states; refuses where the processes are not ours alone."""
    if "AIOMTA_PEERS_RUN" not in os.environ or Path("/proc/1/comm").read_text().strip() not in ("sh", "dash", "bash"):
        raise RuntimeError("not in a process namespace of our own")
    while pids := [pid for pid in everybody() if _state(pid) not in until]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _state(pid: int) -> str:
    """As in proc(5); X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def copy_tree(source: Path, target: Path) -> None:
    """With owners and modes."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True, timeout=60)
