"""A machine whose process 1 is a real systemd, in namespaces and a control group of its own inside the laboratory."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

from tests.peers.machine import Machine, wait_for

CGROUPS = next(
    (p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None
)
BOOT = """
set -e
echo $$ > "$GROUP/cgroup.procs"
exec unshare --cgroup --pid --mount --uts --fork --kill-child sh -ec '
    mount -t proc proc "$ROOT/proc"
    mkdir -p "$ROOT/sys"
    mount -t sysfs -o ro sysfs "$ROOT/sys"
    mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 run "$ROOT/run"
    mkdir -p "$ROOT/dev/pts"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$ROOT/dev/pts"
    ln -sf pts/ptmx "$ROOT/dev/ptmx"
    cd "$ROOT"
    mkdir -p was
    pivot_root . was  # not chroot: systemd gives services roots of their own
    umount -l was
    exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
        /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no'
"""


class Booted:
    """Boots a machine; run() enters it."""

    def __init__(self, machine: Machine) -> None:
        assert CGROUPS is not None, "no cgroup2 hierarchy on this machine"
        self.machine = machine
        self._group = CGROUPS / f"aiomta-{Path(os.environ['AIOMTA_PEERS_RUN']).name}"
        self._group.mkdir()
        environ = {"PATH": os.environ["PATH"], "GROUP": str(self._group), "ROOT": str(machine.root)}
        with machine.path("/var/log/systemd.out").open("wb") as out:
            self._process = subprocess.Popen(
                ["sh", "-c", BOOT], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ
            )
        try:
            wait_for("systemd is up", self._up, 90)
        except BaseException:
            self.close()
            raise

    def _first(self) -> str:
        """systemd's process id: the child of unshare; "" while there is none."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return children.read_text().strip() if children.exists() else ""

    def _up(self) -> bool:
        return bool(self._first()) and self.run("systemctl", "is-active", "basic.target", status=None)[0] == 0

    def run(self, *argv: str, status: int | None = 0, timeout: float = 60.0) -> tuple[int, str]:
        """(exit status, output) of a command inside."""
        enter = ["nsenter", "--target", self._first(), "--all", "--root", "--wd"]
        done = subprocess.run(
            [*enter, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=self.machine.environ({}),
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert status is None or done.returncode == status, f"{argv} exited {done.returncode}: {text}\n{self.log()}"
        return done.returncode, text

    def log(self) -> str:
        """What systemd and the journal say, without the noise."""
        if not self._first():
            return self.machine.read("/var/log/systemd.out")
        journal = self.run("journalctl", "--no-pager", "-n", "60", "-o", "short", status=None)[1]
        return re.sub(r"(?m)^.*systemd-journald.*\n", "", journal)

    def close(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self._process.wait(20)
        wait_for("its processes are gone", lambda: not self._members())
        for directory, _, _ in os.walk(self._group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _members(self) -> bool:
        for directory, _, files in os.walk(self._group):
            if "cgroup.procs" in files and Path(directory, "cgroup.procs").read_text().strip():
                return True
        return False
