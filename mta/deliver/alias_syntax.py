"""The right-hand side of an alias as text: its items, and what each asks for; is a file of aliases well formed?

Items are separated by commas and line ends outside quotes, brackets and comments; of a group ("name: a, b;") its
members count.  An item is an address, "|command", /file or :include:/path, in double quotes or not.

See also: aliases(5), mta/deliver/aliases.py (what becomes of them)
"""

import re
from enum import Enum

from mta.lookup.lines import Warnings, logical_lines, parse_aliases, text_of
from mta.message_address import parse_list
from mta.record import dataclass

_INCLUDE = ":include:"
_SIGN = re.compile(r'[\\"()<>,\n:;]')


class DestinationKind(Enum):
    """What one item of a right-hand side asks for."""

    ADDRESS = "address"
    COMMAND = "command"
    FILE = "file"
    INCLUDE = "include"


@dataclass(frozen=True, slots=True)
class Destination:
    """value: unquoted address, command, path."""

    kind: DestinationKind
    value: str


def parse_destinations(text: str) -> list[Destination]:
    """Parse a right-hand side; ValueError says what is wrong with it."""
    return [destination for item in items(text) for destination in destinations(item)]


def items(text: str) -> list[str]:
    """Split at commas and line ends outside quotes, angle brackets and comments; of a group, only its members stay."""
    items, start, group_end = [], 0, -1
    no_group = -1  # what begins there is no name of a group, nor is anything longer
    separators = _separators(text)
    ends = _ends_of_groups(separators)
    for i, c in separators:
        if c == ":":
            if i > group_end and ends[i] > i and start != no_group:
                if _is_group_name(text[start:i]):
                    start, group_end = i + 1, ends[i]
                else:
                    no_group = start
        elif c != ";" or i == group_end:
            items.append(text[start:i])
            start = i + 1
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def _separators(text: str) -> list[tuple[int, str]]:
    """Where a comma, a line end or a sign of a group stands outside quotes, angle brackets and comments."""
    found, quoted, depth, escaped = [], False, 0, -1
    for match in _SIGN.finditer(text):
        i, c = match.start(), match[0]
        if i == escaped:
            continue
        if c == "\\":
            escaped = i + 1
        elif c == '"':
            quoted = not quoted
        elif not quoted and c in "(<":
            depth += 1
        elif not quoted and c in ")>":
            depth = max(0, depth - 1)
        elif c in ",\n:;" and not quoted and not depth:
            found.append((i, c))
    if quoted:
        raise ValueError("unbalanced quotes")
    if depth:
        raise ValueError("unbalanced brackets")
    return found


def _is_group_name(words: str) -> bool:
    """Can a group begin with this before its ":"?  Not a path, command, :include: or part of a domain literal."""
    name = words.strip()
    return bool(name) and name[0] not in "|/:@" and not name.startswith(('"|', '"/')) and "[" not in name


def _ends_of_groups(separators: list[tuple[int, str]]) -> dict[int, int]:
    """For each ":" the place of the next ";" in its line, -1 when there is none: then it begins no group."""
    ends, end = {}, -1
    for i, c in reversed(separators):
        if c == ":":
            ends[i] = end
        elif c != ",":
            end = i if c == ";" else -1
    return ends


def destinations(item: str) -> list[Destination]:
    """What one item asks for; ValueError says what is wrong with it."""
    bare = _unquoted(item)
    if bare.startswith("|"):
        return [Destination(DestinationKind.COMMAND, bare[1:].strip())]
    if bare.startswith("/"):
        return [Destination(DestinationKind.FILE, bare)]
    if bare.lower().startswith(_INCLUDE):
        path = bare[len(_INCLUDE) :].strip()
        if not path.startswith("/"):
            raise ValueError(f'needs an absolute path: "{item}"')
        return [Destination(DestinationKind.INCLUDE, path)]
    parsed = parse_list(item)
    if parsed.malformed:
        raise ValueError(f'{parsed.malformed} in "{item}"')
    return [Destination(DestinationKind.ADDRESS, address) for address in parsed.addresses if address]


def _unquoted(item: str) -> str:
    """A whole item in double quotes without them; :include:"/a b" as well."""
    if len(item) > 1 and item[0] == item[-1] == '"':
        item = item[1:-1]
    elif item.lower().startswith(_INCLUDE + '"') and item.endswith('"'):
        item = _INCLUDE + item[len(_INCLUDE) + 1 : -1]
    return re.sub(r"\\(.)", r"\1", item) if item[:1] in "|/:" else item


def include_text(data: bytes) -> str:
    """The lines of an :include: file that mean something; the same syntax as a right-hand side."""
    return "\n".join(line for line in text_of(data).split("\n") if line.strip() and not line.lstrip().startswith("#"))


def check_aliases(name: str, data: bytes) -> list[str]:
    """Say what is wrong with the source of an aliases(5) file, as "FILE:LINE: text" in order; [] when nothing is."""
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in logical_lines(data):
        if line[:1] in (b" ", b"\t"):
            problems.append(f"{name}:{number}: a continuation line without a line before it")
            continue
        warnings = Warnings(name)
        entries = parse_aliases(line, warnings)
        problems += [f"{name}:{number}: {text.partition(': ')[2]}" for text in warnings]
        for alias, value in entries.items():
            if alias in seen:
                problems.append(f'{name}:{number}: duplicate entry: "{alias}", the first is in line {seen[alias]}')
            seen.setdefault(alias, number)
            try:
                if not parse_destinations(value):
                    problems.append(f'{name}:{number}: "{alias}" has no members')
            except ValueError as error:
                problems.append(f"{name}:{number}: {error}")
    return problems
