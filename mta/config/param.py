"""What a parameter is: its kind, its bounds, and how text becomes a typed value.

Text is main.cf text after all $name references have been replaced.  A value that is malformed or out of bounds
raises ValueError whose text names what was expected; the caller adds parameter, file and line.

Units: TIME gives seconds (float), SIZE gives bytes (int).  A time without a unit letter takes the unit of the
parameter's default, as in Postfix ("delay_warning_time = 4" means hours, "queue_run_delay = 4" seconds).

See also: postconf(5) "time units"
"""

import re
from collections.abc import Callable
from enum import Enum
from ipaddress import ip_address

from mta.config.macro import level
from mta.record import dataclass

SEPARATORS = ", \t\r\n"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME = re.compile(r"\+?([0-9]{1,20})(?:([smhdw]).*)?\Z", re.DOTALL)
_MAX_TIME = 2**31 - 1  # seconds, the range of Postfix's int
_MAX_INT = 2**31 - 1
_MAX_SIZE = 2**63 - 1

Value = str | int | float | bool | tuple[str, ...]


class Kind(Enum):
    """The value is what the documentation calls it."""

    TEXT = "text"
    WORD = "one word"
    PATH = "file or directory"
    LIST = "list"
    TABLES = "lookup tables"
    BOOL = "yes/no"
    INT = "number"
    NUMBER = "fraction"
    SIZE = "bytes"
    TIME = "time"
    CODE = "SMTP reply code"
    LEVEL = "compatibility level"


LISTS = (Kind.LIST, Kind.TABLES)
TEXTS = (Kind.TEXT, Kind.WORD, Kind.PATH, Kind.LEVEL)
INTS = (Kind.INT, Kind.SIZE, Kind.CODE)


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of main.cf.

    default: text as `postconf -d` prints it, "" for empty.  low, high: bounds, inclusive, in seconds, bytes or
    counts.  words: for WORD (and the items of a LIST) the values we act on; empty = any.  later: words that
    Postfix has and we do not act on yet; refused, because the nearest word we have would be less safe.
    noop: accepted in silence because by design nothing here depends on it.  honoured False: one warning.
    unsafe_if_ignored: why a value other than the default stops the start, "" when a warning is enough.
    item: looks at each item of a LIST; ValueError when it is malformed.
    extension: not a Postfix 3.7.11 name.  postfix_default: Postfix's own default where ours differs, else None.
    """

    name: str
    kind: Kind
    default: str
    doc: str = ""
    low: float | None = None
    high: float | None = None
    words: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    honoured: bool = True
    noop: bool = False
    unsafe_if_ignored: str = ""
    item: Callable[[str], object] | None = None
    extension: bool = False
    postfix_default: str | None = None

    @property
    def unit(self) -> str:
        """The unit letter of a time that is written without one."""
        return self.default[-1] if self.default[-1:] in _UNITS else "s"

    def parse(self, text: str) -> Value:
        """Typed value of the expanded text; ValueError when it is malformed or out of bounds."""
        match self.kind:
            case Kind.BOOL:
                return parse_bool(text)
            case Kind.TIME:
                return float(self._bounded(parse_time(text, self.unit), text, _MAX_TIME))
            case Kind.INT:
                return int(self._bounded(parse_int(text), text, _MAX_INT))
            case Kind.SIZE:
                return int(self._bounded(parse_int(text), text, _MAX_SIZE))
            case Kind.CODE:
                return parse_code(text)
            case Kind.NUMBER:
                return float(self._bounded(parse_number(text), text, _MAX_INT))
            case Kind.LIST | Kind.TABLES:
                items = split(text)
                for item in items:
                    self._known(item)
                    if self.item:
                        self.item(item)
                return items
            case Kind.WORD:
                return self._known(text)
            case Kind.LEVEL:
                return ".".join(map(str, level(text)))
            case Kind.TEXT | Kind.PATH:
                return text

    def _known(self, word: str) -> str:
        if not self.words:
            return word
        folded = word.lower()
        if folded in self.words:
            return folded
        expected = ", ".join(w or "empty" for w in self.words)
        if folded in self.later:
            raise ValueError(f"not honoured yet, and ignoring it would be less safe; honoured values: {expected}")
        raise ValueError(f"expected one of: {expected}")

    def _bounded(self, value: float, text: str, ceiling: float) -> float:
        low = -ceiling - 1 if self.low is None else self.low
        high = ceiling if self.high is None else self.high
        if low <= value <= high:
            return value
        unit = {Kind.TIME: "s", Kind.SIZE: " bytes"}.get(self.kind, "")
        if value < low:
            raise ValueError(f"too small, the least is {low:.0f}{unit}")
        raise ValueError(f"too large, the most is {high:.0f}{unit}")


def parse_bool(text: str) -> bool:
    """yes or no, in any case; nothing else, as in Postfix."""
    folded = text.lower()
    if folded not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return folded == "yes"


def parse_int(text: str) -> int:
    """A decimal number with an optional sign."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise ValueError("expected a number such as 100")
    return int(text)


def parse_number(text: str) -> float:
    """A decimal fraction such as 0.5, or a quotient such as 1/3; not negative."""
    whole, slash, divisor = text.partition("/")
    try:
        parts = [float(p) for p in (whole, divisor if slash else "1") if set(p) <= set("0123456789.")]
        return parts[0] / parts[1]
    except (ValueError, IndexError, ZeroDivisionError):
        raise ValueError("expected a number such as 1 or 0.5") from None


def parse_time(text: str, unit: str) -> float:
    """Seconds of "300s", "5m", "2h", "5d", "1w", or of a bare number in the given unit.

    As in Postfix only the first letter after the number counts: "4hours" and "5min" are times too.
    """
    found = _TIME.match(text)
    if found is None:
        raise ValueError("expected a time such as 300s, 67m or 4d")
    return float(int(found[1]) * _UNITS[found[2] or unit])


def parse_code(text: str) -> int:
    """A reply code that refuses: 400 to 599, three digits."""
    if len(text) != 3 or not text.isascii() or not text.isdigit() or text[0] not in "45":
        raise ValueError("expected an SMTP reply code such as 450 or 550")
    return int(text)


def parse_server(text: str) -> tuple[str, int]:
    """Address and port of "address", "address:port" or "[v6]:port"; port 53 where none is given."""
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port if bracket else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"{text}: expected address, address:port or [v6]:port")
    try:
        return str(ip_address(host)), int(port)
    except ValueError:
        raise ValueError(f"{text}: expected address, address:port or [v6]:port, not a name") from None


def split(text: str) -> tuple[str, ...]:
    """Items separated by commas or white space; what stands in { } is never cut and keeps its braces."""
    items: list[str] = []
    start = depth = 0
    for i, c in enumerate(text):
        if c == "{":
            depth += 1
        elif c == "}" and depth:
            depth -= 1
        elif c in SEPARATORS and not depth:
            if i > start:
                items.append(text[start:i])
            start = i + 1
    if start < len(text):
        items.append(text[start:])
    return tuple(items)
