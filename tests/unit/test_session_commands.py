"""Each command of the dialogue: what it answers, what it refuses, and what it leaves changed."""

from collections.abc import Callable

import pytest

from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session import Session
from mta.smtpd.session_events import Abort, Ask, Begin, Close, Event, Send, StartTls, Transaction, Wait
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import escape
from tests.smtpd_support import SETTINGS, Driven, with_settings

MAIL = "MAIL FROM:<s@c.example>\r\n"
RCPT = "RCPT TO:<user@test.example>\r\n"
NO = Verdict(Reply(550, "5.7.1", "no"))


def greeted(hello: str = "EHLO c.example\r\n", *, tls: bool = False, **changes: object) -> Driven:
    driven = Driven.make(with_settings(**changes), tls=tls)
    driven.start()
    driven.say(hello)
    return driven


def only(stage: Stage, verdict: Verdict) -> Callable[[Stage, Facts], Verdict]:
    return lambda asked, _: verdict if asked is stage else PERMIT


# -- greeting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
def test_a_greeting_needs_a_name(verb: str) -> None:
    driven = greeted("")
    assert driven.say(f"{verb}\r\n") == f"501 Syntax: {verb} hostname\r\n"
    assert driven.session.facts.helo == ""


def test_under_soft_bounce_no_reply_is_permanent() -> None:
    driven = greeted("EHLO c.example\r\n", soft_bounce=True, message_size_limit=10)
    assert driven.say("FOO\r\n") == "400 4.5.2 Error: command not recognized\r\n"
    assert driven.say("MAIL FROM:<x\r\n") == "401 4.1.7 Bad sender address syntax\r\n"
    assert driven.say("MAIL FROM:<s@c.example> SIZE=11\r\n") == "452 4.3.4 Message size exceeds fixed limit\r\n"
    driven.say(MAIL)
    assert driven.say("DATA\r\n") == "454 4.5.1 Error: no valid recipients\r\n"


def test_a_name_of_several_words_is_one_bad_name() -> None:
    assert greeted("EHLO My  PC\r\n").session.facts.helo == "My?PC"


def test_helo_offers_nothing_and_parameters_are_unknown_after_it() -> None:
    driven = greeted("")
    assert driven.say("HELO c.example more words\r\n") == "250 mx.test.example\r\n"
    assert (driven.session.facts.helo, driven.session.facts.protocol) == ("c.example?more?words", "SMTP")
    assert driven.say("MAIL FROM:<s@c.example> SIZE=5\r\n").startswith("555 5.5.4 ")
    assert driven.say(MAIL) == "250 2.1.0 Ok\r\n"
    assert driven.say("RCPT TO:<user@test.example> NOTIFY=NEVER\r\n").startswith("555 5.5.4 ")
    assert driven.say(RCPT) == "250 2.1.5 Ok\r\n"


def test_helo_after_ehlo_takes_no_extension_back() -> None:
    driven = greeted("EHLO c.example\r\n")
    driven.say("HELO c.example\r\n")
    said = driven.say("MAIL FROM:<s@c.example> SIZE=5\r\nRCPT TO:<user@test.example>\r\n")
    assert said == "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"


def test_starttls_takes_no_extension_back_from_a_client_that_does_not_greet_again() -> None:
    driven = greeted("EHLO c.example\r\n", tls=True)
    driven.say("STARTTLS\r\n")
    said = driven.say("MAIL FROM:<s@c.example> SIZE=5\r\nRCPT TO:<user@test.example>\r\n")
    assert said == "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"


def test_a_second_greeting_ends_the_transaction() -> None:
    driven = greeted()
    driven.say(MAIL)
    driven.say("HELO c.example\r\n")
    assert driven.say(RCPT) == "503 5.5.1 Error: need MAIL command\r\n"


@pytest.mark.parametrize("code", [421, 521])
def test_a_client_that_is_sent_away_at_once_is_hung_up_on(code: int) -> None:
    driven = Driven.make()
    driven.judge = only(Stage.CONNECT, Verdict(Reply(code, "4.7.0", "not now")))
    assert driven.start() == f"{code} 4.7.0 not now\r\n"
    assert driven.closed


