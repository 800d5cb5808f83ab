"""One SMTP connection: carries out what the pure session says, with a transport, a clock and the other rooms.

Everything here runs in the loop's callbacks; a question that is answered at once needs no Task.  The receive
buffer is one for all connections, so what is in it is copied out before `buffer_updated` returns and it is only
ever handed out as a memoryview: of a bytearray, asyncio's TLS layer would fill a copy, and one client would read
what another has sent.

Deadlines: one for each connection, with one timer for all (mta/deadlines.py).  A command line, a reply and a
handshake have smtpd_timeout each; message text moves the deadline by octets / smtpd_min_data_rate, so a slow sender
may go on and a stalled one not.  While one of our own questions or commits is open no deadline of the client runs.

See also: mta/smtpd/session.py; postconf(5) smtpd_timeout, smtpd_min_data_rate
"""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mta.descriptors import in_last_quarter
from mta.eager import Done, start, then
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Verdict
from mta.smtpd.ports import Intake
from mta.smtpd.server_facts import address_of, no_delay, tls_description
from mta.smtpd.server_steps import handshake, introduce, judge, make_durable, open_message
from mta.smtpd.session import Session
from mta.smtpd.session_events import (
    Abort,
    Ask,
    Begin,
    Body,
    Close,
    Commit,
    Event,
    Log,
    Send,
    StartTls,
    Wait,
)
from mta.smtpd.session_text import BUSY, INTERNAL_ERROR, QUEUE_ERROR
from mta.tls import why_no_tls

if TYPE_CHECKING:
    from mta.smtpd.server import SMTPServer

INPUT_LIMIT = 65536  # octets kept unparsed before reading pauses
CLOSING_TIME = 10.0  # seconds for a client to take our last words
HANDSHAKE_AT_STOP = 2.0  # seconds that a handshake may still take when the server goes down
T = TypeVar("T")


