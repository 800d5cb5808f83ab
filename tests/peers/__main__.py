"""Run the peers tests: `python -m tests.peers [pytest arguments]`, as root.

Builds what is missing, then runs pytest in mount, network, process and IPC namespaces of its own: the laboratory's
port 25, its mounts and every process in it end with pytest, however that ends, and no packet leaves.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.peers.build import PEERS, ROOT

LIMIT = float(os.environ.get("AIOMTA_PEERS_LIMIT", "1500"))  # seconds for all tests


def main() -> int:
    """Return pytest's exit status; 124 when the time is up."""
    if os.geteuid() != 0:
        sys.exit("peers: needs root (chroots and namespaces)")
    subprocess.run([sys.executable, "-m", "tests.peers.build"], check=True, cwd=ROOT)
    run = Path(tempfile.mkdtemp(prefix="run-", dir=PEERS))
    run.chmod(0o755)
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or ["tests/peers"]
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:xdist", *options, *wanted]
    # a shell as process 1 of the namespace: it collects the daemons that lose their parents
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    unshare = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    environ = {**os.environ, "AIOMTA_PEERS_RUN": str(run)}
    try:
        return subprocess.run([*unshare, *shell, *pytest], cwd=ROOT, env=environ, timeout=LIMIT).returncode
    except subprocess.TimeoutExpired:
        print(f"peers: stopped after {LIMIT:.0f} s", file=sys.stderr)
        return 124
    finally:
        if os.environ.get("AIOMTA_PEERS_KEEP"):
            print(f"peers: kept {run}")
        else:
            shutil.rmtree(run, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
