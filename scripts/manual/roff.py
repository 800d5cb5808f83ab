"""A Page as roff with the man(7) macros, which every man program reads."""

import re
from collections.abc import Iterator

from mta.config.document_roff import escaped, heading, inline
from scripts.manual.model import Option, Page, Verb


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs; one whose lines all begin with four blanks is an example."""
    first = True
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if not first:
            yield ".PP"
        first = False
        if all(line.startswith("    ") for line in lines):
            yield from (".RS 4", ".nf", *(_verbatim(line[4:]) for line in lines), ".fi", ".RE")
        else:
            yield inline(block)


def _verbatim(line: str) -> str:
    shown = escaped(line)
    return f"\\&{shown}" if shown.startswith((".", "'")) else shown


def usage(option: Option) -> str:
    """ "-c directory" with the argument in italics."""
    blank = "" if option.attached else " "
    argument = f"{blank}\\fI{escaped(option.argument)}\\fR" if option.argument else ""
    return f"\\fB{escaped(option.flag)}\\fR{argument}"


def terms(items: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A definition list; the first of each pair is roff already."""
    for term, text in items:
        yield ".TP"
        yield term
        lines = list(paragraphs(text))
        yield from (".IP" if line == ".PP" else line for line in lines)


def page(page: Page) -> str:
    """The whole page."""
    return "\n".join(_page(page)) + "\n"


def _page(page: Page) -> Iterator[str]:
    yield '.\\" Made by python -m scripts.manual; do not edit.'
    yield from heading(page.name, page.section, page.about)
    if page.synopsis:
        yield ".SH SYNOPSIS"
        for n, line in enumerate(page.synopsis):
            if n:
                yield ".br"
            yield f"\\fB{escaped(page.name)}\\fR {_synopsis(line)}".rstrip()
    yield ".SH DESCRIPTION"
    yield from paragraphs(page.description)
    if page.verbs:
        yield ".SH COMMANDS"
        yield from _verbs(page.verbs, "", ())
    if page.options:
        yield ".SH OPTIONS"
        yield from terms((usage(o), o.doc + _words(o)) for o in page.options)
    for title, text in page.sections:
        yield f'.SH "{title.upper()}"'
        yield from paragraphs(text)
    for title, items in page.terms:
        yield f'.SH "{title.upper()}"'
        yield from terms((f"\\fB{escaped(term)}\\fR", text) for term, text in items)
    if page.status:
        yield ".SH EXIT STATUS"
        yield from terms((f"\\fB{code}\\fR", text) for code, text in page.status)
    if page.files:
        yield ".SH FILES"
        yield from terms((f"\\fI{escaped(path)}\\fR", text) for path, text in page.files)
    if page.see:
        yield ".SH SEE ALSO"
        yield ",\n".join(f".BR {name} ({section}" for name, section in (s[:-1].split("(") for s in page.see)).replace(
            ",\n", "),\n"
        ) + ")"


def _verbs(verbs: tuple[Verb, ...], before: str, known: tuple[Option, ...]) -> Iterator[str]:
    """known: options that were explained already, for all verbs of this group."""
    for verb in verbs:
        name = f"{before}{verb.name}"
        yield from terms(iter([(f"\\fB{escaped(name)}\\fR", verb.doc)]))
        options = [option for option in verb.options if option not in known]
        if options:
            yield ".RS"
            yield from terms((usage(o), o.doc + _words(o)) for o in options)
            yield ".RE"
        yield from _verbs(verb.verbs, f"{name} ", verb.options)


def _words(option: Option) -> str:
    return f" One of {', '.join(f'`{w}`' for w in option.words)}." if option.words else ""


def _synopsis(line: str) -> str:
    """Options bold, the names of arguments in italics, brackets and bars plain."""
    shown = []
    for word in re.findall(r"[\[\]|{}]|\.\.\.|[^\s\[\]|{}.]+|\.|\s+", line):
        if word.isspace() or word in "[]|{}...":
            shown.append(word)
        elif word.startswith("-") or word.startswith("`"):
            shown.append(f"\\fB{escaped(word.strip('`'))}\\fR")
        else:
            shown.append(f"\\fI{escaped(word)}\\fR")
    return "".join(shown)
