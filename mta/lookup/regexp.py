"""regexp_table(5) and pcre_table(5) by Python's `re`.

What differs from the originals: POSIX's leftmost-longest rule (here the first alternative that fits wins, which
matters for results only, hardly ever for whether there is a match), basic expressions (flag x of regexp), and
the pcre flags A, E, U, X; a rule that uses one of these is skipped with a warning.
"""

import re

from mta.lookup.context import LookupContext
from mta.lookup.lines import Warnings
from mta.lookup.rules import RuleTable, Step, first_match, parse_rules
from mta.record import dataclass

MAX_KEY = 4096  # characters; `re` may backtrack, and the key comes from a stranger
_CLASSES = {
    **{"alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \\t", "cntrl": "\\x00-\\x1f\\x7f", "digit": "0-9"},
    **{"graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~", "space": "\\s"},
    **{"upper": "A-Z", "xdigit": "0-9A-Fa-f", "word": "\\w"},
}
_SUBSTITUTION = re.compile(r"\$(?:(\$)|(\d+)|\{(\d+)\}|\((\d+)\))")


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line; `$1` in the result stands for the first group."""

    regex: re.Pattern[str]
    result: str
    negated: bool
    substitutes: bool

    def match(self, key: str) -> str | None:
        found = self.regex.search(key)
        if self.negated:
            return self.result if found is None else None
        if found is None:
            return None
        if not self.substitutes:
            return self.result
        return _SUBSTITUTION.sub(lambda m: m[1] or found[int(m[2] or m[3] or m[4])] or "", self.result)


def _parse(text: str, *, condition: bool, posix: bool) -> _Pattern:
    negated = text.startswith("!")
    while text.startswith("!"):
        text = text[1:].lstrip()
    if not text or text[0].isalnum():
        raise ValueError("no regexp")
    delimiter, i, source = text[0], 1, ""
    while i < len(text) and text[i] != delimiter:
        if text[i] == "\\" and i + 1 < len(text):
            source += text[i] if text[i + 1] != delimiter or not delimiter.isascii() else "\\"
            i += 1
        source += text[i]
        i += 1
    if i >= len(text):
        raise ValueError(f'no closing regexp delimiter "{delimiter}"')
    flags, _, result = re.sub(r"\s", " ", text[i + 1 :], count=1).partition(" ")
    result = result.strip()
    if condition and result:
        raise ValueError("extra text after IF statement")
    regex = re.compile(_posix(source) if posix else _pcre(source), _flags(flags, posix=posix))
    groups = [int(m[2] or m[3] or m[4]) for m in _SUBSTITUTION.finditer(result) if not m[1]]
    if groups and negated:
        raise ValueError("$number found in negative match replacement text")
    if any(n > regex.groups for n in groups):
        raise ValueError(f'out of range replacement index "{max(groups)}"')
    if re.search(r"\$(?![$\d{(])", result.replace("$$", "")):
        raise ValueError("bad replacement syntax")
    return _Pattern(regex, result, negated, "$" in result)


def _flags(letters: str, *, posix: bool) -> int:
    on = {"i", "s"}
    for letter in letters:
        if letter not in ("im" if posix else "imsx"):
            raise ValueError(f'unknown regexp option "{letter}"')
        on ^= {letter}
    if posix and "m" in on:
        on.discard("s")  # REG_NEWLINE: "." does not match a newline
    values = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
    return sum(values[letter] for letter in on)


def _posix(source: str) -> str:
    """Translate an extended regular expression: bracket expressions and the end of the text."""
    return _brackets(source, posix=True)


def _pcre(source: str) -> str:
    """Translate what Perl's expressions have and Python's lack."""
    return _brackets(source, posix=False).replace(r"\z", r"\Z").replace(r"\h", r"[ \t]")


def _brackets(source: str, *, posix: bool) -> str:
    """Rewrite [...] so that [[:alpha:]] and, in POSIX, a backslash in brackets mean there what they should."""
    out, i = "", 0
    while i < len(source):
        if source[i] == "\\" and i + 1 < len(source):
            pair = source[i : i + 2]
            out += {r"\<": r"\b(?=\w)", r"\>": r"\b(?<=\w)"}.get(pair, pair) if posix else pair
            i += 2
        elif source[i] == "[":
            text, i = _bracket(source, i, posix=posix)
            out += text
        else:
            out += source[i]
            i += 1
    return out


def _bracket(source: str, start: int, *, posix: bool) -> tuple[str, int]:
    """Return the translated bracket expression that begins at start, and the index behind it."""
    i, out = start + 1, "["
    if source[i : i + 1] == "^":
        out, i = "[^", i + 1
    if source[i : i + 1] == "]":
        out, i = out + "\\]", i + 1
    while i < len(source) and source[i] != "]":
        named = re.match(r"\[:(\^?)([a-z]+):\]", source[i:])
        if named and named[2] in _CLASSES and not named[1]:
            out, i = out + _CLASSES[named[2]], i + named.end()
        elif source[i] == "\\" and not posix and i + 1 < len(source):
            out, i = out + source[i : i + 2], i + 2
        else:
            out, i = out + ("\\" + source[i] if source[i] in "\\[&|~" else source[i]), i + 1
    if i >= len(source):
        raise ValueError("Unmatched [, [^, [:, [., or [=")
    return out + "]", i + 1


def regexp_table(name: str, path: str, context: LookupContext, *, posix: bool) -> RuleTable[str]:
    """Open regexp:path (posix) or pcre:path."""
    kind = "regexp" if posix else "pcre"

    def parse(text: str, condition: bool) -> _Pattern:
        return _parse(text, condition=condition, posix=posix)

    def compile_table(data: bytes, warnings: Warnings) -> "_Lookup":
        return _Lookup([*parse_rules(data, warnings, parse, kind)])

    return RuleTable(name, path, context, compile_table)


class _Lookup:
    """A whole table."""

    def __init__(self, steps: list[Step[str]]) -> None:
        self._steps = steps

    def __call__(self, key: str) -> str | None:
        return first_match(self._steps, key[:MAX_KEY])
