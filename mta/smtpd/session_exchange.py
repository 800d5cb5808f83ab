"""One side of the SMTP dialogue, and not yet what it hears: one open question, replies, error limits, the end.

The mail transaction is one object, and `_drop` is the only way to end it; every exit goes through there.

See also: mta/smtpd/session_machine.py (input); postconf(5) smtpd_hard_error_limit, smtpd_error_sleep_time
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from mta.record import dataclass
from mta.smtp.data import DataReceiver
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.session_counts import Counts
from mta.smtpd.session_events import Abort, Ask, Close, Event, Log, Send, Transaction, Wait
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import host_reply, reject_line

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


class Exchange(ABC):
    """See the module."""

    __slots__ = (
        *("_at", "_close_after", "_command", "_continue", "_counts", "_errors", "_input", "_junk", "_message_open"),
        *("_out", "_receiver", "_stage", "_token"),
        *("closed", "committing", "facts", "in_tls", "plan", "transaction", "waiting", "where"),
    )

    counted: tuple[str, ...] = ()  # names of the counters in the order of the log

    def __init__(self, plan: SessionPlan, facts: Facts) -> None:
        self.plan = plan
        self.facts = facts
        self.in_tls = False
        self.where = "CONNECT"  # the last command, as the log names it
        self.transaction: Transaction | None = None
        self.closed = False  # nothing will be read or said any more
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
        self._command: Row | None = None
        self._counts = Counts()
        self._errors = 0
        self._junk = 0

    # What the shell calls

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
        """The handshake is done; description: for Received:.  Forgotten is what was said in the clear, but EHLO."""
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
    def idle(self) -> bool:
        """True when only new input can make it go on."""
        return not self.waiting and not self.closed

    def disconnect_line(self) -> str:
        """ "disconnect from name[address] ehlo=1 mail=1 rcpt=0/1 commands=2/3", as in Postfix's log."""
        return f"disconnect from {self.facts.client} {self._counts.words(self.counted)}"

    # Questions and answers

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
        if self._junk > self.plan.settings.smtpd_junk_command_limit:  # the limit and one more, as in Postfix
            self._errors += 1
        self._junk += 1

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

    @abstractmethod
    def _advance(self, events: list[Event]) -> list[Event]:
        """Go on with the input."""

    @abstractmethod
    def _take_effects(self, verdict: Verdict) -> None:
        """Note what a permitting verdict wants done with the message."""