class Connection(asyncio.BufferedProtocol):
    """See the module.  `server` is a class attribute of the subclass that each SMTPServer makes."""

    server: "SMTPServer"
    transport: asyncio.Transport | None = None
    dialogue: Session
    _intake: Intake | None = None
    _task: "asyncio.Task[Verdict] | None" = None
    _pause: asyncio.TimerHandle | None = None  # of a Wait
    deadline = 0.0  # monotonic seconds
    counted = False  # the counters know of this connection
    _eof = False  # the client has closed its sending side
    _reading_paused = False
    _writing_paused = False
    _in_text = False
    _handshaking = False
    mute = False  # wrapper mode, and TLS does not listen yet: nothing is said or heard in the clear
    early = b""  # what came while mute: the beginning of the handshake
    _broken = False  # the open message cannot be completed: its commit is answered 451

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; in wrapper mode it is counted before TLS stands."""
        server = self.server
        server.awake.heard()
        self.transport = transport  # type: ignore[assignment]  # TCP: always a full Transport
        facts = Facts()
        facts.client_address, facts.client_port = address_of(transport.get_extra_info("peername"))
        sock = transport.get_extra_info("socket")
        if server.sets_no_delay:
            no_delay(sock)
        self.dialogue = Session(server.plan, facts)
        self.mute = server.settings.smtpd_tls_wrappermode
        server.connections.add(self)
        server.accepted += 1
        server.peak = max(server.peak, len(server.connections))
        server.company.here(self)
        self.deadline = server.clock.monotonic() + server.settings.smtpd_timeout
        server.deadlines.watch(self)
        if in_last_quarter(sock.fileno(), server.descriptors):
            server.crowded(facts)
            self._introduced(Verdict(BUSY, close=True))
            return
        verdict = self._start(introduce(server, self), PERMIT)
        if isinstance(verdict, Done):
            self._introduced(verdict.value)
        else:
            self._task = verdict
            verdict.add_done_callback(self._introduced_later)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The one buffer of all connections of this server."""
        return self.server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Octets are in the buffer: out of it before anybody else gets it."""
        self.data_received(bytes(self.server.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Input; uvloop calls this itself (it does not see that we have a buffer)."""
        session = self.dialogue
        if self.mute and self.transport is not None:
            self.early += data
            self._reading_paused = True
            self.transport.pause_reading()
            return
        in_text = session.receiving
        self.server.company.here(self)
        self.server.awake.heard()
        try:
            events = session.receive(data)
        except Exception:
            self._fail()
            return
        if in_text:
            server = self.server
            now = server.clock.monotonic()
            earned = len(data) / server.settings.smtpd_min_data_rate if server.settings.smtpd_min_data_rate else 1e9
            self.deadline = min(now + server.settings.smtpd_timeout, self.deadline + earned)
        if events:
            self._run(events)
        elif (session.waiting or not session.started) and session.buffered > INPUT_LIMIT and not self._handshaking:
            self._pause_reading()

    def eof_received(self) -> bool:
        """The client will send no more; it may still read what it is owed."""
        self._eof = True
        if self.dialogue.idle and not self._handshaking:
            self._run(self.dialogue.lost())
        return not (self.dialogue.in_tls or self._handshaking or self.mute or self.transport is None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing can be said any more.  A question is dropped, a commit goes on."""
        self.transport = None
        if self._handshaking:  # _secured() is called in any case, and says why before it ends
            return
        session = self.dialogue
        committing = session.committing
        self._run(session.lost())
        if self._task is not None and not committing:
            self._task.cancel()
            self._task = None
        self._gone()

    def pause_writing(self) -> None:
        """The client does not read its replies: neither do we read its commands, and only for so long."""
        self._writing_paused = True
        if not self.dialogue.closed:
            self.deadline = self.server.clock.monotonic() + self.server.settings.smtpd_timeout
        self._pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writing_paused = False
        self._settle()

    # Events of the session

    def _run(self, events: list[Event]) -> None:
        """Carry out events, and those that follow when a question is answered at once; then write, once."""
        out: list[bytes] = []
        try:
            while events:
                following: list[Event] = []
                for event in events:
                    if type(event) is Send:
                        out.append(event.data)
                    elif type(event) is Log:
                        self._log(event)
                    else:
                        following = self._carry_out(event, out)
                events = following
        except Exception:
            self._fail()
            return
        self._write(out)
        self._settle()

    def _carry_out(self, event: Event, out: list[bytes]) -> list[Event]:
        match event:
            case Body(data=data):
                self._body(data)
            case Ask():
                return self._ask(event, out)
            case Begin():
                return self._begin(event, out)
            case Commit():
                return self._commit(event, out)
            case Abort():
                self._abort()
            case Wait(token=token, seconds=seconds):
                self._write(out)
                self._pause = self.server.clock.call_later(seconds, partial(self._waited, token))
            case StartTls():
                self._write(out)
                self._start_tls(partial(self.dialogue.tls_started, event.token))
            case Close():
                self._write(out)
                self._close()
            case _:
                pass
        return []

    def _log(self, event: Log) -> None:
        server = self.server
        (server.log.warning if event.warning else server.log.write)(server.service, event.text)

    def _write(self, out: list[bytes]) -> None:
        if out and self.transport is not None and not self.mute:
            self.server.outbox.write(self.transport, out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def _settle(self) -> None:
        """After anything has happened: deadlines, back-pressure, half-closed clients, shutdown."""
        session = self.dialogue
        if session.closed:
            return
        if session.waiting:
            if session.buffered > INPUT_LIMIT:
                self._pause_reading()
            return
        if self._reading_paused and not self._writing_paused and not self._handshaking:
            self._reading_paused = False
            if self.transport is not None:
                self.transport.resume_reading()
        in_text = session.receiving
        if not (in_text and self._in_text) and not self._writing_paused:
            self.deadline = self.server.clock.monotonic() + self.server.settings.smtpd_timeout
        self._in_text = in_text
        if self._eof:
            self._run(session.lost())
        elif self.server.draining and (last := session.shutdown()):
            self._run(last)

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    # Questions and their answers

    def _start(self, coroutine: Coroutine[object, None, T], fallback: T) -> Done[T] | asyncio.Task[T]:
        try:
            return start(coroutine, self.server.loop)
        except Exception:
            self._log_bug()
            return Done(fallback)

    def _result(self, task: asyncio.Task[T], fallback: T) -> T:
        try:
            return task.result()
        except Exception:
            self._log_bug()
            return fallback

    def _introduced(self, verdict: Verdict) -> None:
        session = self.dialogue
        if session.closed:
            return
        if verdict.reply is not None:
            self._write([verdict.reply.encode()])
            self._run(session.refuse())
        elif self.server.draining:
            self._run(session.shutdown())
        elif not self.mute:
            self._run(session.start())
        elif self.server.tls is None:
            text = f"{session.facts.client}: no usable certificate for smtpd_tls_wrappermode = yes: connection closed"
            self.server.log.warning(self.server.service, text)
            self._run(session.refuse())
        else:
            self._start_tls(self._greet_in_tls)

    def _introduced_later(self, task: asyncio.Task[Verdict]) -> None:
        self._task = None
        if not task.cancelled():
            self._introduced(self._result(task, PERMIT))

    def _ask(self, event: Ask, out: list[bytes]) -> list[Event]:
        answer = self._start(judge(self.server, self.dialogue.facts, event.stage), _INTERNAL)
        if isinstance(answer, Done):
            return self.dialogue.answer(event.token, answer.value)
        self._write(out)
        self._task = answer
        answer.add_done_callback(partial(self._answered, event.token))
        return []

    def _answered(self, token: int, task: asyncio.Task[Verdict]) -> None:
        self._task = None
        if not task.cancelled():
            self._run(self.dialogue.answer(token, self._result(task, _INTERNAL)))

    def _begin(self, event: Begin, out: list[bytes]) -> list[Event]:
        session = self.dialogue
        work = open_message(self.server, session.facts, event.transaction, in_tls=session.in_tls)
        opened = self._start(work, INTERNAL_ERROR)
        if isinstance(opened, Done):
            return self._opened(event.token, opened.value)
        self._write(out)
        opened.add_done_callback(partial(self._opened_later, event.token))
        return []

    def _opened(self, token: int, result: Intake | Reply) -> list[Event]:
        if isinstance(result, Reply):
            return self.dialogue.begun(token, result)
        if self.dialogue.closed:  # the client went away meanwhile
            result.abort()
            return []
        facts = self.dialogue.facts
        self._intake = result
        self._broken = False
        facts.queue_id = result.queue_id
        who = f", sasl_method={facts.sasl_method}, sasl_username={facts.sasl_username}" if facts.sasl_username else ""
        self.server.log.write(self.server.service, f"{result.queue_id}: client={facts.client}{who}")
        return self.dialogue.begun(token, None)

    def _opened_later(self, token: int, task: asyncio.Task[Intake | Reply]) -> None:
        result: Intake | Reply = INTERNAL_ERROR if task.cancelled() else self._result(task, INTERNAL_ERROR)
        self._run(self._opened(token, result))

    def _body(self, data: bytes) -> None:
        if self._intake is None or self._broken:
            return
        try:
            self._intake.write(data)
        except Exception:
            self._log_bug()
            self._broken = True

    def _abort(self) -> None:
        if self._intake is not None:
            self._intake.abort()
            self._intake = None

    def _commit(self, event: Commit, out: list[bytes]) -> list[Event]:
        intake = self._intake
        self.server.company.gone(self)
        if intake is None or self._broken:
            self._abort()
            return self.dialogue.committed(event.token, QUEUE_ERROR)
        self._intake = None
        done = then(make_durable(self.server, intake, self._log_bug), partial(self._committed, event.token))
        if done is not None:
            return self.dialogue.committed(event.token, done.value)
        self._write(out)
        return []

    def _committed(self, token: int, reply: Reply) -> None:
        self._run(self.dialogue.committed(token, reply))
        if self.transport is None:
            self._gone()

    def _waited(self, token: int) -> None:
        self._pause = None
        self._run(self.dialogue.waited(token))

    # TLS

    def _start_tls(self, go_on: Callable[[str], list[Event]]) -> None:
        """Begin the handshake; go_on gets the description of the TLS that stands then."""
        self._handshaking = True
        self._pause_reading()  # what comes from now on is for TLS
        self.server.outbox.flush()
        task = self.server.loop.create_task(handshake(self.server, self, self.transport))
        self.server.handshakes.add(task)
        task.add_done_callback(partial(self._secured, go_on))

    def _greet_in_tls(self, description: str) -> list[Event]:
        self.dialogue.secured(description)
        return self.dialogue.shutdown() if self.server.draining else self.dialogue.start()

    def _secured(
        self, go_on: Callable[[str], list[Event]], task: "asyncio.Task[asyncio.Transport | None]"
    ) -> None:
        self.server.handshakes.discard(task)
        self._handshaking = False
        session = self.dialogue
        try:
            transport = None if task.cancelled() else task.result()
            why = "lost connection"
        except (OSError, TimeoutError, ValueError) as error:
            transport, why = None, why_no_tls(error)
        except Exception:
            self._log_bug()
            transport, why = None, "internal error"
        if transport is None or self.transport is None or self.transport.is_closing():
            self.server.log.write(self.server.service, f"SSL_accept error from {session.facts.client}: {why}")
            self._hang_up()
            self.connection_lost(None)  # the loops do not say it of a transport that was in a handshake
            return
        self.transport = transport
        self._reading_paused = False
        description = tls_description(transport.get_extra_info("ssl_object"))
        if self.server.settings.smtpd_tls_loglevel:
            text = f"Anonymous TLS connection established from {session.facts.client}: {description}"
            self.server.log.write(self.server.service, text)
        self._run(go_on(description))

    # The end

    def expired(self) -> None:
        """The deadline has passed, if nothing has happened since; no deadline runs while the client waits for us."""
        server = self.server
        session = self.dialogue
        if session.closed:
            self._hang_up()  # it does not even take what it was told
            return
        now = server.clock.monotonic()
        if (session.waiting or self._handshaking) and not self._writing_paused:
            self.deadline = max(self.deadline, now + server.settings.smtpd_timeout)
        if self.deadline > now:
            server.deadlines.earlier(self.deadline)
            return
        self._run(session.expire())
        if self._writing_paused:
            self._hang_up()

    def _close(self) -> None:
        """Close when all is written, and at last without it."""
        transport = self.transport
        self.server.company.gone(self)
        if transport is None:
            return
        self.server.outbox.close(transport)
        self.deadline = self.server.clock.monotonic() + CLOSING_TIME
        self.server.deadlines.earlier(self.deadline)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _gone(self) -> None:
        """The transport has ended and so has, perhaps later, the commit: tidy up, once."""
        server = self.server
        server.deadlines.forget(self)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self.dialogue.committing or self not in server.connections:
            return
        server.connections.discard(self)
        server.company.gone(self)
        if self.counted:
            server.anvil.disconnect(self.dialogue.facts.client_address)
            server.log.write(server.service, self.dialogue.disconnect_line())
        server.connection_ended()

    def _fail(self) -> None:
        """A bug of ours: it ends this session and nothing else, and the client learns nothing of it."""
        self._log_bug()
        try:
            self._abort()
            for event in self.dialogue.fail():
                if isinstance(event, Send):
                    self._write([event.data])
        except Exception:
            self._log_bug()
        self._close()

    def _log_bug(self) -> None:
        lines = traceback.format_exc().splitlines()
        where = lines[-3].strip() if len(lines) >= 3 else ""
        client = self.dialogue.facts.client
        self.server.log.warning(self.server.service, f"{client}: internal error: {lines[-1]} ({where})")

    def abort(self) -> None:
        """Close now, whatever is open."""
        self._hang_up()

    def shutdown(self) -> None:
        """The server is going down: say so at the first moment between transactions."""
        if self._handshaking:
            self.server.clock.call_later(HANDSHAKE_AT_STOP, self._give_up_handshake)
        elif self.counted:
            self._run(self.dialogue.shutdown())

    def _give_up_handshake(self) -> None:
        if self._handshaking:
            self._hang_up()


_INTERNAL = Verdict(INTERNAL_ERROR)