def test_an_early_talker_that_is_let_through_is_greeted_all_the_same() -> None:
    driven = Driven.make(with_settings(smtpd_forbid_unauth_pipelining=False))
    driven.session.receive(b"EHLO c.example\r\n")
    said = driven.start()
    assert said.startswith("220 mx.test.example ") and "250 SMTPUTF8\r\n" in said
    assert driven.log == ["improper command pipelining after CONNECT from client.example[192.0.2.1]: "
                          "EHLO c.example\\r\\n"]  # fmt: skip


@pytest.mark.parametrize("command", ["AUTH PLAIN\r\n", MAIL, "VRFY user\r\n", "ETRN test.example\r\n"])
def test_a_greeting_comes_first_where_it_is_required(command: str) -> None:
    assert greeted("", smtpd_helo_required=True).say(command) == "503 5.5.1 Error: send HELO/EHLO first\r\n"
    assert greeted("EHLO c.example\r\n", smtpd_helo_required=True).say(command)[:3] in ("250", "252", "459", "503")
    assert "HELO/EHLO first" not in greeted("").say(command)


# -- MAIL and RCPT --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["MAIL FROM:<a@b@c>\r\n", "MAIL FROM:<a b@c>\r\n"])
def test_a_sender_that_is_no_address_is_logged_and_refused(command: str) -> None:
    driven = greeted()
    assert driven.say(command) == "501 5.1.7 Bad sender address syntax\r\n"
    (line,) = driven.log
    assert line.startswith("warning: Illegal address syntax from client.example[192.0.2.1] in MAIL command: ")
    assert driven.session.transaction is None


def test_what_is_no_mail_command_is_refused_and_not_logged() -> None:
    driven = greeted()
    assert driven.say("MAIL\r\n")[:3] == "501"
    assert driven.log == []


def test_a_declared_size_over_the_limit_is_refused_before_the_message_is_sent() -> None:
    driven = greeted(message_size_limit=1000)
    assert driven.say("MAIL FROM:<s@c.example> SIZE=1001\r\n") == "552 5.3.4 Message size exceeds fixed limit\r\n"
    assert driven.log == [
        "NOQUEUE: reject: MAIL from client.example[192.0.2.1]: 552 5.3.4 Message size exceeds fixed limit; "
        "from=<s@c.example> proto=ESMTP helo=<c.example>"
    ]
    assert (driven.session.facts.sender, driven.session.facts.size) == (None, 0)
    assert driven.say("MAIL FROM:<s@c.example> SIZE=1000\r\n") == "250 2.1.0 Ok\r\n"
    assert greeted(message_size_limit=0).say("MAIL FROM:<s@c.example> SIZE=99999999\r\n") == "250 2.1.0 Ok\r\n"


def test_a_refused_sender_leaves_no_transaction() -> None:
    driven = greeted()
    driven.judge = only(Stage.MAIL, NO)
    assert driven.say(MAIL) == "550 5.7.1 no\r\n"
    assert driven.session.facts.sender is None
    assert driven.say(RCPT) == "503 5.5.1 Error: need MAIL command\r\n"


def test_a_second_mail_needs_the_end_of_the_first() -> None:
    driven = greeted()
    driven.say(MAIL)
    assert driven.say(MAIL) == "503 5.5.1 Error: nested MAIL command\r\n"
    assert driven.say("RSET\r\n" + MAIL) == "250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n"


def test_a_recipient_that_is_no_address_is_logged_and_the_others_stand() -> None:
    driven = greeted()
    driven.say(MAIL + RCPT)
    assert driven.say("RCPT TO:<a@b@c>\r\n") == "501 5.1.3 Bad recipient address syntax\r\n"
    assert "in RCPT command: " in driven.log[0]
    assert driven.session.transaction is not None
    assert [r.address for r in driven.session.transaction.recipients] == ["user@test.example"]


def test_a_refused_recipient_is_not_in_the_transaction() -> None:
    driven = greeted()
    driven.judge = lambda stage, facts: NO if facts.recipient.startswith("x") else PERMIT
    assert driven.say(MAIL + "RCPT TO:<x@test.example>\r\n" + RCPT).splitlines()[1:] == ["550 5.7.1 no", "250 2.1.5 Ok"]
    assert driven.session.facts.recipient_count == 1


@pytest.mark.parametrize("before", ["", MAIL, MAIL + "RCPT TO:<x@test.example>\r\n"])
def test_data_needs_a_recipient(before: str) -> None:
    driven = greeted()
    driven.judge = only(Stage.RCPT, NO)
    driven.say(before)
    expected = "554 5.5.1 Error: no valid recipients\r\n" if before else "503 5.5.1 Error: need RCPT command\r\n"
    assert driven.say("DATA\r\n") == expected


