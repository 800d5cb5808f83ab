"""What takes the mail at the end of a run and counts it: a remote server, or the mailbox of a local user.

smtp-sink is Postfix's.  It looks at every byte by itself, 22 ms for 5 MB, which would be the bottleneck of the large
cases; those use bulk_sink.py, which searches the end of the data by memmem().
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar, Protocol

from tests.bench.counters import Group
from tests.bench.lab import PEOPLE, ROOT, Lab

SINK_PORT = 2599
LARGE = 100_000  # bytes; messages from here on go to bulk_sink
LIMIT = 30.0  # seconds without any progress
POLL = 0.005  # seconds


class Receiver(Protocol):
    """Counts what arrived since it was made.  group: its processor time, None when it has none of its own."""

    group: Group | None

    def messages(self) -> int:
        """So many arrived."""

    def close(self) -> None:
        """Stop it."""


def wait(receiver: Receiver, messages: int) -> float:
    """Wait for that many; returns when that was, on the monotonic clock.  RuntimeError when some do not come."""
    seen, moved = -1, time.monotonic()
    while (now := receiver.messages()) < messages:
        if now != seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() > moved + LIMIT:
            raise RuntimeError(f"{now} of {messages} messages arrived, then none for {LIMIT:.0f} s")
        time.sleep(POLL)
    return time.monotonic()


class Server:
    """A sink that runs until the benchmark ends, and prints mesg=NUMBER for each message.

    One for all runs: a mail system may keep a connection, and OpenSMTPD takes a long time to try again when it breaks.
    """

    def __init__(self, lab: Lab, group: Group, *, large: bool) -> None:
        self._out = tempfile.NamedTemporaryFile("w+", suffix=".sink", dir="/dev/shm")  # noqa: SIM115  (until the end)
        if large:
            argv: list[object] = [sys.executable, "-m", "tests.bench.bulk_sink", SINK_PORT]
        else:
            become = ["setpriv", "--reuid=nobody", "--clear-groups"]
            where = f"127.0.0.1:{SINK_PORT}"
            argv = ["chroot", lab.tools.root, *become, "/usr/sbin/smtp-sink", "-c", where, "4000"]
        self._process = subprocess.Popen(group.command(argv), stdout=self._out, stderr=self._out, cwd=ROOT)
        time.sleep(0.3)
        if self._process.poll() is not None:
            raise RuntimeError(f"the sink did not start: {self._tail()}")

    def _tail(self) -> str:
        descriptor = self._out.fileno()
        return os.pread(descriptor, 400, max(0, os.fstat(descriptor).st_size - 400)).decode()

    def messages(self) -> int:
        """The last number printed."""
        seen = re.findall(r"mesg=(\d+)", self._tail())
        return int(seen[-1]) if seen else 0

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(10)
        self._out.close()


class Sink:
    """What the server for messages of a size takes from now on."""

    _servers: ClassVar[dict[bool, Server]] = {}

    def __init__(self, lab: Lab, size: int) -> None:
        self.group: Group | None = Group("sink")
        large = size >= LARGE
        if large not in self._servers:
            for server in self._servers.values():
                server.close()  # both listen on one port
            self._servers.clear()
            self._servers[large] = Server(lab, self.group, large=large)
        self._server = self._servers[large]
        self._before = self._server.messages()

    def messages(self) -> int:
        """Since it was made."""
        return self._server.messages() - self._before

    def close(self) -> None:
        """The server goes on."""


class FromLines:
    """Counts the messages of an mbox that comes in pieces."""

    BEGIN = b"\nFrom from@src.test "

    def __init__(self) -> None:
        self.seen, self._rest = 0, b"\n"

    def take(self, piece: bytes) -> int:
        """The next piece; returns the number so far.  What may be the beginning of a From line is kept."""
        text = self._rest + piece
        self.seen += text.count(self.BEGIN)
        after = text.rfind(self.BEGIN) + 1  # 0 when there is none
        self._rest = text[max(after, len(text) - len(self.BEGIN) + 1) :]
        return self.seen


class Mbox:
    """The bench user's mbox; reads what was appended since it was last asked."""

    group: Group | None = None

    def __init__(self, lab: Lab) -> None:
        path = lab.mail / "bench"
        path.unlink(missing_ok=True)  # root may not truncate it: the directory is sticky, fs.protected_regular
        self._file = path.open("x+b", buffering=0)
        os.fchown(self._file.fileno(), PEOPLE["bench"], PEOPLE["bench"])
        os.fchmod(self._file.fileno(), 0o600)
        self._lines = FromLines()

    def messages(self) -> int:
        """From lines so far."""
        return self._lines.take(self._file.read())

    def close(self) -> None:
        """It stays until the next run."""
        self._file.close()


class Maildir:
    """The bench user's Maildir."""

    group: Group | None = None

    def __init__(self, lab: Lab) -> None:
        self._new: Path = lab.home / "Maildir/new"
        for path in (lab.home / "Maildir", *(lab.home / "Maildir" / name for name in ("tmp", "new", "cur"))):
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, PEOPLE["bench"], PEOPLE["bench"])
        self.close()

    def messages(self) -> int:
        """Files in new."""
        return len(os.listdir(self._new))

    def close(self) -> None:
        """Empty it."""
        for name in os.listdir(self._new):
            (self._new / name).unlink()
