"""The wire of one SMTP connection: input, output, back-pressure, deadlines, how it ends.

Everything here runs in the loop's callbacks.  The receive buffer is one for all connections, so what is in it is copied
out before `buffer_updated` returns and it is only ever handed out as a memoryview: of a bytearray, asyncio's TLS layer
would fill a copy, and one client would read what another has sent.

Deadlines: one for each connection, with one timer for all (mta/deadlines.py).  A command line, a reply and a
handshake have smtpd_timeout each; message text moves the deadline by octets / smtpd_min_data_rate, so a slow sender
may go on and a stalled one not.  While one of our own questions or commits is open no deadline of the client runs.

See also: mta/smtpd/server_connection.py; postconf(5) smtpd_timeout, smtpd_min_data_rate
"""

import asyncio
import traceback
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from mta.descriptors import in_last_quarter
from mta.smtpd.facts import Facts
from mta.smtpd.server_facts import address_of, no_delay
from mta.smtpd.session import Session
from mta.smtpd.session_events import Event, Send

if TYPE_CHECKING:
    from mta.smtpd.server import SMTPServer

INPUT_LIMIT = 65536  # octets kept unparsed before reading pauses
CLOSING_TIME = 10.0  # seconds for a client to take our last words
HANDSHAKE_AT_STOP = 2.0  # seconds that a handshake may still take when the server goes down


class Wire(asyncio.BufferedProtocol):
    """See the module.  `server` is a class attribute of the subclass that each SMTPServer makes."""

    server: "SMTPServer"
    transport: asyncio.Transport | None = None
    dialogue: Session
    _pause: asyncio.TimerHandle | None = None  # of a Wait
    deadline = 0.0  # monotonic seconds
    counted = False  # the counters know of this connection
    ended: Callable[[], None] | None = None  # for whoever counts it besides
    _eof = False  # the client has closed its sending side
    _reading_paused = False
    _writing_paused = False
    _in_text = False
    _handshaking = False
    mute = False  # wrapper mode, and TLS does not listen yet: nothing is said or heard in the clear
    early = b""  # what came while mute: the beginning of the handshake

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
        self._meet(crowded=in_last_quarter(sock.fileno(), server.descriptors))

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
        if not committing:
            self._withdraw()
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

    # Output and its limits

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
        if self.ended is not None:
            self.ended()

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

    # What Connection adds

    @abstractmethod
    def _meet(self, *, crowded: bool) -> None:
        """A client is there.  crowded: too few descriptors are left for it."""

    @abstractmethod
    def _run(self, events: list[Event]) -> None:
        """Carry out what the dialogue says."""

    @abstractmethod
    def _withdraw(self) -> None:
        """Nobody waits for the answer to the open question any more."""

    @abstractmethod
    def _abort(self) -> None:
        """Forget the open message."""