# -- DATA -----------------------------------------------------------------------------------------


def test_data_takes_no_argument() -> None:
    driven = greeted()
    driven.say(MAIL + RCPT)
    assert driven.say("DATA now\r\n") == "501 5.5.4 Syntax: DATA\r\n"
    assert driven.say("DATA\r\n").startswith("354 ")


@pytest.mark.parametrize(("count", "named"), [(1, "user@test.example"), (2, "")])
def test_the_policy_of_data_hears_the_recipient_only_when_it_is_the_only_one(count: int, named: str) -> None:
    driven = greeted()
    heard: list[str] = []

    def judge(stage: Stage, facts: Facts) -> Verdict:
        if stage is Stage.DATA:
            heard.append(facts.recipient)
        return PERMIT

    driven.judge = judge
    driven.say(MAIL + RCPT * count + "DATA\r\n")
    assert heard == [named]


def test_refused_data_leaves_the_transaction_as_it_was() -> None:
    driven = greeted()
    driven.judge = only(Stage.DATA, NO)
    assert driven.say(MAIL + RCPT + "DATA\r\n").splitlines()[-1] == "550 5.7.1 no"
    driven.judge = lambda stage, facts: PERMIT
    assert driven.say("DATA\r\n").startswith("354 ")


@pytest.mark.parametrize("stage", [Stage.EHLO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE])
def test_a_discarded_message_is_taken_and_nothing_of_it_is_kept(stage: Stage) -> None:
    driven = greeted("")
    driven.judge = only(stage, Verdict(discard=True))
    driven.say("EHLO c.example\r\n" + "")
    driven.say(MAIL + RCPT + "DATA\r\n")
    assert driven.say("text\r\n.\r\n") == "250 2.0.0 Ok\r\n"
    assert driven.messages == []
    assert driven.aborted == (1 if stage is Stage.END_OF_MESSAGE else 0)


def test_effects_add_up_and_the_last_redirect_and_filter_win() -> None:
    driven = greeted("")
    effects = {
        Stage.EHLO: Verdict(redirect="first@test.example", filter="smtp:one", bcc=("a@test.example",)),
        Stage.MAIL: Verdict(prepend=("X: 1",), bcc=("b@test.example",)),
        Stage.RCPT: Verdict(redirect="second@test.example", filter="smtp:two", prepend=("X: 2",)),
    }
    driven.judge = lambda stage, facts: effects.get(stage, PERMIT)
    driven.say("EHLO c.example\r\n")
    driven.say(MAIL + RCPT + "DATA\r\n")
    driven.say("text\r\n.\r\n")
    ((message, _),) = driven.messages
    assert (message.redirect, message.filter) == ("second@test.example", "smtp:two")
    assert set(message.bcc) == {"a@test.example", "b@test.example"}
    assert set(message.prepend) == {"X: 1", "X: 2"}


@pytest.mark.parametrize("command", ["VRFY user@test.example", "ETRN test.example"])
def test_effects_of_what_is_about_no_message_change_none(command: str) -> None:
    driven = greeted("EHLO c.example\r\n")
    effect = Verdict(hold=True, redirect="other@test.example", bcc=("b@test.example",), prepend=("X: 1",))
    driven.judge = lambda stage, facts: effect if stage in (Stage.VRFY, Stage.ETRN) else PERMIT
    for line in (f"{command}\r\n", MAIL, f"{command}\r\n", RCPT + "DATA\r\n", "text\r\n.\r\n"):
        driven.say(line)
    ((message, _),) = driven.messages
    assert (message.hold, message.redirect, message.bcc, message.prepend) == (False, "", (), ())


def test_the_effects_of_the_last_helo_count_and_those_of_the_client_outlive_starttls() -> None:
    driven = Driven.make(tls=True)
    names = {"a": Verdict(prepend=("X: a",)), "b": Verdict(prepend=("X: b",))}
    driven.judge = lambda stage, facts: {
        Stage.CONNECT: Verdict(hold=True, prepend=("X: client",)), Stage.EHLO: names.get(facts.helo, PERMIT)
    }.get(stage, PERMIT)  # fmt: skip
    driven.start()
    for line in ("EHLO a", "EHLO b", MAIL + "EHLO c", "EHLO a", "STARTTLS", "EHLO b"):
        for said in (f"{line}\r\n", MAIL, RCPT, "DATA\r\n", "text\r\n.\r\n"):
            driven.say(said)
    assert all(message.hold for message, _ in driven.messages)
    last = [message.prepend[1:] for message, _ in driven.messages]
    assert last == [("X: a",), ("X: b",), (), ("X: a",), (), ("X: b",)]


