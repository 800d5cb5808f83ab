"""Reader of main.cf: logical lines to settings, each with its file and line.

A logical line is "name = value".  A physical line that begins with white space continues it; comment lines
(first visible character #) and blank lines may stand between continuation lines and do not end it.  The value
keeps the white space inside it; nothing is unquoted.  A name set twice: the last one counts, with a warning.
Nothing is expanded here and no name is looked up: that is config.py's job.

Every byte sequence is either read or reported as a Problem; bytes that are not UTF-8 survive as surrogates.

See also: postconf(5)
"""

from collections.abc import Iterator
from dataclasses import field

from mta.record import dataclass

_SPACE = " \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something the administrator should know.  line 0: the file as a whole."""

    file: str
    line: int
    text: str
    fatal: bool

    def __str__(self) -> str:
        """ "file:line: text"."""
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One assignment; value as written, white space stripped at both ends."""

    name: str
    value: str
    file: str
    line: int

    @property
    def origin(self) -> str:
        """ "file:line", or the file alone for a setting that has no line (an option of a command)."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class MainCf:
    """What one file says."""

    file: str
    settings: dict[str, Setting] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def decode(raw: bytes) -> str:
    """Text of a configuration file; bytes that are not UTF-8 come back unchanged when encoded again."""
    return raw.decode("utf-8", "surrogateescape")


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first physical line, logical line without newlines, right-stripped).

    A line that begins with white space and continues nothing is yielded as it is.
    """
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.split("\n"), 1):
        visible = line.strip(_SPACE)
        if not visible or visible.startswith("#"):
            continue
        if line[0] in _SPACE and parts:
            parts.append(line)
            continue
        if parts:
            yield first, "".join(parts).rstrip(_SPACE)
        parts, first = [line], number
        if line[0] in _SPACE:
            yield first, line.rstrip(_SPACE)
            parts = []
    if parts:
        yield first, "".join(parts).rstrip(_SPACE)


def parse_main_cf(text: str, file: str) -> MainCf:
    """Read main.cf text; what is wrong with it is in `problems`, nothing is raised."""
    cf = MainCf(file)
    for number, line in logical_lines(text):
        if line[0] in _SPACE:
            cf.problems.append(Problem(file, number, f'logical line must not start with whitespace: "{line}"', False))
            continue
        problem = None
        name, equals, value = line.partition("=")
        name = name.rstrip(_SPACE)
        if "\0" in line:
            problem = "NUL byte in the line"
        elif not equals or any(c in _SPACE for c in name):
            problem = f"missing '=' after attribute name: \"{_short(line)}\""
        elif not name:
            problem = f'missing attribute name: "{_short(line)}"'
        if problem:
            cf.problems.append(Problem(file, number, problem, True))
            continue
        if name in cf.settings:
            old = cf.settings[name]
            text_ = f"overriding earlier entry: {name}={_short(old.value)} (line {old.line})"
            cf.problems.append(Problem(file, number, text_, False))
        cf.settings[name] = Setting(name, value.strip(_SPACE), file, number)
    return cf


def one_line(value: str) -> str:
    """The value as postconf shows it: each run of white space is one blank."""
    return " ".join(value.split())


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
