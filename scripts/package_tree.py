"""What a package of aiomta consists of: every file and link with its mode, for the .deb and the .rpm alike.

The programs' Python files go to a directory of their own, /usr/share/aiomta, so that no other program imports them
by accident.  They are compiled on the target, by its Python.
"""

import contextlib
import gzip
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendmail_compat.commands import COMMANDS, Kind
from sendmail_compat.install import stub_text

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "usr/share/aiomta"
PYTHON = "/usr/bin/python3"
ELSEWHERE = {"rmail": "sbin", "rsmtp": "sbin", "runq": "sbin"}
"""Where Debian's mail systems have these besides, and UUCP looks for them (Debian Policy 11.6)."""
IN_BASH_COMPLETION = ("postcat", "postsuper")
"""Commands for which the package bash-completion itself has a file; ours knows them once it is loaded."""
WRAPPER = """\
#!{python} -IB
import sys

sys.path.insert(0, "/{library}")
from {module} import main

if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry.  path: without leading slash.  link: target of a symbolic link, else content and mode count."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    conffile: bool = False


def version() -> str:
    """The version in mta/__init__.py."""
    found = re.search(r'(?m)^__version__ = "([^"]+)"', (ROOT / "mta/__init__.py").read_text())
    if not found:
        raise ValueError("mta/__init__.py names no version")
    return found[1]


def epoch() -> int:
    """Time stamp of everything in the package: $SOURCE_DATE_EPOCH, else the last commit's time, in seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603  (fixed words)
    return int((ROOT / "CHANGELOG.md").stat().st_mtime)


def stub() -> bytes:
    """The text of `sendmail` for LIBRARY."""
    return stub_text(PYTHON, f"/{LIBRARY}").encode()


def compressed(data: bytes) -> bytes:
    """gzip, the same bytes each time."""
    return gzip.compress(data, 9, mtime=0)


def python_files() -> Iterator[Item]:
    """The two Python packages with their data, without what only developers and an installation by pip need."""
    for package in ("mta", "sendmail_compat"):
        for path in sorted((ROOT / package).rglob("*")):
            inside = path.relative_to(ROOT)
            if path.is_file() and path.suffix not in (".pyc", ".md", ".typed") and "bin" not in inside.parts:
                yield Item(f"{LIBRARY}/{inside}", path.read_bytes())


def wrapper(module: str) -> bytes:
    """A program that calls main() of a module."""
    return WRAPPER.format(python=PYTHON, library=LIBRARY, module=module).encode()


def programs() -> Iterator[Item]:
    """The entry points of the Python package, as pyproject.toml names them."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0]
    modules = dict(re.findall(r'(?m)^([\w-]+) = "([\w.]+):main"$', section))
    for command in COMMANDS:
        if command.kind is Kind.PYTHON:
            yield Item(f"usr/{command.folder}/{command.name}", wrapper(modules[command.name]), 0o755)


def units() -> list[Path]:
    """The systemd units."""
    return sorted(p for p in (ROOT / "systemd").iterdir() if p.suffix in (".service", ".socket", ".timer"))


def system_files(unit_directory: str) -> Iterator[Item]:
    """Units, account, directories."""
    for path in units():
        yield Item(f"{unit_directory}/{path.name}", path.read_bytes())
    yield Item("usr/lib/sysusers.d/aiomta.conf", (ROOT / "systemd/aiomta.sysusers").read_bytes())
    yield Item("usr/lib/tmpfiles.d/aiomta.conf", (ROOT / "systemd/aiomta.tmpfiles").read_bytes())


def configuration() -> Iterator[Item]:
    """/etc/mta and what an administrator copies from."""
    main_cf = (ROOT / "conf/main.cf").read_text()
    yield Item("etc/mta/main.cf", main_cf.encode(), conffile=True)
    yield Item("etc/mta/master.cf", (ROOT / "conf/master.cf").read_bytes(), conffile=True)
    for name in ("aliases", "main.cf.default"):
        yield Item(f"{LIBRARY}/{name}", (ROOT / "conf" / name).read_bytes())


def manuals() -> Iterator[tuple[str, bytes]]:
    """(path below usr/share/man without .gz, text) of each manual page there is."""
    for path in sorted((ROOT / "man").rglob("*.[1-9]")):
        yield f"man{path.suffix[1:]}/{path.name}", path.read_bytes()


def completions(zsh_directory: str) -> Iterator[Item]:
    """Shell completion.  bash finds a file by the command's name, so that each command has a link to the one file."""
    folder = "usr/share/bash-completion/completions"
    bash, zsh = ROOT / "completions/bash/aiomta", ROOT / "completions/zsh/_aiomta"
    if bash.exists():
        yield Item(f"{folder}/mta", bash.read_bytes())
        for command in COMMANDS:
            if command.name not in ("mta", *IN_BASH_COMPLETION):
                yield Item(f"{folder}/{command.name}", link="mta")
    if zsh.exists():
        yield Item(f"{zsh_directory}/_aiomta", zsh.read_bytes())


def documents() -> Iterator[tuple[str, bytes]]:
    """(name, text) of what goes to the documentation directory."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield path.name, path.read_bytes()


def write(items: list[Item], destination: Path, stamp: int) -> None:
    """Write everything below destination, with one time stamp; the caller's umask does not count."""
    for item in items:
        path = destination / item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if item.link:
            path.symlink_to(item.link)
        else:
            path.write_bytes(item.content)
            path.chmod(item.mode)
    for directory, names, files in os.walk(destination, topdown=False):
        for name in (*names, *files):
            path = Path(directory, name)
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
            os.utime(path, (stamp, stamp), follow_symlinks=False)
    destination.chmod(0o755)
    os.utime(destination, (stamp, stamp))
