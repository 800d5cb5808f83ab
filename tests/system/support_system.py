"""One whole MTA for a test of this folder: started under a short directory of its own, killed and removed afterwards.

The directory is not tmp_path: socket paths have to fit 107 bytes, and as root the daemon (nobody) must be able to
get there.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sendmail_compat.install import install
from tests.crash.system import System
from tests.queue_support import Spooled, spooled

DOMAIN = "mx.test.example"
ROOT_TESTS = os.getuid() == 0
WAIT = 120.0  # seconds anything may take that takes one


def local_user() -> str:
    """A user with a mailbox: neither root nor mail_owner; the only one when we are not root."""
    if ROOT_TESTS:
        return "games"
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory that everybody may pass through, removed in the end."""
    path = Path(tempfile.mkdtemp(prefix="aiomta-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def mail_system(
    settings: Mapping[str, str] | None = None, *, prefix: Sequence[str] = (), start: bool = True
) -> Iterator[System]:
    """A configured MTA, running unless told otherwise."""
    with directory() as path:
        system = System(path, dict(settings or {}), prefix=prefix)
        try:
            if start:
                system.start()
            yield system
        finally:
            system.kill()


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT) -> None:
    """Look again and again until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


def processes(system: System) -> list[int]:
    """Every process of it: they share the session that the first one leads."""
    assert system.process is not None
    leader = str(system.process.pid)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.joinpath("stat").read_text().rpartition(")")[2].split()[3] == leader:
                    found.append(int(entry.name))
    return sorted(found)


def pss(system: System) -> int:
    """Proportional set size of all its processes together, in bytes."""
    return _rollup(system, "Pss:")


def pss_of_data(system: System) -> int:
    """The part of it that is no file's, so that it does not change with what else runs the same Python; bytes."""
    return _rollup(system, "Pss_Anon:")


def _rollup(system: System, word: str) -> int:
    total = 0
    for pid in processes(system):
        with contextlib.suppress(OSError):  # mta-local forks for each delivery: such a process may have ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(word):
                    total += int(line.split()[1]) * 1024
    return total


def cpu(system: System) -> float:
    """Seconds of processor time its processes have used, those that have ended included."""
    ticks = 0
    for pid in processes(system):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # own, and of children waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def log_of(system: System) -> str:
    """What it has logged so far: a line may come a moment after what it speaks of."""
    return system.log.read_text(errors="replace") if system.log.exists() else ""


def whole_log(system: System) -> str:
    """All that it has logged: stops it first.  For what must not be there, and for what must be there once."""
    assert system.stop() == 0
    return log_of(system)


def mailbox_of(system: System, user: str | None = None) -> bytes:
    """Content of a mailbox, b"" when nothing has come."""
    path = system.directory / "mail" / (user or local_user())
    return path.read_bytes() if path.exists() else b""


def queued(system: System, *queues: str) -> list[str]:
    """Names of queue files (all queues but corrupt); looks twice before it says none: a rename may hide a file."""

    def look() -> list[str]:
        found = system.queue()
        return sorted(p.name for name in queues or ("incoming", "active", "deferred", "hold") for p in found[name])

    return look() or look()


@contextlib.contextmanager
def spool_of(system: System) -> Iterator[Spooled]:
    """Its queue, to put messages into while it does not run; they belong to mail_owner afterwards."""
    with spooled(system.spool) as made:
        made.now = time.time()
        yield made
    if ROOT_TESTS:
        nobody = pwd.getpwnam("nobody")
        for path in system.spool.rglob("*"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


def mailq(system: System) -> str:
    """What `mailq` prints."""
    stub = install(system.directory)
    done = subprocess.run(
        [stub, "-C", str(system.etc), "-bp"], check=False, capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sendmail(system: System, recipient: str, content: bytes) -> int:
    """`sendmail -i recipient < content`; the exit status."""
    stub = str(install(system.directory))
    command = [stub, "-C", str(system.etc), "-i", recipient]
    return subprocess.run(command, check=False, input=content, capture_output=True, timeout=WAIT).returncode
