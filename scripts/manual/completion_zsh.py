"""Completion for zsh: a function per command and verb, made of _arguments(1)."""

from collections.abc import Iterator, Sequence

from scripts.manual.model import Kind, Option, Page, Verb

HELPERS = r"""
_aiomta_ids() {
    local -a ids
    ids=(ALL ${(f)"$(timeout 2 mailq 2>/dev/null | sed -n 's/^\([0-9A-Za-z]\{6,\}\)[*!#]\{0,1\} .*/\1/p')"})
    compadd -a ids
}
"""
ACTIONS = {
    Kind.NONE: " ", Kind.FILE: "_files", Kind.DIRECTORY: "_directories", Kind.USER: "_users",
    Kind.QUEUE: "(maildrop incoming active deferred hold corrupt)", Kind.QUEUE_ID: "_aiomta_ids",
}  # fmt: skip


def zsh(pages: Sequence[Page]) -> str:
    """The file for a directory of $fpath."""
    return "\n".join(_file(pages)) + "\n"


def _file(pages: Sequence[Page]) -> Iterator[str]:
    yield f"#compdef {' '.join(page.name for page in pages)}"
    yield "# zsh completion for aiomta.  Made by python -m scripts.manual; do not edit."
    yield HELPERS
    for page in pages:
        yield from _function(page.name, page.options, page.verbs, page.operands)
    yield '_aiomta_${service//[^a-z]/_} "$@"'


def _name(place: str) -> str:
    return "_aiomta_" + "".join(c if c.isalnum() else "_" for c in place)


def _function(place: str, options: Sequence[Option], verbs: Sequence[Verb], operands: Kind) -> Iterator[str]:
    for verb in verbs:
        yield from _function(f"{place} {verb.name}", verb.options, verb.verbs, verb.operands)
    yield f"{_name(place)}() {{"
    specs = [_spec(option) for option in options]
    if not verbs:
        specs.append(_quoted(f"*:{operands.value.replace('-', ' ') or 'argument'}:{ACTIONS[operands]}"))
        yield f"    _arguments -S {' '.join(specs)}"
        yield "}"
        return
    yield "    local curcontext=$curcontext state line"
    yield f"    _arguments -C -S {' '.join([*specs, _quoted('1:command:->verb'), _quoted('*::argument:->rest')])}"
    yield "    case $state in"
    words = " ".join(_quoted(f"{verb.name}:{_plain(verb.doc)}") for verb in verbs)
    yield f"    verb) local -a verbs=({words}); _describe command verbs ;;"
    yield "    rest) case $line[1] in"
    for verb in verbs:
        yield f"        {verb.name}) {_name(f'{place} {verb.name}')} ;;"
    yield from ("        esac ;;", "    esac", "}")


def _plain(text: str) -> str:
    """The first sentence, without what zsh would take for syntax."""
    sentence = " ".join(text.replace("`", "").split()).partition(". ")[0].rstrip(".")
    return "".join(c for c in sentence if c not in "[]:\\'")


def _spec(option: Option) -> str:
    action = f"({' '.join(option.words)})" if option.words else ACTIONS[option.kind]
    if not option.argument:
        return _quoted(f"*{option.flag}[{_plain(option.doc)}]")
    glued = "-" if option.attached else ""
    return _quoted(f"*{option.flag}{glued}[{_plain(option.doc)}]:{option.argument}:{action}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
