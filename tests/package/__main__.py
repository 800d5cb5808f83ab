"""Run the package tests: `python -m tests.package [pytest arguments]`, as root."""

import os
import subprocess
import sys

from tests.peers.build import ROOT
from tests.peers.namespace import run_inside

TOOLS = {"systemd-container": "systemd-nspawn", "rpm": "rpmbuild", "lintian": "lintian"}
LIMIT = float(os.environ.get("AIOMTA_SYSTEM_LIMIT", "900"))  # seconds for all tests


def main() -> int:
    """Return pytest's exit status; 124 when the time is up."""
    if os.geteuid() != 0:
        sys.exit("package: needs root (chroots, namespaces, a booted container)")
    tools = [package for package, program in TOOLS.items() if not on_path(program)]
    if tools:
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *tools], check=True)
    subprocess.run([sys.executable, "-m", "tests.package.roots"], check=True, cwd=ROOT)
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or ["tests/package"]
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    return run_inside([sys.executable, "-m", "pytest", "-p", "no:xdist", *options, *wanted], LIMIT)


def on_path(program: str) -> bool:
    """Is it installed?"""
    return any(os.access(f"{folder}/{program}", os.X_OK) for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"))


if __name__ == "__main__":
    sys.exit(main())
