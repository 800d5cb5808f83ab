"""MAIL, RCPT, DATA and the text behind it: one mail transaction, from its first command to its commit.

Each command is parsed, then asked about, and only a permitted one changes anything.

See also: mta/smtpd/session.py (the other commands), RFC 5321 s3.3
"""

from typing import cast

from mta.envelope import Recipient
from mta.smtp.data import DataReceiver
from mta.smtp.grammar import parse_mail, parse_rcpt
from mta.smtp.path import BAD_RECIPIENT, BAD_SENDER
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session_events import Abort, Begin, Body, Commit, Event, Log, Transaction
from mta.smtpd.session_machine import Machine
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import (
    CONFIGURATION_ERROR,
    DATA_SYNTAX,
    DISCARDED,
    GO_AHEAD,
    OK_MAIL,
    OK_RCPT,
    TOO_BIG,
    TOO_LARGE,
    TOO_MANY_RECIPIENTS,
    escape,
    reject_line,
)

_QUOTE_FOR_LOG = 100  # octets of a bad address shown in the log


class MailSession(Machine):
    """The part of a session that takes mail."""

    __slots__ = ("_of_client", "_of_helo", "_overshoot", "_unwanted")

    def __init__(self, plan: SessionPlan, facts: Facts) -> None:
        super().__init__(plan, facts)
        self._of_client = self._of_helo = PERMIT  # their effects are for every message
        self._overshoot = 0  # recipients beyond smtpd_recipient_limit
        self._unwanted: Reply | None = None  # why the rest of the text is read and forgotten

    def _take_effects(self, verdict: Verdict) -> None:
        if self.transaction is not None and self._stage is not Stage.VRFY:  # which is about no message
            _apply(verdict, self.transaction)
            self.facts.discard = self.transaction.discard

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
            for earlier in (self._of_client, self._of_helo):
                _apply(earlier, transaction)
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self._drop(later)
                self._finish(refusal, later, ok=False)
                return
            facts.postponed_sender = verdict.postponed
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
        self._unwanted = None
        self._receiver = DataReceiver()
        self._say(GO_AHEAD)

    def _read_text(self, receiver: DataReceiver, events: list[Event]) -> None:
        data = self._input[self._at :] if self._at else self._input
        text = receiver.feed(data)
        self._input, self._at = receiver.rest, 0
        limit = self.plan.settings.message_size_limit
        bare = receiver.bare_lf > 0 and self.plan.reject_bare_newline
        if self._unwanted is None and (bare or 0 < limit < receiver.wire_size):
            self._unwanted = self._bare_newline(550) if bare else TOO_BIG
            if bare:
                self._log_bare_newline(events)
            if self._message_open:
                self._message_open = False
                events.append(Abort())
        if text and self._message_open:
            events.append(Body(text))
        if receiver.done:
            self._end_of_data(receiver, events)
        elif bare and data.endswith(b"\n.\n"):
            # It ends every line so, and waits for an answer.  Another client goes on sending, and would not hear one.
            self._hang_up(self._bare_newline(521), events)

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

        if self._unwanted is not None:
            self._message_done(self._unwanted, events)
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
