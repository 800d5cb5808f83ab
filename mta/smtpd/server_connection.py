"""One SMTP connection: carries out what the pure session says, with a transport, a clock and the other rooms.

Everything here runs in the loop's callbacks; a question that is answered at once needs no Task.  How octets come and
go, and when it is too late for them, is mta/smtpd/server_wire.py.

See also: mta/smtpd/session.py, mta/smtpd/server_steps.py
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

from mta.eager import Done, start, then
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Verdict
from mta.smtpd.ports import Intake
from mta.smtpd.server_facts import tls_description
from mta.smtpd.server_steps import handshake, introduce, judge, make_durable, open_message
from mta.smtpd.server_wire import Wire
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

T = TypeVar("T")
_INTERNAL = Verdict(INTERNAL_ERROR)


class Connection(Wire):
    """See the module."""

    _intake: Intake | None = None
    _task: "asyncio.Task[Verdict] | None" = None
    _broken = False  # the open message cannot be completed: its commit is answered 451

    # The client

    def _meet(self, *, crowded: bool) -> None:
        server = self.server
        if crowded:
            server.crowded(self.dialogue.facts)
            self._introduced(Verdict(BUSY, close=True))
            return
        verdict = self._start(introduce(server, self), PERMIT)
        if isinstance(verdict, Done):
            self._introduced(verdict.value)
        else:
            self._task = verdict
            verdict.add_done_callback(self._introduced_later)

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

    def _withdraw(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

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
