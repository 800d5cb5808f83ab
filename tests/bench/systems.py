"""The mail systems that are compared: ours, from any checkout, and Postfix.

All get the same main.cf as far as they read one, relay to the sink, keep the queue on the common disk and write
their log to a plain file beside it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tests.bench.counters import Group
from tests.bench.lab import ROOT, Lab
from tests.peers.build import mount
from tests.peers.machine import Machine, wait_for
from tests.peers.postfix import Postfix, main_cf

START = 120.0  # seconds; with a long queue
COMMON = {
    "compatibility_level": "3.6",
    "myhostname": "mx.bench.test",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "relayhost": "[127.0.0.1]:2599",
    "disable_dns_lookups": "yes",
    "smtp_tls_security_level": "none",
    "smtpd_tls_security_level": "none",
    "alias_maps": "",
}


class System(Protocol):
    """One mail system.  spool: its queue directory, seen from outside."""

    name: str
    port: int
    group: Group
    spool: Path

    def start(self, settings: Mapping[str, str]) -> None:
        """Start with these settings besides the common ones; returns when it greets."""

    def stop(self) -> None:
        """Stop; returns when it is gone."""

    def sendmail(self) -> tuple[Path, list[str], dict[str, str]]:
        """Root directory, command and environment of its sendmail."""

    def log(self) -> str:
        """What it has logged."""


def greets(port: int) -> bool:
    """True when port says 220."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(5)
            greeted = sock.recv(512).startswith(b"220 ")
            sock.sendall(b"QUIT\r\n")
            return greeted and bool(sock.recv(512))
    except OSError:
        return False


class Aiomta:
    """Our MTA of one checkout as an installation runs: started by root, owned by a user of its own."""

    def __init__(self, lab: Lab, tree: Path, name: str = "aiomta", port: int = 2525) -> None:
        self.name, self.port, self.group = name, port, Group(name)
        self.tree = tree.resolve()
        self.etc = lab.run / name / "etc"
        self._data, self._log = lab.spool(name), lab.run / name / "maillog"
        self.spool = self._data / "spool"
        python = ROOT / ".venv-bench/bin/python"
        self._python = str(python) if python.exists() else sys.executable
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, settings: Mapping[str, str]) -> None:
        """As an installation, in the foreground."""
        self.etc.mkdir(parents=True, exist_ok=True)
        own = {
            "mail_owner": "aiomta",
            "queue_directory": str(self.spool),
            "data_directory": str(self._data / "data"),
            "maillog_file": str(self._log),
        }
        (self.etc / "main.cf").write_text(main_cf({**COMMON, **own, **settings}))
        lines = (self.tree / "conf/master.cf").read_text().splitlines()
        services = [line for line in lines if line.split()[1:2] != ["inet"] and not line.startswith((" ", "\t"))]
        listener = f"127.0.0.1:{self.port} inet n - n - - smtpd"
        (self.etc / "master.cf").write_text("\n".join([listener, *services]) + "\n")
        argv = [self._python, "-m", "mta", "-c", self.etc, "start-fg"]
        process = subprocess.Popen(
            self.group.command(argv),
            cwd=self.tree,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": ""},
        )
        self._process = process
        wait_for(f"{self.name} greets", lambda: process.poll() is not None or greets(self.port), START)
        if process.poll() is not None:
            sys.exit(f"bench: {self.name} ended with status {process.returncode}")

    def stop(self) -> None:
        """SIGTERM to the first process."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    def sendmail(self) -> tuple[Path, list[str], dict[str, str]]:
        """As `python -m sendmail_compat.install` leaves it."""
        prefix = self.etc.parent / "prefix"
        if not prefix.exists():
            argv = [self._python, "-m", "sendmail_compat.install", str(prefix)]
            environ = {**os.environ, "PYTHONPATH": str(self.tree)}
            subprocess.run(argv, cwd=self.tree, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=60)
        return Path("/"), [str(prefix / "bin/sendmail")], {"MAIL_CONFIG": str(self.etc)}

    def log(self) -> str:
        """maillog_file."""
        return self._log.read_text(errors="replace")


class RealPostfix:
    """Debian's Postfix in a chroot, its queue on the common disk."""

    name, port = "postfix", 2511

    def __init__(self, lab: Lab) -> None:
        self.group = Group(self.name)
        self.machine = Machine("postfix", "127.0.0.1", "postfix", lab.run)
        self.spool, inside = lab.spool(self.name) / "spool", self.machine.path("/var/spool/postfix")
        subprocess.run(["cp", "-a", inside, self.spool], check=True, timeout=60)
        mount("--bind", self.spool, inside)
        lab.share(self.machine)
        self.postfix = Postfix(self.machine)
        self.machine.run("postconf", "-M#", "smtp/inet")
        self.machine.run("postconf", "-Me", f"127.0.0.1:{self.port}/inet=127.0.0.1:{self.port} inet n - n - - smtpd")

    def start(self, settings: Mapping[str, str]) -> None:
        """postfix start."""
        text = main_cf({**COMMON, "maillog_file": "/var/log/mail.log", **settings})
        self.machine.write("/etc/postfix/main.cf", text)
        argv = self.group.command(["chroot", self.machine.root, "postfix", "start"])
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, env=self.machine.environ({}), cwd="/"
        )
        if done.returncode:
            sys.exit(f"bench: postfix start: {done.stderr.decode()}")
        wait_for("Postfix greets", lambda: greets(self.port), START)

    def stop(self) -> None:
        """postfix stop."""
        self.postfix.stop()

    def sendmail(self) -> tuple[Path, list[str], dict[str, str]]:
        """Debian's."""
        return self.machine.root, ["/usr/sbin/sendmail"], {}

    def log(self) -> str:
        """maillog_file."""
        return self.postfix.log()
