"""The machine under the SMTP dialogue: input to lines, lines to commands, and which of them may come now.

No command is known here by its meaning: see session.py.  What is said, and how it ends, is session_exchange.py.

See also: RFC 2920 (PIPELINING), RFC 5321 s4.5.3; postconf(5) line_length_limit
"""

import re
from abc import abstractmethod
from collections.abc import Mapping

from mta.smtp.data import DataReceiver
from mta.smtp.grammar import split_command
from mta.smtp.reply import Reply
from mta.smtpd.facts import Facts, Stage, Verdict
from mta.smtpd.session_events import Event, Log, Wait
from mta.smtpd.session_exchange import Exchange, Row
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
)

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_QUOTE_FOR_LOG = 100  # octets of unexpected input shown in the log
_AT_ONCE = 20  # commands of a group that are answered before other clients have a turn
_UNKNOWN = Row("unknown", "UNKNOWN", run=lambda *_: None)  # never run


class Machine(Exchange):
    """Input; what the commands mean is added by Session."""

    __slots__ = ("_answered", "_denied", "_early", "_skipping", "started")

    def __init__(self, plan: SessionPlan, facts: Facts) -> None:
        super().__init__(plan, facts)
        self.started = False  # until then input is kept: the shell still finds out who the client is
        self._skipping = False  # within a line that is too long
        self._denied: Reply | None = None
        self._early = False
        self._answered = 0  # commands since the client was last waited for, or others had a turn

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
        self._answered = 0
        return self._advance([])

    @property
    def buffered(self) -> int:
        """Octets that wait to be parsed."""
        return len(self._input) - self._at

    @property
    def receiving(self) -> bool:
        """True between 354 and the end of data."""
        return self._receiver is not None

    # The machine

    def _advance(self, events: list[Event]) -> list[Event]:
        """Read commands or text until the input is used up or something is asked."""
        while not self.waiting and not self.closed and self._at < len(self._input):
            if self._receiver is not None:
                self._read_text(self._receiver, events)
            elif self._answered >= _AT_ONCE:
                self._answered = 0
                events.append(Wait(self._block(lambda *_: None, events), 0.0))
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
        self._answered += 1
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
            self._log_bare_newline(events)
            self._hang_up(self._bare_newline(521), events)
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

    # Lines for the log

    def _log_long_line(self, events: list[Event]) -> None:
        start = escape(self._input[self._at : self._at + 30])
        limit = self.plan.settings.line_length_limit
        events.append(Log(f"{self.facts.client}: request longer than {limit}: {start}...", warning=True))

    def _log_bare_newline(self, events: list[Event]) -> None:
        events.append(Log(f"bare <LF> received after {self._whereabouts()} from {self.facts.client}"))

    def _bare_newline(self, code: int) -> Reply:
        return host_reply(code, "5.5.2", self.plan.settings.myhostname, "Error: bare <LF> received")

    # What Session adds

    commands: Mapping[bytes, Row]  # by name in upper case

    @abstractmethod
    def _greet(self, verdict: Verdict, events: list[Event]) -> None:
        """The client may connect, or not."""

    @abstractmethod
    def _read_text(self, receiver: DataReceiver, events: list[Event]) -> None:
        """Take message text from the input."""


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
