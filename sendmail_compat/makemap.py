"""makemap(8): check a lookup table given on stdin, and write it as MAPNAME.cdb.

Options, messages and exit status are Sendmail's; every type that has a file of its own there is written in cdb form,
which `cdb:MAPNAME` reads.  The text is never touched; the file is replaced at once, so a reader sees the old one or
the new one.  As with Sendmail the good lines are written also when some are wrong; the status says so.

See also: mta/lookup/cdb.py
"""

import contextlib
import getopt
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mta.lookup.cdb import Cdb, CdbError, build
from sendmail_compat.tool import say

EX_OK, EX_USAGE, EX_DATAERR, EX_CANTCREAT, EX_IOERR = 0, 64, 65, 73, 74
USAGE = """\
Usage: makemap [-C cffile] [-N] [-c cachesize] [-D commentchar]
               [-d] [-e] [-f] [-i type] [-l] [-o] [-r] [-s] [-t delimiter]
               [-u] [-v] type mapname"""
TYPES = ("cdb", "hash", "btree", "dbm", "implicit")
MAX_LINE = 1 << 20


class _FatalError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Map:
    """Options, and the records so far."""

    path: str
    letters: frozenset[str]
    comment: str = "#"
    delimiter: str = ""
    status: int = EX_OK
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def line(self, number: int, line: str) -> None:
        """Take one line of input."""
        text = line.rstrip("\n").removesuffix("\r")
        if not text.strip() or text.startswith(self.comment):
            return
        if text[0] in " \t" and not self.delimiter:
            self._wrong(number, "syntax error (leading space)")
            return
        key, value = self._split(text)
        if not value and "e" not in self.letters:
            self._wrong(number, f"no RHS for LHS {key}")
            return
        if "v" in self.letters:
            print(f"key=`{key}', val=`{value}'")
        if "f" not in self.letters:
            key = key.lower()
        self._store(number, key, value)

    def _split(self, text: str) -> tuple[str, str]:
        if self.delimiter:
            key, _, value = text.partition(self.delimiter)
            return key.strip(), value.strip(" \t" + self.delimiter)
        key, *rest = text.split(None, 1)
        return key, rest[0].rstrip() if rest else ""

    def _store(self, number: int, key: str, value: str) -> None:
        end = b"\0" if "N" in self.letters else b""
        name = key.encode("utf-8", "surrogateescape") + end
        record = (name, value.encode("utf-8", "surrogateescape") + end)
        if name in self.known and "d" not in self.letters:
            if "r" in self.letters:
                self.records[self.known[name]] = record
            else:
                self._wrong(number, f"key {key}: duplicate key")
            return
        self.known.setdefault(name, len(self.records))
        self.records.append(record)

    def _wrong(self, number: int, what: str) -> None:
        say("makemap", f"{self.path}: line {number}: {what}")
        self.status = EX_DATAERR

    def load(self) -> None:
        """Begin with what the file has (-o)."""
        for key, value in _items(self.path):
            self.known.setdefault(key, len(self.records))
            self.records.append((key, value))


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    try:
        found, rest = getopt.getopt(list(argv[1:]), "C:Nc:D:defi:lorst:uv")
    except getopt.GetoptError as error:
        say("makemap", f"{error.msg}")
        return _usage()
    named = {name[1:]: value for name, value in found}
    if "l" in named:
        print("\n".join(TYPES))
        return EX_OK
    if len(rest) != 2 or len(named.get("D", "#")) != 1 or len(named.get("t", " ")) != 1:
        return _usage()
    kind, name = rest
    path = name.removesuffix(".cdb") if kind == "cdb" else name
    try:
        if kind not in TYPES:
            raise _FatalError(EX_CANTCREAT, f"error opening type {kind} map {name}: Unknown database type")
        if "s" not in named:
            _warn_about_folder(path)
        if "u" in named:
            return _dump(path)
        made = Map(path, frozenset(named), named.get("D", "#"), named.get("t", ""))
        if "o" in named and os.path.exists(f"{path}.cdb"):
            made.load()
        for number, line in enumerate(_stdin(), 1):
            made.line(number, line)
        _write(path, kind, made.records)
        return made.status
    except _FatalError as error:
        say("makemap", str(error))
        return error.status


def _usage() -> int:
    sys.stderr.write(USAGE + "\n")
    return EX_USAGE


def _stdin() -> Iterable[str]:
    for line in sys.stdin.buffer:
        if len(line) > MAX_LINE:
            raise _FatalError(EX_DATAERR, "line too long")
        yield line.decode("utf-8", "surrogateescape")


def _items(path: str) -> list[tuple[bytes, bytes]]:
    try:
        with open(f"{path}.cdb", "rb") as file:
            return list(Cdb(file.read()).items())
    except OSError as error:
        text = f"error opening type cdb map {path}: {os.strerror(error.errno or 0)}"
        raise _FatalError(EX_CANTCREAT, text) from None
    except CdbError as error:
        raise _FatalError(EX_DATAERR, f"{path}.cdb: {error}") from None


def _dump(path: str) -> int:
    for key, value in _items(path):
        sys.stdout.buffer.write(key.rstrip(b"\0") + b"\t" + value.rstrip(b"\0") + b"\n")
    return EX_OK


def _warn_about_folder(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    with contextlib.suppress(OSError):
        if os.stat(folder).st_mode & stat.S_IWOTH:
            sys.stderr.write(f"WARNING: World writable directory {folder}\n")


def _write(path: str, kind: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Replace PATH.cdb; with the owner and mode of the text beside it, so that who reads one reads the other."""
    mode, owner = 0o640, None
    with contextlib.suppress(OSError):
        found = os.stat(path)
        mode, owner = stat.S_IMODE(found.st_mode) & 0o666, (found.st_uid, found.st_gid)
    fresh = f"{path}.cdb.{os.getpid()}"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        text = f"error opening type {kind} map {path}: {os.strerror(error.errno or 0)}"
        raise _FatalError(EX_CANTCREAT, text) from None
    try:
        with open(fd, "wb") as file:
            file.write(build(records))
            file.flush()
            if owner and os.geteuid() == 0:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(fresh, f"{path}.cdb")
    except (OSError, CdbError) as error:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise _FatalError(EX_IOERR, f"{path}: {reason}") from None
