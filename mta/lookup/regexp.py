"""regexp_table(5) and pcre_table(5) by Python's `re`.

What differs from the originals: POSIX's leftmost-longest rule (here the first alternative that fits wins, which
matters for results only, hardly ever for whether there is a match), basic expressions (flag x of regexp), and
what `re` cannot say, such as recursion or (?-i) in the middle; a rule that uses one of these is skipped with a warning.
"""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator

from mta.lookup.context import LookupContext
from mta.lookup.lines import Warnings
from mta.lookup.rules import RuleTable, Step, first_match, parse_rules
from mta.lookup.table import TableError
from mta.record import dataclass

MAX_KEY = 4096  # characters; `re` may backtrack, and the key comes from a stranger
MAX_SECONDS = 0.3  # processor time of one look-up
_CLASSES = {
    **{"alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "blank": " \\t", "cntrl": "\\x00-\\x1f\\x7f", "digit": "0-9"},
    **{"graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~", "space": "\\s"},
    **{"upper": "A-Z", "xdigit": "0-9A-Fa-f", "word": "\\w"},
}
_QUANTIFIERS = "*+?"
_POSIX_ESCAPES = {"<": r"\b(?=\w)", ">": r"\b(?<=\w)", "`": r"\A", "'": r"\Z"}
_PCRE_ESCAPES = {"z": r"\Z", "h": r"[ \t]", "N": r"[^\n]"}
_INTERVAL = re.compile(r"\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]+)\}")
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
    negated = False
    while text.startswith("!"):
        negated, text = not negated, text[1:].lstrip()
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
    ungreedy = not posix and flags.count("U") % 2 == 1
    values = _flags(flags, posix=posix)
    regex = re.compile(_posix(source) if posix else _pcre(source, values, anchored="A" in flags), values)
    if condition:
        return _Pattern(regex, result, negated, False)
    groups = [int(m[2] or m[3] or m[4]) for m in _SUBSTITUTION.finditer(result) if not m[1]]
    if groups and ungreedy:
        raise ValueError('regexp option "U" with $number is not supported')
    if groups and negated:
        raise ValueError("$number found in negative match replacement text")
    if wrong := [n for n in groups if not 0 < n <= regex.groups]:
        raise ValueError(f'out of range replacement index "{max(wrong)}"')
    if "$" in _SUBSTITUTION.sub("", result):
        raise ValueError("bad replacement syntax")
    if negated:
        return _Pattern(regex, result.replace("$$", "$"), negated, False)
    return _Pattern(regex, result, negated, "$" in result)


def _flags(letters: str, *, posix: bool) -> int:
    on = {"i", "s"}
    for letter in letters if posix else re.sub("[AEUX]", "", letters):  # what E, U, X change is no match or not
        if letter not in ("im" if posix else "imsx"):
            raise ValueError(f'unknown regexp option "{letter}"')
        on ^= {letter}
    if posix and "m" in on:
        on.discard("s")  # REG_NEWLINE: "." does not match a newline
    values = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
    return re.ASCII | sum(values[letter] for letter in on)  # there a character beyond is octets, and no letter


def _posix(source: str) -> str:
    """Translate an extended regular expression as the C library reads it."""
    return _translated(source, posix=True)


def _pcre(source: str, flags: int, *, anchored: bool) -> str:
    """Translate what Perl's expressions have and Python's lack."""
    literal = re.sub(r"(?s)((?:\\[^Q]|[^\\])*)\\Q(.*?)(?:\\E|$)", lambda m: m[1] + re.escape(m[2]), source)
    on = ("i" if flags & re.IGNORECASE else "") + ("s" if flags & re.DOTALL else "")
    text = _translated(literal, posix=False, on=on)
    return rf"\A(?:{text})" if anchored else text


def _translated(source: str, *, posix: bool, on: str = "") -> str:
    """Rewrite bracket expressions, escapes and quantifiers that mean something else to `re`.

    on: flags of the whole expression; switching them on in its middle, which `re` refuses, changes nothing.
    """
    again = re.compile(rf"\(\?[{on}]+\)") if on and not re.search(r"\(\?[a-z]*-", source) else None
    out, i = "", 0
    while i < len(source):
        if source[i] == "\\" and i + 1 < len(source):
            text, i = _escape(source, i, posix=posix)
        elif source[i] == "[":
            text, i = _bracket(source, i, posix=posix)
        elif posix and source[i] in _QUANTIFIERS:
            run = source[i : len(source) - len(source[i:].lstrip(_QUANTIFIERS))]
            text, i = (run[0] if len(set(run)) == 1 else "*"), i + len(run)
        elif posix and source.startswith("(?", i):
            raise ValueError("Invalid preceding regular expression")
        elif posix and source[i] == "{" and not _INTERVAL.match(source, i):
            raise ValueError("Invalid content of \\{\\}")
        elif not posix and re.match(r"\(\?<[^=!]", source[i:]):
            text, i = "(?P<", i + 3
        elif again and (option := again.match(source, i)):
            text, i = "", option.end()
        elif not posix and source.startswith("{,", i):
            text, i = r"\{", i + 1
        else:
            text, i = source[i], i + 1
        out += text
    return out


def _escape(source: str, start: int, *, posix: bool) -> tuple[str, int]:
    """Return the translated escape that begins at start, and the index behind it."""
    c, end = source[start + 1], start + 2
    if posix:
        if c in _POSIX_ESCAPES:
            return _POSIX_ESCAPES[c], end
        return ("(?!)" if c.isalpha() and c not in "wWsSbB" else rf"\{c}"), end  # \d: matches nothing there
    if c == "x" and (code := re.compile(r"\{([0-9A-Fa-f]{1,5})\}").match(source, end)):
        return re.escape(chr(int(code[1], 16))), code.end()
    return _PCRE_ESCAPES.get(c, rf"\{c}"), end


def _bracket(source: str, start: int, *, posix: bool) -> tuple[str, int]:
    """Return the translated bracket expression that begins at start, and the index behind it."""
    i, out = start + 1, "["
    if source[i : i + 1] == "^":
        out, i = "[^", i + 1
    if source[i : i + 1] == "]":
        out, i = out + "\\]", i + 1
    while i < len(source) and source[i] != "]":
        named = re.match(r"\[([:.=])(\^?)([^\[\]]+?)\1\]", source[i:])
        if named:
            out, i = out + _class(named[1], named[3], other=bool(named[2])), i + named.end()
        elif source[i] == "\\" and not posix and i + 1 < len(source):
            text, i = _escape(source, i, posix=False)
            out += text.strip("[]") if source[i - 1] == "h" else text
        else:
            out, i = out + ("\\" + source[i] if source[i] in "\\[&|~" else source[i]), i + 1
    if i >= len(source):
        raise ValueError("Unmatched [, [^, [:, [., or [=")
    return out + "]", i + 1


def _class(kind: str, name: str, *, other: bool) -> str:
    """What stands in a bracket expression for [:name:], [:^name:] (the others), [.c.] or [=c=]."""
    if kind != ":":
        if len(name) != 1 or other:
            raise ValueError("Invalid collation character")
        return re.escape(name)
    if name not in _CLASSES:
        raise ValueError("Invalid character class name")
    if not other:
        return _CLASSES[name]
    inside = re.compile(f"[{_CLASSES[name]}]", re.ASCII)
    return "".join(f"\\x{n:02x}" for n in range(128) if not inside.match(chr(n))) + "\\x80-\U0010ffff"


def regexp_table(name: str, path: str, context: LookupContext, *, posix: bool) -> RuleTable[str]:
    """Open regexp:path (posix) or pcre:path."""
    kind = "regexp" if posix else "pcre"

    def parse(text: str, condition: bool) -> _Pattern:
        return _parse(text, condition=condition, posix=posix)

    def compile_table(data: bytes, warnings: Warnings) -> "_Lookup":
        return _Lookup([*parse_rules(data, warnings, parse, kind)])

    return RuleTable(name, path, context, compile_table)


class _TooLongError(Exception):
    """A look-up took more than MAX_SECONDS."""


def _expired(_number: int, _frame: object) -> None:
    raise _TooLongError


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Ends a look-up by a signal: some expressions take years for a key that was made for them.

    Only the main thread gets signals, and only there a loop would stand still meanwhile.  The timer ends with the
    block, and whatever it raises is raised inside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGVTALRM) is not _expired:
        signal.signal(signal.SIGVTALRM, _expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class _Lookup:
    """A whole table."""

    def __init__(self, steps: list[Step[str]]) -> None:
        self._steps = steps

    def __call__(self, key: str) -> str | None:
        try:
            with _limit():
                return first_match(self._steps, key[:MAX_KEY])
        except _TooLongError:
            raise TableError(f"a regular expression takes more than {MAX_SECONDS} s for {key[:80]}") from None
