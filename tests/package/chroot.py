"""A root file system with a real mail system on it, thrown away after the test; commands run in a chroot."""

import subprocess
from pathlib import Path

from tests.package.roots import SYSTEM, lower
from tests.peers.build import mount, small_dev
from tests.peers.machine import Machine

HOSTS = "127.0.0.1 localhost\n127.0.1.1 host.example.test host\n"


class Chroot(Machine):
    """Like a machine of the peers laboratory, on a layer of ours, with the packages that were pulled."""

    def __init__(self, name: str, layer: str, run: Path) -> None:  # not Machine's: other layers, no resolver
        self.name = name
        self.address = "127.0.0.1"
        self.root = run / name / "root"
        upper, work = run / name / "upper", run / name / "work"
        for path in (self.root, upper, work):
            path.mkdir(parents=True)
        below = ":".join(map(str, lower(layer)))
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={below},upperdir={upper},workdir={work}", self.root)
        mount("-t", "proc", "proc", self.root / "proc")
        small_dev(self.root)
        mount("-o", "bind", SYSTEM / "archives", self.root / "var/cache/apt/archives")
        self.write("/etc/hosts", HOSTS)
        self.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        self._processes: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """Stop what was started, and unmount."""
        super().close()
        subprocess.run(["umount", "-R", "--lazy", self.root], check=False, timeout=60)

    def apt(self, *argv: str) -> str:
        """apt-get, offline; what it printed."""
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        command = ("apt-get", "-y", "-q", "--no-install-recommends", "-o", "APT::Sandbox::User=root",
                   "-o", "APT::Keep-Downloaded-Packages=true", *argv)  # fmt: skip
        done = self.run(*command, timeout=180, environ=quiet)
        return (done.stdout + done.stderr).decode(errors="replace")

    def owner(self, command: str) -> str:
        """Which mail system answers to a command: "ours", "postfix", "exim", or "" when there is none."""
        done = self.run("readlink", "-e", command, status=None)
        path = done.stdout.decode().strip()
        if not path:
            return ""
        if b"sendmail_compat" in self.path(path).read_bytes():
            return "ours"
        return "exim" if "exim" in path else "postfix"

    def owners(self) -> set[str]:
        """The mail systems behind the names that must agree."""
        return {self.owner(c) for c in ("/usr/sbin/sendmail", "/usr/bin/mailq", "/usr/bin/newaliases")}
