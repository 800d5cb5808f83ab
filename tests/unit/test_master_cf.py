"""The reader of master.cf."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.master_cf import parse_master_cf

ROOT = Path(__file__).parents[2]


def test_a_dash_is_the_default_of_its_field() -> None:
    (service,), problems = parse_master_cf("relay unix - - - - - smtp\n", "master.cf")
    assert not problems
    assert (service.name, service.type, service.command) == ("relay", "unix", "smtp")
    assert (service.private, service.unprivileged, service.chroot) == (True, True, False)
    assert (service.wakeup, service.maxproc, service.args) == (0, None, ())


def test_fields_overrides_and_arguments() -> None:
    text = """
submission inet n - y 60? 5 smtpd
    # a comment between
    -o syslog_name=postfix/submission -o { smtpd_banner = $myhostname ESMTP x }

    -osoft_bounce=yes -v -vo always_bcc=x -t 5 -- flags=DR { user=a b } -o c=d
"""
    (service,), problems = parse_master_cf(text, "/etc/mta/master.cf")
    assert not problems
    assert (service.private, service.chroot, service.wakeup, service.wakeup_if_used) == (False, True, 60, True)
    assert service.maxproc == 5
    assert service.overrides == {
        "syslog_name": "postfix/submission", "smtpd_banner": "$myhostname ESMTP x", "soft_bounce": "yes",
        "always_bcc": "x",
    }  # fmt: skip
    assert service.args == ("flags=DR", "user=a b", "-o", "c=d")
    assert service.origin == "/etc/mta/master.cf:2"


def test_what_follows_the_first_word_that_is_no_option_belongs_to_the_command() -> None:
    argv = "user=spamd argv=/usr/bin/spamc -f -e /usr/sbin/sendmail -oi -f ${sender} ${recipient}"
    (service,), problems = parse_master_cf(f"spam unix - n n - - pipe -o soft_bounce=yes {argv}\n", "master.cf")
    assert not problems
    assert (service.args, service.overrides) == (tuple(argv.split()), {"soft_bounce": "yes"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("smtp inet n - n - -", "7 fields"),
        ("smtp udp n - n - - smtpd", "invalid transport type"),
        ("smtp inet x - n - - smtpd", 'field "private"'),
        ("smtp inet y - n - - smtpd", "not private"),
        ("smtp inet n - n - many smtpd", 'field "maxproc"'),
        ("smtp inet n - n 1x - smtpd", 'field "wakeup"'),
        ("smtp inet n - n - - /usr/sbin/smtpd", "invalid command name"),
        ("smtp inet n - n - - smtpd -o nothing", "expected -o name=value"),
        ("smtp inet n - n - - smtpd -o", "expected -o name=value"),
        ("smtp inet n - n - - smtpd -o { a = b", "unbalanced"),
        ("smtp inet n - n - - smtpd -o { a = b }c", "syntax error after }"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number_and_the_rest_is_read(line: str, words: str) -> None:
    services, problems = parse_master_cf(f"\n{line}\nrelay unix - - - - - smtp\n", "master.cf")
    assert [s.name for s in services] == ["relay"]
    assert [(p.line, p.fatal) for p in problems] == [(2, True)]
    assert words in problems[0].text


def test_the_last_of_two_services_with_one_name_and_type_counts() -> None:
    text = "smtp unix - - n - 1 smtp\nsmtp inet n - n - - smtpd\nsmtp unix - - n - 2 smtp\n"
    services, problems = parse_master_cf(text, "master.cf")
    assert [(s.type, s.maxproc) for s in services] == [("inet", None), ("unix", 2)]
    assert [(p.line, p.fatal) for p in problems] == [(3, False)]


def test_the_file_we_ship_has_no_problem() -> None:
    services, problems = parse_master_cf((ROOT / "conf/master.cf").read_text(), "master.cf")
    assert not problems
    assert [s.name for s in services if s.type == "inet"] == ["smtp"]
    assert {"smtp", "relay", "local", "error", "retry", "discard"} <= {s.name for s in services if s.type == "unix"}


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text("ab {}-o=,\n\t#?y5\x00", max_size=80))
def test_any_file_gives_services_or_problems(text: str) -> None:
    line = f"smtp unix - - n - - smtp {text}\n"
    services, problems = parse_master_cf(line, "master.cf")
    assert services or problems
