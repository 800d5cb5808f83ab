"""The machine that is ours: Debian with aiomta installed as docs/install.md says, in the place of the system's MTA."""

import json
import re
import socket
import subprocess
from collections.abc import Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from tests.peers.build import PEERS, ROOT
from tests.peers.machine import Machine, wait_for

SPOOL, DATA, ETC = "/var/spool/mta", "/var/lib/mta", "/etc/mta"
LOG = "/var/log/mta.log"
PREFIX = "/opt/aiomta"

MAIN_CF = {
    "compatibility_level": "3.6",
    "myhostname": "mx.host.test",
    "mydomain": "host.test",
    "myorigin": "$mydomain",
    "mydestination": "$mydomain, $myhostname, localhost",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "maillog_file": LOG,
    "minimal_backoff_time": "2s",
    "maximal_backoff_time": "4s",
    "queue_run_delay": "1s",
}
ALIASES = "postmaster: alice\nroot: alice\nteam: bob, carol\n"


class Host:
    """Install, configure, start, stop and look at our MTA."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._install()
        self.configure({})

    def _install(self) -> None:
        """docs/install.md, step by step."""
        (wheel,) = (PEERS / "wheel").glob("*.whl")
        m = self.machine
        m.write(f"/root/{wheel.name}", wheel.read_bytes())
        m.run("python3", "-m", "venv", "--system-site-packages", PREFIX, timeout=120)
        m.run(f"{PREFIX}/bin/pip", "install", "--no-deps", "--no-index", f"/root/{wheel.name}", timeout=120)
        m.run(f"{PREFIX}/bin/python", "-m", "sendmail_compat.install", PREFIX)
        m.write("/usr/lib/sysusers.d/aiomta.conf", (ROOT / "systemd/aiomta.sysusers").read_bytes())
        m.write("/usr/lib/tmpfiles.d/aiomta.conf", (ROOT / "systemd/aiomta.tmpfiles").read_bytes())
        m.run("systemd-sysusers", "/usr/lib/sysusers.d/aiomta.conf")
        m.run("systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/aiomta.conf")
        links = {"sbin/sendmail": "sendmail", "bin/mailq": "mailq", "bin/newaliases": "newaliases", "sbin/mta": "mta"}
        links["sbin/mta-local"] = "mta-local"
        for link, program in links.items():
            m.run("ln", "-sf", f"{PREFIX}/bin/{program}", f"/usr/{link}")
        m.run("ln", "-sf", "../sbin/sendmail", "/usr/lib/sendmail")
        m.write("/etc/mailname", "host.test\n")
        m.write("/etc/aliases", ALIASES)
        m.write(f"{ETC}/master.cf", (ROOT / "conf/master.cf").read_bytes())

    def configure(self, settings: Mapping[str, str]) -> None:
        """Write main.cf: the usual settings and these."""
        merged = {**MAIN_CF, **settings}
        self.machine.write(f"{ETC}/main.cf", "".join(f"{name} = {value}\n" for name, value in merged.items()))

    def start(self) -> None:
        """mta start, and wait until port 25 greets."""
        self.machine.run("mta", "start", timeout=60)
        wait_for("our port 25 greets", self._greets)

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.machine.address, 25), 1) as sock:
                sock.settimeout(5)
                greeted = sock.recv(512).startswith(b"220 ")
                sock.sendall(b"QUIT\r\n")
                return greeted and bool(sock.recv(512))
        except OSError:
            return False

    def running(self) -> bool:
        """mta status."""
        return self.machine.run("mta", "status", status=None).returncode == 0

    def stop(self) -> None:
        """mta stop; no complaint when it does not run."""
        if self.running():
            self.machine.run("mta", "stop", timeout=90)

    def restart(self, settings: Mapping[str, str] = {}) -> None:
        """Start anew with these settings besides the usual ones."""
        self.stop()
        self.configure(settings)
        self.start()

    def purge(self) -> None:
        """Stop, and forget all mail, queued or delivered, and the log."""
        self.stop()
        for name in ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "defer", "bounce", "trace"):
            for path in self.machine.path(f"{SPOOL}/{name}").rglob("*"):
                if path.is_file():
                    path.unlink()
        self.machine.forget_mail()
        self.machine.path(LOG).unlink(missing_ok=True)

    def log(self) -> str:
        """The mail log so far: a line may come a moment after what it speaks of."""
        return self.machine.read(LOG)

    def wait_logged(self, text: str) -> None:
        """Wait until the mail log has this text."""
        wait_for(f"{text!r} in the log", lambda: text in self.log())

    def sendmail(
        self, *argv: str, message: str | bytes, user: str = "bob", status: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Inject a message as a user does."""
        data = message if isinstance(message, bytes) else message.encode()
        return self.machine.run("/usr/sbin/sendmail", *argv, stdin=data, user=user, status=status)

    def queue(self) -> list[dict[str, object]]:
        """What `public/showq` tells, one object per message."""
        path = self.machine.path(f"{SPOOL}/public/showq")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        return [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]

    def files(self, *names: str) -> list[Path]:
        """Queue files in these directories of the spool."""
        return [p for name in names for p in sorted(self.machine.path(f"{SPOOL}/{name}").rglob("*")) if p.is_file()]

    def all_files(self) -> list[Path]:
        """Every message that the spool holds; looks twice before it says none: a rename may hide a file."""
        names = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
        return self.files(*names) or self.files(*names)

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until nothing is queued any more."""
        wait_for(f"an empty queue, not {[str(p) for p in self.all_files()]}", lambda: not self.all_files(), timeout)

    def messages(self, user: str) -> list[EmailMessage]:
        """A user's mailbox, parsed."""
        return parse_mbox(self.machine.mailbox(user).encode(errors="surrogateescape"))


def split_mbox(data: bytes) -> list[bytes]:
    """The messages of an mbox, each with its From_ line."""
    return [part for part in re.split(rb"(?m)^(?=From \S+ +\w{3} \w{3} )", data) if part]


def parse_mbox(data: bytes) -> list[EmailMessage]:
    """Parsed messages of an mbox; the From_ line is left out."""
    found = []
    for part in split_mbox(data):
        message = message_from_bytes(part.partition(b"\n")[2], policy=policy.default)
        assert isinstance(message, EmailMessage)
        found.append(message)
    return found
