"""One machine of the laboratory: a chroot on an overlay, an address of its own, and commands bounded in time."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.peers.build import PEERS, mount, small_dev

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def wait_for(what: str, condition: Callable[[], bool], timeout: float = 60.0, pause: float = 0.05) -> None:
    """Wait until the condition holds; AssertionError naming what did not happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(pause)


class RootDirectory:
    """The files of a system whose root is a directory of ours."""

    root: Path

    def path(self, inside: str) -> Path:
        """Where a path inside is for us."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str | bytes, mode: int = 0o644) -> None:
        """Make a file."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)

    def read(self, inside: str) -> str:
        """A file's text, "" when it is not there (yet)."""
        try:
            return self.path(inside).read_text(errors="surrogateescape")
        except FileNotFoundError:
            return ""


class Machine(RootDirectory):
    """A root file system that is thrown away after the run, with the loopback address it answers on."""

    def __init__(self, name: str, address: str, layer: str, run: Path, *, layers: Path = PEERS / "layers") -> None:
        self.name = name
        self.address = address
        self.root = run / name / "root"
        upper, work = run / name / "upper", run / name / "work"
        for path in (self.root, upper, work):
            path.mkdir(parents=True)
        lower = f"{layers}/{layer}/upper:{PEERS}/base"
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", self.root)
        mount("-t", "proc", "proc", self.root / "proc")
        small_dev(self.root)
        self.write("/etc/resolv.conf", "nameserver 127.0.0.53\noptions timeout:2 attempts:2\n")
        self.write("/etc/hosts", f"127.0.0.1 localhost {socket.gethostname()}\n")
        self._processes: list[subprocess.Popen[bytes]] = []

    def _argv(self, argv: tuple[str, ...], user: str | None) -> list[str]:
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        return ["chroot", str(self.root), *become, *argv]

    def environ(self, extra: Mapping[str, str]) -> dict[str, str]:
        """A small environment, nothing of the developer's."""
        return {"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/root", **extra}

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        user: str | None = None,
        status: int | None = 0,
        timeout: float = 60.0,
        environ: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; status None accepts any, else a different one fails with what was printed."""
        home = {"HOME": f"/home/{user}", "USER": user, "LOGNAME": user} if user else {}
        command, env = self._argv(argv, user), self.environ({**home, **environ})
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, env=env, cwd="/")
        text = f"{self.name}: {argv} exited {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
        assert status is None or done.returncode == status, text
        return done

    def output(self, *argv: str, user: str | None = None) -> str:
        """What a successful command prints."""
        return self.run(*argv, user=user).stdout.decode(errors="surrogateescape")

    def spawn(self, *argv: str, user: str | None = None) -> subprocess.Popen[bytes]:
        """Start a command that stays in the foreground; its output goes to /var/log/NAME.out of the machine."""
        out = self.path(f"/var/log/{os.path.basename(argv[0])}.out")
        with out.open("ab") as file:
            command, env = self._argv(argv, user), self.environ({})
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd="/")
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], timeout: float = 60.0) -> int:
        """Stop something spawned; killed when it does not stop."""
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(timeout)
        finally:
            self._processes.remove(process)

    def close(self) -> None:
        """Stop what was spawned.  Mounts go with the namespace."""
        for process in list(self._processes):
            self.end(process)

    def share(self, other: "Machine", inside: str) -> None:
        """Let this machine see a directory of another one under the same path."""
        self.path(inside).mkdir(parents=True, exist_ok=True)
        mount("--bind", other.path(inside), self.path(inside))

    def mailbox(self, user: str) -> str:
        """The text of /var/mail/USER."""
        return self.read(f"/var/mail/{user}")

    def forget_mail(self) -> None:
        """Empty all mailboxes."""
        for path in self.path("/var/mail").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
