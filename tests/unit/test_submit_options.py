"""The command line of sendmail: acted on, ignored, refused with the right status."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import Notify, Ret
from mta.submit.options import Invocation, Mode, UsageError, argument_recipients, full_name, parse_command


def parse(*words: str, uid: int = 1000, program: str = "/usr/sbin/sendmail") -> Invocation:
    return parse_command([program, *words], uid=uid)


def refusal(*words: str, uid: int = 1000) -> tuple[int, str]:
    with pytest.raises(UsageError) as caught:
        argument_recipients(parse(*words, uid=uid))
    return caught.value.status, caught.value.lines[-1]


def test_options_end_at_the_first_operand() -> None:
    found = parse("-i", "user", "-f", "x")
    assert found.recipients == ["user", "-f", "x"]
    assert found.sender is None
    assert parse("-t", "--", "a").recipients == ["a"]


@pytest.mark.parametrize("words", [("-ti",), ("-it",), ("-t", "-oi"), ("-t", "-oitrue"), ("-tfa@x", "-i")])
def test_bundles_and_spellings_of_ignore_dots(words: tuple[str, ...]) -> None:
    found = parse(*words)
    assert found.extract
    assert not found.dot_ends


@pytest.mark.parametrize(
    "words",
    [("-Ac",), ("-E",), ("-G",), ("-Jx",), ("-L", "t"), ("-OQueueDirectory=/tmp",), ("-U",), ("-X/var/www/x",), ("-c",),
     ("-em",), ("-e", "m"), ("-h", "5"), ("-m",), ("-n",), ("-o7",), ("-odb",), ("-oem",), ("-oMrX",), ("-p", "UUCP:h"),
     ("-s",), ("-x",), ("-oQ/tmp",), ("-XV",), ("-bm",), ("-v",)],
)  # fmt: skip
def test_harmless_options_are_accepted(words: tuple[str, ...]) -> None:
    found = parse(*words, "bob")
    assert (found.mode, found.recipients) == (Mode.SUBMIT, ["bob"])


@pytest.mark.parametrize(
    ("words", "status"),
    [(("-Z",), 64), (("-D", "f"), 64), (("-M", "x"), 64), (("-T3d",), 64), (("-Qr",), 64), (("-S",), 64),
     (("-z", "x"), 64), (("-d21.4",), 64), (("-bz",), 64), (("-bP",), 64), (("-b",), 64), (("-f",), 64),
     (("-B", "x"), 64), (("-h", "x"), 64), (("-V", "a b"), 64), (("-V", "+0Ax"), 65), (("-t", "-q"), 64),
     (("-bs", "x"), 64), (("-bd",), 64), (("-q15m",), 64), (("-qp1h",), 64), (("-qX",), 64),
     (("-f", "a@x, b@y", "r"), 64), (("-f", "a\nb", "r"), 65), (("-fa\x7f", "r"), 65), (("",), 64),
     (("--", "-oQ/tmp"), 64), (("a", "-x@y"), 64), (("a\nb",), 65), (('"a b',), 65), (("(c)",), 64)],
)  # fmt: skip
def test_refusals_have_their_status(words: tuple[str, ...], status: int) -> None:
    assert refusal(*words)[0] == status


def test_sender_forms() -> None:
    for given_, wanted in (("", ""), ("<>", ""), ("Some One <s@x>", "s@x"), ('"a b"@x', "a b@x"), ("bob", "bob")):
        assert parse("-f", given_, "r").sender == wanted
    assert parse("-fa@x", "-r", "b@x", "r").sender == "b@x"  # the last one wins
    assert parse("-f<>", "r").sender == ""


def test_blanks_around_an_address_are_nothing_and_within_it_a_line_end_is_refused() -> None:
    found = parse_command(["sendmail", "-f", "\ta@b.test\r\n", "--", "bob@r.test\n", "\t carol"], uid=1)
    assert (found.sender, argument_recipients(found)) == ("a@b.test", ["bob@r.test", "carol"])
    with pytest.raises(UsageError):
        argument_recipients(parse_command(["sendmail", "bob@r.test\nX: y"], uid=1))
    with pytest.raises(UsageError):
        parse_command(["sendmail", "-f", "a@b.test\nX: y", "bob"], uid=1)


def test_a_tab_between_words_is_a_blank_and_within_an_address_it_is_refused() -> None:
    found = parse_command(["sendmail", "-f", "Me\t<a@b.test>", "--", "Bob\t<bob@r.test>,\tcarol"], uid=1)
    assert (found.sender, argument_recipients(found)) == ("a@b.test", ["bob@r.test", "carol"])
    for words in (["bob", '"a\tb"@r.test'], ["-f", '"a\tb"@r.test', "bob"]):
        with pytest.raises(UsageError, match="control character") as refused:
            argument_recipients(parse_command(["sendmail", *words], uid=1))
        assert refused.value.status == 65


def test_dsn_options() -> None:
    found = parse("-N", "success,FAILURE", "-Rhdrs", "-V", "a+3Db", "r")
    assert (found.notify, found.ret, found.envelope_id) == (Notify.SUCCESS | Notify.FAILURE, Ret.HDRS, "a=b")
    assert parse("-N", "bogus", "-R", "bogus", "r").warnings == [
        'sendmail: warning: unknown DSN NOTIFY command value "bogus" in "bogus"',
        "sendmail: warning: bad -N option value -- ignored",
        "sendmail: warning: bad -R option value -- ignored",
    ]
    assert parse("-N", "never,success", "r").notify == 0
    for value in ("success,,delay", " success delay,", "DELAY\tsuccess"):  # separated as in Postfix
        assert parse("-N", value, "r").notify == Notify.SUCCESS | Notify.DELAY


@pytest.mark.parametrize(
    ("value", "via"),
    [
        ("SMTP", ("SMTP", "")),
        ("UUCP:h.test", ("UUCP", "h.test")),
        ("ESMTP:[192.0.2.1]", ("ESMTP", "[192.0.2.1]")),
        ("", ("", "")),
        (":h", ("", "")),
        ("A B:h", ("", "")),
        ("SMTP:a b", ("", "")),
        ("SMTP:a\nX: y", ("", "")),
        ("SMTP:" + "x" * 256, ("", "")),
    ],
)
def test_only_root_is_believed_how_it_got_a_message(value: str, via: tuple[str, str]) -> None:
    assert parse_command(["sendmail", "-p", value, "r"], uid=0).via == via
    assert parse_command(["sendmail", "-p", value, "r"], uid=1000).via == ("", "")


def test_program_name_and_options_choose_the_mode() -> None:
    assert parse(program="/usr/bin/mailq").mode is Mode.QUEUE
    assert parse(program="newaliases").mode is Mode.ALIASES
    assert parse("-bm", "x", program="mailq").mode is Mode.SUBMIT
    assert parse("-bs").mode is Mode.SMTP
    assert parse("-qIABC").flush == ("I", "ABC", False)
    assert parse("-q!Rx.test").flush == ("R", "x.test", True)
    assert parse("-q15m", uid=0).mode is Mode.DAEMON
    assert parse("--version", "-i", "bob").mode is Mode.VERSION


def test_full_name_comes_from_option_environment_or_gecos() -> None:
    assert full_name(parse("-F", "X", "r"), {"NAME": "E"}, "G", "alice") == "X"
    assert full_name(parse("r"), {"NAME": "E"}, "G", "alice") == "E"
    assert full_name(parse("r"), {}, "& Q. T,Room 1", "alice") == "Alice Q. T"
    assert full_name(parse("-F", "", "r"), {"NAME": "E"}, "G", "alice") == ""
    assert "\n" not in full_name(parse("-F", "a\nBcc: x", "r"), {}, "", "alice")


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.lists(st.text(alphabet="-fbqtioVNRCZ @<>\"',;:\n=é!x", max_size=12), max_size=6))
def test_any_command_line_parses_or_is_refused(words: list[str]) -> None:
    try:
        argument_recipients(parse(*words))
    except UsageError as error:
        assert error.status in (64, 65)
        assert all(line.startswith("sendmail: ") for line in error.lines)
