"""What changes when a main.cf that does not say compatibility_level moves here from Postfix.

There it means 0, the defaults of Postfix 2; here 3.6.  `mta check` names the defaults that differ and that nothing in
main.cf decides.

See also: postconf(5) compatibility_level, COMPATIBILITY_README
"""

from collections.abc import Iterator

from mta.config.macro import expand, references
from mta.config.main_cf import Problem
from mta.config.params import declared
from mta.config.settings import Config

_LEVEL = "compatibility_level"
_DECIDES = {"mynetworks_style": "mynetworks"}  # with the second set, the first means nothing


def check_level(config: Config) -> list[Problem]:
    """A warning for each."""
    if config.is_set(_LEVEL):
        return []
    file = config.origin(_LEVEL)
    return [Problem(file, 0, f"{_LEVEL} is not set: {text}", False) for text in _different(config)]


def _different(config: Config) -> Iterator[str]:
    for param in declared():
        decided = config.is_set(param.name) or config.is_set(_DECIDES.get(param.name, ""))
        if decided or not param.honoured or param.noop or _LEVEL not in references(param.default):
            continue
        here = config.text(param.name)
        there = expand(param.default, lambda name: "0" if name == _LEVEL else config.text(name)).strip()
        if here != there:
            yield f"{param.name} = {here or 'empty'} (default); Postfix: {there or 'empty'}"
