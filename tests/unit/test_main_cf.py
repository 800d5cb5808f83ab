"""The reader of main.cf and of $name expansion, against what Postfix 3.7.11 printed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.macro import MacroError, compare, expand, references
from mta.config.main_cf import decode, one_line, parse_main_cf

GOLDEN = Path(__file__).parents[1] / "golden" / "config"
EXPANSIONS = [json.loads(line) for line in (GOLDEN / "expansions.jsonl").read_text().splitlines()]
VALUES = {"relayhost": "RR", "myhostname": "h.ex.org", "mydomain": "ex.org", "compatibility_level": "3.6"}


@pytest.mark.parametrize("case", EXPANSIONS, ids=[c["text"] for c in EXPANSIONS])
def test_expansion_is_what_postfix_makes_of_it(case: dict[str, str | None]) -> None:
    text, value = case["text"], case["value"]
    assert text is not None
    if value is None:
        with pytest.raises(MacroError):
            expand(text, VALUES.get)
    else:
        assert one_line(expand(text, VALUES.get)) == value


def test_only_the_branch_taken_is_expanded() -> None:
    assert expand("${relayhost?{a}:{$-}}", VALUES.get) == "a"


def test_numbers_compare_as_numbers_text_as_text_levels_as_levels() -> None:
    assert compare("10", ">", "9")
    assert compare("10", "<", "9x")
    assert compare("3.6", "<", "3.10", by_level=True)
    assert not compare("3.6", "<", "3.10")


def test_references_are_found_in_every_branch_but_not_after_a_double_dollar() -> None:
    assert references("$a ${b?{$c}:{$(d)}} $$e $$$f ${{$g} == {h}}") == {"a", "b", "c", "d", "f", "g"}


def test_comments_and_blank_lines_do_not_end_a_value() -> None:
    cf = parse_main_cf("a = 1\n# note\n\n  2\n  # more\n\t3\nb=\n", "main.cf")
    assert one_line(cf.settings["a"].value) == "1 2 3"
    assert cf.settings["b"].value == ""
    assert not cf.problems


def test_each_setting_knows_the_line_it_began_on() -> None:
    cf = parse_main_cf("# x\n\na = 1\n  2\n\nb = 3\n", "/etc/mta/main.cf")
    assert cf.settings["a"].origin == "/etc/mta/main.cf:3"
    assert cf.settings["b"].origin == "/etc/mta/main.cf:6"


def test_the_last_of_two_counts_and_the_first_is_named() -> None:
    cf = parse_main_cf("a = 1\nb = 2\na = 3\n", "main.cf")
    assert cf.settings["a"].value == "3"
    assert [str(p) for p in cf.problems] == ["main.cf:3: overriding earlier entry: a=1 (line 1)"]
    assert not cf.problems[0].fatal


@pytest.mark.parametrize("line", ["relayhost", "= 5", "relay host = a", "a\0b = 1"])
def test_a_line_that_is_no_assignment_is_an_error_and_the_rest_is_read(line: str) -> None:
    cf = parse_main_cf(f"x = 1\n{line}\ny = 2\n", "main.cf")
    assert list(cf.settings) == ["x", "y"]
    assert [(p.line, p.fatal) for p in cf.problems] == [(2, True)]


def test_bytes_that_are_not_utf8_survive() -> None:
    raw = b"a = \xe9\xff\n"
    value = parse_main_cf(decode(raw), "main.cf").settings["a"].value
    assert value.encode("utf-8", "surrogateescape") == b"\xe9\xff"


_PIECES = st.sampled_from([*"${}()?:<=a1 \n", "==", "level", "relayhost", "3.6"])


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(_PIECES, max_size=25).map("".join))
def test_any_text_expands_or_is_a_macro_error(text: str) -> None:
    references(text)
    try:
        expand(text, VALUES.get)
    except MacroError as error:
        assert str(error)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.binary(max_size=200) | st.lists(_PIECES, max_size=40).map(lambda p: "".join(p).encode()))
def test_any_file_gives_settings_or_problems_with_a_line_inside_it(raw: bytes) -> None:
    text = decode(raw)
    cf = parse_main_cf(text, "main.cf")
    lines = text.count("\n") + 1
    for setting in cf.settings.values():
        assert 1 <= setting.line <= lines
        assert setting.name == setting.name.strip() != ""
        assert "\n" not in setting.value
    assert all(1 <= p.line <= lines for p in cf.problems)