def test_a_redirect_of_mail_wins_over_that_of_helo() -> None:
    driven = greeted("")
    driven.judge = lambda stage, facts: Verdict(redirect=f"{stage.lower()}@test.example")
    driven.say("EHLO c.example\r\n")
    driven.judge = only(Stage.MAIL, Verdict(redirect="mail@test.example"))
    driven.say(MAIL + RCPT + "DATA\r\n")
    driven.say("text\r\n.\r\n")
    assert [message.redirect for message, _ in driven.messages] == ["mail@test.example"]


def test_text_of_a_message_that_is_too_big_is_read_to_its_end_and_forgotten() -> None:
    """Also one that nothing was kept of anyway: discarded."""
    for discard in (False, True):
        driven = greeted(message_size_limit=50)
        driven.judge = only(Stage.MAIL, Verdict(discard=discard))
        driven.say(MAIL + RCPT + "DATA\r\n")
        assert driven.say("x" * 60 + "\r\n") == ""
        assert driven.say("y" * 60 + "\r\n") == ""
        assert driven.say(".\r\nNOOP\r\n") == "552 5.3.4 Error: message file too big\r\n250 2.0.0 Ok\r\n"
        assert driven.aborted == (0 if discard else 1)
        assert driven.messages == []


def test_text_before_the_354_is_out_of_sync() -> None:
    driven = greeted()
    driven.say(MAIL + RCPT)
    assert driven.say("DATA\r\nSubject: x\r\n") == "554 5.5.0 Error: SMTP protocol synchronization\r\n"
    assert driven.closed and driven.messages == []
    assert driven.log == ["improper command pipelining after DATA from client.example[192.0.2.1]: Subject: x\\r\\n"]


def test_text_that_overtakes_the_answer_to_begin_is_out_of_sync_and_the_message_is_dropped() -> None:
    session = Session(SessionPlan(SETTINGS), Facts(client_name="c", client_address="192.0.2.1"))
    driven = Driven(session)
    driven.start()
    driven.say("EHLO c.example\r\n")
    driven.say(MAIL + RCPT)
    (ask,) = session.receive(b"DATA\r\n")
    assert isinstance(ask, Ask)
    (begin,) = session.answer(ask.token, PERMIT)
    assert isinstance(begin, Begin)
    assert session.receive(b"Subject: x\r\n") == []
    events = session.begun(begin.token, None)
    assert [event.data for event in events if isinstance(event, Send)] == [
        b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
    ]
    assert sum(isinstance(event, Abort) for event in events) == 1 and session.closed


def test_a_message_that_cannot_be_stored_counts_as_an_error_and_a_good_one_forgives() -> None:
    driven = greeted(smtpd_hard_error_limit=3)
    driven.commit = lambda: Reply(451, "4.3.0", "Error: queue file write error")
    for _ in range(2):
        driven.say(MAIL + RCPT + "DATA\r\n")
        assert driven.say("x\r\n.\r\n") == "451 4.3.0 Error: queue file write error\r\n"
    driven.commit = lambda: Reply(250, "2.0.0", "Ok")
    driven.say(MAIL + RCPT + "DATA\r\n")
    assert driven.say("x\r\n.\r\n") == "250 2.0.0 Ok\r\n"
    assert driven.say("BOGUS\r\n" * 2).count("500 ") == 2
    assert not driven.closed


def test_other_clients_have_turns_between_the_commands_of_a_long_group() -> None:
    driven = greeted()
    driven.say(MAIL)
    assert driven.say(RCPT * 50 + "DATA\r\n") == "250 2.1.5 Ok\r\n" * 50 + "354 End data with <CR><LF>.<CR><LF>\r\n"
    assert driven.waits == [0.0, 0.0]
    driven.say("text\r\n.\r\n" + MAIL + RCPT * 15)
    driven.say(RCPT * 15)
    assert driven.waits == [0.0, 0.0], "who waits for answers has waited"


