"""Build the root file systems of the peers laboratory: `python -m tests.peers.build [--clean]`, as root.

One debootstrap base, and on it one overlay layer per machine, because Debian's mail servers conflict as packages:

    $AIOMTA_PEERS/base             Debian 12, minimal
    $AIOMTA_PEERS/layers/NAME      what one machine has besides
    $AIOMTA_PEERS/wheel            the wheel of this checkout, built anew each time

A layer whose recipe has not changed is kept; one that was interrupted is thrown away and built again.  All mounts
live in a mount namespace of this process, so nothing stays mounted however it ends.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("AIOMTA_PEERS", "/var/tmp/aiomta-peers"))
MIRROR = os.environ.get("AIOMTA_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"
TIMEOUT = 900.0  # seconds; one debootstrap or apt-get on a slow mirror

SOURCES = f"""\
deb {MIRROR} {SUITE} main
deb {MIRROR} {SUITE}-updates main
deb {MIRROR}-security {SUITE}-security main
"""

PEOPLE = (
    "for u in alice bob carol; do useradd --create-home --shell /bin/sh $u; done; "
    "usermod -c 'Alice Q. Tester,Room 1' alice; useradd --system --uid 991 --no-create-home probe"
)

# Debian's mailx wants some mail-transport-agent installed.  This machine gets ours, which is not a Debian package,
# so an empty package says that the place is taken.
PLACEHOLDER = (
    "mkdir -p /tmp/here/DEBIAN && printf '%s\\n' 'Package: local-mta' 'Version: 1' 'Architecture: all' "
    "'Maintainer: nobody <root@localhost>' 'Provides: mail-transport-agent, default-mta' "
    "'Description: mail transport agent outside the package system' > /tmp/here/DEBIAN/control && "
    "dpkg-deb -b /tmp/here /tmp/here.deb && dpkg -i /tmp/here.deb && rm -rf /tmp/here /tmp/here.deb"
)
POSTFIX_ANSWERS = (
    "printf '%s\\n' 'postfix postfix/main_mailer_type select Internet Site' "
    "'postfix postfix/mailname string postfix.test' | debconf-set-selections"
)

# name -> commands before the packages, packages, commands after them
LAYERS: dict[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "dns": ((), ("unbound",), ()),
    "postfix": (
        (POSTFIX_ANSWERS, PEOPLE),
        ("postfix", "perl", "postgrey"),
        ("newaliases",),
    ),
    "exim": ((PEOPLE,), ("exim4-daemon-light",), ()),
    "host": (
        (PLACEHOLDER,),
        (
            *("python3", "python3-venv", "python3-aiosmtpd", "python3-dnspython", "python3-aiofiles", "systemd"),
            *("cron", "swaks", "s-nail", "bsd-mailx", "pflogsumm"),
        ),
        (PEOPLE,),
    ),
}


def say(text: str) -> None:
    """Tell whoever waits what is being built."""
    print(f"peers: {text}", flush=True)


def call(*argv: str | Path, log: Path, timeout: float = TIMEOUT) -> None:
    """Run a command to its end, output to a log; its last lines are shown when it fails."""
    with log.open("ab") as out:
        out.write(f"\n$ {' '.join(map(str, argv))}\n".encode())
        out.flush()
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "HOME": "/root"}
        environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        try:
            null = subprocess.DEVNULL
            subprocess.run(argv, stdout=out, stderr=out, stdin=null, env=environ, timeout=timeout, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            tail = log.read_text(errors="replace").splitlines()[-25:]
            sys.exit("\n".join([f"peers: failed: {error}", *tail]))


def mount(*args: str | Path) -> None:
    """mount(8), in our own namespace."""
    subprocess.run(["mount", *args], check=True, timeout=30)


def prepare(root: Path) -> None:
    """Give a root what package scripts need: /proc, a small /dev, and no daemon started by any of them."""
    mount("--bind", "/proc", root / "proc")
    small_dev(root)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)


def small_dev(root: Path) -> None:
    """A /dev of its own with the harmless devices: the machine's log socket and terminals stay outside."""
    mount("-t", "tmpfs", "-o", "mode=755", "dev", root / "dev")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        subprocess.run(["cp", "-a", f"/dev/{name}", root / "dev" / name], check=True, timeout=30)
    (root / "dev/shm").mkdir(mode=0o1777)
    os.symlink("/proc/self/fd", root / "dev/fd")


