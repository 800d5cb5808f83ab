"""A service manager's side of sd_notify(3) and sd_listen_fds(3): what systemd does for Type=notify, in a few lines."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.crash.system import ROOT
from tests.system.support_lifecycle import Instance, until

# takes descriptors and names, moves them to 3, 4, ... and becomes mta
EXEC = """
import os, sys
etc, names, *given = sys.argv[1:]
high = [os.dup2(int(n), 100 + i, inheritable=False) for i, n in enumerate(given)]
for n in given:
    os.close(int(n))
for i, n in enumerate(high):
    os.dup2(n, 3 + i)
if high:
    os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(high)), 'LISTEN_FDNAMES': names}
os.execv(sys.executable, [sys.executable, '-m', 'mta', '-c', etc, 'start-fg'])
"""


class Manager:
    """Runs one instance.  heard: every message of the service, in order.  store: FDNAME -> descriptor."""

    def __init__(self, system: Instance, *, watchdog: float = 0.0) -> None:
        self.system = system
        self.heard: list[str] = []
        self.store: dict[str, int] = {}
        self._watchdog = watchdog
        self._path = Path(system.directory) / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self._path))
        self._path.chmod(0o666)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, 16)
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            name = fields.get("FDNAME", "")
            if "FDSTORE" in fields:
                assert len(fds) == 1 and ":" not in name and name not in self.store
                self.store[name] = fds[0]
            elif "FDSTOREREMOVE" in fields:
                os.close(self.store.pop(name))
            self.heard.append(data.decode())
            if "END" in fields:
                return

    def start(self) -> None:
        """Start the service with what it has stored, and wait until it says that it is ready."""
        before = self.count("READY=1")
        environ = {**os.environ, "NOTIFY_SOCKET": str(self._path)}
        if self._watchdog:
            environ["WATCHDOG_USEC"] = str(int(self._watchdog * 1_000_000))
        names, fds = ":".join(self.store), list(self.store.values())
        with (self.system.directory / "stdout").open("ab") as out:
            self.system.process = subprocess.Popen(
                [sys.executable, "-c", EXEC, str(self.system.etc), names, *map(str, fds)], cwd=ROOT, pass_fds=fds,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ,
            )  # fmt: skip
        until(lambda: self.count("READY=1") > before, "READY=1")

    def stop(self) -> int:
        """SIGTERM, as systemd does; the exit status."""
        process = self.system.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        status = process.wait(120)
        self.system.process = None
        return status

    def count(self, start: str) -> int:
        """How many messages begin so."""
        return sum(message.startswith(start) for message in list(self.heard))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until it holds."""
        until(condition, what)

    def close(self) -> None:
        """Forget everything."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END=1", str(self._path))
        self._thread.join(20)
        self._sock.close()
        for fd in self.store.values():
            os.close(fd)
