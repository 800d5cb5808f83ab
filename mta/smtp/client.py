"""The client side of an SMTP or LMTP dialogue, without I/O: envelope in, bytes out; bytes in, events out.

    connection -> receive(greeting) ... Ready -> begin(Transaction) ... WantBody -> (shell streams the body)
    -> end_body() ... Fate per recipient, Finished -> begin() again, reset() or quit()

Commands are sent in one group when the server offers PIPELINING (RFC 2920), else one by one.  What has been sent
and not yet answered stands in a queue, so that each reply meets its own command; a reply that meets an empty
queue, or is there before a command is sent, means that the two sides no longer agree who says what: Broken.  Only a
refusal while the text streams is clear: it is that of the message (as in Postfix, which reads it behind the final dot).

The shell closes the connection after Refused, Broken and Finished(reusable=False), and whenever `limit` (the
postconf(5) name of the timeout of the current step) has passed.  Recipients without a Fate by then are undecided.

Content with bytes above 127 is sent as it is when the server has no 8BITMIME, without BODY=: nearly every server
takes it, and a conversion to quoted-printable (as Postfix does) would break signatures.

See also: RFC 5321 s3.3, s4.3.2; RFC 1870, 2033 (LMTP), 2920, 3207, 3461, 6152, 6531
"""

from collections import deque
from typing import cast

from mta.smtp.client_events import (
    HANDSHAKE_STEPS,
    Broken,
    Closed,
    Event,
    Fate,
    Finished,
    Ready,
    Refused,
    Send,
    StartTls,
    Step,
    WantBody,
)
from mta.smtp.commands import Features, Transaction, mail_command, parse_features, rcpt_command, send_command
from mta.smtp.replies import MalformedReplyError, PeerReply, ReplyParser


