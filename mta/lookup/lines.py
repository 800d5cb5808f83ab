"""The text of lookup tables: logical lines, postmap(1) entries, aliases(5) entries.

Pure functions from bytes to values; whatever is wrong with a line becomes a warning "FILE, line N: ..." in
Postfix's words, and the line is skipped.

See also: postmap(1) "TABLE FORMAT", aliases(5), readllines in any Postfix table manual
"""

from collections.abc import Iterator

SPACE = b" \t\n\v\f\r"


class Warnings(list[str]):
    """Warnings about one file; beyond LIMIT they are only counted."""

    LIMIT = 20

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.more = 0

    def line(self, number: int, text: str) -> None:
        """Add "FILE, line N: text"."""
        self.add(f"{self.name}, line {number}: {text}")

    def add(self, text: str) -> None:
        """Add a warning unless there are enough."""
        if len(self) < self.LIMIT:
            self.append(text)
        else:
            self.more += 1


def text_of(raw: bytes) -> str:
    """Table text as str; octets that are not UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def logical_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first physical line, text) with continuation lines joined.

    A line that begins with white space continues the one before; empty lines and lines whose first character
    that is not a blank is "#" are skipped, also between the two.
    """
    start, parts = 0, b""
    for number, line in enumerate(data.split(b"\n"), 1):
        stripped = line.lstrip(SPACE)
        if not stripped or stripped[:1] == b"#":
            continue
        if line[0] in SPACE and parts:
            parts += line
            continue
        if parts:
            yield start, parts
        start, parts = number, line
    if parts:
        yield start, parts


def continues_nothing(line: bytes, number: int, warnings: Warnings) -> bool:
    """True, with a warning, for a first line that begins with white space."""
    if line[0] not in SPACE:
        return False
    warnings.line(number, f'logical line must not start with whitespace: "{text_of(line[:30])}"')
    return True


def parse_postmap(data: bytes, warnings: Warnings) -> dict[str, str]:
    """Return key (folded to lower case) -> value of a postmap(1) source file; the first of two equal keys wins."""
    index: dict[str, str] = {}
    for number, line in logical_lines(data):
        if continues_nothing(line, number, warnings):
            continue
        split = _split_key(line)
        if split is None:
            warnings.line(number, f"unbalanced '\"' in '{text_of(line)}' -- ignoring this line")
            continue
        key, value = split
        if not key or not value:
            warnings.line(number, "expected format: key whitespace value")
            continue
        if key.endswith(b":"):
            warnings.line(number, 'record is in "key: value" format; is this an alias file?')
        _add(index, text_of(key).lower(), text_of(value), number, warnings)
    return index


def _split_key(line: bytes) -> tuple[bytes, bytes] | None:
    """Split at the first white space outside double quotes; None when a quote is not closed."""
    line = line.strip(SPACE)
    if b'"' not in line and b"\\" not in line:
        key, *rest = line.split(None, 1)
        return key, rest[0] if rest else b""
    quoted, i = False, 0
    while i < len(line):
        c = line[i]
        if c == 0x5C:  # backslash
            i += 1
        elif c == 0x22:  # double quote
            quoted = not quoted
        elif c in SPACE and not quoted:
            break
        i += 1
    return None if quoted else (line[:i], line[i:].strip(SPACE))


def _add(index: dict[str, str], key: str, value: str, number: int, warnings: Warnings) -> None:
    if key in index:
        warnings.line(number, f'duplicate entry: "{key}"')
    else:
        index[key] = value


def parse_aliases(data: bytes, warnings: Warnings) -> dict[str, str]:
    """Return name (unquoted, lower case) -> value text of an aliases(5) file.

    The value keeps its quotes: whoever expands it parses an address list.
    """
    index: dict[str, str] = {}
    for number, line in logical_lines(data):
        if continues_nothing(line, number, warnings):
            continue
        split = _split_alias(text_of(line.strip(SPACE)))
        if split is None:
            warnings.line(number, "need name:value pair")
            continue
        name, value, quoted = split
        if not quoted and ("@" in name or "%" in name):
            warnings.line(number, "name must be local")
            continue
        _add(index, name.lower(), value, number, warnings)
    return index


def _split_alias(text: str) -> tuple[str, str, bool] | None:
    """Return (unquoted name, value, name was quoted); None when it is not "name: value"."""
    name, i, quoted, was_quoted = "", 0, False, False
    while i < len(text):
        c = text[i]
        if c == "\\" and i + 1 < len(text):
            i += 1
            name += text[i]
        elif c == '"':
            quoted = not quoted
            was_quoted = True
        elif c == ":" and not quoted:
            break
        elif c == "," and not quoted:
            return None
        else:
            name += c
        i += 1
    value = text[i + 1 :].strip(" \t\r\v\f")
    name = name if was_quoted else name.strip(" \t")
    if quoted or i >= len(text) or not value or not (name.strip() or was_quoted):
        return None
    return name.strip(" \t"), value, was_quoted
