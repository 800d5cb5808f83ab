"""Manual pages and completion: one page per command, made from one list, read by roff without complaint."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mta import cli, cli_queue
from mta.install import install
from mta.submit import options as submit_options
from scripts.manual.__main__ import PAGES, files
from scripts.manual.model import Page, Verb
from sendmail_compat.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")


@pytest.mark.parametrize("name", sorted(files()))
def test_what_is_made_from_the_pages_is_checked_in(name: str) -> None:
    assert (ROOT / name).read_text() == files()[name], "run: python -m scripts.manual"


def test_nothing_else_lies_there() -> None:
    there = {p.relative_to(ROOT).as_posix() for top in ("man", "completions") for p in (ROOT / top).rglob("*.*")}
    assert {name for name in there if (ROOT / name).is_file()} <= {*files(), "man/mta-main.cf.5"}


def test_every_command_has_its_page_and_every_page_of_a_command_its_command() -> None:
    pages = {(page.name, page.section) for page in PAGES if page.command}
    assert pages == {(command.name, command.page) for command in COMMANDS}


def test_pages_refer_to_pages_that_exist() -> None:
    known = {f"{page.name}({page.section})" for page in PAGES} | {"mta-main.cf(5)"}
    for page in PAGES:
        assert set(page.see) <= known, page.name
        for name in re.findall(r"\b(?:mta[\w.-]*|post\w+|sendmail|mailq|newaliases)\(\d\)", page.description):
            assert name in known or name in ("postfix(1)",), (page.name, name)


@pytest.mark.parametrize("path", sorted((ROOT / "man").iterdir()), ids=lambda p: p.name)
def test_roff_finds_nothing_wrong(path: Path) -> None:
    checked = 0
    for argv in (["groff", "-ww", "-man", "-Tutf8"], ["mandoc", "-T", "lint"]):
        if shutil.which(argv[0]):
            done = subprocess.run([*argv, str(path)], capture_output=True, text=True, timeout=60, check=False)
            assert (done.stderr if argv[0] == "groff" else done.stdout) == ""
            checked += 1
    text = path.read_text()
    assert checked or text.startswith('.\\" Made by')
    assert re.search(r"(?m)^\.SH NAME\n\S+ \\- \S", text)
    assert not re.search(r"(?m)^'|^\.(?!\\\"|[A-Za-z]{1,2}\b)", text)


GETOPT = re.compile(r"""(?:options\(argv, |getopt\.getopt\(list\(argv\[1:\]\), )"([^"]+)\"""")


@pytest.mark.parametrize("page", [p for p in PAGES if p.command], ids=lambda p: p.name)
def test_a_page_has_the_options_that_its_command_takes(page: Page) -> None:
    """As far as the command uses getopt(3)."""
    source = ROOT / f"sendmail_compat/{page.name}.py"
    letters = GETOPT.search(source.read_text()) if source.exists() else None
    if letters is None:
        assert page.name in ("mta", "mta-local", "sendmail", "mailq", "newaliases", "rmail", "runq", "rsmtp")
        return
    wanted = {f"-{letter}": colon == ":" for letter, colon in re.findall(r"(\w)(:?)", letters[1])}
    assert {option.flag: bool(option.argument) for option in page.options} == wanted


def test_the_page_of_mta_has_its_verbs_and_their_options() -> None:
    (page,) = (p for p in PAGES if p.name == "mta")
    verbs = {verb.name: verb for verb in page.verbs}
    assert set(verbs) == {*cli.VERBS, "queue", "install", "uninstall"}
    parser = cli_queue._parser()
    choices = next(action.choices for action in parser._actions if action.dest == "verb")
    assert choices is not None and [verb.name for verb in verbs["queue"].verbs] == list(choices)
    flags = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    shown = {option.flag for verb in verbs["queue"].verbs for option in verb.options}
    assert shown == flags
    for verb in ("install", "uninstall"):
        options = [o.flag + "=/x" * bool(o.argument) for o in verbs[verb].options]
        for option in options:
            assert install.parse([option], install=verb == "install") is not None, option


def test_the_page_of_sendmail_has_every_letter_that_it_takes() -> None:
    (page,) = (p for p in PAGES if p.name == "sendmail")
    ignored = dict(page.sections)["Ignored options"]
    shown = {option.flag[1] for option in page.options} | set(re.findall(r"`-(\w)`", ignored))
    taken = submit_options._WITH_ARGUMENT | submit_options._OPTIONAL_ARGUMENT | submit_options._FLAGS
    assert taken <= shown and shown - taken <= {"-"}


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    assert BASH is not None
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_aiomta "$1" "${!#}" x; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    argv = [BASH, "--norc", "-c", script, "bash", str(ROOT / "completions/bash/aiomta"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT / "conf")
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize("page", [p for p in PAGES if p.command], ids=lambda p: p.name)
def test_bash_offers_the_options_and_words_of_a_command(page: Page) -> None:
    if page.options:
        assert complete(page.name, "-") == [option.flag for option in page.options]
    if page.verbs:
        assert complete(page.name, "") == [verb.name for verb in page.verbs]
    for option in page.options:
        if option.words:
            assert complete(page.name, option.flag, "") == list(option.words)
    for verb in page.verbs:
        _offers(verb, page.name)


def _offers(verb: Verb, *before: str) -> None:
    if verb.options:
        assert complete(*before, verb.name, "-") == [option.flag for option in verb.options]
    if verb.verbs:
        assert complete(*before, verb.name, "") == [each.name for each in verb.verbs]
    for each in verb.verbs:
        _offers(each, *before, verb.name)


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_offers_what_fits_after_an_option_and_at_the_place_where_one_is() -> None:
    assert complete("mta", "-c", "/work-of-nobody/") == []
    assert complete("mta", "-c", "/et") == ["/etc"]
    assert complete("mta", "-c", "/etc/mta", "sto") == ["stop"]
    assert complete("/usr/sbin/postsuper", "-d", "A") == ["ALL"]
    assert complete("postsuper", "-d", "ALL", "def") == ["deferred"]
    assert complete("postcat", "mas") == ["master.cf"]


def test_zsh_finds_every_command_and_can_read_the_file() -> None:
    text = (ROOT / "completions/zsh/_aiomta").read_text()
    first = text.partition("\n")[0].split()
    assert first == ["#compdef", *(page.name for page in PAGES if page.command)]
    zsh = shutil.which("zsh")
    if zsh:
        subprocess.run([zsh, "-n", str(ROOT / "completions/zsh/_aiomta")], timeout=60, check=True)
    for page in PAGES:
        if page.command:
            assert f"_aiomta_{page.name.replace('-', '_')}() {{" in text
