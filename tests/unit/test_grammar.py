"""Commands, addresses and parameters, byte by byte."""

import pytest

from mta.envelope import Notify, Ret
from mta.smtp.grammar import MAIL_SYNTAX, parse_mail, parse_rcpt, split_command
from mta.smtp.parameters import BAD_AUTH, MailCommand, RcptCommand, decode_xtext, encode_xtext
from mta.smtp.path import BAD_RECIPIENT, BAD_SENDER, quote_address
from mta.smtp.reply import Reply
from mta.smtp.rules import Rules

RULES = Rules()


def sender(argument: bytes, rules: Rules = RULES) -> str | int:
    """The address, or the code of the reply."""
    parsed = parse_mail(b"FROM:" + argument, rules)
    return parsed.code if isinstance(parsed, Reply) else parsed.sender


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"NOOP", b"NOOP", b""),
        (b"noop  a b ", b"NOOP", b"a b"),
        (b" \tmail\tFROM:<> X", b"MAIL", b"FROM:<> X"),
        (b"", b"", b""),
        (b" \t ", b"", b""),
    ],
)
def test_a_line_is_a_verb_and_the_rest(line: bytes, verb: bytes, argument: bytes) -> None:
    assert split_command(line) == (verb, argument)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        (b"<>", ""),
        (b"<s@c.example>", "s@c.example"),
        (b" <s@c.example>", "s@c.example"),
        (b"s@c.example", "s@c.example"),
        (b"<postmaster>", "postmaster"),
        (b"< s@c.example\t>", "s@c.example"),  # printers and scripts write it
        (b"<a..b.@c.example.>", "a..b.@c.example."),  # real addresses look like this
        (b"<a_b@c_d.example>", "a_b@c_d.example"),
        (b'<"a b"@c.example>', "a b@c.example"),
        (b'<"a>b"@c.example>', "a>b@c.example"),
        (b'<"a\\"b\\\\"@c.example>', 'a"b\\@c.example'),
        (b'<"x@y.example"@c.example>', "x@y.example@c.example"),
        (b'<"|/bin/sh"@c.example>', "|/bin/sh@c.example"),
        (b'<"=?utf-8?q?a=0d=0a?="@c.example>', "=?utf-8?q?a=0d=0a?=@c.example"),
        (b"<x%y@c.example>", "x%y@c.example"),
        (b"<y.example!x>", "y.example!x"),
        (b"<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        (b"<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        (b"<a@[IPv6:::ffff:192.0.2.1]>", "a@[IPv6:::ffff:192.0.2.1]"),
        (b"<@h.example,@i.example:a@c.example>", "a@c.example"),
        (b"<" + b"a" * 200 + b"@c.example>", "a" * 200 + "@c.example"),
    ],
)
def test_an_address_comes_out_unquoted(path: bytes, address: str) -> None:
    assert sender(path) == address


@pytest.mark.parametrize(
    "path",
    [
        *(b"<s@c.example>junk", b"<s@c.example", b"s@c.example>", b"<a b@c.example>", b"<a(x)@c.example>"),
        *(b"<a@b@c.example>", b"<<a@b>@c.example>", b"<a,b@c.example>", b"<a;b@c.example>", b"<a\\@c.example>"),
        *(b'<""@c.example>', b'<"a"b@c.example>', b'<"a@c.example>', b'<"x@victim.example">', b"<@c.example>"),
        *(b"<a@>", b"<a@.c.example>", b"<a@c..example>", b"<a@-c.example>", b"<a@c-.example>", b"<a@c example>"),
        *(b"<a@2130706433>", b"<a@192.0.2.1>", b"<a@[::1]>", b"<a@[1.2.3.256]>", b"<a@[1.2.3]>", b"<a@[IPv6:::%1]>"),
        *(b"<a@[1.2.3.4]x>", b"<a@" + b"b" * 64 + b".example>", b"<-froot@c.example>", b"<-->", b"<@h:>", b"<@h,:a@b>"),
        *(b"<a\rb@c.example>", b'<"a\x00b"@c.example>', b'<"a\rb"@c.example>', b"<a\x7fb@c.example>", b'<"a\\\nb"@c>'),
        *(b"<a@c.example\x00.test.example>", b"<" + b"a" * 300 + b"@c.example>", b"<>x", b"< >", b"<a@b>\x0bSIZE=1"),
        *(b"<" + b"a@" * 1000 + b">", b"<" + b'"' * 1000 + b">", b"<" + b"\\" * 1000 + b">", b"<" * 1000),
    ],
)
def test_a_bad_address_is_refused_in_both_commands(path: bytes) -> None:
    assert parse_mail(b"FROM:" + path, RULES) == BAD_SENDER
    assert parse_rcpt(b"TO:" + path, RULES, smtputf8=False) == BAD_RECIPIENT