# -- RSET, NOOP, QUIT -----------------------------------------------------------------------------


def test_rset_takes_no_argument_and_noop_any() -> None:
    driven = greeted()
    driven.say(MAIL)
    assert driven.say("RSET now\r\n") == "501 5.5.4 Syntax: RSET\r\n"
    assert driven.say("NOOP what ever\r\n") == "250 2.0.0 Ok\r\n"
    assert driven.say(RCPT) == "250 2.1.5 Ok\r\n"
    assert driven.say("RSET\r\n") == "250 2.0.0 Ok\r\n"
    assert driven.say(RCPT) == "503 5.5.1 Error: need MAIL command\r\n"


def test_quit_ends_the_session_and_what_follows_is_not_read() -> None:
    driven = greeted()
    driven.say(MAIL + RCPT)
    assert driven.say("QUIT\r\nDATA\r\n") == "221 2.0.0 Bye\r\n"
    assert driven.closed and driven.session.transaction is None
    assert driven.session.receive(b"NOOP\r\n") == []
    line = "disconnect from client.example[192.0.2.1] ehlo=1 mail=1 rcpt=1 quit=1 commands=4"
    assert driven.session.disconnect_line() == line


def test_a_quit_of_a_client_that_makes_errors_is_answered_late() -> None:
    driven = greeted(smtpd_error_sleep_time=2.0, smtpd_soft_error_limit=1)
    driven.say("BOGUS\r\n")
    events = driven.session.receive(b"QUIT\r\n")
    (wait,) = events
    assert isinstance(wait, Wait) and wait.seconds == 2.0
    said = driven.session.waited(wait.token)
    assert isinstance(said[0], Send) and said[0].data == b"221 2.0.0 Bye\r\n"
    assert isinstance(said[-1], Close)


# -- VRFY and ETRN --------------------------------------------------------------------------------


def test_vrfy_is_off_where_it_is_disabled() -> None:
    driven = greeted(disable_vrfy_command=True)
    assert driven.say("VRFY user\r\n") == "502 5.5.1 VRFY command is disabled\r\n"
    assert "VRFY" not in driven.say("EHLO c.example\r\n")


def test_vrfy_needs_an_address() -> None:
    driven = greeted()
    assert driven.say("VRFY\r\n") == "501 5.5.4 Syntax: VRFY address [SMTPUTF8]\r\n"
    assert driven.say("VRFY a@b@c\r\n") == "501 5.1.3 Bad recipient address syntax\r\n"
    assert "in VRFY command: a@b@c" in driven.log[-1]


def test_vrfy_asks_and_forgets() -> None:
    driven = greeted()
    driven.say(MAIL + RCPT)
    heard: list[tuple[str, str]] = []

    def judge(stage: Stage, facts: Facts) -> Verdict:
        heard.append((facts.recipient, facts.etrn_or_vrfy))
        return NO if facts.recipient.startswith("x") else PERMIT

    driven.judge = judge
    assert driven.say("VRFY x@test.example\r\n") == "550 5.7.1 no\r\n"
    assert driven.say("VRFY user@test.example\r\n") == "252 2.0.0 user@test.example\r\n"
    assert heard == [("x@test.example",) * 2, ("user@test.example",) * 2]
    assert (driven.session.facts.recipient, driven.session.facts.etrn_or_vrfy) == ("user@test.example", "")
    driven.judge = only(Stage.VRFY, Verdict(Reply(250, "2.1.5", "User <user@test.example>")))
    assert driven.say("VRFY user\r\n") == "250 2.1.5 User <user@test.example>\r\n"


def test_vrfy_with_smtputf8_takes_a_foreign_address() -> None:
    driven = greeted()
    text = "VRFY grüße@test.example"
    assert driven.say(f"{text} SMTPUTF8\r\n".encode()) == "252 2.0.0 grüße@test.example\r\n"
    assert driven.say(f"{text}\r\n".encode()).startswith("5")


@pytest.mark.parametrize("argument", ["", " ", " a b", " @"])
def test_etrn_needs_one_name(argument: str) -> None:
    assert greeted().say(f"ETRN{argument}\r\n") == "500 Syntax: ETRN domain\r\n"


