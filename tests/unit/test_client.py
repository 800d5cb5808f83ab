"""The client dialogue, bytes against bytes: who said what, in which order, and what follows."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import Notify, Recipient, Ret
from mta.smtp.client import Client
from mta.smtp.client_events import Broken, Closed, Event, Fate, Finished, Ready, Refused, Send, StartTls, Step, WantBody
from mta.smtp.commands import (
    Features,
    Transaction,
    mail_command,
    parse_features,
    rcpt_command,
    send_command,
    sendable,
)

HELLO = b"250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-DSN\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


def message(*addresses: str, **changes: object) -> Transaction:
    recipients = tuple(Recipient(a) for a in addresses or ("b@dst.test",))
    return Transaction("a@src.test", recipients, 500, **changes)  # type: ignore[arg-type]  # names of fields


def connected(ehlo: bytes = b"250 mx.test\r\n", *, lmtp: bool = False) -> Client:
    client = Client("me.test", lmtp=lmtp)
    (send,) = client.receive(b"220 mx ESMTP\r\n")
    assert send == Send(b"LHLO me.test\r\n" if lmtp else b"EHLO me.test\r\n")
    assert client.receive(ehlo) == [Ready()]
    return client


def fates(events: list[Event]) -> list[tuple[int, int, str]]:
    return [(e.index, e.heard.code, e.command) for e in events if isinstance(e, Fate)]


def test_lock_step_sends_one_command_at_a_time() -> None:
    client = connected()
    assert client.begin(message("b@x.test", "c@x.test")) == b"MAIL FROM:<a@src.test>\r\n"
    assert client.limit == "smtp_mail_timeout" and client.where == "sending MAIL FROM"
    assert client.receive(b"250 ok\r\n") == [Send(b"RCPT TO:<b@x.test>\r\n")]
    events = client.receive(b"550 5.1.1 no\r\n")
    assert fates(events) == [(0, 550, "RCPT TO command")] and events[1] == Send(b"RCPT TO:<c@x.test>\r\n")
    assert client.receive(b"250 ok\r\n") == [Send(b"DATA\r\n")]
    assert client.receive(b"354 go\r\n") == [WantBody()]
    assert client.undecided == [1] and client.step is Step.BODY
    client.end_body()
    assert "may be sent more than once" in client.where
    events = client.receive(b"250 2.0.0 queued\r\n")
    assert fates(events) == [(1, 250, "end of DATA command")] and events[-1] == Finished(True)
    assert client.quit() == b"QUIT\r\n" and client.receive(b"221 bye\r\n") == [Closed()]


def test_pipelining_sends_the_group_at_once_and_matches_replies() -> None:
    client = connected(HELLO)
    sent = client.begin(message("b@x.test", "c@x.test", "d@x.test"))
    assert sent.split(b"\r\n")[:-1] == [
        b"MAIL FROM:<a@src.test> SIZE=500",
        b"RCPT TO:<b@x.test>", b"RCPT TO:<c@x.test>", b"RCPT TO:<d@x.test>", b"DATA",
    ]  # fmt: skip
    events = client.receive(b"250 ok\r\n250 ok\r\n450 4.2.0 later\r\n550 no\r\n354 go\r\n")
    assert fates(events) == [(1, 450, "RCPT TO command"), (2, 550, "RCPT TO command")] and events[-1] == WantBody()


def test_data_accepted_without_recipients_is_ended_by_a_lone_dot() -> None:
    client = connected(HELLO)
    client.begin(message())
    events = client.receive(b"250 ok\r\n550 no\r\n354 go\r\n")
    assert fates(events) == [(0, 550, "RCPT TO command")] and events[-1] == Send(b".\r\n")
    assert client.receive(b"554 no valid recipients\r\n") == [Finished(True, reset_needed=True)]
    assert client.reset() == b"RSET\r\n" and client.receive(b"250 ok\r\n") == [Ready()]


def test_refused_mail_decides_all_and_its_echoes_decide_nothing() -> None:
    client = connected(HELLO)
    client.begin(message("b@x.test", "c@x.test"))
    events = client.receive(b"451 4.3.0 busy\r\n503 need MAIL\r\n503 need MAIL\r\n503 need RCPT\r\n")
    assert fates(events) == [(0, 451, "MAIL FROM command"), (1, 451, "MAIL FROM command")]
    assert events[-1] == Finished(True, reset_needed=True)


def test_refused_data_decides_those_accepted() -> None:
    client = connected()
    client.begin(message("b@x.test", "c@x.test"))
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n"):
        events = client.receive(reply)
    events = client.receive(b"451 4.3.0 disk\r\n")
    assert fates(events) == [(0, 451, "DATA command")]


def test_lmtp_has_one_final_reply_per_accepted_recipient() -> None:
    client = connected(HELLO, lmtp=True)
    client.begin(message("b@x.test", "c@x.test", "d@x.test"))
    client.receive(b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
    client.end_body()
    first = client.receive(b"250 delivered\r\n")
    assert fates(first) == [(0, 250, "end of DATA command")] and len(first) == 1
    last = client.receive(b"452 4.2.2 full\r\n")
    assert fates(last) == [(2, 452, "end of DATA command")] and last[-1] == Finished(True)


@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "DOT"])
def test_421_ends_the_session_for_all_who_are_left(where: str) -> None:
    client = connected()
    client.begin(message("b@x.test", "c@x.test"))
    replies = {"MAIL": 0, "RCPT": 1, "DATA": 3, "DOT": 4}[where]
    for reply in [b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"][:replies]:
        client.receive(reply)
    if where == "DOT":
        client.end_body()
    events = client.receive(b"421 4.3.2 closing\r\n")
    assert [code for _, code, _ in fates(events)] == [421, 421] and events[-1] == Finished(False)
    assert client.closed and client.receive(b"250 ghost\r\n") == []


@pytest.mark.parametrize("extra", [b"250 b\r\n", b"250", b"\r\n", b"550 no\r\n"])
def test_a_reply_before_its_command_breaks_the_dialogue(extra: bytes) -> None:
    client = connected()
    client.begin(message())
    (event,) = client.receive(b"250 a\r\n" + extra)
    assert isinstance(event, Broken) and event.step is Step.MAIL


def test_the_first_final_reply_counts_and_a_second_closes() -> None:
    client = connected()
    client.begin(message())
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        client.receive(reply)
    client.end_body()
    events = client.receive(b"550 no\r\n250 ok\r\n")
    assert fates(events) == [(0, 550, "end of DATA command")] and events[-1] == Finished(False)


@pytest.mark.parametrize(("reply", "lmtp"), [(b"250 thanks\r\n", False), (b"550 no\r\n", True)])
def test_a_reply_while_the_body_streams_breaks_the_dialogue(reply: bytes, *, lmtp: bool) -> None:
    client = connected(lmtp=lmtp)
    client.begin(message())
    for expected in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        client.receive(expected)
    (event,) = client.receive(reply)
    assert isinstance(event, Broken) and event.step is Step.BODY and client.undecided == [0]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("code", [421, 452, 552])
def test_a_refusal_while_the_body_streams_is_that_of_the_message(code: int, *, together: bool) -> None:
    client = connected()
    client.begin(message("b@x.test", "c@x.test"))
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n"):
        client.receive(reply)
    early = b"%d too big\r\n" % code
    if together:
        events = client.receive(b"354 go\r\n" + early)
    else:
        assert client.receive(b"354 go\r\n") == [WantBody()]
        events = client.receive(early)
    assert fates(events) == [(0, code, "end of DATA command")] and events[1:] == [Finished(False)]
    assert client.closed and client.receive(b"250 ghost\r\n") == []


@pytest.mark.parametrize("wire", [b"399 x\r\n", b"354 x\r\n", b"250 \xff\xfe\r\n", b"250 a\x00\r\n", b"junk\r\n"])
def test_consent_that_cannot_be_read_is_no_consent(wire: bytes) -> None:
    client = connected()
    client.begin(message())
    (event,) = client.receive(wire)
    assert isinstance(event, Broken)


def test_a_refusal_counts_whatever_its_words() -> None:
    client = connected()
    client.begin(message())
    client.receive(b"250 ok\r\n")
    assert fates(client.receive(b"550 \xff\xfe\x00\r\n")) == [(0, 550, "RCPT TO command")]


def test_helo_follows_a_refused_ehlo_but_not_a_busy_server() -> None:
    client = Client("me.test")
    client.receive(b"220 x\r\n")
    assert client.receive(b"502 what?\r\n") == [Send(b"HELO me.test\r\n")]
    assert client.receive(b"250 x\r\n") == [Ready()] and client.features == Features()
    for busy in (b"451 x\r\n", b"421 x\r\n"):
        client = Client("me.test")
        client.receive(b"220 x\r\n")
        (event,) = client.receive(busy)
        assert isinstance(event, Refused) and event.step is Step.EHLO


def test_how_we_introduce_ourselves_can_be_chosen() -> None:
    assert Client("m", ehlo="never").receive(b"220 x ESMTP\r\n") == [Send(b"HELO m\r\n")]
    assert Client("m", ehlo="banner").receive(b"220 x\r\n") == [Send(b"HELO m\r\n")]
    assert Client("m", ehlo="banner").receive(b"220 x ESMTP\r\n") == [Send(b"EHLO m\r\n")]
    (event,) = Client("m").receive(b"554 go away\r\n")
    assert isinstance(event, Refused) and event.step is Step.GREETING


def starttls(client: Client) -> Client:
    client.receive(b"220 x\r\n")
    assert client.receive(b"250-x\r\n250 STARTTLS\r\n") == [Send(b"STARTTLS\r\n")]
    return client


def test_after_starttls_everything_is_said_again() -> None:
    client = starttls(Client("me.test", starttls=True))
    assert client.receive(b"220 go\r\n") == [StartTls()]
    assert client.tls_started() == [Send(b"EHLO me.test\r\n")]
    assert client.receive(b"250-x\r\n250-STARTTLS\r\n250 DSN\r\n") == [Ready()]
    assert "DSN" in client.features


@pytest.mark.parametrize("code", [b"500", b"554", b"450"])
def test_a_refused_ehlo_inside_tls_is_followed_by_helo_there(code: bytes) -> None:
    client = starttls(Client("me.test", starttls=True))
    client.receive(b"220 go\r\n")
    client.tls_started()
    assert client.receive(code + b" no\r\n") == [Send(b"HELO me.test\r\n")]
    assert client.receive(b"250 x\r\n") == [Ready()] and client.tls


def test_bytes_behind_the_answer_to_starttls_are_an_attack() -> None:
    client = starttls(Client("me.test", starttls=True))
    (event,) = client.receive(b"220 go\r\n250-INJECTED\r\n")
    assert isinstance(event, Broken) and event.step is Step.STARTTLS


def test_refused_starttls_goes_on_in_the_clear() -> None:
    client = starttls(Client("me.test", starttls=True))
    assert client.receive(b"454 no\r\n") == [Ready()] and client.starttls_refused and not client.tls


@pytest.mark.parametrize(("said", "step"), [
    ((b"220 x\r\n250 more\r\n",), Step.GREETING),
    ((b"220 x\r\n", b"250 x\r\n250 more\r\n"), Step.EHLO),
    ((b"220 x\r\n", b"502 what?\r\n250 more\r\n"), Step.EHLO),
    ((b"220 x\r\n", b"250-x\r\n250 STARTTLS\r\n250 more\r\n"), Step.EHLO),
    ((b"220 x\r\n", b"250-x\r\n250 STARTTLS\r\n", b"454 no\r\n250 more\r\n"), Step.STARTTLS),
])  # fmt: skip
def test_more_replies_than_commands_before_the_first_message_break_the_dialogue(
    said: tuple[bytes, ...], step: Step
) -> None:
    client = Client("me.test", starttls=True)
    for data in said:
        events = client.receive(data)
    (event,) = events
    assert isinstance(event, Broken) and (event.step, event.problem) == (step, "more replies than commands")
    assert client.closed and client.receive(b"250 ghost\r\n") == []


@pytest.mark.parametrize("more", [b"250 more\r\n", b"550"])
@pytest.mark.parametrize("refused", [False, True])
def test_more_replies_than_commands_before_the_text_break_the_dialogue(more: bytes, *, refused: bool) -> None:
    """Whether the text would follow or, as nobody was accepted, a lone dot."""
    client = connected(HELLO)
    client.begin(message())
    rcpt = b"550 no\r\n" if refused else b"250 ok\r\n"
    events = client.receive(b"250 ok\r\n" + rcpt + b"354 go\r\n" + more)
    broken = events[-1]
    assert isinstance(broken, Broken) and broken.problem == "more replies than commands"
    assert not any(isinstance(event, Send | WantBody) for event in events)
    assert client.undecided == ([] if refused else [0])


def test_a_server_that_goes_away_instead_of_starting_tls_is_left() -> None:
    client = starttls(Client("me.test", starttls=True))
    (event,) = client.receive(b"421 4.3.2 closing\r\n")
    assert isinstance(event, Refused) and event.step is Step.STARTTLS
    assert client.closed and not client.starttls_refused


def test_a_server_that_refuses_to_forget_a_transaction_is_left() -> None:
    client = connected()
    assert client.reset() == b"RSET\r\n"
    assert client.receive(b"502 5.5.1 what?\r\n") == [Closed()]
    assert client.closed


def test_an_idle_server_may_say_good_bye_and_nothing_else() -> None:
    assert connected().receive(b"421 timeout\r\n") == [Closed()]
    (event,) = connected().receive(b"250 hm\r\n")
    assert isinstance(event, Broken)


def test_features_are_hints() -> None:
    assert parse_features("x\nSIZE 9e9\nPIPELINING").size_limit == 0
    assert parse_features("x\nSIZE 0").size_limit == 0
    assert parse_features("x\nsize 100\n\n  \nAUTH=PLAIN").size_limit == 100
    assert parse_features("x\nSIZE " + "9" * 30).size_limit == 0
    assert "DSN" not in parse_features("x\nDSN\nETRN", frozenset({"DSN"}))
    assert "ETRN" in parse_features("x\netrn")


def test_parameters_are_given_only_when_offered() -> None:
    everything = Features(frozenset({"SIZE", "8BITMIME", "SMTPUTF8", "DSN"}))
    full = Transaction("", (), 7, "8bit", True, "id+1=", Ret.HDRS)
    assert mail_command(full, everything) == b"MAIL FROM:<> SIZE=7 BODY=8BITMIME SMTPUTF8 ENVID=id+2B1+3D RET=HDRS\r\n"
    assert mail_command(full, Features()) == b"MAIL FROM:<>\r\n"
    recipient = Recipient("a b@x.test", notify=Notify.SUCCESS | Notify.DELAY, dsn_orig_rcpt="rfc822;o@x.test")
    assert rcpt_command(recipient, everything) == (
        b'RCPT TO:<"a b"@x.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o@x.test\r\n'
    )
    assert rcpt_command(recipient, Features()) == b'RCPT TO:<"a b"@x.test>\r\n'
    alias = Recipient("x@x.test", original="o@x.test", notify=Notify.NEVER)
    assert rcpt_command(alias, everything) == b"RCPT TO:<x@x.test> NOTIFY=NEVER ORCPT=rfc822;o@x.test\r\n"
    utf8 = Recipient("é@x.test", dsn_orig_rcpt="utf-8;é@x.test")
    assert b"ORCPT=utf-8;\\x{E9}@x.test" in rcpt_command(utf8, everything, smtputf8=True)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(deadline=None, derandomize=True)
def test_a_command_has_exactly_one_line_end(sender: str, recipient: str) -> None:
    features = Features(frozenset({"DSN"}))
    makers: list[Callable[[], bytes]] = [
        lambda: send_command(sender),
        lambda: mail_command(Transaction(sender, (), 1, envelope_id=recipient), features),
        lambda: rcpt_command(Recipient(recipient, dsn_orig_rcpt=sender), features),
    ]
    for make in makers:
        try:
            line = make()
        except (ValueError, UnicodeEncodeError):
            continue
        assert line.endswith(b"\r\n") and line.count(b"\r") == line.count(b"\n") == 1


REPLIES = [b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"450 x\r\n", b"421 x\r\n", b"250-a\r\n", b"x\r\n", b"\r\n"]


@given(st.lists(st.sampled_from(REPLIES), max_size=14), st.booleans(), st.booleans())
@settings(deadline=None, derandomize=True, max_examples=400)
def test_no_recipient_is_decided_twice_and_none_is_lost(replies: list[bytes], pipelining: bool, lmtp: bool) -> None:
    client = connected(HELLO if pipelining else b"250 x\r\n", lmtp=lmtp)
    client.begin(message("b@x.test", "c@x.test"))
    decided: list[int] = []
    for reply in replies:
        events = client.receive(reply)
        decided += [e.index for e in events if isinstance(e, Fate)]
        if WantBody() in events:
            client.end_body()
        if any(isinstance(e, Finished) for e in events):
            assert sorted(decided) == [0, 1]
            break
    assert len(decided) == len(set(decided))
    assert sorted(decided + client.undecided) == [0, 1]


@pytest.mark.parametrize("orcpt", ["rfc822\r\nX;a@b", "rfc822;a\0b", "rfc822", ";a", "rfc822;" + "x" * 600])
def test_an_orcpt_that_cannot_be_sent_is_left_out_and_the_recipient_is_not(orcpt: str) -> None:
    everything = Features(frozenset({"DSN"}))
    assert rcpt_command(Recipient("a@b", dsn_orig_rcpt=orcpt), everything) == b"RCPT TO:<a@b>\r\n"
    assert rcpt_command(Recipient("a@b", original="\u20ac" * 200), everything) == b"RCPT TO:<a@b>\r\n"


def test_an_address_can_stand_in_a_command_unless_it_would_end_it() -> None:
    assert [sendable(a) for a in ("a@x.test", "b\u00fccher@x.test", "a\tb@x.test", "")] == [True] * 4
    assert [sendable(a) for a in ("a\r@x.test", "a\n@x.test", "a\0@x.test")] == [False] * 3
