"""$name and ${...} in configuration text.

    $name ${name} $(name)          the value; an unknown name is empty
    ${name?text} ${name?{text}}    text when name is not empty
    ${name:text} ${name:{text}}    text when name is empty
    ${name?{a}:{b}}                a when name is not empty, else b
    ${{a} == {b} ? {c} : {d}}      ==, !=, <, <=, >=, >: by number when both are digits, else by text;
                                   with "level" after the operator: by compatibility level (3.6 < 3.10)
    $$                             one $

Only the branch that is taken is expanded.  No I/O; the lookup is a function, so loops are found by the caller's
own recursion limit here (`MAX_DEPTH`).

See also: postconf(5), first section
"""

import re
from collections.abc import Callable

MAX_DEPTH = 50  # nested references; Postfix gives up at 100
MAX_LENGTH = 1 << 20  # characters of one expanded value
_NAME = re.compile(r"[A-Za-z0-9_]+")
_SPACE = " \t\r\n"
_OPERATOR = re.compile(r"(==|!=|<=|>=|<|>)(level)?")
_CLOSING = {"{": "}", "(": ")"}

Lookup = Callable[[str], str | None]


class MacroError(ValueError):
    """The text cannot be expanded; str() says why, in words for the administrator."""


def expand(text: str, lookup: Lookup) -> str:
    """Replace all references; lookup(name) returns a value that is expanded already, None when there is none.

    MacroError: malformed text, or what lookup raises.
    """
    if "$" not in text:
        return text
    out: list[str] = []
    at = length = 0
    while (dollar := text.find("$", at)) >= 0:
        piece, start = text[at:dollar], dollar + 1
        if text[start : start + 1] == "$":
            value, at = "$", start + 1
        elif text[start : start + 1] in ("{", "("):
            inner, at = _bracketed(text, start)
            value = _evaluate(inner, lookup)
        else:
            name = _NAME.match(text, start)
            if name is None:
                raise MacroError(f'empty macro name: "{text}"')
            value, at = lookup(name[0]) or "", name.end()
        out += (piece, value)
        length += len(piece) + len(value)
        if length > MAX_LENGTH:
            raise MacroError("expands to an unreasonably long text")
    out.append(text[at:])
    return "".join(out)


def references(text: str) -> set[str]:
    """Names that the text refers to in any branch, for finding macro parameters; never raises."""
    return {m[1] for m in re.finditer(r"(?<!\$)(?:\$\$)*\$[({]?[ \t\r\n]*([A-Za-z0-9_]+)", text)}


def _bracketed(text: str, start: int) -> tuple[str, int]:
    """Contents of the bracket that opens at start, and the index after the closing one."""
    opening, closing = text[start], _CLOSING[text[start]]
    depth = 0
    for i in range(start, len(text)):
        if text[i] == opening:
            depth += 1
        elif text[i] == closing:
            depth -= 1
            if not depth:
                return text[start + 1 : i], i + 1
    raise MacroError(f'truncated macro reference: "{text}"')


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _evaluate(inner: str, lookup: Lookup) -> str:
    """The value of ${inner}."""
    at = _skip(inner, 0)
    if inner[at : at + 1] == "{":
        value, at = _comparison(inner, at, lookup)
    else:
        name = _NAME.match(inner, at)
        if name is None:
            raise MacroError(f'empty macro name: "${{{inner}}}"')
        value, at = lookup(name[0]) or "", name.end()
    at = _skip(inner, at)
    if at == len(inner):
        return value
    if inner[at] not in "?:":
        raise MacroError(f'attribute name syntax error at: "...{inner[:at]}>>>{inner[at:]}"')
    return _choose(inner, at, value, lookup)


def _choose(inner: str, at: int, value: str, lookup: Lookup) -> str:
    """What follows a name or a comparison: "?" text, ":" text, or both."""
    yes = no = None
    if inner[at] == "?":
        yes, at, braced = _branch(inner, at + 1)
        if braced and at < len(inner):
            if inner[at] != ":":
                raise MacroError(f'":" expected at: "...{inner[:at]}>>>{inner[at:]}"')
            no, at, _ = _branch(inner, at + 1)
    else:
        no, at, _ = _branch(inner, at + 1)
    if at < len(inner):
        raise MacroError(f'unexpected input at: "...{inner[:at]}>>>{inner[at:]}"')
    chosen = yes if value else no
    return "" if chosen is None else expand(chosen, lookup)


def _branch(inner: str, at: int) -> tuple[str, int, bool]:
    """One alternative: {text}, or all the rest with its blanks; and the index after it (white space skipped)."""
    brace = _skip(inner, at)
    if inner[brace : brace + 1] == "{":
        text, end = _bracketed(inner, brace)
        return text, _skip(inner, end), True
    return inner[at:], len(inner), False


def _comparison(inner: str, at: int, lookup: Lookup) -> tuple[str, int]:
    """{a} OP {b}: "true" or "", and the index after it."""
    left, at = _bracketed(inner, at)
    at = _skip(inner, at)
    operator = _OPERATOR.match(inner, at)
    if operator is None:
        raise MacroError(f'"==", "!=", "<", "<=", ">=" or ">" expected at: "...{inner[:at]}>>>{inner[at:]}"')
    at = _skip(inner, operator.end())
    if inner[at : at + 1] != "{":
        raise MacroError(f'"{{expression}}" expected at: "...{inner[:at]}>>>{inner[at:]}"')
    right, at = _bracketed(inner, at)
    held = compare(expand(left, lookup), operator[1], expand(right, lookup), by_level=operator[2] is not None)
    return ("true" if held else ""), at


def compare(left: str, operator: str, right: str, *, by_level: bool = False) -> bool:
    """One comparison of the two texts, as described at the top."""
    a: tuple[int, ...] | bytes
    b: tuple[int, ...] | bytes
    if by_level:
        a, b = level(left), level(right)
    elif _digits(left) and _digits(right):
        a, b = (_number(left),), (_number(right),)
    else:
        a, b = (s.encode("utf-8", "surrogateescape") for s in (left, right))
    equal, less = a == b, a < b  # type: ignore[operator]  # both are tuples or both are bytes
    return {"==": equal, "!=": not equal, "<": less, "<=": less or equal, ">=": not less, ">": not (less or equal)}[
        operator
    ]


def level(text: str) -> tuple[int, ...]:
    """ "3.6" -> (3, 6, 0); MacroError for anything but one to three numbers joined by dots."""
    parts = text.strip().split(".")
    if len(parts) > 3 or not all(_digits(p) for p in parts):
        raise MacroError(f'malformed compatibility level syntax: "{text}"')
    return (*(_number(p) for p in parts), 0, 0)[:3]


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int:
    if len(text) > 18:
        raise MacroError(f"number too large: {text[:40]}")
    return int(text)
