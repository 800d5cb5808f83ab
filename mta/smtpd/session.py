"""The server side of an SMTP dialogue: bytes in, events out.  No I/O, no clock.

    events = session.start()                      a connection stands, the facts of the client are known
    events = session.receive(data)                whenever bytes arrive
    events = session.answer(token, verdict) ...   the shell has done what an event asked for

One question is open at a time; what arrives meanwhile is kept unparsed (`buffered` octets).  Each command
first passes its row of COMMANDS (may it come here?), then its handler parses it and asks, and only a permitted
one changes anything.  The mail transaction is one object: dropping it is the only way to end it, and every
exit drops it.  Texts, codes and the order of checks are Postfix's, except:

- a line over line_length_limit is refused instead of being cut;
- control characters in a command are refused;
- ESMTP parameters after HELO are unknown;
- BDAT is not offered, and ends the session: its payload must never be read as commands.

See also: RFC 5321 s4, RFC 2920 (PIPELINING), RFC 3207 (STARTTLS), postconf(5) smtpd_*
"""

import re
from collections.abc import Callable
from typing import cast

from mta.envelope import Recipient
from mta.smtp.data import DataReceiver
from mta.smtp.grammar import parse_mail, parse_rcpt
from mta.smtp.path import BAD_RECIPIENT, BAD_SENDER, parse_host, parse_path
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session_events import Abort, Begin, Body, Commit, Event, Log, StartTls, Transaction
from mta.smtpd.session_machine import Answer, Machine, Row
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import (
    AUTH_NOT_ENABLED,
    BYE,
    CONFIGURATION_ERROR,
    DATA_SYNTAX,
    DISCARDED,
    EHLO_SYNTAX,
    ETRN_IN_MAIL,
    ETRN_NAME,
    ETRN_SYNTAX,
    GO_AHEAD,
    HELO_FIRST,
    HELO_SYNTAX,
    NEED_MAIL,
    NEED_RCPT,
    NESTED_MAIL,
    NO_RECIPIENTS,
    NOT_IMPLEMENTED,
    OK,
    OK_MAIL,
    OK_RCPT,
    READY_FOR_TLS,
    RSET_SYNTAX,
    STARTTLS_SYNTAX,
    TLS_ACTIVE,
    TOO_BIG,
    TOO_LARGE,
    TOO_MANY_RECIPIENTS,
    VRFY_DISABLED,
    VRFY_SYNTAX,
    escape,
    reject_line,
)

_HOST_NAME = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_QUOTE_FOR_LOG = 100  # octets of a bad address shown in the log


