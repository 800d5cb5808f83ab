"""A mail system that is started and stopped with `mta VERB`, as an administrator does, and its processes."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mta.master.worker import CROWD
from tests.crash.system import ROOT, System
from tests.system.support_system import directory

LIMIT = 120.0  # seconds anything may take, also on a machine that stands still for one of them


class Instance(System):
    """One configured mail system and its commands."""

    def mta(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `mta -c DIR ...`."""
        return subprocess.run(
            [sys.executable, "-m", "mta", "-c", str(self.etc), *args], cwd=ROOT, capture_output=True, text=True,
            timeout=LIMIT, check=False, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def must(self, *args: str) -> None:
        """Run a command that has to succeed."""
        done = self.mta(*args)
        assert done.returncode == 0, (args, done.stderr, self.log_text()[-2000:])

    def configure(self, **settings: str) -> None:
        """Add settings to main.cf."""
        with (self.etc / "main.cf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The first process."""
        return int((self.spool / "pid" / "master.pid").read_text())

    def children(self, of: int = 0) -> list[int]:
        """Its children, oldest first."""
        parent = of or self.pid
        return sorted(pid for pid, fields in _processes() if int(fields[1]) == parent)

    def all_processes(self) -> list[int]:
        """Every process of its session."""
        path = self.spool / "pid" / "master.pid"
        if not path.exists() or not path.read_text().strip():
            return []
        leader = path.read_text().strip()
        return sorted(pid for pid, fields in _processes() if fields[3] == leader)

    @property
    def scheduler(self) -> int:
        """The child that owns the queue."""
        lock = str(self.spool / "pid" / "unix.qmgr")
        for pid in self.children():
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) == lock for fd in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
        return 0

    @property
    def workers(self) -> list[int]:
        """The children that serve clients."""
        return [pid for pid in self.children() if pid != self.scheduler and pid not in self.root_children]

    @property
    def root_children(self) -> list[int]:
        """The keeper of mta-local, when we are root."""
        return [pid for pid in self.children() if os.getuid() == 0 and _owner(pid) == 0]

    def end(self) -> None:
        """Whatever happened: nothing of it runs any more."""
        if self.process is not None:
            self.kill()
        for pid in self.all_processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.all_processes(), "all processes gone")


def _owner(pid: int) -> int:
    """The user a process runs as; -1 when it has ended."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


def _processes() -> Iterator[tuple[int, list[str]]]:
    """(pid, fields of /proc/PID/stat after the name: state, ppid, pgrp, session) of all but zombies."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = entry.joinpath("stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(entry.name), fields


@contextlib.contextmanager
def instance(**settings: str) -> Iterator[Instance]:
    """A configured one that has not been started."""
    with directory() as path:
        made = Instance(path, {"queue_run_delay": "300s", "maillog_file_compressor": "", **settings})
        try:
            yield made
        finally:
            made.end()


@contextlib.contextmanager
def started(**settings: str) -> Iterator[Instance]:
    """A running one with as many smtpd workers as it may have."""
    wanted = int(settings.get("smtpd_processes", "0"))
    quick = {"smtpd_peername_lookup": "no"} if wanted > 1 else {}  # nobody knows the names of a crowd
    with instance(**{"smtpd_processes_max_idle": "100s", **quick, **settings}) as made:
        made.must("start")
        Client(made.port).close()
        with crowd(made.port) if wanted > 1 else contextlib.nullcontext():
            until(lambda: len(made.workers) >= wanted, "workers")
        yield made


@contextlib.contextmanager
def crowd(port: int) -> Iterator[None]:
    """More clients than one worker serves alone, and others that come and go as long as the context lasts.

    Each has an address of its own.
    """
    with contextlib.ExitStack() as stack:
        for number in range(CROWD + 1):
            stack.enter_context(Client(port, source=f"127.0.1.{number + 1}"))
        stack.enter_context(knocking(port, "127.0.2.1", pause=0.0))
        yield


@contextlib.contextmanager
def knocking(port: int, source: str = "", pause: float = 0.01) -> Iterator[list[str]]:
    """Connect again and again, `pause` seconds after the last; yields the list of greetings that were not 220."""
    wrong: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(pause):
            try:
                with Client(port, source=source) as client:
                    if not client.greeting.startswith("220 "):
                        wrong.append(client.greeting)
            except OSError as error:
                wrong.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()


def until(condition: "object", what: str, seconds: float = LIMIT) -> None:
    """Look again until it holds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


class Client:
    """One SMTP connection, blocking."""

    def __init__(self, port: int, host: str = "127.0.0.1", source: str = "") -> None:
        self.sock = socket.create_connection((host, port), LIMIT, (source, 0) if source else None)
        self.file = self.sock.makefile("rb")
        self.greeting = self.reply()

    def reply(self) -> str:
        """All lines of a reply; "" when the connection is gone."""
        lines = b""
        while line := self.file.readline():
            lines += line
            if line[3:4] == b" ":
                break
        return lines.decode()

    def command(self, *lines: str) -> str:
        """Send lines, return one reply."""
        self.sock.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return self.reply()

    def begin(self, recipient: str, sender: str = "") -> None:
        """As far as DATA."""
        for line in ("EHLO client.test", f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"):
            answer = self.command(line)
            assert answer[0] in "23", (line, answer)

    def finish(self, body: str = "Subject: t\r\n\r\nx") -> str:
        """Body and dot; the reply."""
        return self.command(body, ".")

    def send(self, recipient: str, sender: str = "") -> str:
        """A whole message; the reply."""
        self.begin(recipient, sender)
        return self.finish()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hold_lock(path: Path) -> int:
    """flock a file as another mail system would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd
