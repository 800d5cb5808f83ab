"""The pure dialogue: what tests/dialogs/*.smtp cannot say, because it is not about words."""

import pytest

from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session import Session
from mta.smtpd.session_events import Abort, Ask, Close, Commit, Send
from mta.smtpd.session_plan import SessionPlan
from tests.smtpd_support import SETTINGS, Driven, with_settings

GROUP = "MAIL FROM:<s@c.example>\r\nRCPT TO:<user@test.example>\r\nDATA\r\n"


def greeted(**changes: object) -> Driven:
    driven = Driven.make(with_settings(**changes))
    driven.start()
    driven.say("EHLO c.example\r\n")
    return driven


def test_ehlo_lists_the_keywords_in_postfix_order() -> None:
    driven = Driven.make(tls=True)
    driven.start()
    assert driven.say("EHLO c.example\r\n").splitlines() == [
        "250-mx.test.example",
        "250-PIPELINING",
        "250-SIZE 1048576",
        "250-VRFY",
        "250-ETRN",
        "250-STARTTLS",
        "250-ENHANCEDSTATUSCODES",
        "250-8BITMIME",
        "250-DSN",
        "250 SMTPUTF8",
    ]


def test_discarded_keywords_are_neither_offered_nor_understood() -> None:
    driven = greeted(smtpd_discard_ehlo_keywords=("DSN", "size", "silent-discard"), smtputf8_enable=False)
    offered = driven.say("EHLO c.example\r\n")
    assert "DSN" not in offered and "SIZE" not in offered and "SMTPUTF8" not in offered
    assert driven.say("MAIL FROM:<s@c.example> SIZE=1\r\n") == "555 5.5.4 Unsupported option: SIZE=1\r\n"
    assert driven.say("MAIL FROM:<s@c.example> RET=FULL\r\n") == "555 5.5.4 Unsupported option: RET=FULL\r\n"


def test_one_question_is_open_at_a_time_and_input_waits() -> None:
    session = Session(SessionPlan(SETTINGS), Facts())
    [ask] = session.start()
    assert isinstance(ask, Ask)
    events = session.answer(ask.token, PERMIT)
    assert isinstance(events[0], Send)
    [ask] = session.receive(b"EHLO c.example\r\n")
    assert isinstance(ask, Ask) and ask.stage is Stage.EHLO
    session.answer(ask.token, PERMIT)
    [mail] = session.receive(GROUP.encode())
    assert isinstance(mail, Ask) and mail.stage is Stage.MAIL
    assert session.receive(b"RSET\r\n") == []
    assert session.buffered == len(GROUP) + 6 - GROUP.index("RCPT")
    assert session.answer(mail.token - 1, PERMIT) == []  # an old answer changes nothing
    said, rcpt = session.answer(mail.token, PERMIT)
    assert isinstance(said, Send) and isinstance(rcpt, Ask) and rcpt.stage is Stage.RCPT


def test_where_nothing_is_configured_nobody_is_asked_and_all_else_is_the_same() -> None:
    text = GROUP + "Subject: x\r\n\r\nhello\r\n.\r\n" + GROUP + ".\r\nRSET\r\nVRFY user\r\nBOGUS\r\nQUIT\r\n"
    facts = {"client_name": "client.example", "client_address": "192.0.2.1"}
    seen = []
    for silent in (frozenset[Stage](), frozenset({Stage.CONNECT, Stage.DATA}), frozenset(Stage)):
        driven = Driven(Session(SessionPlan(SETTINGS, silent=silent), Facts(**facts)))  # type: ignore[arg-type]
        driven.start()
        for line in ["EHLO c.example\r\n", *text.splitlines(keepends=True)]:
            driven.say(line)
        assert not silent & set(driven.asked)
        assert driven.closed and len(driven.messages) == 2
        seen.append((driven.sent, [body for _, body in driven.messages], driven.log, driven.session.disconnect_line()))
    assert seen[0] == seen[1] == seen[2]
    assert b"221 2.0.0 Bye" in seen[0][0]


def test_a_lost_connection_abandons_a_question() -> None:
    session = Session(SessionPlan(SETTINGS), Facts())
    [ask] = session.start()
    assert isinstance(ask, Ask)
    assert isinstance(session.lost()[-1], Close)
    assert session.answer(ask.token, PERMIT) == []


def test_a_lost_connection_does_not_abandon_a_commit() -> None:
    driven = greeted()
    driven.say(GROUP)
    events = driven.session.receive(b"x\r\n.\r\n")
    ask = events[-1]
    assert isinstance(ask, Ask) and ask.stage is Stage.END_OF_MESSAGE
    [commit] = driven.session.answer(ask.token, PERMIT)
    assert isinstance(commit, Commit)
    assert not any(isinstance(event, Abort) for event in driven.session.lost())
    assert driven.session.committing
    assert driven.session.committed(commit.token, Reply(250, "2.0.0", "Ok")) == []
    assert not driven.session.committing


@pytest.mark.parametrize("end", ["lost", "expire", "fail", "too_big", "refused", "begin"])
def test_every_way_out_of_a_message_drops_it(end: str) -> None:
    driven = greeted(message_size_limit=100)
    if end == "refused":
        driven.judge = lambda stage, facts: (
            Verdict(Reply(554, "5.7.1", "no")) if stage is Stage.END_OF_MESSAGE else PERMIT
        )
    if end == "begin":
        driven.begin = lambda transaction: Reply(451, "4.3.0", "Error: queue file write error")
    driven.say(GROUP)
    if end == "lost":
        driven.run(driven.session.lost())
    elif end == "expire":
        assert driven.run(driven.session.expire()) == "421 4.4.2 mx.test.example Error: timeout exceeded\r\n"
    elif end == "fail":
        assert driven.run(driven.session.fail()).startswith("421 4.3.0 ")
    elif end == "too_big":
        assert driven.say("x" * 200 + "\r\n.\r\n") == "552 5.3.4 Error: message file too big\r\n"
    elif end == "refused":
        assert driven.say("x\r\n.\r\n") == "554 5.7.1 no\r\n"
    assert driven.session.transaction is None
    assert driven.aborted == (0 if end == "begin" else 1)
    assert driven.messages == []
    if end in ("too_big", "refused", "begin"):
        assert driven.say("RCPT TO:<user@test.example>\r\n") == "503 5.5.1 Error: need MAIL command\r\n"
        assert driven.say("DATA\r\n") == "503 5.5.1 Error: need RCPT command\r\n"


def test_errors_slow_down_and_then_end_the_session() -> None:
    driven = greeted(smtpd_error_sleep_time=1.0, smtpd_soft_error_limit=3, smtpd_hard_error_limit=5)
    said = driven.say("BOGUS\r\n" * 7)
    assert said.splitlines() == [
        *["500 5.5.2 Error: command not recognized"] * 5,
        "421 4.7.0 mx.test.example Error: too many errors",
    ]
    assert driven.waits == [1.0, 1.0]
    assert driven.closed and driven.log == ["too many errors after UNKNOWN from client.example[192.0.2.1]"]


def test_junk_counts_as_errors_beyond_its_limit_and_nothing_resets_it_but_mail() -> None:
    driven = greeted(smtpd_junk_command_limit=10, smtpd_hard_error_limit=3)
    assert driven.say("RSET\r\n" * 8).count("250 ") == 8
    driven.say(GROUP)
    driven.say("x\r\n.\r\n")
    assert driven.say("RSET\r\n" * 20).splitlines()[-1] == "421 4.7.0 mx.test.example Error: too many errors"
    assert driven.sent.count(b"250 2.0.0 Ok\r\n") == 8 + 14  # as from a Postfix


def test_recipients_beyond_the_limit_are_an_error_only_in_numbers() -> None:
    driven = greeted(smtpd_recipient_limit=2, smtpd_recipient_overshoot_limit=3, smtpd_hard_error_limit=2)
    driven.say("MAIL FROM:<s@c.example>\r\n")
    said = driven.say("RCPT TO:<user@test.example>\r\n" * 9).splitlines()
    assert said == [
        *["250 2.1.5 Ok"] * 2,
        *["452 4.5.3 Error: too many recipients"] * 5,
        "421 4.7.0 mx.test.example Error: too many errors",
    ]


def test_a_line_without_end_is_bounded_and_answered_once() -> None:
    driven = greeted()
    said = "".join(driven.say("x" * 1000) for _ in range(100))
    assert said == "500 5.5.2 Error: line too long\r\n"
    assert driven.session.buffered == 0
    assert driven.say("\r\nNOOP\r\n") == "250 2.0.0 Ok\r\n"


def test_lf_only_lines_follow_one_policy() -> None:
    assert greeted().say("NOOP\n") == "250 2.0.0 Ok\r\n"
    for text in ("NOOP\n", GROUP.replace("\r\n", "\n")):
        driven = greeted(smtpd_forbid_bare_newline="reject")
        assert driven.say(text) == "521 5.5.2 mx.test.example Error: bare <LF> received\r\n"
        assert driven.closed
    driven = greeted(smtpd_forbid_bare_newline="reject")
    driven.say(GROUP)
    assert driven.say("a\nb\r\n") == ""
    assert driven.aborted == 1, "at once"
    assert driven.say("c\nd\r\n.\r\nNOOP\r\n") == (
        "550 5.5.2 mx.test.example Error: bare <LF> received\r\n250 2.0.0 Ok\r\n"
    ), "a client that is sending hears nothing"
    driven.say(GROUP)
    assert driven.say("a\nb\n.\n") == "521 5.5.2 mx.test.example Error: bare <LF> received\r\n"
    assert driven.closed and driven.messages == [] and driven.aborted == 2
    assert [line.startswith("bare <LF> received after DATA (") for line in driven.log] == [True, True]


def test_starttls_forgets_what_was_said_before() -> None:
    driven = Driven.make(tls=True)
    driven.start()
    driven.say("EHLO c.example\r\n")
    driven.say("MAIL FROM:<s@c.example>\r\n")
    assert driven.say("STARTTLS\r\n") == "220 2.0.0 Ready to start TLS\r\n"
    assert driven.session.facts.helo == "" and driven.session.transaction is None
    assert driven.session.facts.tls.startswith("TLSv1.3")
    assert "STARTTLS" not in driven.say("EHLO c.example\r\n")
    assert driven.say("STARTTLS\r\n") == "554 5.5.1 Error: TLS already active\r\n"


def test_encrypt_asks_for_starttls_first() -> None:
    driven = Driven.make(with_settings(smtpd_tls_security_level="encrypt"), tls=True)
    driven.start()
    assert driven.say("MAIL FROM:<s@c.example>\r\n") == "530 5.7.0 Must issue a STARTTLS command first\r\n"
    assert driven.say("EHLO c.example\r\n").startswith("250-")
    assert driven.say("QUIT\r\n") == "221 2.0.0 Bye\r\n"


def test_a_refused_client_may_only_quit() -> None:
    driven = Driven.make()
    driven.judge = lambda stage, facts: Verdict(Reply(554, "5.7.1", "go away")) if stage is Stage.CONNECT else PERMIT
    assert driven.start() == "554 5.7.1 go away\r\n"
    said = driven.say("EHLO c.example\r\n")
    assert said == "503 5.7.0 Error: access denied for client.example[192.0.2.1]\r\n"
    assert driven.say("QUIT\r\n") == "221 2.0.0 Bye\r\n"
    line = "NOQUEUE: reject: CONNECT from client.example[192.0.2.1]: 554 5.7.1 go away; proto=SMTP"
    assert driven.log == [line]


