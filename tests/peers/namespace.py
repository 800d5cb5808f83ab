"""Run a command in mount, network, process and IPC namespaces of its own, as root.

What it mounts, starts and binds ends with it, however it ends, and no packet leaves.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.peers.build import PEERS, ROOT


def build() -> None:
    """Build what is missing of the root file systems."""
    if os.geteuid() != 0:
        sys.exit("peers: needs root (chroots and namespaces)")
    subprocess.run([sys.executable, "-m", "tests.peers.build"], check=True, cwd=ROOT)


def run_inside(command: Sequence[str], limit: float) -> int:
    """Run it with a directory for overlays in $AIOMTA_PEERS_RUN; returns its status, 124 after limit seconds."""
    run = Path(tempfile.mkdtemp(prefix="run-", dir=PEERS))
    run.chmod(0o755)
    # a shell as process 1 of the namespace: it collects the daemons that lose their parents
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    unshare = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    environ = {**os.environ, "AIOMTA_PEERS_RUN": str(run)}
    try:
        return subprocess.run([*unshare, *shell, *command], cwd=ROOT, env=environ, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        print(f"peers: stopped after {limit:.0f} s", file=sys.stderr)
        return 124
    finally:
        remove_groups(run.name)
        if os.environ.get("AIOMTA_PEERS_KEEP"):
            print(f"peers: kept {run}")
        else:
            shutil.rmtree(run, ignore_errors=True)


def remove_groups(name: str) -> None:
    """Remove the control group that booted.py has made for a run, empty since its namespace has ended."""
    for hierarchy in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        for directory, _, _ in os.walk(f"{hierarchy}/aiomta-{name}", topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def own_network() -> None:
    """Bring up the loopback of the namespace and the addresses of the machines; refuses to touch any other network."""
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    outside = [name for name in interfaces if name.startswith(("eth", "en", "wl"))]
    if "AIOMTA_PEERS_RUN" not in os.environ or outside:
        sys.exit("peers: this is not a network of our own")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    # RFC 5737 addresses for the peers: loopback addresses would be "myself".  The whole net is local here, so that a
    # connection to an address where nobody listens is refused; Postfix wants its own address on an interface.
    subprocess.run(["ip", "route", "add", "local", "192.0.2.0/24", "dev", "lo"], check=True, timeout=10)
    subprocess.run(["ip", "address", "add", "192.0.2.11/32", "dev", "lo"], check=True, timeout=10)