@pytest.mark.parametrize("name", ["a..b", "-a", "a-", "a/b", "[192.0.2.1]"])
def test_etrn_needs_the_name_of_a_host(name: str) -> None:
    assert greeted().say(f"ETRN {name}\r\n") == "501 Error: invalid parameter syntax\r\n"


def test_etrn_without_a_queue_for_the_name_says_so_and_not_in_a_transaction() -> None:
    driven = greeted()
    assert driven.say("ETRN #test.example\r\n") == "459 <test.example>: service unavailable\r\n"
    driven.judge = only(Stage.ETRN, NO)
    assert driven.say("ETRN test.example\r\n") == "550 5.7.1 no\r\n"
    assert driven.session.facts.etrn_or_vrfy == ""
    driven.say(MAIL)
    assert driven.say("ETRN test.example\r\n") == "503 Error: MAIL transaction in progress\r\n"


# -- STARTTLS and AUTH ----------------------------------------------------------------------------


def test_starttls_takes_no_argument_and_is_not_there_without_a_certificate() -> None:
    assert greeted(tls=True).say("STARTTLS now\r\n") == "501 5.5.4 Syntax: STARTTLS\r\n"
    assert greeted().say("STARTTLS\r\n") == "502 5.5.1 Error: command not implemented\r\n"


def test_where_no_error_is_allowed_the_session_ends_before_any_handshake() -> None:
    driven = Driven.make(with_settings(smtpd_hard_error_limit=0), tls=True)
    driven.start()
    events = driven.session.receive(b"STARTTLS\r\n")
    assert isinstance(events[-1], Close)
    assert not any(isinstance(event, StartTls) for event in events)


def test_auth_is_not_there() -> None:
    assert greeted().say("AUTH PLAIN AHgAeA==\r\n") == "503 5.5.1 Error: authentication not enabled\r\n"


def test_pipelining_out_of_turn_is_logged_once() -> None:
    driven = greeted(smtpd_forbid_unauth_pipelining=False)
    assert driven.say("NOOP\r\nNOOP\r\nNOOP\r\n") == "250 2.0.0 Ok\r\n" * 3
    assert driven.log == ["improper command pipelining after NOOP from client.example[192.0.2.1]: NOOP\\r\\nNOOP\\r\\n"]


# -- lines that are no commands -------------------------------------------------------------------


def test_a_line_without_a_word_is_bad_syntax_and_blanks_before_one_are_nothing() -> None:
    driven = greeted()
    assert driven.say("\r\n \r\n\t\r\n") == "500 5.5.2 Error: bad syntax\r\n" * 3
    assert driven.say(" \tNOOP \r\n") == "250 2.0.0 Ok\r\n"


def test_octets_that_are_no_utf8_are_refused_where_utf8_is_spoken() -> None:
    line = b"VRFY \xff\xfe\r\n"
    assert greeted().say(line) == "500 5.5.2 Error: bad UTF-8 syntax\r\n"
    assert "UTF-8" not in greeted(smtputf8_enable=False).say(line)


@pytest.mark.parametrize("command", ["NOOP a\0b", "RSET \x01", "VRFY a\x7fb", "EHLO a\x0bb"])
def test_control_characters_in_a_command_are_refused(command: str) -> None:
    assert greeted().say(command + "\r\n") == "500 5.5.2 Error: bad syntax\r\n"


def test_a_line_over_the_limit_is_refused_and_the_next_one_read() -> None:
    """Whether its end comes at once or later."""
    driven = greeted(line_length_limit=100)
    assert driven.say("NOOP " + "x" * 200 + "\r\nNOOP\r\n").splitlines() == [
        "500 5.5.2 Error: line too long", "250 2.0.0 Ok",
    ]  # fmt: skip
    assert driven.say("NOOP " + "x" * 200) == "500 5.5.2 Error: line too long\r\n"
    assert driven.say("more") == ""
    assert driven.say(" of it\r\nNOOP\r\n") == "250 2.0.0 Ok\r\n"
    assert (
        driven.log
        == ["warning: client.example[192.0.2.1]: request longer than 100: " + ("NOOP " + "x" * 25) + "..."] * 2
    )


@pytest.mark.parametrize("line", ["GET / HTTP/1.0", "CONNECT x", "Subject: hello", "from:x", "12345"])
def test_another_protocol_and_message_text_end_the_session(line: str) -> None:
    driven = greeted()
    assert driven.say(line + "\r\n" + MAIL) == "221 2.7.0 Error: I can break rules, too. Goodbye.\r\n"
    assert driven.closed
    assert driven.log == [f"warning: non-SMTP command from client.example[192.0.2.1]: {line}"]