@pytest.mark.parametrize("code", [421, 521])
def test_421_and_521_of_the_policy_hang_up(code: int) -> None:
    driven = greeted()
    driven.judge = lambda stage, facts: Verdict(Reply(code, "4.7.0", "bye")) if stage is Stage.RCPT else PERMIT
    assert driven.say("MAIL FROM:<s@c.example>\r\nRCPT TO:<user@test.example>\r\n").endswith(f"{code} 4.7.0 bye\r\n")
    assert driven.closed


def test_close_of_a_verdict_hangs_up_after_any_reply() -> None:
    driven = greeted()
    driven.judge = lambda stage, facts: Verdict(Reply(550, "5.7.1", "no"), close=True)
    assert driven.say("MAIL FROM:<s@c.example>\r\nNOOP\r\n") == "550 5.7.1 no\r\n"
    assert driven.closed


def test_effects_before_mail_hold_for_every_message() -> None:
    driven = greeted()
    driven.judge = lambda stage, facts: Verdict(hold=True, prepend=("X: 1",)) if stage is Stage.EHLO else PERMIT
    driven.say("EHLO c.example\r\n")
    for _ in range(2):
        driven.say(GROUP)
        driven.say("x\r\n.\r\n")
    assert [(t.hold, t.prepend) for t, _ in driven.messages] == [(True, ("X: 1",))] * 2


@pytest.mark.parametrize(
    ("effect", "taken"),
    [
        (Verdict(hold=True), False),
        (Verdict(redirect="x@test.example"), False),
        (Verdict(bcc=("y@test.example",)), False),
        (Verdict(filter="smtp:[127.0.0.1]"), False),
        (Verdict(bcc=("b@test.example",)), True),
        (Verdict(log=("info",)), True),
    ],
)
def test_an_effect_that_comes_when_the_message_is_already_stored_is_not_ignored(effect: Verdict, taken: bool) -> None:
    driven = greeted()
    early = Verdict(bcc=("b@test.example",))
    driven.judge = lambda stage, facts: {Stage.RCPT: early, Stage.END_OF_MESSAGE: effect}.get(stage, PERMIT)
    driven.say(GROUP)
    assert driven.say("x\r\n.\r\n").startswith("250 2.0.0 Ok: queued" if taken else "451 4.3.5 ")
    assert len(driven.messages) == taken


def test_ehlo_that_is_refused_changes_nothing() -> None:
    driven = greeted()
    driven.say("MAIL FROM:<s@c.example>\r\n")
    driven.judge = lambda stage, facts: Verdict(Reply(504, "5.5.2", "no")) if stage is Stage.EHLO else PERMIT
    assert driven.say("EHLO other.example\r\n") == "504 5.5.2 no\r\n"
    assert driven.session.facts.helo == "c.example"
    assert driven.say("RCPT TO:<user@test.example>\r\n") == "250 2.1.5 Ok\r\n"


def test_vrfy_and_etrn_take_the_reply_of_the_policy() -> None:
    driven = greeted()
    driven.judge = lambda stage, facts: Verdict(Reply(250, "", "Queuing started")) if stage is Stage.ETRN else PERMIT
    assert driven.say("ETRN @test.example\r\n") == "250 Queuing started\r\n"
    assert driven.say("VRFY user\r\n") == "252 2.0.0 user\r\n"


def test_early_talkers_are_out_of_sync() -> None:
    session = Session(SessionPlan(SETTINGS), Facts(client_name="c", client_address="192.0.2.1"))
    [ask] = session.start()
    assert isinstance(ask, Ask)
    assert session.receive(b"EHLO c.example\r\n") == []
    driven = Driven(session)
    assert driven.run(session.answer(ask.token, PERMIT)) == "554 5.5.0 Error: SMTP protocol synchronization\r\n"
    assert driven.log == ["improper command pipelining after CONNECT from c[192.0.2.1]: EHLO c.example\\r\\n"]
    assert session.disconnect_line() == "disconnect from c[192.0.2.1] commands=0/0"


