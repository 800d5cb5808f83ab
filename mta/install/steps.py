"""One change to the machine each, that can be made and taken back: what `mta install` is made of.

do() makes the change.  undo() takes it back and returns "" or a line about what had to stay: what somebody has changed
since is never removed.  undo() after a do() that failed half-way, or never ran, is harmless: the journal is written
before each step.

See also: mta/install/journal.py, update-alternatives(1), dpkg-divert(1)
"""

import contextlib
import glob
import gzip
import os
import subprocess
from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from mta.record import dataclass

TIMEOUT = 120.0  # seconds; a package tool that waits for a lock


class StepError(Exception):
    """A step cannot be made; str() is a line for the administrator."""


class Step(Protocol):
    """A change.  Instances are frozen dataclasses of strings, numbers and lists, so that the journal can keep them."""

    def describe(self) -> str:
        """The change as a line, as --dry-run prints it."""

    def do(self) -> None:
        """Make it; StepError, OSError."""

    def undo(self) -> str:
        """Take it back; "" or what stays and why."""


def call(*argv: str, status: Sequence[int] = (0,)) -> str:
    """Run a tool; its output.  StepError with what it said when the exit status is another one."""
    environ = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, env=environ, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepError(f"{argv[0]}: {error}") from None
    if done.returncode not in status:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise StepError(f"{' '.join(argv)}: exit status {done.returncode}: {said}")
    return done.stdout


def read_text(path: str) -> str | None:
    """A file's text, None when there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class MakeDirectory:
    """A directory of root's that is removed again when it is empty."""

    path: str

    def describe(self) -> str:
        return f"make directory {self.path}"

    def do(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o755)
            os.chmod(self.path, 0o755)  # noqa: S103  (for programs of all users; the umask does not count)

    def undo(self) -> str:
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self.path}: {error.strerror}: kept"
        return ""


@dataclass(frozen=True)
class WriteFile:
    """A file with this text, in one rename.  before: the text it had, None = there was none."""

    path: str
    text: str
    mode: int = 0o644
    before: str | None = None

    def describe(self) -> str:
        return f"{'write' if self.before is None else 'rewrite'} {self.path}"

    def do(self) -> None:
        self._write(self.text)

    def _write(self, text: str) -> None:
        fresh = f"{self.path}.{os.getpid()}.new"
        with open(fresh, "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), self.mode)
        os.rename(fresh, self.path)

    def undo(self) -> str:
        now = read_text(self.path)
        if now is None or now == self.before:
            return ""
        if now != self.text:
            return f"{self.path}: changed since it was installed: kept"
        if self.before is None:
            os.unlink(self.path)
        else:
            self._write(self.before)
        return ""


@dataclass(frozen=True)
class Compress:
    """A manual page, as `man` finds the other ones: source.gz beside it."""

    source: str

    def describe(self) -> str:
        return f"compress {self.source}"

    def do(self) -> None:
        with open(self.source, "rb") as page, gzip.open(f"{self.source}.gz", "wb") as packed:
            packed.write(page.read())

    def undo(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.source}.gz")
        return ""


@dataclass(frozen=True)
class MakeLink:
    """A symbolic link where nothing is."""

    path: str
    target: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.target}"

    def do(self) -> None:
        try:
            os.symlink(self.target, self.path)
        except FileExistsError:
            if not self._ours():
                raise StepError(f"{self.path}: exists, and is not a link to {self.target}") from None

    def _ours(self) -> bool:
        return os.path.islink(self.path) and os.readlink(self.path) == self.target

    def undo(self) -> str:
        if self._ours():
            os.unlink(self.path)
        elif os.path.lexists(self.path):
            return f"{self.path}: is no longer a link to {self.target}: kept"
        return ""


@dataclass(frozen=True)
class Divert:
    """Another package's file under another name, also when that package is upgraded."""

    path: str
    to: str

    def describe(self) -> str:
        return f"dpkg-divert {self.path} to {self.to}"

    def do(self) -> None:
        call("dpkg-divert", "--local", "--rename", "--divert", self.to, "--add", self.path)

    def undo(self) -> str:
        if call("dpkg-divert", "--list", self.path):
            call("dpkg-divert", "--local", "--rename", "--divert", self.to, "--remove", self.path)
        return ""


@dataclass(frozen=True)
class Alternative:
    """A choice of the group `name`, with its slaves (link, name, path)."""

    tool: str
    name: str
    link: str
    path: str
    priority: int
    slaves: list[list[str]] = field(default_factory=list)

    def describe(self) -> str:
        return f"{self.tool} --install {self.link} {self.name} {self.path} {self.priority}, {len(self.slaves)} slaves"

    def do(self) -> None:
        slaves = [word for slave in self.slaves for word in ("--slave", *slave)]
        call(self.tool, "--install", self.link, self.name, self.path, str(self.priority), *slaves)

    def undo(self) -> str:
        call(self.tool, "--remove", self.name, self.path, status=(0, 2))  # 2: never was there
        return ""


@dataclass(frozen=True)
class Choose:
    """Which choice the group takes.  before: the one it took, "" = the best, as the tool finds it."""

    tool: str
    name: str
    path: str
    before: str = ""

    def describe(self) -> str:
        return f"{self.tool} --set {self.name} {self.path}"

    def do(self) -> None:
        call(self.tool, "--set", self.name, self.path)

    def undo(self) -> str:
        if self.before and os.path.exists(self.before):
            call(self.tool, "--set", self.name, self.before)
        else:
            call(self.tool, "--auto", self.name, status=(0, 2))
        return ""


@dataclass(frozen=True)
class Account:
    """The system account that owns the queue."""

    name: str
    home: str

    def describe(self) -> str:
        return f"make the system account {self.name}"

    def do(self) -> None:
        exists = call("getent", "group", self.name, status=(0, 2))
        group = ["--gid", self.name] if exists else ["--user-group"]
        call("useradd", "--system", *group, "--home-dir", self.home, "--no-create-home", "--shell",
             "/usr/sbin/nologin", "--comment", "aiomta mail system", self.name)  # fmt: skip

    def undo(self) -> str:
        if left := glob.glob(f"{glob.escape(self.home)}*"):
            return f"account {self.name}: kept, {left[0]} belongs to it"
        call("userdel", self.name, status=(0, 6))  # 6: no such account
        return ""


@dataclass(frozen=True)
class Units:
    """systemd units that start with the machine."""

    names: list[str]

    def describe(self) -> str:
        return f"systemctl enable {' '.join(self.names)}"

    def do(self) -> None:
        self._reload()
        call("systemctl", "enable", "--quiet", *self.names)

    def undo(self) -> str:
        now = ("--now",) if os.path.isdir("/run/systemd/system") else ()
        call("systemctl", "disable", "--quiet", *now, *self.names, status=(0, 1, 5))
        self._reload()
        return ""

    def _reload(self) -> None:
        if os.path.isdir("/run/systemd/system"):
            call("systemctl", "daemon-reload")