class Client:
    """One dialogue.  helo_name: how we introduce ourselves.  starttls: use it when offered.

    ehlo: "always", "never", or "banner" (only when the greeting says ESMTP).  ignored: EHLO keywords to ignore.
    """

    def __init__(
        self,
        helo_name: str,
        *,
        lmtp: bool = False,
        starttls: bool = False,
        ehlo: str = "always",
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        self.features = Features()
        self.server_name = ""  # first word of the EHLO reply
        self.greeting = ""
        self.progress = 0  # replies heard so far: a deadline starts anew when it grows
        self.tls = False
        self.starttls_refused = False
        self._helo_name = helo_name
        self._lmtp = lmtp
        self._want_tls = starttls
        self._ehlo = ehlo
        self._ignored = ignored
        self._parser = ReplyParser()
        self._idle = Step.GREETING  # the step while nothing is pending
        self._answered = Step.GREETING  # the step whose reply came last
        self._pending: deque[tuple[Step, int]] = deque([(Step.GREETING, 0)])
        self._message: Transaction | None = None
        self._undecided: dict[int, bool] = {}  # recipient number -> accepted at RCPT
        self._next_rcpt = 0
        self._pipelined = False

    @property
    def step(self) -> Step:
        """What we are waiting for now."""
        return self._pending[0][0] if self._pending else self._idle

    @property
    def limit(self) -> str:
        """Name of the timeout parameter of the current step."""
        return self.step.limit

    @property
    def where(self) -> str:
        """ "lost connection with X while ..." in Postfix's words."""
        return self.step.where

    @property
    def closed(self) -> bool:
        """True after Refused, Broken, Closed or an end that left nothing to talk about."""
        return self._idle is Step.CLOSED

    @property
    def undecided(self) -> list[int]:
        """Recipients of the current transaction whose Fate is not known."""
        return list(self._undecided)

    # -- input ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server."""
        events: list[Event] = []
        if self.closed:
            return events
        parser, pending = self._parser, self._pending
        parser.feed(data)
        try:
            while (heard := parser.next()) is not None:
                self.progress += 1
                if not pending:
                    self._unexpected(heard, events)
                    return events
                step, index = pending.popleft()
                if not self._handle(step, index, heard, events):
                    return events
        except MalformedReplyError as error:
            self._break(str(error), events)
        return events

    def _handle(self, step: Step, index: int, heard: PeerReply, events: list[Event]) -> bool:
        """One reply to one command; False when that was the last.  What is sent next needs an empty input."""
        self._answered = step
        if step is Step.RCPT:
            self._on_rcpt(index, heard, events)
        elif step is Step.MAIL:
            self._on_mail(heard, events)
        elif step is Step.DATA:
            self._on_data(heard, events)
        elif step is Step.DOT:
            self._on_dot(index, heard, events)
        elif step is Step.LONE_DOT:
            self._finish(events)
        elif step is Step.GREETING:
            self._on_greeting(heard, events)
        elif step in HANDSHAKE_STEPS:
            self._on_ehlo(step, heard, events)
        elif step is Step.STARTTLS:
            self._on_starttls(heard, events)
        elif step is Step.RSET:
            self._on_rset(heard, events)
        else:
            self._close(events, Closed())
        return self._idle is not Step.CLOSED

    def _break(self, problem: str, events: list[Event]) -> None:
        step = self.step if self._pending or self._idle is Step.BODY else self._answered
        self._idle = Step.CLOSED
        self._pending.clear()
        events.append(Broken(problem, step))

    def _close(self, events: list[Event], event: Event) -> None:
        self._idle = Step.CLOSED
        self._pending.clear()
        events.append(event)

    def _unexpected(self, heard: PeerReply, events: list[Event]) -> None:
        if self._idle is Step.IDLE and heard.code == 421:
            self._close(events, Closed())
        elif not self._refused_early(heard, events):
            self._break(f"unexpected reply: {heard.line}", events)

    def _refused_early(self, heard: PeerReply, events: list[Event]) -> bool:
        """Is it about the message?  With LMTP nobody can tell to how many recipients it belongs."""
        if self._idle is not Step.BODY or heard.code < 400 or self._lmtp:
            return False
        self._decide_all(heard, Step.DOT.command, events)
        self._close(events, Finished(False))
        return True

    def _synchronised(self, events: list[Event]) -> bool:
        """May a command be sent?  Not when the peer has already said more than it was asked."""
        if self._parser.empty or self._pending:
            return True
        self._break("more replies than commands", events)
        return False

    # -- greeting, EHLO, STARTTLS -----------------------------------------------------------------

    def _on_greeting(self, heard: PeerReply, events: list[Event]) -> None:
        if not heard.reply.is_positive:
            self._close(events, Refused(heard, Step.GREETING))
            return
        self.greeting = heard.reply.text
        words = self.greeting.upper().split()
        plain = self._ehlo == "never" or (self._ehlo == "banner" and "ESMTP" not in words)
        self._introduce(Step.LHLO if self._lmtp else Step.HELO if plain else Step.EHLO, events)

    def _introduce(self, step: Step, events: list[Event]) -> None:
        if self._synchronised(events):
            self._pending.append((step, 0))
            events.append(Send(send_command(f"{step.name} {self._helo_name}")))

    def _on_ehlo(self, step: Step, heard: PeerReply, events: list[Event]) -> None:
        refused = not heard.reply.is_positive and (heard.reply.is_permanent or (self.tls and heard.code != 421))
        if step is Step.EHLO and refused:  # in the clear, who is busy is left alone
            self._introduce(Step.HELO, events)
            return
        if not heard.reply.is_positive:
            self._close(events, Refused(heard, step))
            return
        words = heard.reply.text.split(None, 1)
        self.server_name = words[0] if words else ""
        self.features = Features() if step is Step.HELO else parse_features(heard.reply.text, self._ignored)
        if self._want_tls and not self.tls and "STARTTLS" in self.features:
            if self._synchronised(events):
                self._pending.append((Step.STARTTLS, 0))
                events.append(Send(b"STARTTLS\r\n"))
            return
        self._ready(events)

    def _ready(self, events: list[Event]) -> None:
        self._idle = Step.IDLE
        if self._synchronised(events):
            events.append(Ready())

    def _on_starttls(self, heard: PeerReply, events: list[Event]) -> None:
        if heard.reply.is_positive:
            # Bytes behind the 220 were injected into the clear part (RFC 3207 s6, CVE-2011-0411 and friends).
            if self._synchronised(events):
                self._idle = Step.HANDSHAKE
                events.append(StartTls())
        elif heard.code == 421:
            self._close(events, Refused(heard, Step.STARTTLS))
        else:
            self.starttls_refused = True
            self._ready(events)

    def tls_started(self) -> list[Event]:
        """The handshake is done: what the server said before it does not count any more."""
        events: list[Event] = []
        self.tls = True
        self.features = Features()
        self._introduce(Step.LHLO if self._lmtp else Step.EHLO, events)
        return events

    # -- a message --------------------------------------------------------------------------------

    def begin(self, message: Transaction) -> bytes:
        """Start a transaction (only after Ready or a reusable Finished); write the result.

        ValueError: an address cannot be put into a command.
        """
        features = self.features
        commands = [mail_command(message, features)]
        self._message = message
        self._pipelined = "PIPELINING" in features
        self._next_rcpt = 0
        if self._pipelined:
            utf8 = message.smtputf8
            commands += [rcpt_command(r, features, smtputf8=utf8) for r in message.recipients]
            commands.append(b"DATA\r\n")
        self._undecided = dict.fromkeys(range(len(message.recipients)), False)
        self._pending.append((Step.MAIL, 0))
        if self._pipelined:
            self._pending.extend((Step.RCPT, index) for index in range(len(message.recipients)))
            self._pending.append((Step.DATA, 0))
        return b"".join(commands)

    def _decide_all(self, heard: PeerReply, command: str, events: list[Event]) -> None:
        events.extend(Fate(index, heard, command) for index in self._undecided)
        self._undecided.clear()

    def _usable(self, heard: PeerReply, step: Step, events: list[Event]) -> bool:
        """Filter replies that end the session: 421 (RFC 5321 s3.8), 3xx out of place, unreadable consent."""
        if heard.code == 421:
            self._decide_all(heard, step.command, events)
            self._close(events, Finished(False))
            return False
        good = 3 if step is Step.DATA else 2
        kind = heard.code // 100
        if kind < 4 and (kind != good or (not heard.clean and step is not Step.DOT)):
            self._pending.appendleft((step, 0))
            self._break(f"unexpected reply: {heard.line}", events)
            return False
        return True

    def _on_mail(self, heard: PeerReply, events: list[Event]) -> None:
        if not self._usable(heard, Step.MAIL, events):
            return
        if not heard.reply.is_positive:
            self._decide_all(heard, Step.MAIL.command, events)
        if not self._pipelined:
            self._next(events)

    def _on_rcpt(self, index: int, heard: PeerReply, events: list[Event]) -> None:
        if not self._usable(heard, Step.RCPT, events):
            return
        if index in self._undecided:  # else MAIL was refused: this is only its echo
            if heard.reply.is_positive:
                self._undecided[index] = True
            else:
                del self._undecided[index]
                events.append(Fate(index, heard, Step.RCPT.command))
        if not self._pipelined:
            self._next(events)

    def _next(self, events: list[Event]) -> None:
        """Lock step: the next command of the envelope."""
        message = cast(Transaction, self._message)  # whose reply brought us here
        if not self._undecided:
            self._finish(events)
            return
        if not self._synchronised(events):
            return
        if self._next_rcpt < len(message.recipients):
            index = self._next_rcpt
            self._next_rcpt += 1
            self._pending.append((Step.RCPT, index))
            recipient = message.recipients[index]
            events.append(Send(rcpt_command(recipient, self.features, smtputf8=message.smtputf8)))
        else:
            self._pending.append((Step.DATA, 0))
            events.append(Send(b"DATA\r\n"))

    def _on_data(self, heard: PeerReply, events: list[Event]) -> None:
        if not self._undecided and heard.reply.is_intermediate:
            # Pipelined DATA accepted although no recipient was: RFC 2920 s3.1 asks for a lone dot.
            if self._synchronised(events):
                self._pending.append((Step.LONE_DOT, 0))
                events.append(Send(b".\r\n"))
            return
        if not self._usable(heard, Step.DATA, events):
            return
        if heard.reply.is_intermediate:
            self._idle = Step.BODY
            early = self._parser.next() if not self._parser.empty else None
            if early is not None:
                if not self._refused_early(early, events):
                    self._break("more replies than commands", events)
            elif self._synchronised(events):
                events.append(WantBody())
            return
        self._decide_all(heard, Step.DATA.command, events)
        self._finish(events)

    def end_body(self) -> None:
        """The final dot is about to be written: replies to it are expected from now on."""
        self._idle = Step.IDLE
        if self._lmtp:
            self._pending.extend((Step.DOT, index) for index in self._undecided)
        else:
            self._pending.append((Step.DOT, 0))

    def _on_dot(self, index: int, heard: PeerReply, events: list[Event]) -> None:
        if not self._usable(heard, Step.DOT, events):
            return
        if self._lmtp:
            del self._undecided[index]
            events.append(Fate(index, heard, Step.DOT.command))
            if self._undecided:
                return
        else:
            self._decide_all(heard, Step.DOT.command, events)
        self._finish(events, reset_needed=False)

    def _finish(self, events: list[Event], *, reset_needed: bool = True) -> None:
        self._message = None
        self._idle = Step.IDLE
        if self._parser.empty:
            events.append(Finished(True, reset_needed))
        else:  # the replies we asked for stand; more than that is no basis for another message
            self._close(events, Finished(False))

    # -- between messages -------------------------------------------------------------------------

    def reset(self) -> bytes:
        """RSET: is the server alive and without a transaction?  Ready follows."""
        self._pending.append((Step.RSET, 0))
        return b"RSET\r\n"

    def _on_rset(self, heard: PeerReply, events: list[Event]) -> None:
        if heard.reply.is_positive:
            self._ready(events)
        else:
            self._close(events, Closed())

    def quit(self) -> bytes:
        """Say good-bye; Closed follows, or the server just closes."""
        self._pending.append((Step.QUIT, 0))
        return b"QUIT\r\n"
