"""Any bytes, cut anywhere: the dialogue answers or closes, never raises, and never breaks its own rules."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.smtp.grammar import parse_mail, parse_rcpt, split_command
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply
from mta.smtp.rules import Rules
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from tests.smtpd_support import Driven, with_settings

_LINES = st.sampled_from([
    b"EHLO c.example\r\n", b"HELO c\r\n", b"MAIL FROM:<s@c.example>\r\n", b"MAIL FROM:<> SIZE=10 RET=FULL\r\n",
    b"RCPT TO:<user@test.example>\r\n", b"RCPT TO:<x@victim.example>\r\n", b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n",
    b"VRFY user\r\n", b"VRFY \xc3\xbc@test.example\r\n", b"ETRN x\r\n", b"QUIT\r\n", b"STARTTLS\r\n", b"AUTH X\r\n",
    b"BDAT 4 LAST\r\n", b".\r\n", b"\r\n", b"text\r\n", b"..\r\n", b"\n.\n", b"\r.\r", b"x" * 3000, b"BOGUS\r\n",
    b"\xff\xfe\r\n", b"\x00\r\n", b"GET / HTTP/1.0\r\n", b"MAIL FROM:<a\rb@c>\r\n", b"R", b"\r", b"\n",
])  # fmt: skip
_ADDRESSES = st.text(alphabet='<>@:"\\ab.[]-, ;()%!=+\t\r\n\x00ü', max_size=40).map(str.encode)
_INPUT = st.lists(st.one_of(_LINES, _LINES, _LINES, st.binary(max_size=12)), max_size=25)


def _refuse_some(stage: Stage, facts: Facts) -> Verdict:
    refused = "victim" in facts.recipient or (stage is Stage.CONNECT and facts.client_port == 1)
    return Verdict(Reply(554, "5.7.1", "no")) if refused else PERMIT


def _run(parts: list[bytes], *, forbid: bool, tls: bool) -> Driven:
    options = with_settings(smtpd_forbid_unauth_pipelining=forbid, message_size_limit=500, smtpd_hard_error_limit=30)
    driven = Driven.make(options, tls=tls)
    driven.judge = _refuse_some
    driven.start()
    for part in parts:
        driven.say(part)
    return driven


@settings(deadline=None, derandomize=True, max_examples=150)
@given(_INPUT, st.booleans(), st.booleans())
def test_whatever_comes_each_reply_is_well_formed_and_the_state_holds(
    parts: list[bytes], forbid: bool, tls: bool
) -> None:
    driven = _run(parts, forbid=forbid, tls=tls)
    for line in driven.sent.split(b"\r\n")[:-1]:
        assert re.fullmatch(rb"[2345]\d\d[ -][^\x00-\x1f\x7f]*", line), line
        assert len(line) <= 510
    assert driven.sent.count(b"354 ") >= len(driven.messages)
    for transaction, body in driven.messages:
        assert transaction.recipients and b"\r" not in body
        assert not any("victim" in recipient.address for recipient in transaction.recipients)
    if driven.session.closed:
        assert driven.session.transaction is None and driven.closed
    assert driven.session.buffered <= 3000 + 64


@settings(deadline=None, derandomize=True, max_examples=60)
@given(_INPUT)
def test_cuts_change_nothing_when_pipelining_is_not_judged(parts: list[bytes]) -> None:
    whole = [part for part in parts if not part.startswith((b"STARTTLS", b"HELO"))]
    one = _run(whole, forbid=False, tls=False)
    two = _run([bytes((c,)) for part in whole for c in part], forbid=False, tls=False)
    assert one.sent == two.sent
    assert [m[1] for m in one.messages] == [m[1] for m in two.messages]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.binary(max_size=60), _ADDRESSES))
def test_an_address_is_refused_or_clean_and_its_quoted_form_parses_to_itself(text: bytes) -> None:
    for argument in (b"FROM:" + text, b"FROM:<" + text + b">", b"FROM:<" + text + b"@c.example> SMTPUTF8"):
        parsed = parse_mail(argument, Rules())
        if isinstance(parsed, Reply):
            assert parsed.is_permanent
            continue
        assert not any(ord(c) < 32 or ord(c) == 127 for c in parsed.sender)
        if parsed.sender:
            again = parse_mail(f"FROM:<{quote_address(parsed.sender)}> SMTPUTF8".encode(), Rules())
            assert not isinstance(again, Reply) and again.sender == parsed.sender


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.binary(max_size=80))
def test_any_parameters_are_refused_or_clean(text: bytes) -> None:
    for prefix in (b"", b"ORCPT=rfc822;", b"ORCPT=utf-8;", b"NOTIFY=", b"X="):
        parsed = parse_rcpt(b"TO:<a@b.example> " + prefix + text, Rules(), smtputf8=True)
        assert isinstance(parsed, Reply) or parsed.orcpt.isprintable()
    for prefix in (b"SIZE=", b"ENVID=", b"RET=", b"BODY=", b"AUTH="):
        got = parse_mail(b"FROM:<a@b.example> " + prefix + text, Rules(auth=True))
        assert isinstance(got, Reply) or (got.envelope_id + got.auth).isprintable()
    verb, argument = split_command(text)
    assert b" " not in verb and not argument.startswith(b" ")