class Session(Machine):
    """One connection's dialogue.  `facts` is shared with the shell, which fills in what it knows of the client."""

    __slots__ = ("_effects", "_overshoot", "_too_big")

    def __init__(self, plan: SessionPlan, facts: Facts) -> None:
        super().__init__(plan, facts)
        self._effects: tuple[Verdict, ...] = ()  # of verdicts before MAIL, for every message
        self._overshoot = 0  # recipients beyond smtpd_recipient_limit
        self._too_big = False

    def _take_effects(self, verdict: Verdict) -> None:
        if self.transaction is not None:
            _apply(verdict, self.transaction)
            self.facts.discard = self.transaction.discard
        elif verdict.hold or verdict.discard or verdict.redirect or verdict.bcc or verdict.prepend or verdict.filter:
            self._effects = (*self._effects, verdict)

    # Handlers

    def _greet(self, verdict: Verdict, events: list[Event]) -> None:
        refusal = self._refused(verdict, events)
        self.facts.postponed_client = verdict.postponed
        if self._at < len(self._input) and self._not_in_sync("CONNECT", events):
            return
        self._denied = refusal
        self._say(refusal or self.plan.greeting)
        if refusal is not None and refusal.code in (421, 521):
            self._close(events)

    def _helo(self, argument: bytes, events: list[Event]) -> None:
        self._hello(Stage.HELO, argument, HELO_SYNTAX, events)

    def _ehlo(self, argument: bytes, events: list[Event]) -> None:
        self._hello(Stage.EHLO, argument, EHLO_SYNTAX, events)

    def _hello(self, stage: Stage, argument: bytes, syntax: Reply, events: list[Event]) -> None:
        if not argument:
            self._finish(syntax, events, ok=False)
            return
        before = (self.facts.helo, self.facts.protocol)
        name = b" ".join(argument.split())  # all words, as Postfix takes them: "My PC" is a bad name, and not "My"
        self.facts.helo = parse_host(name)
        self.facts.protocol = "SMTP" if stage is Stage.HELO else "ESMTP"

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self.facts.helo, self.facts.protocol = before
                self._finish(refusal, later, ok=False)
                return
            self._drop(later)
            self.facts.postponed_helo = verdict.postponed
            if stage is Stage.HELO:
                self._finish(self.plan.helo, later)
            else:
                self._finish(self.plan.ehlo_in_tls if self.in_tls else self.plan.ehlo, later)

        self._ask(stage, go_on, events)

    def _mail(self, argument: bytes, events: list[Event]) -> None:
        plan = self.plan
        rules = plan.esmtp_rules if self.facts.protocol == "ESMTP" else plan.smtp_rules
        parsed = parse_mail(argument, rules)
        if isinstance(parsed, Reply):
            self._bad_address(parsed, BAD_SENDER, "MAIL", argument[5:], events)
            return
        facts = self.facts
        facts.sender = parsed.sender
        facts.size = parsed.size
        facts.smtputf8 = parsed.smtputf8
        limit = plan.settings.message_size_limit
        if limit and parsed.size > limit:
            events.append(Log(reject_line(Stage.MAIL, facts, TOO_LARGE)))
            self._drop(events)
            self._finish(TOO_LARGE, events, ok=False)
            return
        self._overshoot = 0
        transaction = Transaction(
            parsed.sender, parsed.size, parsed.encoding, parsed.smtputf8, parsed.ret, parsed.envelope_id, parsed.auth
        )

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            self.transaction = transaction
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self._drop(later)
                self._finish(refusal, later, ok=False)
                return
            facts.postponed_sender = verdict.postponed
            for verdict in self._effects:
                _apply(verdict, transaction)
            facts.discard = transaction.discard
            self._finish(OK_MAIL, later)

        self._ask(Stage.MAIL, go_on, events)

    def _rcpt(self, argument: bytes, events: list[Event]) -> None:
        transaction = cast(Transaction, self.transaction)  # its row has checked that
        plan = self.plan
        rules = plan.esmtp_rules if self.facts.protocol == "ESMTP" else plan.smtp_rules
        parsed = parse_rcpt(argument, rules, smtputf8=transaction.smtputf8)
        if isinstance(parsed, Reply):
            self._bad_address(parsed, BAD_RECIPIENT, "RCPT", argument[3:], events)
            return
        settings = plan.settings
        if settings.smtpd_recipient_limit and len(transaction.recipients) >= settings.smtpd_recipient_limit:
            # Not the client's fault until it goes on for long (RFC 5321 s4.5.3.1.10).
            self._overshoot += 1
            self._finish(TOO_MANY_RECIPIENTS, events, ok=self._overshoot <= settings.smtpd_recipient_overshoot_limit)
            return
        self.facts.recipient = parsed.recipient
        recipient = Recipient(parsed.recipient, notify=parsed.notify, dsn_orig_rcpt=parsed.orcpt)

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self._finish(refusal, later, ok=False)
                return
            transaction.recipients.append(recipient)
            self.facts.recipient_count = len(transaction.recipients)
            self._finish(OK_RCPT, later)

        self._ask(Stage.RCPT, go_on, events)

    def _bad_address(self, reply: Reply, bad: Reply, verb: str, path: bytes, events: list[Event]) -> None:
        if reply is bad:
            shown = escape(path[:_QUOTE_FOR_LOG])
            text = f"Illegal address syntax from {self.facts.client} in {verb} command: {shown}"
            events.append(Log(text, warning=True))
        self._finish(reply, events, ok=False)

    def _data(self, argument: bytes, events: list[Event]) -> None:
        if argument:
            self._finish(DATA_SYNTAX, events, ok=False)
            return
        recipients = cast(Transaction, self.transaction).recipients  # its row has checked that
        self.facts.recipient = recipients[0].address if len(recipients) == 1 else ""
        self._ask(Stage.DATA, self._data_permitted, events)

    def _data_permitted(self, verdict: Verdict, events: list[Event]) -> None:
        refusal = self._refused(verdict, events)
        transaction = cast(Transaction, self.transaction)
        if refusal is not None:
            self._finish(refusal, events, ok=False)
        elif transaction.discard:
            self._data_begun(None, events)
        else:
            events.append(Begin(self._block(self._data_begun, events), transaction))

    def _data_begun(self, refusal: Reply | None, events: list[Event]) -> None:
        if refusal is not None:
            self._drop(events)
            self._finish(refusal, events, ok=False)
            return
        self._message_open = not cast(Transaction, self.transaction).discard
        if self._at < len(self._input) and self._not_in_sync("DATA", events):
            return
        self._too_big = False
        self._receiver = DataReceiver()
        self._say(GO_AHEAD)

    def _read_text(self, receiver: DataReceiver, events: list[Event]) -> None:
        text = receiver.feed(self._input[self._at :] if self._at else self._input)
        self._input, self._at = receiver.rest, 0
        if receiver.bare_lf and self.plan.reject_bare_newline:
            self._bare_newline(events)
            return
        limit = self.plan.settings.message_size_limit
        if limit and receiver.wire_size > limit and not self._too_big:
            self._too_big = True  # the rest is read and forgotten
            if self._message_open:
                self._message_open = False
                events.append(Abort())
        if text and self._message_open:
            events.append(Body(text))
        if receiver.done:
            self._end_of_data(receiver, events)

    def _end_of_data(self, receiver: DataReceiver, events: list[Event]) -> None:
        self._receiver = None
        self.where = "END-OF-MESSAGE"
        self.facts.size = receiver.wire_size

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            transaction = cast(Transaction, self.transaction)
            before = _stored_effects(transaction) if verdict is not PERMIT else set()
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self._message_done(refusal, later)
            elif transaction.discard:
                # A DISCARD that came this late: nothing of it is kept.
                self._message_done(DISCARDED, later)
            elif verdict is not PERMIT and _stored_effects(transaction) - before:
                # The envelope is in the queue file: to take the message without them would let through what
                # they are there to stop.
                text = f"{self.facts.client}: HOLD, REDIRECT, BCC and FILTER must be used before END-OF-MESSAGE"
                later.append(Log(text, warning=True))
                self._message_done(CONFIGURATION_ERROR, later)
            else:
                token = self._block(self._commit_done, later)
                self.committing = True
                later.append(Commit(token, receiver.wire_size, receiver.has_8bit))

        if self._too_big:
            self._message_done(TOO_BIG, events)
        else:
            self._ask(Stage.END_OF_MESSAGE, go_on, events)

    def _commit_done(self, reply: Reply, events: list[Event]) -> None:
        self._message_open = False
        self._message_done(reply, events)

    def _message_done(self, reply: Reply, events: list[Event]) -> None:
        self._drop(events)
        if reply.is_positive:
            self._errors = self._junk = 0
        self._finish(reply, events, ok=reply.is_positive)

    def _rset(self, argument: bytes, events: list[Event]) -> None:
        if argument:
            self._finish(RSET_SYNTAX, events, ok=False)
            return
        self._drop(events)
        self._finish(OK, events)

    def _noop(self, argument: bytes, events: list[Event]) -> None:
        self._finish(OK, events)

    def _quit(self, argument: bytes, events: list[Event]) -> None:
        self._finish(BYE, events)

    def _vrfy(self, argument: bytes, events: list[Event]) -> None:
        if self.plan.settings.disable_vrfy_command:
            self._finish(VRFY_DISABLED, events, ok=False)
            return
        word = argument
        utf8 = self.plan.esmtp_rules.smtputf8 and argument[-9:].upper() in (b" SMTPUTF8", b"\tSMTPUTF8")
        if utf8:
            word = argument[:-9].rstrip(b" \t")
        if not word:
            self._finish(VRFY_SYNTAX, events, ok=False)
            return
        address = parse_path(word, self.plan.lenient_rules, BAD_RECIPIENT, smtputf8=utf8)
        if isinstance(address, Reply):
            self._bad_address(address, BAD_RECIPIENT, "VRFY", word, events)
            return
        facts = self.facts
        before = facts.recipient
        facts.recipient = facts.etrn_or_vrfy = address
        shown = word.decode("utf-8", "replace")

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            refusal = self._refused(verdict, later)
            self.facts.recipient, self.facts.etrn_or_vrfy = before, ""
            if refusal is not None:
                self._finish(refusal, later, ok=False)
            else:
                self._finish(verdict.reply or Reply(252, "2.0.0", shown), later)

        self._ask(Stage.VRFY, go_on, events)

    def _etrn(self, argument: bytes, events: list[Event]) -> None:
        domain = argument[1:] if argument[:1] in (b"@", b"#") else argument
        if not domain or len(domain.split()) != 1:
            self._finish(ETRN_SYNTAX, events, ok=False)
            return
        if not _HOST_NAME.fullmatch(domain) or b".." in domain:
            self._finish(ETRN_NAME, events, ok=False)
            return
        name = domain.decode("ascii")
        self.facts.etrn_or_vrfy = name

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            refusal = self._refused(verdict, later)
            self.facts.etrn_or_vrfy = ""
            # Without a reply of the policy no queue is kept by destination for this name.
            reply = refusal or verdict.reply or Reply(459, "", f"<{name}>: service unavailable")
            self._finish(reply, later, ok=reply.is_positive)

        self._ask(Stage.ETRN, go_on, events)

    def _starttls(self, argument: bytes, events: list[Event]) -> None:
        if argument:
            self._finish(STARTTLS_SYNTAX, events, ok=False)
        elif self.in_tls:
            self._finish(TLS_ACTIVE, events, ok=False)
        elif not self.plan.offers_tls:
            self._finish(NOT_IMPLEMENTED, events, ok=False)
        else:
            self._command = None  # counts as a success when TLS stands
            self._finish_now(READY_FOR_TLS, events, ok=True)
            if not self.closed:
                events.append(StartTls(self._block(self._in_tls_now, events)))

    def _in_tls_now(self, value: Answer, events: list[Event]) -> None:
        self._counts["starttls"][0] += 1
        self._drop(events)
        self.facts.helo = ""
        self.facts.protocol = "SMTP"
        self._effects = ()

    def _auth(self, argument: bytes, events: list[Event]) -> None:
        self._finish(AUTH_NOT_ENABLED, events, ok=False)