def test_a_recipient_is_never_empty() -> None:
    assert parse_rcpt(b"TO:<>", RULES, smtputf8=False) == BAD_RECIPIENT


@pytest.mark.parametrize("argument", [b"", b"FROM", b"FROM:", b"FROM <a@b>", b"TO:<a@b>", b"FROM: "])
def test_what_is_no_path_gets_the_syntax(argument: bytes) -> None:
    assert parse_mail(argument, RULES) == MAIL_SYNTAX


def test_strict_wants_brackets_and_short_local_parts() -> None:
    strict = Rules(strict=True)
    assert sender(b"s@c.example", strict) == sender(b"< s@c.example >", strict) == 501
    assert sender(b"<" + b"a" * 64 + b"@c.example>", strict) == "a" * 64 + "@c.example"
    assert sender(b"<" + b"a" * 65 + b"@c.example>", strict) == 501


@pytest.mark.parametrize(
    ("argument", "result"),
    [
        ("<ü@c.example>".encode(), 553),
        ("<ü@c.example> SMTPUTF8".encode(), "ü@c.example"),
        ("<a@bücher.example> SMTPUTF8".encode(), "a@bücher.example"),
        (b"<\xff@c.example> SMTPUTF8", 553),
        (b"<\xed\xa0\x80@c.example> SMTPUTF8", 553),  # a surrogate
        ("<a\u2028b@c.example> SMTPUTF8".encode(), 501),
        ("<\u202eresu@c.example> SMTPUTF8".encode(), 501),
        ("<a\u0085b@c.example> SMTPUTF8".encode(), 501),
        ("<\u0646\u200c\u06cc@c.example> SMTPUTF8".encode(), "\u0646\u200c\u06cc@c.example"),
    ],
)
def test_utf8_needs_to_be_declared_and_to_be_utf8(argument: bytes, result: str | int) -> None:
    assert sender(argument) == result


def test_all_mail_parameters() -> None:
    parsed = parse_mail(b"from:<s@c.example>  size=10 BODY=8bitmime SMTPUTF8 RET=hdrs ENVID=a+2Bb+3Dc ", RULES)
    assert parsed == MailCommand("s@c.example", 10, "8bit", True, Ret.HDRS, "a+b=c")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (b"SIZE=-1", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=+1", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=1_0", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=\xc2\xb2", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=\xd9\xa1", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=1 SIZE=2", "501 5.5.4 Bad message size syntax"),
        (b"SIZE=" + b"9" * 5000, "552 5.3.4 Message size exceeds file system imposed limit"),
        (b"SIZE", "555 5.5.4 Unsupported option: SIZE"),
        (b"BODY=BINARYMIME", "555 5.5.4 Unsupported option: BODY=BINARYMIME"),
        (b"RET=X", "501 5.5.4 Bad RET parameter syntax"),
        (b"RET=FULL RET=HDRS", "501 5.5.4 Bad RET parameter syntax"),
        (b"ENVID=a+ZZ", "501 5.5.4 Bad ENVID parameter syntax"),
        (b"ENVID=a+4", "501 5.5.4 Bad ENVID parameter syntax"),
        (b"ENVID=a+0A", "501 5.5.4 Bad ENVID parameter syntax"),
        (b"ENVID=", "501 5.5.4 Bad ENVID parameter syntax"),
        (b"AUTH=<>", "555 5.5.4 Unsupported option: AUTH=<>"),
        (b"SMTPUTF8=1", "555 5.5.4 Unsupported option: SMTPUTF8=1"),
        (b"=x", "555 5.5.4 Unsupported option: =x"),
        (b"FOO=bar", "555 5.5.4 Unsupported option: FOO=bar"),
        (b"SI\x00ZE=1", "501 5.5.4 Error: Bad parameter syntax"),
        (b"SIZE=1\x0cX", "501 5.5.4 Error: Bad parameter syntax"),
    ],
)
def test_a_bad_mail_parameter_is_refused(parameters: bytes, text: str) -> None:
    assert str(parse_mail(b"FROM:<s@c.example> " + parameters, RULES)) == text


