"""The declarations: complete, with Postfix's defaults, and each default fits its own kind."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config import document
from mta.config.document_roff import main_cf_man
from mta.config.param import Kind, Param, parse_time, split
from mta.config.params import PARAMS, declared, find

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "config"
POSTFIX = {
    name: value.strip()
    for name, _, value in (line.partition(" =") for line in (GOLDEN / "postconf-d.txt").read_text().splitlines())
}
DIFFERENCES = {
    "alias_maps", "config_directory", "data_directory", "mail_name", "mail_owner", "queue_directory",
    "smtp_tls_security_level", "smtpd_forbid_bare_newline", "smtpd_forbid_unauth_pipelining", "compatibility_level",
}  # fmt: skip
EXTENSIONS = {
    "submit_socket", "smtpd_processes", "smtpd_processes_max_idle",
    "dns_servers", "submit_user_connection_limit", "submit_user_message_limit",
    "submit_reserved_space", "submit_fallback_relay",
}  # fmt: skip


def test_every_postfix_parameter_is_known_with_the_default_that_postfix_prints() -> None:
    assert len(POSTFIX) == 1043
    for name, default in POSTFIX.items():
        param = find(name)
        assert param is not None, name
        if name not in document.COMPUTED:
            assert (param.default if param.postfix_default is None else param.postfix_default) == default, name


def test_defaults_differ_from_postfix_where_the_documentation_says_so_and_nowhere_else() -> None:
    assert {p.name for p in declared() if p.postfix_default is not None} == DIFFERENCES
    assert {p.name for p in PARAMS.values() if p.extension} == EXTENSIONS
    assert {p.name for p in declared()} - set(POSTFIX) == EXTENSIONS


@pytest.mark.parametrize("param", declared(), ids=lambda p: p.name)
def test_a_declaration_is_complete(param: Param) -> None:
    assert param.doc
    assert not (param.noop and param.unsafe_if_ignored)
    if "$" not in param.default and param.name not in document.COMPUTED:
        param.parse(param.default)


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("conf/main.cf.default", document.main_cf_default), ("docs/parameters.md", document.parameters_md),
        ("man/mta-main.cf.5", main_cf_man),
    ],
)  # fmt: skip
def test_generated_files_are_what_the_declarations_give(file: str, made: object) -> None:
    assert callable(made)
    assert (ROOT / file).read_text() == made(), "run: python -m mta.config.document"


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [("5", "s", 5), ("5", "d", 432000), ("5m", "d", 300), ("2h", "s", 7200), ("1w", "s", 604800), ("+5", "s", 5),
     ("4hours", "s", 14400), ("5min", "h", 300), ("30seconds", "h", 30), ("1d ago", "s", 86400)],
)  # fmt: skip
def test_time_units(text: str, unit: str, seconds: float) -> None:
    assert parse_time(text, unit) == seconds


@pytest.mark.parametrize("text", ["", "5 m", "5M", "5x", "5.5m", "-5", "m", "1e3", "٣s"])
def test_a_bad_time_is_refused_as_postfix_refuses_it(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as 300s, 67m or 4d"):
        parse_time(text, "s")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("soft_bounce", "true", "expected yes or no"),
        ("soft_bounce", "", "expected yes or no"),
        ("hash_queue_depth", "5k", "expected a number"),
        ("hash_queue_depth", "0", "the least is 1"),
        ("hash_queue_depth", "99999999999", "the most is 16"),
        ("message_size_limit", "-1", "the least is 0 bytes"),
        ("maximal_queue_lifetime", "101d", "the most is 8640000s"),
        ("unknown_local_recipient_reject_code", "250", "expected an SMTP reply code"),
        ("inet_protocols", "ipv5", "expected one of: all, ipv4, ipv6"),
        ("smtp_tls_security_level", "encrypt", "not honoured yet"),
        ("smtp_tls_security_level", "maybe", "expected one of: empty, none, may"),
    ],
)
def test_a_malformed_value_says_what_was_expected(name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PARAMS[name].parse(text)


def test_a_message_may_be_larger_than_a_32_bit_number() -> None:
    assert PARAMS["message_size_limit"].parse("99999999999") == 99999999999


def test_the_unit_of_a_bare_time_is_the_one_of_its_default() -> None:
    assert PARAMS["delay_warning_time"].parse("4") == 4 * 3600
    assert PARAMS["queue_run_delay"].parse("4") == 4


def test_braces_keep_an_item_together() -> None:
    assert split("a, inline:{b=c, d=e} { x y }\tz,,") == ("a", "inline:{b=c, d=e}", "{ x y }", "z")


def test_parameters_of_a_transport_fall_back_to_the_general_ones() -> None:
    param = find("dovecot_destination_recipient_limit")
    assert param is not None
    assert (param.kind, param.default, param.honoured) == (Kind.INT, "$default_destination_recipient_limit", True)
    assert find("nosuch") is None


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.sampled_from(declared()), st.text("0159smhdwyesno{}$, -+./\x00é", max_size=12))
def test_any_text_is_a_value_or_a_value_error(param: Param, text: str) -> None:
    try:
        param.parse(text)
    except ValueError as error:
        assert str(error)