@contextlib.contextmanager
def overlay(name: str, lower: Sequence[Path], upper: Path, work: Path) -> Iterator[Path]:
    """Mount lower (topmost first) with upper above it; unmounted at the end."""
    target = PEERS / "mnt" / name
    for directory in (target, upper, work):
        directory.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    mount("-t", "overlay", "overlay", "-o", options, target)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-R", "--lazy", target], check=False, timeout=60)


def build_base(log: Path) -> None:
    """debootstrap, once."""
    stamp, base = PEERS / "base.stamp", PEERS / "base"
    if stamp.exists():
        return
    say("base: debootstrap (a minute or two)")
    if shutil.which("debootstrap") is None:
        call("apt-get", "update", "-q", log=log)
        call("apt-get", "install", "-y", "-q", "--no-install-recommends", "debootstrap", log=log)
    shutil.rmtree(base, ignore_errors=True)
    call("debootstrap", "--variant=minbase", "--include=ca-certificates,procps", SUITE, base, MIRROR, log=log)
    (base / "etc/apt/sources.list").write_text(SOURCES)
    for conf in Path("/etc/apt/apt.conf.d").glob("*"):  # a proxy, perhaps
        shutil.copyfile(conf, base / "etc/apt/apt.conf.d" / conf.name)
    stamp.write_text(SUITE)


def recipe(name: str) -> str:
    """What a layer is made of; a change builds it again."""
    return hashlib.sha256(repr((LAYERS[name], SOURCES)).encode()).hexdigest()


def build_layer(name: str, log: Path) -> None:
    """One machine's packages."""
    directory = PEERS / "layers" / name
    stamp = directory / "stamp"
    if stamp.exists() and stamp.read_text() == recipe(name):
        return
    say(f"{name}: installing packages")
    shutil.rmtree(directory, ignore_errors=True)
    before, packages, after = LAYERS[name]
    with overlay(f"build-{name}", [PEERS / "base"], directory / "upper", directory / "work") as root:
        prepare(root)
        for command in before:
            call("chroot", root, "sh", "-ec", command, log=log)
        call("chroot", root, "apt-get", "update", "-q", log=log)
        call("chroot", root, "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, log=log)
        for command in after:
            call("chroot", root, "sh", "-ec", command, log=log)
        call("chroot", root, "apt-get", "clean", log=log)
    stamp.write_text(recipe(name))


def build_wheel(log: Path) -> None:
    """The package as users install it."""
    say("wheel of this checkout")
    directory = PEERS / "wheel"
    shutil.rmtree(directory, ignore_errors=True)
    python = sys.executable
    call(python, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", directory, ROOT, log=log)


def namespace() -> None:
    """Continue in a mount namespace of our own: whatever is mounted ends with this process."""
    if os.environ.get("AIOMTA_PEERS_NS") == "mount":
        return
    os.environ["AIOMTA_PEERS_NS"] = "mount"
    module = [sys.executable, "-m", "tests.peers.build", *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *module])  # noqa: S606  (fixed words)


def main() -> int:
    """Build what is missing; --clean removes everything."""
    if os.geteuid() != 0:
        sys.exit("peers: needs root (chroots and namespaces)")
    os.chdir(ROOT)
    if "--clean" in sys.argv:
        shutil.rmtree(PEERS, ignore_errors=True)
        return 0
    namespace()
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = PEERS / "build.log"
        build_base(log)
        for name in LAYERS:
            build_layer(name, log)
        build_wheel(log)
    say(f"ready in {PEERS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