def test_auth_is_decoded_before_it_is_judged() -> None:
    rules = Rules(auth=True)
    parsed = parse_mail(b"FROM:<s@c.example> AUTH=a+40b", rules)
    assert isinstance(parsed, MailCommand) and parsed.auth == "a@b"
    assert parse_mail(b"FROM:<s@c.example> AUTH=a+0D+0Ab", rules) == BAD_AUTH


@pytest.mark.parametrize(
    ("parameters", "notify", "orcpt"),
    [
        (b"", Notify(0), ""),
        (b"NOTIFY=never", Notify.NEVER, ""),
        (b"NOTIFY=SUCCESS,FAILURE,DELAY", Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, ""),
        (b"ORCPT=rfc822;a+2Bb@test.example", Notify(0), "rfc822;a+b@test.example"),
        (b"ORCPT=utf-8;a\\x{FC}b@test.example", Notify(0), "utf-8;aüb@test.example"),
    ],
)
def test_all_rcpt_parameters(parameters: bytes, notify: Notify, orcpt: str) -> None:
    parsed = parse_rcpt(b"TO:<user@test.example> " + parameters, RULES, smtputf8=False)
    assert parsed == RcptCommand("user@test.example", notify, orcpt)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        *((parameter, "NOTIFY") for parameter in (b"NOTIFY=", b"NOTIFY=NEVER,FAILURE", b"NOTIFY=DELAY,DELAY")),
        *((parameter, "NOTIFY") for parameter in (b"NOTIFY=FAILURE NOTIFY=DELAY", b"NOTIFY=X", b"NOTIFY=DELAY,")),
        *((parameter, "ORCPT") for parameter in (b"ORCPT=a@b", b"ORCPT=rfc822;", b"ORCPT=;a", b"ORCPT=rfc822;a+0Ab")),
        *((parameter, "ORCPT") for parameter in (b"ORCPT=rfc822;\xe9", b"ORCPT=utf-8;a\\x{0D}b")),
        (b"ORCPT=utf-8;\\x{D800}", "ORCPT"),
        *((parameter, "ORCPT") for parameter in ("ORCPT=utf-8;ü".encode(), b"ORCPT=rfc822;" + b"a" * 600)),
    ],
)
def test_a_bad_rcpt_parameter_is_refused(parameters: bytes, word: str) -> None:
    parsed = parse_rcpt(b"TO:<user@test.example> " + parameters, RULES, smtputf8=False)
    assert str(parsed) == f"501 5.5.4 Error: Bad {word} parameter syntax"


def test_parameters_of_extensions_that_were_not_offered_are_unknown() -> None:
    rules = Rules(size=False, dsn=False, smtputf8=False)
    for parameter in (b"SIZE=1", b"RET=FULL", b"ENVID=a", b"SMTPUTF8"):
        assert str(parse_mail(b"FROM:<a@b> " + parameter, rules)).startswith("555 5.5.4 Unsupported option")
    for parameter in (b"NOTIFY=NEVER", b"ORCPT=rfc822;a"):
        assert str(parse_rcpt(b"TO:<a@b> " + parameter, rules, smtputf8=False)).startswith("555 5.5.4 Unsupported")


@pytest.mark.parametrize(
    ("address", "quoted"),
    [
        ("", ""),
        ("a.b@c.example", "a.b@c.example"),
        ("postmaster", "postmaster"),
        ("a b@c.example", '"a b"@c.example'),
        ("a..b@c.example", '"a..b"@c.example'),
        ('a"b\\@c.example', '"a\\"b\\\\"@c.example'),
        ("x@y@c.example", '"x@y"@c.example'),
        ("@c.example", '""@c.example'),
        ("ü@c.example", "ü@c.example"),
        ("a\n", '"a\n"'),
    ],
)
def test_quoting_is_the_reverse_of_parsing(address: str, quoted: str) -> None:
    assert quote_address(address) == quoted


def test_xtext_round_trip() -> None:
    assert encode_xtext("a+b=c d") == "a+2Bb+3Dc+20d"
    assert decode_xtext(b"a+2Bb+3Dc+20d") == "a+b=c d"
    assert decode_xtext(b"a+2b") == "a+"
    assert decode_xtext(b"SRS0=x=y@z") == "SRS0=x=y@z"  # not xtext, but what forwarders send
    assert decode_xtext(b"a+2") is None
    assert decode_xtext(b"a+2g") is None
    assert decode_xtext(b"a+0A") is None
    assert decode_xtext(b"a+E9") is None
