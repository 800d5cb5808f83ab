"""Root file systems for the package tests: Debian with the callers, with a real Postfix, with a real Exim.

    $AIOMTA_SYSTEM/layers/NAME    overlay layers above the debootstrap base of the peers laboratory
    $AIOMTA_SYSTEM/archives       packages that were pulled, for all layers and for the tests, which are offline

A layer whose recipe has not changed is kept.  Mounts live in a namespace of this process.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.build import PEERS, PEOPLE, PLACEHOLDER, POSTFIX_ANSWERS, SOURCES, build_base, call, mount, prepare

SYSTEM = Path(os.environ.get("AIOMTA_SYSTEM", "/var/tmp/aiomta-system"))
PYTHON = ("python3", "python3-venv", "python3-aiosmtpd", "python3-dnspython", "python3-aiofiles", "python3-uvloop")
CALLERS = ("cron", "at", "bsd-mailx", "s-nail", "mutt", "php-cli", "git", "git-email", "libemail-valid-perl")


@dataclass(frozen=True)
class Layer:
    """below: the layer it stands on.  before, after: commands around the installation of packages.
    """

    below: str
    before: Sequence[str] = ()
    packages: Sequence[str] = ()
    after: Sequence[str] = ()


LAYERS = {
    "python": Layer("", packages=PYTHON),
    "system": Layer("python", (PLACEHOLDER,), ("systemd-sysv", "systemd", "dbus", *CALLERS), (PEOPLE,)),
    "postfix": Layer("python", (POSTFIX_ANSWERS, PEOPLE), ("postfix",), ("newaliases",)),
    "exim": Layer("python", (PEOPLE,), ("exim4-daemon-light", "exim4-base", "exim4-config")),
}


def chain(name: str) -> list[str]:
    """A layer and those it stands on, topmost first."""
    return [name, *chain(LAYERS[name].below)] if name else []


def lower(name: str) -> list[Path]:
    """Directories to mount for a layer, topmost first."""
    return [*(SYSTEM / "layers" / each / "upper" for each in chain(name)), PEERS / "base"]


def recipe(name: str) -> str:
    """What a layer is made of; a change builds it again, and those above."""
    text = repr([LAYERS[each] for each in chain(name)]) + SOURCES + (PEERS / "base.stamp").read_text()
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def overlay(name: str, upper: Path, work: Path, below: Sequence[Path]) -> Iterator[Path]:
    """Mount; unmounted at the end."""
    target = SYSTEM / "mnt" / name
    for directory in (target, upper, work):
        directory.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={':'.join(map(str, below))},upperdir={upper},workdir={work}"
    mount("-t", "overlay", "overlay", "-o", options, target)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-R", "--lazy", target], check=False, timeout=60)


def build_layer(name: str, log: Path) -> None:
    """One layer, when it is missing or its recipe has changed."""
    layer, directory = LAYERS[name], SYSTEM / "layers" / name
    stamp = directory / "stamp"
    if stamp.exists() and stamp.read_text() == recipe(name):
        return
    print(f"package: {name}: installing packages", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    archives = SYSTEM / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    below = lower(layer.below) if layer.below else [PEERS / "base"]
    with overlay(f"build-{name}", directory / "upper", directory / "work", below) as root:
        prepare(root)
        mount("--bind", archives, root / "var/cache/apt/archives")
        for path in (root / "etc/apt/apt.conf.d").glob("docker*"):
            path.unlink()  # they throw packages away
        keep = ("-o", "APT::Keep-Downloaded-Packages=true", "-o", "APT::Sandbox::User=root")
        install = ("apt-get", "install", "-y", "-q", *keep, "--no-install-recommends")
        for command in layer.before:
            call("chroot", root, "sh", "-ec", command, log=log)
        call("chroot", root, "apt-get", "update", "-q", log=log)
        call("chroot", root, *install, *layer.packages, log=log)
        for command in layer.after:
            call("chroot", root, "sh", "-ec", command, log=log)
        (root / "usr/sbin/policy-rc.d").unlink()
    stamp.write_text(recipe(name))


def build() -> None:
    """What is missing."""
    SYSTEM.mkdir(parents=True, exist_ok=True)
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / "lock").open("w") as base_lock:  # make test-peers builds the same base
        fcntl.flock(base_lock, fcntl.LOCK_EX)
        build_base(PEERS / "build.log")
    with (SYSTEM / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in LAYERS:
            build_layer(name, SYSTEM / "build.log")


def main() -> int:
    """Build, or with --clean remove everything; in a mount namespace of its own."""
    if os.geteuid() != 0:
        sys.exit("package: needs root (chroots and namespaces)")
    if "--clean" in sys.argv:
        shutil.rmtree(SYSTEM, ignore_errors=True)
        return 0
    if os.environ.get("AIOMTA_SYSTEM_NS") != "mount":
        os.environ["AIOMTA_SYSTEM_NS"] = "mount"
        module = [sys.executable, "-m", "tests.package.roots"]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *module])  # noqa: S606  (fixed words)
    build()
    return 0


if __name__ == "__main__":
    sys.exit(main())
