"""The packages of this checkout, and machines to install them on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.package.chroot import Chroot
from tests.peers.build import ROOT
from tests.peers.namespace import own_network


@pytest.fixture(scope="session")
def run_directory() -> Path:
    """Where the overlays live; only `python -m tests.package` provides it, with the namespaces around us."""
    where = os.environ.get("AIOMTA_PEERS_RUN")
    if not where:
        pytest.skip("run me with `make test-system`")
    own_network()
    return Path(where)


def build_deb(directory: Path, *options: str) -> Path:
    """make deb."""
    command = [sys.executable, "-m", "scripts.build_deb", "--directory", str(directory), *options]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def deb(run_directory: Path) -> Path:
    """The .deb of this checkout."""
    return build_deb(run_directory / "deb")


@pytest.fixture(scope="session")
def old_deb(run_directory: Path) -> Path:
    """The same tree under a lower version."""
    return build_deb(run_directory / "deb", "--version", "0.0.1")


@pytest.fixture(scope="session")
def opt_aiomta(run_directory: Path) -> Iterator[Path]:
    """/opt/aiomta as docs/install.md makes it: a virtual environment with the wheel of this checkout."""
    directory = run_directory / "wheel"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(directory), "."]
    subprocess.run(command, cwd=ROOT, check=True, timeout=180)
    (wheel,) = directory.glob("*.whl")
    root = Chroot("venv", "python", run_directory)
    root.write(f"/root/{wheel.name}", wheel.read_bytes())
    root.run("python3", "-m", "venv", "--system-site-packages", "/opt/aiomta", timeout=120)
    root.run("/opt/aiomta/bin/pip", "install", "-q", "--no-deps", "--no-index", f"/root/{wheel.name}", timeout=120)
    yield root.path("/opt/aiomta")
    root.close()


@pytest.fixture
def chroot(run_directory: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Chroot]]:
    """Makes a throw-away root on a layer."""
    made: list[Chroot] = []

    def make(layer: str) -> Chroot:
        made.append(Chroot(f"{request.node.name}-{len(made)}".replace("/", "_").replace("[", "-").replace("]", ""),
                           layer, run_directory))  # fmt: skip
        return made[-1]

    yield make
    for root in made:
        root.close()