def _apply(verdict: Verdict, transaction: Transaction) -> None:
    """Add the effects of a verdict to the message; the last redirect and filter win."""
    if verdict.hold:
        transaction.hold = True
    if verdict.discard:
        transaction.discard = True
    if verdict.redirect:
        transaction.redirect = verdict.redirect
    if verdict.bcc:
        transaction.bcc = (*transaction.bcc, *verdict.bcc)
    if verdict.prepend:
        transaction.prepend = (*transaction.prepend, *verdict.prepend)
    if verdict.filter:
        transaction.filter = verdict.filter


def _stored_effects(transaction: Transaction) -> set[tuple[str, object]]:
    """The effects that are written with the envelope, before the text of a message."""
    single = {"hold": transaction.hold, "redirect": transaction.redirect, "filter": transaction.filter}
    return {*single.items(), *(("bcc", address) for address in transaction.bcc)}


# What each command needs of the session before it is looked at closer.


def _helo_first(session: Session) -> Reply | None:
    return HELO_FIRST if session.plan.settings.smtpd_helo_required and not session.facts.helo else None


def _no_transaction(session: Session) -> Reply | None:
    return NESTED_MAIL if session.transaction is not None else None


def _in_transaction(session: Session) -> Reply | None:
    return NEED_MAIL if session.transaction is None else None


