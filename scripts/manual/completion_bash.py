"""Completion for bash: one table for all commands, and one function that reads it."""

from collections.abc import Iterator, Sequence

from scripts.manual.model import Kind, Option, Page, Verb

FUNCTION = r"""
_aiomta_ids() { # queue ids, from the first column of mailq
    timeout 2 mailq 2>/dev/null | sed -n 's/^\([0-9A-Za-z]\{6,\}\)[*!#]\{0,1\} .*/\1/p'
}

_aiomta_offer() { # KIND WORD: what begins with WORD
    case $1 in
    directory) mapfile -t COMPREPLY < <(compgen -d -- "$2") ; compopt -o filenames 2>/dev/null ;;
    file) mapfile -t COMPREPLY < <(compgen -f -- "$2") ; compopt -o filenames 2>/dev/null ;;
    user) mapfile -t COMPREPLY < <(compgen -u -- "$2") ;;
    queue) mapfile -t COMPREPLY < <(compgen -W 'maildrop incoming active deferred hold corrupt' -- "$2") ;;
    queue-id) mapfile -t COMPREPLY < <(compgen -W "ALL - $(_aiomta_ids)" -- "$2") ;;
    words\ *) mapfile -t COMPREPLY < <(compgen -W "${1#words }" -- "$2") ;;
    esac
}

_aiomta() {
    local cur=${COMP_WORDS[COMP_CWORD]} place=${1##*/} kind='' word i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == = ]]; then
            continue
        elif [[ -n $kind ]]; then # it is the argument of the option before
            kind=''
        elif [[ $word == -* ]]; then
            kind=${_aiomta_arguments["$place $word"]-}
        elif [[ " ${_aiomta_verbs["$place"]-} " == *" $word "* ]]; then
            place="$place $word"
        fi
    done
    [[ $cur != = ]] || cur=''
    if [[ -n $kind ]]; then
        _aiomta_offer "$kind" "$cur"
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${_aiomta_options["$place"]-}" -- "$cur")
    elif [[ -n ${_aiomta_verbs["$place"]-} ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${_aiomta_verbs["$place"]}" -- "$cur")
    else
        _aiomta_offer "${_aiomta_operands["$place"]-}" "$cur"
    fi
}
"""


def bash(pages: Sequence[Page]) -> str:
    """The file to source."""
    return "\n".join(_file(pages)) + "\n"


def _file(pages: Sequence[Page]) -> Iterator[str]:
    yield "# bash completion for aiomta.  Made by python -m scripts.manual; do not edit."
    tables: dict[str, dict[str, str]] = {"options": {}, "arguments": {}, "verbs": {}, "operands": {}}
    for page in pages:
        _fill(tables, page.name, page.options, page.verbs, page.operands)
    for name, table in tables.items():
        yield f"declare -gA _aiomta_{name}=("
        yield from (f"    ['{place}']='{words}'" for place, words in table.items() if words)
        yield ")"
    yield FUNCTION
    yield f"complete -F _aiomta {' '.join(page.name for page in pages)}"


def _fill(
    tables: dict[str, dict[str, str]], place: str, options: Sequence[Option], verbs: Sequence[Verb], operands: Kind
) -> None:
    tables["options"][place] = " ".join(option.flag for option in options)
    tables["verbs"][place] = " ".join(verb.name for verb in verbs)
    tables["operands"][place] = operands.value
    for option in options:
        if option.argument and not option.attached:
            tables["arguments"][f"{place} {option.flag}"] = _argument(option)
    for verb in verbs:
        _fill(tables, f"{place} {verb.name}", verb.options, verb.verbs, verb.operands)


def _argument(option: Option) -> str:
    return f"words {' '.join(option.words)}" if option.words else option.kind.value or "none"
