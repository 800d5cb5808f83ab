"""The machine under the SMTP dialogue: input to lines, one open question, replies, error limits, closing.

No command is known here by its meaning: see session.py.  The mail transaction is one object, and `_drop` is the
only way to end it; every exit goes through there.

See also: RFC 2920 (PIPELINING), RFC 5321 s4.5.3; postconf(5) smtpd_hard_error_limit, line_length_limit
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from mta.record import dataclass
from mta.smtp.data import DataReceiver
from mta.smtp.grammar import split_command
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session_counts import Counts
from mta.smtpd.session_events import Abort, Ask, Close, Event, Log, Send, Transaction, Wait
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import (
    ACCESS_DENIED,
    BAD_SYNTAX,
    BAD_UTF8,
    LINE_TOO_LONG,
    MUST_STARTTLS,
    NON_SMTP,
    NOT_IMPLEMENTED,
    OK,
    OUT_OF_SYNC,
    UNKNOWN_COMMAND,
    escape,
    host_reply,
    reject_line,
)

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_QUOTE_FOR_LOG = 100  # octets of unexpected input shown in the log

Answer = Verdict | Reply | None
Continuation = Callable[[Any, list[Event]], None]  # takes what answer(), begun() or committed() was called with
Judged = Callable[[Verdict, list[Event]], None]


@dataclass(frozen=True, slots=True)
class Row:
    """What the machine must know of a command.

    name: its counter.  where: its name in the log.  limited: counts against smtpd_junk_command_limit.  pre_tls:
    comes before STARTTLS even where that is required.  last: ends a pipelined group (RFC 2920 s3.1).
    parses_controls: its own parser refuses control characters.  checks: called with the session, each may refuse.
    run: called with the session, the argument and the events, when nothing does.
    """

    name: str
    where: str
    run: Callable[..., None]
    checks: tuple[Callable[..., Reply | None], ...] = ()
    limited: bool = False
    pre_tls: bool = False
    last: bool = False
    parses_controls: bool = False


_UNKNOWN = Row("unknown", "UNKNOWN", run=lambda *_: None)  # never run


class Machine(ABC):
    """Lines, limits, replies and the one open question; what the commands mean is added by Session."""

    __slots__ = (
        *("_at", "_close_after", "_command", "_continue", "_counts", "_denied", "_early"),
        *("_errors", "_input", "_junk", "_message_open", "_out", "_receiver", "_skipping", "_stage", "_token"),
        *("closed", "committing", "facts", "in_tls", "plan", "started", "transaction"),
        *("waiting", "where"),
    )

    def __init__(self, plan: SessionPlan, facts: Facts) -> None:
        self.plan = plan
        self.facts = facts
        self.in_tls = False
        self.where = "CONNECT"  # the last command, as the log names it
        self.transaction: Transaction | None = None
        self.closed = False  # nothing will be read or said any more
        self.started = False  # until then input is kept: the shell still finds out who the client is
        self.waiting = False  # an answer is outstanding
        self.committing = False  # ... and it is that of a Commit
        self._token = 0
        self._continue: Continuation | None = None
        self._close_after = False
        self._stage = Stage.CONNECT
        self._input = b""
        self._at = 0  # what is before this position has been read
        self._out: list[bytes] = []
        self._receiver: DataReceiver | None = None  # set while a message arrives
        self._message_open = False  # between Begin and Commit or Abort
        self._skipping = False  # within a line that is too long
        self._command: Row | None = None
        self._counts = Counts()
        self._errors = 0
        self._junk = 0
        self._denied: Reply | None = None
        self._early = False

    # What the shell calls

    def start(self) -> list[Event]:
        """Begin: asks whether the client may connect, then greets."""
        events: list[Event] = []
        self.started = True
        self._ask(Stage.CONNECT, self._greet, events)
        return self._advance(events)

    def receive(self, data: bytes) -> list[Event]:
        """Take input."""
        if self.closed:
            return []
        self._input = self._input[self._at :] + data if self._at < len(self._input) else data
        self._at = 0
        if self.waiting or not self.started:
            return []
        return self._advance([])

    def answer(self, token: int, verdict: Verdict) -> list[Event]:
        """The answer to an Ask."""
        return self._resume(token, verdict)

    def begun(self, token: int, refusal: Reply | None) -> list[Event]:
        """The answer to a Begin: None when the message is open."""
        return self._resume(token, refusal)

    def committed(self, token: int, reply: Reply) -> list[Event]:
        """The answer to a Commit."""
        return self._resume(token, reply)

    def waited(self, token: int) -> list[Event]:
        """The time of a Wait is over."""
        return self._resume(token, None)

    def tls_started(self, token: int, description: str) -> list[Event]:
        """The handshake is done; description: for Received:.  All is forgotten that was said in the clear."""
        self.secured(description)
        return self._resume(token, None)

    def secured(self, description: str) -> None:
        """TLS stands; also before start(), in wrapper mode."""
        self.in_tls = True
        self.facts.tls = description

    def expire(self) -> list[Event]:
        """The client was silent or slow for too long."""
        return self._end(Reply(421, "4.4.2", "Error: timeout exceeded"), f"timeout after {self._whereabouts()}")

    def shutdown(self) -> list[Event]:
        """We are going down.  Between transactions: say so and close; else the transaction may end first."""
        if self.closed or self.waiting or self.transaction is not None:
            return []
        return self._end(Reply(421, "4.3.2", "Error: service shutting down"), "")

    def refuse(self) -> list[Event]:
        """The shell has refused the client before the dialogue began: end it without a word."""
        return self._end(None, "")

    def fail(self) -> list[Event]:
        """Our own fault: a bug or a broken shell ends this session, not the mail in it."""
        return self._end(Reply(421, "4.3.0", "Error: internal error"), "")

    def lost(self) -> list[Event]:
        """The client is gone.  An open question is abandoned, an open Commit is not."""
        if self.closed:
            return []
        return self._end(None, f"lost connection after {self._whereabouts()}")

    @property
    def buffered(self) -> int:
        """Octets that wait to be parsed."""
        return len(self._input) - self._at

    @property
    def receiving(self) -> bool:
        """True between 354 and the end of data."""
        return self._receiver is not None

    @property
    def idle(self) -> bool:
        """True when only new input can make it go on."""
        return not self.waiting and not self.closed

    def disconnect_line(self) -> str:
        """ "disconnect from name[address] ehlo=1 mail=1 rcpt=0/1 commands=2/3", as in Postfix's log."""
        return f"disconnect from {self.facts.client} {self._counts.words(self.counted)}"

    # The machine

    def _resume(self, token: int, value: Answer) -> list[Event]:
        """Go on where the open question was asked; an answer that is not awaited any more changes nothing."""
        events: list[Event] = []
        if token != self._token or self._continue is None:
            return events
        go_on = self._continue
        self._continue = None
        self.waiting = self.committing = False
        if self.closed:
            return events
        go_on(value, events)
        return self._advance(events)

    def _advance(self, events: list[Event]) -> list[Event]:
        """Read commands or text until the input is used up or something is asked."""
        while not self.waiting and not self.closed and self._at < len(self._input):
            if self._receiver is not None:
                self._read_text(self._receiver, events)
            else:
                end = self._input.find(b"\n", self._at)
                if end < 0:
                    if not self._keep_partial_line(events):
                        break
                else:
                    self._read_line(end, events)
        if self._out:
            self._flush(events)
        if self._at >= len(self._input) and not self.waiting:
            self._input = b""
            self._at = 0
        return events

    def _keep_partial_line(self, events: list[Event]) -> bool:
        """A line without its end: bounded.  True when it was just found too long."""
        if self._skipping:
            self._input, self._at = b"", 0
        elif self.buffered > self.plan.settings.line_length_limit:
            self._skipping = True
            self._log_long_line(events)
            self._input, self._at = b"", 0
            self._refuse_line(LINE_TOO_LONG, events)
            return True
        return False

    def _read_line(self, end: int, events: list[Event]) -> None:
        start = self._at
        self._at = end + 1
        if self._skipping:  # the rest of a line that has been answered
            self._skipping = False
            return
        bare = end == start or self._input[end - 1] != 13
        if end - start > self.plan.settings.line_length_limit:
            self._at = start
            self._log_long_line(events)
            self._at = end + 1
            self._refuse_line(LINE_TOO_LONG, events)
        elif bare and self.plan.reject_bare_newline:
            self._bare_newline(events)
        else:
            self._read_command(self._input[start : end if bare else end - 1], events)

    def _read_command(self, line: bytes, events: list[Event]) -> None:
        plan = self.plan
        if not line.isascii() and plan.settings.smtputf8_enable and not _is_utf8(line):
            self._refuse_line(BAD_UTF8, events)
            return
        verb, argument = split_command(line)
        if not verb:
            self._refuse_line(BAD_SYNTAX, events)
            return
        if verb in plan.noop_words:
            self._command = None
            self._count_junk()
            self._finish(OK, events)
            return
        command = self.commands.get(verb)
        self._command = known = command or _UNKNOWN
        self._counts[known.name][1] += 1
        self.where = known.where
        refusal = self._may_come(command, verb, line, events)
        if self.closed:
            return
        if refusal is not None:
            self._finish(refusal, events, ok=False)
        else:
            known.run(self, argument, events)

    def _may_come(self, command: Row | None, verb: bytes, line: bytes, events: list[Event]) -> Reply | None:
        """The checks that need no argument, in Postfix's order; the reply that refuses, or None."""
        facts = self.facts
        if command is None and self.plan.is_forbidden(verb):
            events.append(Log(f"non-SMTP command from {facts.client}: {escape(line[:_QUOTE_FOR_LOG])}", warning=True))
            self._hang_up(NON_SMTP, events)
            return None
        if verb == b"BDAT":
            # What follows is message text; its length is that of a client which ignores what we offer.
            self._hang_up(NOT_IMPLEMENTED, events)
            return None
        if self._denied is not None and verb != b"QUIT":
            return Reply(503, "5.7.0", f"{ACCESS_DENIED} {facts.client}")
        if command is None:
            return UNKNOWN_COMMAND
        if self.plan.requires_tls and not self.in_tls and not command.pre_tls:
            return MUST_STARTTLS
        if self._at < len(self._input) and self._out_of_turn(command, events):
            return None
        if _CONTROL.search(line) and not command.parses_controls:
            return BAD_SYNTAX
        for check in command.checks:
            refusal = check(self)
            if refusal is not None:
                return refusal
        return None

    def _out_of_turn(self, command: Row, events: list[Event]) -> bool:
        """More input is there behind a command: may it be?  RFC 2920 s3.1.  True when the session ended."""
        pipelining = self.plan.offers_pipelining and self.facts.protocol == "ESMTP"
        if (pipelining and not command.last) or command.name == "quit":
            return False
        return self._not_in_sync(command.where, events)

    def _not_in_sync(self, where: str, events: list[Event]) -> bool:
        if not self._early:
            self._early = True
            self.facts.unauth_pipelining = True
            rest = escape(self._input[self._at : self._at + _QUOTE_FOR_LOG])
            events.append(Log(f"improper command pipelining after {where} from {self.facts.client}: {rest}"))
        # Behind STARTTLS the input would be taken for TLS, or later for what was said inside it (RFC 3207 s6).
        if where == "STARTTLS" or self.plan.settings.smtpd_forbid_unauth_pipelining:
            self._hang_up(OUT_OF_SYNC, events)
            return True
        return False

    # Questions and answers

    def _block(self, go_on: Continuation, events: list[Event]) -> int:
        """Stand still until the shell answers with the token returned.

        answer(), begun() and committed() say which kind of value goes on.
        """
        if self._out:
            self._flush(events)
        self._token += 1
        self._continue = go_on
        self.waiting = True
        return self._token

    def _ask(self, stage: Stage, go_on: Judged, events: list[Event]) -> None:
        """Nobody need be asked where nothing is configured."""
        self._stage = stage
        if stage in self.plan.silent:
            go_on(PERMIT, events)
        else:
            events.append(Ask(self._block(go_on, events), stage, self.facts))

    def _refused(self, verdict: Verdict, events: list[Event]) -> Reply | None:
        """Note a verdict's effects; return its reply when it refuses."""
        if verdict is PERMIT:
            return None
        for text in verdict.log:
            events.append(Log(text))
        reply = verdict.reply
        if reply is not None and not reply.is_positive:
            events.append(Log(reject_line(self._stage, self.facts, reply)))
            self._close_after = verdict.close
            return reply
        self._take_effects(verdict)
        return None

    # Replies

    def _say(self, reply: Reply) -> None:
        if reply.code >= 500 and self.plan.settings.soft_bounce:
            reply = reply.softened()
        self._out.append(reply.encode())

    def _flush(self, events: list[Event]) -> None:
        events.append(Send(b"".join(self._out)))
        self._out = []

    def _refuse_line(self, reply: Reply, events: list[Event]) -> None:
        """Answer a line that is no command at all."""
        self._command = None
        self._finish(reply, events, ok=False)

    def _finish(self, reply: Reply, events: list[Event], *, ok: bool = True) -> None:
        """Answer the current command; a client that makes errors gets its answers late."""
        settings = self.plan.settings
        if self._errors >= settings.smtpd_soft_error_limit and settings.smtpd_error_sleep_time > 0:
            token = self._block(lambda _, later: self._finish_now(reply, later, ok=ok), events)
            events.append(Wait(token, settings.smtpd_error_sleep_time))
        else:
            self._finish_now(reply, events, ok=ok)

    def _finish_now(self, reply: Reply, events: list[Event], *, ok: bool) -> None:
        settings = self.plan.settings
        command = self._command
        self._say(reply)
        if not ok:
            self._errors += 1
        elif command is not None:
            self._counts[command.name][0] += 1
        if command is not None and command.limited:
            self._count_junk()
        if self._close_after or reply.code in (421, 521, 221):
            self._close(events)
        elif self._errors >= settings.smtpd_hard_error_limit:
            events.append(Log(f"too many errors after {self.where} from {self.facts.client}"))
            self._hang_up(host_reply(421, "4.7.0", settings.myhostname, "Error: too many errors"), events)

    def _count_junk(self) -> None:
        self._junk += 1
        if self._junk > self.plan.settings.smtpd_junk_command_limit:
            self._errors += 1

    def _hang_up(self, reply: Reply, events: list[Event]) -> None:
        self._say(reply)
        self._close(events)

    def _close(self, events: list[Event]) -> None:
        self._drop(events)
        self.closed = True
        self._input, self._at = b"", 0
        if self._out:
            self._flush(events)
        events.append(Close())

    def _end(self, reply: Reply | None, reason: str) -> list[Event]:
        """End from outside; an open Commit still gets its answer, which then goes nowhere."""
        events: list[Event] = []
        if self.closed:
            return events
        if reason:
            events.append(Log(f"{reason} from {self.facts.client}"))
        if reply is not None:
            self._say(host_reply(reply.code, reply.enhanced, self.plan.settings.myhostname, reply.text))
        self._close(events)
        return events

    def _drop(self, events: list[Event]) -> None:
        """End the transaction.  The only place that does."""
        if self._message_open and not self.committing:
            events.append(Abort())
        self._message_open = False
        self._receiver = None
        self.transaction = None
        facts = self.facts
        facts.sender = None
        facts.recipient = ""
        facts.recipient_count = facts.size = 0
        facts.smtputf8 = facts.discard = False
        facts.queue_id = ""
        facts.postponed_sender = None

    def _whereabouts(self) -> str:
        received = self._receiver
        return f"{self.where} ({received.wire_size} bytes)" if received is not None else self.where

    # What Session adds

    counted: tuple[str, ...] = ()  # names of the counters in the order of the log
    commands: Mapping[bytes, Row]  # by name in upper case

    @abstractmethod
    def _greet(self, verdict: Verdict, events: list[Event]) -> None:
        """The client may connect, or not."""

    @abstractmethod
    def _read_text(self, receiver: DataReceiver, events: list[Event]) -> None:
        """Take message text from the input."""

    @abstractmethod
    def _take_effects(self, verdict: Verdict) -> None:
        """Note what a permitting verdict wants done with the message."""

    # Lines for the log

    def _log_long_line(self, events: list[Event]) -> None:
        start = escape(self._input[self._at : self._at + 30])
        limit = self.plan.settings.line_length_limit
        events.append(Log(f"{self.facts.client}: request longer than {limit}: {start}...", warning=True))

    def _bare_newline(self, events: list[Event]) -> None:
        events.append(Log(f"bare <LF> received after {self._whereabouts()} from {self.facts.client}"))
        host = self.plan.settings.myhostname
        self._hang_up(host_reply(521, "5.5.2", host, "Error: bare <LF> received"), events)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
