"""A booted Debian in systemd-nspawn, on an overlay that is thrown away; no network but its own loopback."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.package.roots import lower
from tests.peers.build import mount
from tests.peers.machine import PATH, RootDirectory, wait_for

APT = ("apt-get", "-y", "-q", "--no-install-recommends", "-o", "APT::Sandbox::User=root")
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
HOSTNAME = "host"
HOSTS = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 host.example.test host\n"


class Container(RootDirectory):
    """Boots at once; run() enters it; close() pulls the plug."""

    def __init__(self, name: str, layer: str, run: Path) -> None:
        self.root = run / name / "root"
        upper, work = run / name / "upper", run / name / "work"
        for path in (self.root, upper, work):
            path.mkdir(parents=True)
        below = ":".join(map(str, lower(layer)))
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={below},upperdir={upper},workdir={work}", self.root)
        self.write("/etc/hosts", HOSTS)
        self.write("/etc/hostname", f"{HOSTNAME}\n")
        self.out = run / name / "console"
        argv = ["systemd-nspawn", "--register=no", "--keep-unit", "--quiet", "--private-network", "--console=pipe",
                "--resolv-conf=off", "--timezone=off", f"--machine={HOSTNAME}", "-b", "-D", str(self.root)]  # fmt: skip
        environ = {"PATH": PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self.out.open("wb") as out:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ)
        try:
            wait_for("the container is up", self._up, 90)
        except BaseException as error:
            self.close()
            raise AssertionError(self.out.read_text(errors="replace")) from error

    def _first(self) -> str:
        """Process id of the container's process 1; "" while there is none."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return (children.read_text().split() or [""])[0] if children.exists() else ""

    def _up(self) -> bool:
        if not self._first() or not Path(f"/proc/{self._first()}/root/run/systemd/private").exists():
            return False
        state = self.run("systemctl", "is-system-running", status=None).stdout.strip()
        return state in (b"running", b"degraded")

    def run(
        self,
        *argv: str,
        stdin: str | bytes = b"",
        user: str = "root",
        status: int | None = 0,
        timeout: float = 60.0,
        environ: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside to its end; status None accepts any, else a different one fails with what it said."""
        enter = ["nsenter", "--target", self._first(), "--all", "--root", "--wd"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user != "root" else []
        home = "/root" if user == "root" else f"/home/{user}"
        env = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": home, "USER": user, "LOGNAME": user, **environ}
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        done = subprocess.run([*enter, *become, *argv], input=data, capture_output=True, timeout=timeout, env=env)
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert status is None or done.returncode == status, f"{argv} exited {done.returncode}: {text}\n{self.log()}"
        return done

    def output(self, *argv: str, user: str = "root") -> str:
        """What a successful command prints."""
        return self.run(*argv, user=user).stdout.decode(errors="surrogateescape").strip()

    def log(self) -> str:
        """The end of the journal."""
        if not self._first():
            return self.out.read_text(errors="replace")
        journal = self.run("journalctl", "--no-pager", "-n", "80", "-o", "short", status=None).stdout
        return re.sub(r"(?m)^.*systemd-journald.*\n", "", journal.decode(errors="replace"))

    def close(self) -> None:
        """End it, and wait for that."""
        self._process.kill()
        self._process.wait(30)
        subprocess.run(["umount", "-R", "--lazy", self.root], check=False, timeout=60)

    def install(self, package: Path) -> str:
        """apt-get install, offline; what was printed."""
        self.write(f"/root/{package.name}", package.read_bytes())
        done = self.run(*APT, "install", "--allow-downgrades", f"/root/{package.name}", timeout=120, environ=QUIET)
        self.path(f"/root/{package.name}").unlink()
        return (done.stdout + done.stderr).decode(errors="replace")

    def mailbox(self, user: str) -> str:
        """The text of /var/mail/USER."""
        return self.read(f"/var/mail/{user}")
