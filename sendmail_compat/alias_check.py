"""newaliases: our tables are read from their text, so there is nothing to build; the files are checked instead.

See also: aliases(5), newaliases(1)
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator

from sendmail_compat.config import Config, opener

EX_DATAERR = 65
EX_NOINPUT = 66
EX_NOPERM = 77
_FILE_TYPES = ("hash", "btree", "dbm", "cdb", "lmdb", "texthash", "sdbm")
MAX_COMPLAINTS = 50


def newaliases(config: Config, program: str) -> int:
    """Check every file of alias_database, else alias_maps; return the exit status.

    Only who may write a file may "rebuild" it: 77 otherwise, as callers expect of an unprivileged user.
    """
    status = 0
    for path in alias_files(config):
        status = max(status, _check_file(path, program))
    return status


def alias_files(config: Config) -> list[str]:
    """Paths of alias files, each once."""
    spec = config.text("alias_database" if "alias_database" in config.values else "alias_maps")
    out: list[str] = []
    for item in spec.replace(",", " ").split():
        kind, _, path = item.removeprefix("proxy:").partition(":")
        if not path and kind.startswith("/"):
            kind, path = "hash", kind
        if kind in _FILE_TYPES and path and path not in out:
            out.append(path)
    return out


def _check_file(path: str, program: str) -> int:
    def say(text: str) -> None:
        sys.stderr.write(f"{program}: {text}\n")

    try:
        with open(path, encoding="utf-8", errors="surrogateescape", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                say(f"fatal: open {path}: not a regular file")
                return EX_NOINPUT
            if not os.access(path, os.W_OK):
                say(f"fatal: open {path}: Permission denied")
                return EX_NOPERM
            status, seen, complaints = 0, dict[str, int](), 0
            for number, line in logical_lines(file):
                problem, name = check_entry(line)
                if not problem and name in seen:
                    say(f'warning: {path}, line {number}: duplicate entry: "{name}"')
                    continue
                seen[name] = number
                if problem:
                    say(f"error: {path}, line {number}: {problem}")
                    status = EX_DATAERR
                    complaints += 1
                    if complaints == MAX_COMPLAINTS:
                        break
            return status
    except PermissionError:
        say(f"fatal: open {path}: Permission denied")
        return EX_NOPERM
    except OSError as error:
        say(f"fatal: open {path}: {os.strerror(error.errno or 0)}")
        return EX_NOINPUT


def logical_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of each entry: a line that starts with a blank continues the one before."""
    start, parts = 0, list[str]()
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\n")
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if text[0] in " \t" and parts:
            parts.append(text)
            continue
        if parts:
            yield start, "\n".join(parts)
        start, parts = number, [text]
    if parts:
        yield start, "\n".join(parts)


def check_entry(entry: str) -> tuple[str, str]:
    """What is wrong with an entry ("" = nothing), and its name in lower case."""
    if entry[0] in " \t":
        return "continuation line before the first entry", ""
    quoted = at = 0
    while at < len(entry) and (quoted or entry[at] != ":"):
        if entry[at] == "\\":
            at += 1
        elif entry[at] == '"':
            quoted ^= 1
        at += 1
    if at >= len(entry):
        return "need name:value pair", ""
    name = entry[:at].strip().strip('"').lower()
    value = entry[at + 1 :].strip()
    if not name:
        return "missing name before the colon", ""
    if not value:
        return f'no value for "{name}"', name
    if value.replace('\\"', "").count('"') % 2:
        return "unbalanced quotes", name
    return "", name
