"""Short words for declaring parameters; used by the params_*.py tables only.

Each takes the name, the default exactly as `postconf -d` prints it, and the documentation.  Bounds are Postfix's.
"""

from mta.config.param import Kind, Param, parse_server


def text(name: str, default: str, doc: str) -> Param:
    """Free text."""
    return Param(name, Kind.TEXT, default, doc)


def path(name: str, default: str, doc: str) -> Param:
    """A file or directory name."""
    return Param(name, Kind.PATH, default, doc)


def word(name: str, default: str, doc: str, *words: str, later: tuple[str, ...] = ()) -> Param:
    """One of the given words (any word when none is given), in any case."""
    return Param(name, Kind.WORD, default, doc, words=words, later=later)


def items(name: str, default: str, doc: str, *words: str, later: tuple[str, ...] = ()) -> Param:
    """A list; with words: of these only."""
    return Param(name, Kind.LIST, default, doc, words=words, later=later)


def servers(name: str, default: str, doc: str) -> Param:
    """A list of address, address:port or [v6]:port."""
    return Param(name, Kind.LIST, default, doc, item=parse_server)


def tables(name: str, default: str, doc: str) -> Param:
    """A list of type:name lookup tables."""
    return Param(name, Kind.TABLES, default, doc)


def yes_no(name: str, default: str, doc: str) -> Param:
    """yes or no."""
    return Param(name, Kind.BOOL, default, doc)


def count(name: str, default: str, doc: str, low: int = 0, high: int | None = None) -> Param:
    """A number of things."""
    return Param(name, Kind.INT, default, doc, low, high)


def fraction(name: str, default: str, doc: str) -> Param:
    """A number that need not be whole."""
    return Param(name, Kind.NUMBER, default, doc, 0)


def size(name: str, default: str, doc: str, low: int = 0) -> Param:
    """Bytes."""
    return Param(name, Kind.SIZE, default, doc, low)


def time(name: str, default: str, doc: str, low: int = 1, high: int | None = None) -> Param:
    """Seconds unless the default shows another unit."""
    return Param(name, Kind.TIME, default, doc, low, high)


def code(name: str, default: str, doc: str) -> Param:
    """An SMTP reply code."""
    return Param(name, Kind.CODE, default, doc)


def changed(param: Param, default: str) -> Param:
    """A parameter of Postfix whose default is another one here; `default` is ours."""
    return _replaced(param, default=default, postfix_default=param.default)


def extension(param: Param) -> Param:
    """A parameter that Postfix 3.7.11 does not have."""
    return _replaced(param, extension=True)


def ignored_by_design(param: Param) -> Param:
    """Accepted and typed, but nothing depends on it; its doc says why."""
    return _replaced(param, noop=True)


def not_yet(*params: Param) -> tuple[Param, ...]:
    """Parameters that nobody acts on so far: setting one gives a warning.  Their kinds are known all the same."""
    return tuple(_replaced(param, honoured=False) for param in params)


def only_default(param: Param, why: str) -> Param:
    """Known but not honoured yet; another value than the default stops the start because of `why`."""
    return _replaced(param, honoured=False, unsafe_if_ignored=why)


def _replaced(param: Param, **changes: str | bool) -> Param:
    """dataclasses.replace with the types kept."""
    values = {name: getattr(param, name) for name in param.__slots__}
    return Param(**(values | changes))
