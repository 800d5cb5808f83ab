"""Addresses inside a header or an argument: RFC 5322 lists as people write them, one linear pass.

Understood: display names, comments (nested), quoted strings, groups, source routes (dropped), blanks around
"@" and ".", a ":" that begins no group (no ";" follows: `mailto:a@x` has the local part "mailto:a"), and lists
without commas (`a@x b@y`, `Bob Smith` = two local users), because callers write them.
An RFC 2047 word is display text, never an address.  What cannot be understood is said (`malformed`), not guessed.
A list of any length can be parsed in slices of some milliseconds (parsing()); nesting and length of one element are
bounded, because no program writes what only an attacker would.

Addresses go out unquoted ("a b@dom"); quote() gives the form for headers.

See also: RFC 5322 s3.4, s4.4 (obsolete forms)
"""

import re
from collections.abc import Generator
from dataclasses import field
from typing import TypeVar

from mta.record import dataclass

TOKEN_LIMIT = 10240  # of one element; Postfix's header_address_token_limit, of a whole header
SLICE = 1000  # tokens, or addresses, between two pauses
NO_DOMAIN = "address without local part or domain"  # a fault that hides no other address
_COMMENT_DEPTH = 100

_TOKEN = re.compile(
    r'(?P<blank>[ \t\r\n]+)|(?P<quoted>"(?:[^"\\]++|\\.)*+")|(?P<literal>\[(?:[^][\\]++|\\.)*+\])'
    r'|(?P<special>[<>@,;:.])|(?P<comment>\()|(?P<atom>(?:[^ \t\r\n()<>@,;:\\".\[\]]++|\\.)++)|(?P<bad>.)',
    re.DOTALL,
)
_COMMENT_STEP = re.compile(r"[^()\\]*(?:\\.[^()\\]*)*", re.DOTALL)
# No "*+" or "?+" behind a group: Python 3.11.2 (Debian 12) does not give back what such a group began to match.
_DOTTED = r"[^ \t\r\n()<>@,;:\\\".\[\]\x00-\x1f\x7f=]++(?:\.[^ \t\r\n()<>@,;:\\\".\[\]\x00-\x1f\x7f=]++)*"
_PLAIN = re.compile(rf"[ \t\r\n]*+({_DOTTED}(?:@{_DOTTED})?)[ \t\r\n]*+(?:,|\Z)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ENCODED_WORD = re.compile(r"=\?[^?\s]*\?[bBqQ]\?[^?\s]*\?=\Z")
_ATOMS = re.compile(r"[^ \t\r\n()<>@,;:\\\".\[\]\x00-\x1f\x7f]+(?:\.[^ \t\r\n()<>@,;:\\\".\[\]\x00-\x1f\x7f]+)*\Z")


@dataclass(slots=True)
class Address:
    """One address.  text: unquoted, without route.  start, end: what a rewriting replaces.  routed: had a route.

    source: as it was written, without blanks, comments and route.
    """

    text: str
    start: int
    end: int
    routed: bool = False
    source: str = ""


@dataclass(slots=True)
class Element:
    """What stands between two commas: display name, address, comments; no address for `undisclosed:;`."""

    start: int
    end: int
    addresses: list[Address] = field(default_factory=list)


@dataclass(slots=True)
class AddressList:
    """A parsed list.  malformed: why it cannot be trusted, "" when it can."""

    elements: list[Element]
    malformed: str = ""

    @property
    def addresses(self) -> list[str]:
        """Every address, unquoted, in order; "" for `<>`."""
        return [a.text for e in self.elements for a in e.addresses]


Token = tuple[str, int, int]  # kind (a special is its own kind), start, end


def parse_list(value: str) -> AddressList:
    """Parse a list of addresses; never raises, linear in the length."""
    return finished(parsing(value))


def parsing(value: str) -> Generator[None, None, AddressList]:
    """As parse_list(), with a pause after each SLICE of work."""
    parser = _Parser(value)
    yield from parser.plain()
    yield from parser.run()
    return AddressList(parser.elements, parser.malformed)


T = TypeVar("T")


def finished(steps: Generator[None, None, T]) -> T:
    """The result of work in slices, without pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result


class _Parser:
    def __init__(self, value: str) -> None:
        self.value = value
        self.malformed = ""
        self.elements: list[Element] = []
        self._from = 0  # what is before it has been parsed
        self._words: list[Token] = []  # of a bare address or a display name
        self._element: Element | None = None
        self._complete = False  # the element has its <address>
        self._route = -1  # where the route before a bare address began
        self._last_group = -1  # index of the last ";"

    def plain(self) -> Generator[None, None, None]:
        """Plain addresses between commas at the beginning, most often all there is."""
        if ";" in self.value:
            return  # a group may begin with one
        pos, match = 0, _PLAIN.match
        while m := match(self.value, pos):
            start, end = m.span(1)
            self.elements.append(Element(start, end, [Address(m[1], start, end, source=m[1])]))
            pos = m.end()
            if len(self.elements) % SLICE == 0:
                yield
        self._from = pos

    def run(self) -> Generator[None, None, None]:
        tokens = yield from self._tokens()
        i, n = 0, len(tokens)
        pause = SLICE
        while i < n:
            if i >= pause:
                pause = i + SLICE
                yield
            kind, start, end = tokens[i]
            if kind == ",":
                self._close()
            elif kind == "<":
                i = self._angle(tokens, i)
            elif kind == ";":
                self._bare()
                self._at(start).end = end
                self._close()
            elif kind == ":":
                self._colon(tokens, i)
            elif kind == "comment":
                if self._element is None and i and tokens[i - 1][0] in (";", "comment") and self.elements:
                    self.elements[-1].end = end  # behind a group
                else:
                    self._at(start).end = end
            elif kind in (">", "bad"):
                self._bad(f'unexpected "{self.value[start:end]}"')
                self._at(start).end = end
            else:
                if self._complete:
                    self._close()
                self._at(start).end = end
                self._words.append(tokens[i])
            i += 1
        self._close()

    def _colon(self, tokens: list[Token], i: int) -> None:
        """The end of a group's name, of a route, or (no ";" follows) a part of an address."""
        _, start, end = tokens[i]
        if self._complete:
            self._close()
        self._at(start).end = end
        if i < self._last_group:
            self._words.clear()
        elif self._words and self._words[0][0] == "@":
            self._route = self._words[0][1]
            self._words.clear()
        else:
            self._words.append(tokens[i])

    def _bad(self, why: str) -> None:
        if self.malformed in ("", NO_DOMAIN):
            self.malformed = why

    def _at(self, start: int) -> Element:
        if self._element is None:
            self._element = Element(start, start)
        return self._element

    def _tokens(self) -> Generator[None, None, list[Token]]:
        value, out, pos = self.value, list[Token](), self._from
        begun = 0  # index of the first token of this element
        while m := _TOKEN.match(value, pos):
            kind, start, pos = m.lastgroup or "", m.start(), m.end()
            if len(out) - begun >= TOKEN_LIMIT:
                self._bad("address too long")
                out.append(("bad", start, len(value)))
                break
            if kind == "special":
                out.append((m[0], start, pos))
                if m[0] in ",;":
                    begun = len(out)
                    if m[0] == ";":
                        self._last_group = begun - 1
            elif kind == "comment":
                pos = yield from self._comment(start)
                out.append(("comment", start, pos))
            elif kind == "bad" and m[0] in '"[':  # never closed: the rest is inside
                self._bad("unbalanced quotes" if m[0] == '"' else 'unbalanced "["')
                out.append(("bad", start, len(value)))
                break
            elif kind != "blank":
                out.append((kind, start, pos))
            if len(out) % SLICE == 0:
                yield
        return out

    def _comment(self, start: int) -> Generator[None, None, int]:
        depth, pos, value = 0, start, self.value
        steps = 0
        while pos < len(value):
            c = value[pos]
            pos += 1
            if c == "(":
                depth += 1
                if depth > _COMMENT_DEPTH:
                    self._bad("comment nested too deeply")
                    return len(value)
            elif c == ")":
                depth -= 1
                if depth == 0:
                    return pos
            elif c == "\\":
                pos += 1
            step = _COMMENT_STEP.match(value, pos)
            pos = step.end() if step else pos
            steps += 1
            if steps % SLICE == 0:
                yield
        self._bad("unbalanced comment")
        return len(value)

    def _angle(self, tokens: list[Token], i: int) -> int:
        """An address in angle brackets; the words before it are its display name.  Return the index of ">"."""
        if self._complete:
            self._close()
        open_at = tokens[i][1]
        element = self._at(open_at)
        self._words.clear()
        inside: list[Token] = []
        routed = False
        i += 1
        while i < len(tokens) and tokens[i][0] != ">":
            if tokens[i][0] == ":" and inside and inside[0][0] == "@":  # <@hop1,@hop2:user@host>
                inside, routed = [], True
            elif tokens[i][0] != "comment":
                inside.append(tokens[i])
            i += 1
        if i == len(tokens):
            self._bad('unbalanced "<"')
            element.end = len(self.value)
            return i
        if any(kind in (",", ";", "<", "bad") for kind, _, _ in inside) or len(self._groups(inside)) > 1:
            self._bad("malformed address")
        element.end = tokens[i][2]
        element.addresses.append(self._address(inside, open_at + 1, tokens[i][1], routed=routed))
        self._complete = True
        return i

    def _close(self) -> None:
        self._bare()
        if self._element is not None:
            self.elements.append(self._element)
        self._element, self._complete = None, False

    def _bare(self) -> None:
        """Words without angle brackets: each run joined by "@" and "." is an address and an element of its own."""
        groups, self._words = self._groups(self._words), []
        route, self._route = self._route, -1
        if not groups or self._complete:
            return
        end = self._at(groups[0][0][1]).end
        for n, group in enumerate(groups):
            if n:
                self._split(group[0][1])
            if _ENCODED_WORD.match(self.value, group[0][1], group[-1][2]):
                continue
            element = self._at(group[0][1])
            element.end = group[-1][2]
            routed = route >= 0 and n == 0
            start = route if routed else group[0][1]
            element.addresses.append(self._address(group, start, group[-1][2], routed=routed))
        self._at(end).end = end

    def _split(self, start: int) -> None:
        if self._element is not None:
            self.elements.append(self._element)
        self._element = Element(start, start)

    @staticmethod
    def _groups(words: list[Token]) -> list[list[Token]]:
        groups: list[list[Token]] = []
        joined = True
        for token in words:
            operator = token[0] in ("@", ".", ":")
            if not groups or not (joined or operator):
                groups.append([])
            groups[-1].append(token)
            joined = operator
        return groups

    def _address(self, tokens: list[Token], start: int, end: int, *, routed: bool) -> Address:
        parts = []
        for kind, a, b in tokens:
            piece = self.value[a:b]
            if kind == "quoted":
                piece = "".join(_ESCAPE.split(piece[1:-1]))
            elif "\\" in piece and kind == "atom":
                piece = "".join(_ESCAPE.split(piece))
            parts.append(piece)
        if tokens and (tokens[0][0] == "@" or tokens[-1][0] == "@"):
            self.malformed = self.malformed or NO_DOMAIN
        source = "".join(self.value[a:b] for _, a, b in tokens)
        return Address("".join(parts), start, end, routed, source)


def quote(address: str) -> str:
    """Return the address as it stands in a header or command: local part quoted when it has to be."""
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if _ATOMS.match(local) or (not local and not at):
        return address
    inner = local.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\\r")
    return f'"{inner}"{at}{domain}'
