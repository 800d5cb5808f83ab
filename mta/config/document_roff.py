"""The parameters as a manual page, mta-main.cf(5), from the declarations; see mta/config/document.py."""

import re
from collections.abc import Iterator
from textwrap import wrap

from mta import __version__
from mta.config.param import Kind, Param
from mta.config.params import PARAMS, PER_TRANSPORT, TOPICS, declared

DATE = "2026-11-21"
"""Of all manual pages: they change with the program, not with the day they are made on."""
_BOLD = re.compile(r"`([^`]+)`")
_WIDTH = 78  # columns of the source, for `mandoc -T lint`
_SENTENCE = re.compile(r"(?<=[a-z0-9)`]\.) (?=[A-Z`])")

_SYNTAX = """\
`main.cf` in the configuration directory holds settings of the form `name = value`. A line that begins with white
space continues the one before; `#` begins a comment line; of two settings of one name the later one counts.

`$name`, `${name}`, `${name?text}`, `${name:text}` and `${name?{a}:{b}}` in a value are replaced when it is used. A name
that only `main.cf` itself uses is its own; any other unknown name is reported, and ignored.

Times take the units s, m, h, d, w; without one, the unit of the default. Sizes are bytes. Lists are separated by
commas or white space; { } keep an item together. A malformed value stops the start with exit status 78; all errors
are reported, with file and line.

Names, meanings and defaults are those of Postfix 3.7.11 with `compatibility_level = 3.6`; where a default differs, the
entry says so. A service of `master.cf` overrides a parameter with `-o name=value`, see mta-master.cf(5)."""


def escaped(text: str) -> str:
    """Text as roff prints it unchanged; hyphens stay hyphens that can be pasted into a shell."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")


def inline(text: str) -> str:
    """Running text with `bold` words, a line per sentence; never taken for a macro."""
    return "\n".join(map(_line, _SENTENCE.split(" ".join(text.split()))))


def _line(sentence: str) -> str:
    parts = _BOLD.split(sentence)
    text = "".join(f"\\fB{escaped(part)}\\fR" if n % 2 else escaped(part) for n, part in enumerate(parts))
    lines = wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def heading(name: str, section: int, about: str) -> Iterator[str]:
    """The first lines of a page."""
    yield f'.TH {name.upper()} {section} "{DATE}" "aiomta {__version__}" "aiomta"'
    yield from (".nh", ".ad l")
    yield from (".SH NAME", f"{escaped(name)} \\- {escaped(about)}")


def main_cf_man() -> str:
    """mta-main.cf(5)."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield '.\\" Made by python -m mta.config.document; do not edit.'
    yield from heading("mta-main.cf", 5, "parameters of the mail system")
    yield from (".SH SYNOPSIS", ".I /etc/mta/main.cf")
    yield ".SH DESCRIPTION"
    for n, paragraph in enumerate(_SYNTAX.split("\n\n")):
        if n:
            yield ".PP"
        yield inline(paragraph)
    for topic, params in TOPICS:
        shown = [p for p in params if p.honoured and not p.noop]
        if shown:
            yield f'.SH "{topic.upper()}"'
            for param in shown:
                yield from _entry(param)
    yield '.SH "PER TRANSPORT"'
    yield inline("For every transport of master.cf: its name before one of these overrides the general parameter.")
    for suffix, base in PER_TRANSPORT.items():
        if PARAMS[base].honoured:
            yield from (".TP", f"\\fItransport\\fB_{escaped(suffix)}\\fR (default: ${escaped(base)})")
            yield inline(f"See `{base}`.")
    yield '.SH "NOT HONOURED"'
    yield inline("Ignoring one of these would make mail less safe; any value but the default stops the start:")
    yield ".PP"
    unsafe = sorted(param.name for param in declared() if param.unsafe_if_ignored)
    yield inline(", ".join(f"`{name}`" for name in unsafe) + ".")
    yield ".PP"
    yield inline("Any other parameter of Postfix gives one warning, or none where nothing can depend on it.")
    yield from (".SH FILES", ".TP", ".I /etc/mta/main.cf", "the settings of this machine")
    yield from (".SH SEE ALSO", ".BR mta (8),", ".BR mta\\-master.cf (5),", ".BR sendmail (1)")


def _entry(param: Param) -> Iterator[str]:
    from mta.config.document import COMPUTED  # which imports this module

    default = escaped(COMPUTED.get(param.name) or param.default or "empty")
    for mark in ("}", ",", ":", "_"):  # a line may break there: \: is a break of no width
        default = default.replace(mark, f"{mark}\\:")
    yield from (".TP", f"\\fB{escaped(param.name)}\\fR (default: {default})")
    yield inline(param.doc)
    facts = [_kind(param)]
    if param.postfix_default is not None:
        facts.append(f"Postfix's default: {param.postfix_default or 'empty'}.")
    if param.extension:
        facts.append("Not in Postfix.")
    yield ".br"
    yield inline(" ".join(facts))


def _kind(param: Param) -> str:
    """Kind, words and bounds as a sentence."""
    words = [w or "(empty)" for w in param.words]
    if words:
        return f"{'List of' if param.kind is Kind.LIST else 'One of'}: {', '.join(words)}."
    kind = param.kind.value[0].upper() + param.kind.value[1:]
    unit = "s" if param.kind is Kind.TIME else ""
    if param.low is not None and param.high is not None:
        return f"{kind}, {param.low:.0f}{unit} to {param.high:.0f}{unit}."
    return f"{kind}, at least {param.low:.0f}{unit}." if param.low else f"{kind}."