def _has_recipients(session: Session) -> Reply | None:
    if session.transaction is None:
        return NEED_RCPT
    return None if session.transaction.recipients else NO_RECIPIENTS


def _no_etrn_in_mail(session: Session) -> Reply | None:
    return ETRN_IN_MAIL if session.transaction is not None else None


Run = Callable[[Session, bytes, list[Event]], None]
Check = Callable[[Session], Reply | None]


def _row(
    where: str,
    run: Run,
    *checks: Check,
    limited: bool = False,
    pre_tls: bool = False,
    last: bool = False,
    own: bool = False,
) -> tuple[bytes, Row]:
    row = Row(where.lower(), where, run, checks, limited=limited, pre_tls=pre_tls, last=last, parses_controls=own)
    return where.encode(), row


# In the order of the counters in the log.
_ROWS = (
    _row("HELO", Session._helo, limited=True, pre_tls=True, last=True),
    _row("EHLO", Session._ehlo, limited=True, pre_tls=True, last=True),
    _row("STARTTLS", Session._starttls, pre_tls=True, last=True),
    _row("AUTH", Session._auth, _helo_first),
    _row("MAIL", Session._mail, _helo_first, _no_transaction, own=True),
    _row("RCPT", Session._rcpt, _in_transaction, own=True),
    _row("DATA", Session._data, _has_recipients, last=True),
    _row("BDAT", Session._noop),  # never run: see session_machine
    _row("RSET", Session._rset, limited=True),
    _row("NOOP", Session._noop, limited=True, pre_tls=True, last=True),
    _row("VRFY", Session._vrfy, _helo_first, limited=True, last=True),
    _row("ETRN", Session._etrn, _helo_first, _no_etrn_in_mail, limited=True),
    _row("QUIT", Session._quit, pre_tls=True),
)
Session.commands = dict(_ROWS)
Session.counted = (*(row.name for _, row in _ROWS), "unknown")
