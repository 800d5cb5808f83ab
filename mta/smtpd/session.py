"""The server side of an SMTP dialogue: bytes in, events out.  No I/O, no clock.

    events = session.start()                      a connection stands, the facts of the client are known
    events = session.receive(data)                whenever bytes arrive
    events = session.answer(token, verdict) ...   the shell has done what an event asked for

One question is open at a time; what arrives meanwhile is kept unparsed (`buffered` octets).  Each command
first passes its row of the table below (may it come here?), then its handler parses it and asks, and only a permitted
one changes anything.  The mail transaction is one object: dropping it is the only way to end it, and every
exit drops it.  Texts, codes and the order of checks are Postfix's, except:

- a line over line_length_limit is refused instead of being cut;
- control characters in a command are refused;
- ESMTP parameters after HELO without EHLO are unknown;
- BDAT is not offered, and ends the session: its payload must never be read as commands.

Session adds the commands without mail in them, and the table of all, to MailSession (session_mail.py: MAIL, RCPT,
DATA), that to Machine (session_machine.py: input), and that to Exchange (session_exchange.py: questions, replies).

See also: RFC 5321 s4, RFC 2920 (PIPELINING), RFC 3207 (STARTTLS), postconf(5) smtpd_*
"""

import re
from collections.abc import Callable

from mta.smtp.path import BAD_RECIPIENT, parse_host, parse_path
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Stage, Verdict
from mta.smtpd.session_events import Event, StartTls
from mta.smtpd.session_exchange import Answer, Row
from mta.smtpd.session_mail import MailSession
from mta.smtpd.session_text import (
    AUTH_NOT_ENABLED,
    BYE,
    EHLO_SYNTAX,
    ETRN_IN_MAIL,
    ETRN_NAME,
    ETRN_SYNTAX,
    HELO_FIRST,
    HELO_SYNTAX,
    NEED_MAIL,
    NEED_RCPT,
    NESTED_MAIL,
    NO_RECIPIENTS,
    NOT_IMPLEMENTED,
    OK,
    READY_FOR_TLS,
    RSET_SYNTAX,
    STARTTLS_SYNTAX,
    TLS_ACTIVE,
    VRFY_DISABLED,
    VRFY_SYNTAX,
)

_HOST_NAME = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_QUOTE_FOR_LOG = 100  # octets of a bad address shown in the log


class Session(MailSession):
    """One connection's dialogue.  `facts` is shared with the shell, which fills in what it knows of the client."""

    __slots__ = ()

    # What the commands do

    def _greet(self, verdict: Verdict, events: list[Event]) -> None:
        refusal = self._refused(verdict, events)
        self._of_client = verdict
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
        if stage is Stage.EHLO:  # and HELO after it takes no extension back, as in Postfix: the client knows them
            self.facts.protocol = "ESMTP"

        def go_on(verdict: Verdict, later: list[Event]) -> None:
            refusal = self._refused(verdict, later)
            if refusal is not None:
                self.facts.helo, self.facts.protocol = before
                self._finish(refusal, later, ok=False)
                return
            self._drop(later)
            self._of_helo = verdict
            self.facts.postponed_helo = verdict.postponed
            if stage is Stage.HELO:
                self._finish(self.plan.helo, later)
            else:
                self._finish(self.plan.ehlo_in_tls if self.in_tls else self.plan.ehlo, later)

        self._ask(stage, go_on, events)

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
        self.facts.helo = ""  # but not that the client knows of extensions, as in Postfix: some greet only once
        self._of_helo = PERMIT

    def _auth(self, argument: bytes, events: list[Event]) -> None:
        self._finish(AUTH_NOT_ENABLED, events, ok=False)


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
