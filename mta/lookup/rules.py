"""Tables of rules tried in order: the frame that cidr_table(5), regexp_table(5) and pcre_table(5) share.

A rule is a pattern, perhaps negated, and a result; if/endif (which nest) put a condition before a block of
rules.  What a pattern is and how a key is matched is the table type's business.
"""

import re
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from mta.lookup.context import LookupContext
from mta.lookup.lines import SPACE, Warnings, continues_nothing, logical_lines, text_of
from mta.lookup.source import Source
from mta.lookup.table import TableError
from mta.record import dataclass

K = TypeVar("K", contravariant=True)
Key = TypeVar("Key")


class Rule(Protocol[K]):
    """What a line of the table says."""

    def match(self, key: K) -> str | None:
        """Return the result when the rule applies to the key; for a condition any text means: it holds."""


@dataclass(slots=True)
class Step(Generic[Key]):
    """One rule in order.  end: for a condition the index behind its endif, else 0."""

    rule: Rule[Key]
    end: int = 0


def parse_rules(
    data: bytes, warnings: Warnings, parse: Callable[[str, bool], Rule[Key]], kind: str
) -> list[Step[Key]]:
    """Return the steps of a table; a line that cannot be understood is skipped with a warning.

    parse(text, is a condition) returns a rule, or raises ValueError with the reason.
    """
    steps: list[Step[Key]] = []
    open_conditions: list[tuple[int, int]] = []  # (index of the step, line number)

    def warn(number: int, text: str) -> None:
        warnings.add(f"{kind} map {warnings.name}, line {number}: {text}")

    for number, raw in logical_lines(data):
        if continues_nothing(raw, number, warnings):
            continue
        line = text_of(raw.strip(SPACE))
        word = re.match(r"(?i)(if|endif)(?![a-z0-9])\s*(.*)", line, re.DOTALL)
        if word and word[1].lower() == "endif":
            if word[2]:
                warn(number, "ignoring extra text after ENDIF")
            if open_conditions:
                steps[open_conditions.pop()[0]].end = len(steps)
            else:
                warn(number, "ignoring ENDIF without matching IF")
            continue
        try:
            rule = parse(word[2] if word else line, word is not None)
        except (ValueError, re.error, OverflowError, RecursionError) as error:
            warn(number, f"{error}: skipping this rule")
            if not word:
                continue
            rule = Never()  # a condition nobody understands holds for nobody, and its endif still fits
        steps.append(Step(rule))
        if word and (extra := getattr(rule, "result", "")):
            warn(number, f'ignoring extra text after IF statement: "{extra}"')
            warn(number, "do not prepend whitespace to statements between IF and ENDIF")
        if word:
            open_conditions.append((len(steps) - 1, number))
    for index, number in reversed(open_conditions):
        warn(number, "IF has no matching ENDIF")
        steps[index].end = len(steps)
    return steps


def first_match(steps: list[Step[Key]], key: Key) -> str | None:
    """Walk the steps; return the first result."""
    i, count = 0, len(steps)
    while i < count:
        step = steps[i]
        result = step.rule.match(key)
        if step.end:
            i = i + 1 if result is not None else step.end
        elif result is not None:
            return result
        else:
            i += 1
    return None


class Never:
    """A condition that holds for no key."""

    def match(self, key: object) -> str | None:
        """None."""
        return None


class RuleTable(Generic[Key]):
    """A file (or text in the table's name) of rules.  ValueError: that text has not the form of a table."""

    pattern = True

    def __init__(
        self,
        name: str,
        path: str,
        context: LookupContext,
        compile_table: Callable[[bytes, Warnings], Callable[[str], str | None]],
    ) -> None:
        self.name = name
        self._source: Source[Callable[[str], str | None]] | None = None
        self._lookup: Callable[[str], str | None] = Never().match
        if path.startswith("{"):
            warnings = Warnings(name.partition(":")[0])
            self._lookup = compile_table(inline_rules(path), warnings)
            for text in warnings:
                context.warn(text)
        else:
            self._source = Source(name, path, compile_table, context)

    async def get(self, key: str) -> str | None:
        """Try the rules on the whole key."""
        lookup = self._lookup if self._source is None else self._source.current() or await self._source.get()
        try:
            return lookup(key)
        except (RecursionError, TableError) as error:
            raise TableError(f"{self.name}: {error}") from error


def inline_rules(text: str) -> bytes:
    """Return the lines of "{ {rule-1}, {rule-2} ... }", as Postfix 3.7 puts them into a file in memory.

    ValueError: braces are missing.  A rule that is left out would let through what it is there to stop.
    """
    rules = [unbraced(item).strip() for item in split_items(unbraced(text.rstrip()))]
    return "\n".join(rules).encode("utf-8", "surrogateescape")


def unbraced(text: str) -> str:
    """Return what is between the braces around a text; ValueError: there is no such pair."""
    if not text.startswith("{"):
        raise ValueError(f"no '{{' at start of text in \"{text}\"")
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            if i + 1 < len(text):
                raise ValueError(f"syntax error after '}}' in \"{text}\"")
            return text[1:-1]
    raise ValueError(f"missing '}}' in \"{text}\"")


def split_items(text: str) -> list[str]:
    """Split at commas and white space outside { }."""
    items, item, depth = [], "", 0
    for c in text:
        if depth == 0 and c in ", \t\r\n":
            if item:
                items.append(item)
            item = ""
            continue
        depth = max(0, depth + (c == "{") - (c == "}"))
        item += c
    return [*items, item] if item else items


def braced(text: str) -> list[str]:
    """The items of "{ item, { item with blanks } ... }"; ValueError: braces that do not fit, or nothing in them."""
    items = [unbraced(item) if item.startswith("{") else item for item in split_items(unbraced(text.strip()))]
    if not items:
        raise ValueError(f'nothing in "{text}"')
    return items