def test_forbidden_commands_are_words_and_patterns_of_the_table() -> None:
    driven = greeted(smtpd_forbidden_commands=("regexp:{{/^x-/ No} {/^y$/ No}}", "foo"))
    assert driven.say("bar\r\n") == "500 5.5.2 Error: command not recognized\r\n"
    for word in ("X-THING", "y", "FOO"):
        assert (
            greeted(smtpd_forbidden_commands=("regexp:{{/^x-/ No} {/^y$/ No}}", "foo"))
            .say(f"{word}\r\n")
            .startswith("221 2.7.0 ")
        )


def test_noop_words_are_answered_and_count_as_junk() -> None:
    driven = greeted(smtpd_noop_commands=("xhello",), smtpd_junk_command_limit=3, smtpd_hard_error_limit=2)
    assert driven.say("XHELLO you\r\n" * 2) == "250 2.0.0 Ok\r\n" * 2
    assert driven.say("XHELLO you\r\n" * 9).endswith("421 4.7.0 mx.test.example Error: too many errors\r\n")
    assert "xhello" not in driven.session.disconnect_line()


# -- the ends -------------------------------------------------------------------------------------


def test_ends_from_outside_say_why_once() -> None:
    ends: list[tuple[Callable[[Session], list[Event]], str, str]] = [
        (Session.expire, "421 4.4.2 mx.test.example Error: timeout exceeded\r\n", "timeout after EHLO"),
        (Session.lost, "", "lost connection after EHLO"),
        (Session.refuse, "", ""),
        (Session.fail, "421 4.3.0 mx.test.example Error: internal error\r\n", ""),
        (Session.shutdown, "421 4.3.2 mx.test.example Error: service shutting down\r\n", ""),
    ]
    for end, said, line in ends:
        driven = greeted()
        assert driven.run(end(driven.session)) == said
        assert driven.closed
        assert driven.log == ([f"{line} from client.example[192.0.2.1]"] if line else [])
        assert [again(driven.session) for again, _, _ in ends] == [[]] * len(ends)


def test_a_timeout_within_the_text_says_how_far_it_came() -> None:
    driven = greeted()
    states = [(driven.session.receiving, driven.session.idle)]
    driven.say(MAIL + RCPT + "DATA\r\n")
    states.append((driven.session.receiving, driven.session.idle))
    driven.say("x" * 98 + "\r\n")
    driven.run(driven.session.expire())
    assert driven.log == ["timeout after DATA (100 bytes) from client.example[192.0.2.1]"]
    states.append((driven.session.receiving, driven.session.idle))
    assert states == [(False, True), (True, True), (False, False)]


def test_an_answer_that_comes_after_the_end_changes_nothing() -> None:
    session = Session(SessionPlan(SETTINGS), Facts())
    driven = Driven(session)
    driven.start()
    (ask,) = session.receive(b"EHLO c.example\r\n")
    assert isinstance(ask, Ask)
    driven.run(session.expire())
    assert session.answer(ask.token, PERMIT) == []
    assert session.answer(ask.token, PERMIT) == []


def test_begin_may_refuse_and_the_recipients_are_forgotten() -> None:
    driven = greeted()

    def full(_: Transaction) -> Reply:
        return Reply(452, "4.3.1", "Insufficient system storage")

    driven.begin = full
    assert driven.say(MAIL + RCPT + "DATA\r\n").splitlines()[-1] == "452 4.3.1 Insufficient system storage"
    assert driven.say("DATA\r\n") == "503 5.5.1 Error: need RCPT command\r\n"


# -- what is shown and offered --------------------------------------------------------------------


def test_octets_are_escaped_for_the_log() -> None:
    assert escape(b"a\\b\r\n\t\0\x07\x08\x0b\x0c\xff~") == "a\\\\b\\r\\n\\t\\000\\a\\b\\v\\f\\377~"


def test_a_size_without_limit_is_offered_without_number_and_vrfy_only_where_it_works() -> None:
    driven = greeted(message_size_limit=0, disable_vrfy_command=True)
    assert "250-SIZE\r\n" in driven.say("EHLO c.example\r\n")
    assert "VRFY" not in driven.say("EHLO c.example\r\n")
