"""A whole MTA in processes of its own, under a temporary directory, for tests that kill it."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def free_port() -> int:
    """A port of 127.0.0.1 that is free, and that no outgoing connection gets while its server does not run.

    The kernel gives those ports of its own range: a client of another test could have it at a restart, and who
    knocks again and again while nobody listens may even be connected with himself (RFC 9293 s3.5 figure 7).
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        wanted = random.SystemRandom().randrange(first // 2, first) if first > 8192 else 0
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", wanted))
            port: int = s.getsockname()[1]
            return port


class System:
    """One configured MTA.  settings: further main.cf lines.  prefix: a command that runs it, as prlimit(1).

    program: what follows the interpreter's name, up to the arguments of mta.
    """

    def __init__(
        self, directory: Path, settings: dict[str, str], *, prefix: Sequence[str] = (),
        program: Sequence[str] = ("-m", "mta"),
    ) -> None:  # fmt: skip
        self.directory = directory
        self.prefix, self.program = tuple(prefix), tuple(program)
        self.port = free_port()
        self.spool = directory / "spool"
        self.log = directory / "maillog"
        self.process: subprocess.Popen[bytes] | None = None
        etc = directory / "etc"
        for path in (etc, directory / "data", directory / "mail"):
            path.mkdir(parents=True, exist_ok=True)
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        owner = "nobody" if os.getuid() == 0 else user
        main_cf = {
            "compatibility_level": "3.6",
            "myhostname": "mx.test.example",
            "mydestination": "$myhostname, localhost",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "loopback-only",
            "inet_protocols": "ipv4",
            "queue_directory": str(self.spool),
            "data_directory": str(directory / "data"),
            "mail_spool_directory": str(directory / "mail"),
            "mailbox_size_limit": "0",  # a long run fills more than 51.2 MB, and then mail is returned by right
            "maillog_file": str(self.log),
            "maillog_file_prefixes": "/",
            "mail_owner": owner,
            "alias_maps": "",
            "smtp_tls_security_level": "none",
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "2s",
            "queue_run_delay": "1s",
            **settings,
        }
        (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in main_cf.items()))
        (etc / "master.cf").write_text(
            f"127.0.0.1:{self.port} inet n - n - - smtpd\n"
            + "".join(f"{n} unix - - n - - {c}\n" for n, c in [
                ("smtp", "smtp"), ("relay", "smtp"), ("local", "local"), ("error", "error"), ("retry", "error"),
                ("discard", "discard"), ("lmtp", "lmtp"),
            ])
        )  # fmt: skip
        self.etc = etc
        (directory / "mail").chmod(0o1777)

    def start(self, *, timeout: float = 60.0) -> None:
        """Start it and wait until it greets."""
        with (self.directory / "stdout").open("ab") as out:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, *self.program, "-c", str(self.etc), "start-fg"], cwd=ROOT,
                start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"mta ended: {(self.directory / 'stdout').read_text()[-3000:]}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    s.settimeout(5)
                    if s.recv(4) == b"220 ":
                        s.sendall(b"QUIT\r\n")
                        return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"mta does not greet: {(self.directory / 'stdout').read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9 every process of it at once, and wait until they are gone."""
        process = self.process
        if process is None:
            return
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # its children become ours: many a process 1 takes a second
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, as start() has said
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        while True:
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                break
            time.sleep(0.002)
        self.process = None

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        status = self.process.wait(120)
        self.process = None
        return status

    def queue(self) -> dict[str, list[Path]]:
        """Queue files by directory."""
        found = {}
        for name in ("maildrop", "incoming", "active", "deferred", "hold", "corrupt"):
            found[name] = [p for p in (self.spool / name).rglob("*") if p.is_file()]
        return found
