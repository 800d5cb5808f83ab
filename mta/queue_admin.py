"""Which queued messages an administrator means: by id, sender, recipient, domain, age, reason, size, queue.

Decisions only: a Filter is made from the words of a command line and asked about one message at a time.

See also: mta/cli_queue.py
"""

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from mta.record import dataclass

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "=": operator.eq, "": operator.ge,
}  # fmt: skip
_COMPARISON = re.compile(r"(>=|<=|>|<|=|)\s*(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


class FilterError(Exception):
    """A filter nobody can understand; str() says what is expected."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """ "a number is more than 3600"."""

    compare: Callable[[float, float], bool]
    limit: float

    def __call__(self, value: float) -> bool:
        """Does it hold?"""
        return self.compare(value, self.limit)


def comparison(text: str, *, sizes: bool) -> Comparison:
    """From ">2h", "<=10k"; without an operator "at least".  sizes: bytes with k, m, g; else seconds with s m h d w."""
    found = _COMPARISON.fullmatch(text.strip())
    unit = found[3].lower() if found else ""
    units = _SIZES if sizes else {"": 1, **_UNITS}
    if sizes:
        unit = unit.removesuffix("b").removesuffix("i")
    if found is None or unit not in units:
        what = "a size such as >10k or <1m" if sizes else "an age such as >2h, <30m or >=5d"
        raise FilterError(f"{text!r}: expected {what}")
    return Comparison(_OPERATORS[found[1]], float(found[2]) * units[unit])


@dataclass(frozen=True, slots=True)
class Filter:
    """What a message must be; "" and None ask nothing.  Patterns are globs (* ? [a-z]) in any case.

    domain: of the sender or of a recipient; "*.x.test" are the subdomains of x.test.
    reason: a glob, or part of the text when it has no * ? [.  age: seconds since arrival.  size: bytes.
    """

    sender: str = ""
    recipient: str = ""
    domain: str = ""
    reason: str = ""
    age: Comparison | None = None
    size: Comparison | None = None
    queues: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """True when every message is meant."""
        return self == Filter()

    def matches(
        self,
        queue_id: str,
        queue: str,
        sender: str,
        recipients: Sequence[tuple[str, str]],
        *,
        age: float,
        size: int,
    ) -> bool:
        """recipients: (address, reason or "").  A bounce's sender is "" or MAILER-DAEMON; both patterns find it."""
        if self.ids and queue_id not in self.ids:
            return False
        if self.queues and queue not in self.queues:
            return False
        if self.sender and not _sender(self.sender, sender):
            return False
        addresses = [address for address, _ in recipients]
        if self.recipient and not any(_glob(self.recipient, address) for address in addresses):
            return False
        if self.domain and not any(_glob(self.domain, a.rpartition("@")[2]) for a in (sender, *addresses) if "@" in a):
            return False
        if self.reason and not any(_text(self.reason, reason) for _, reason in recipients if reason):
            return False
        return (self.age is None or self.age(age)) and (self.size is None or self.size(size))


def _glob(pattern: str, text: str) -> bool:
    return fnmatchcase(text.lower(), pattern.lower())


def _sender(pattern: str, sender: str) -> bool:
    if sender in ("", "MAILER-DAEMON"):
        return pattern in ("<>", "*") or _glob(pattern, "MAILER-DAEMON")
    return _glob(pattern, sender)


def _text(pattern: str, text: str) -> bool:
    if any(c in pattern for c in "*?["):
        return _glob(pattern, text)
    return pattern.lower() in text.lower()


def age_text(seconds: float) -> str:
    """A short age: "45s", "12m", "3h", "5d"."""
    seconds = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (unit == "m" and seconds >= size):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