def test_without_enforcement_pipelining_is_logged_and_told_to_the_policy() -> None:
    driven = greeted(smtpd_forbid_unauth_pipelining=False)
    seen: list[bool] = []
    driven.judge = lambda stage, facts: seen.append(facts.unauth_pipelining) or PERMIT  # type: ignore[func-returns-value]
    driven.say("NOOP\r\nMAIL FROM:<s@c.example>\r\n")
    assert seen == [True]
    what = "improper command pipelining after NOOP from client.example[192.0.2.1]"
    assert driven.log == [what + ": MAIL FROM:<s@c.example>\\r\\n"]


@pytest.mark.parametrize("argument", ["", " 5", " 5 LAST", " 0x10 LAST", " -1", " LAST", " 99999999999999999999 LAST"])
@pytest.mark.parametrize("before", ["", "MAIL FROM:<s@c.example>\r\nRCPT TO:<user@test.example>\r\n"])
def test_bdat_ends_the_session_so_its_payload_is_never_a_command(argument: str, before: str) -> None:
    driven = greeted()
    driven.say(before)
    said = driven.say(f"BDAT{argument}\r\nMAIL FROM:<smuggled@test.example>\r\n")
    assert said == "502 5.5.1 Error: command not implemented\r\n"
    assert driven.closed and driven.session.transaction is None


@pytest.mark.parametrize("denied", [True, False])
def test_bdat_ends_the_session_also_where_every_command_is_refused(denied: bool) -> None:
    driven = Driven.make(with_settings(smtpd_tls_security_level="encrypt"), tls=True)
    if denied:
        driven.judge = lambda stage, facts: Verdict(Reply(554, "5.7.1", "no"))
    driven.start()
    driven.say("BDAT 5\r\nQUIT\r\n")
    assert driven.closed


def test_a_shutdown_waits_for_the_transaction() -> None:
    driven = greeted()
    driven.say("MAIL FROM:<s@c.example>\r\n")
    assert driven.session.shutdown() == []
    driven.say("RSET\r\n")
    assert driven.run(driven.session.shutdown()) == "421 4.3.2 mx.test.example Error: service shutting down\r\n"
    assert driven.closed


def test_the_queue_id_is_in_reject_lines_once_there_is_one() -> None:
    driven = greeted()

    def judge(stage: Stage, facts: Facts) -> Verdict:
        return Verdict(Reply(554, "5.7.1", "no")) if stage is Stage.END_OF_MESSAGE else PERMIT

    driven.judge = judge
    driven.say(GROUP)
    driven.session.facts.queue_id = "4ABC"
    driven.say("x\r\n.\r\n")
    assert driven.log == [
        "4ABC: reject: END-OF-MESSAGE from client.example[192.0.2.1]: 554 5.7.1 no; "
        "from=<s@c.example> to=<user@test.example> proto=ESMTP helo=<c.example>"
    ]


def test_answers_do_not_depend_on_how_the_input_is_cut() -> None:
    text = (
        "EHLO c.example\r\n", "MAIL FROM:<s@c.example> SIZE=10\r\n", "RCPT TO:<user@test.example>\r\n", "BOGUS\r\n",
        "DATA\r\n", "a\r\n..b\r\n.\r\n", "NOOP\r\n", "QUIT\r\n",
    )  # fmt: skip
    whole, bytewise = Driven.make(), Driven.make()
    for driven in (whole, bytewise):
        driven.start()
    for line in text:
        whole.say(line)
        for c in line:
            bytewise.say(c)
    assert whole.sent == bytewise.sent
    assert [body for _, body in whole.messages] == [body for _, body in bytewise.messages] == [b"a\n.b\n"]


def test_what_a_client_says_before_the_greeting_is_kept_until_the_greeting() -> None:
    plan = SessionPlan(with_settings(smtpd_forbid_unauth_pipelining=False))
    session = Session(plan, Facts(client_name="c", client_address="192.0.2.1"))
    assert session.receive(b"EHLO c.example\r\n") == []
    assert session.buffered > 0
    ask = next(event for event in session.start() if isinstance(event, Ask))
    said = b"".join(event.data for event in session.answer(ask.token, PERMIT) if isinstance(event, Send))
    assert said.startswith(b"220 ")
