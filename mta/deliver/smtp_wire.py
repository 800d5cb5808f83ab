"""The wire of one connection to an SMTP or LMTP server: octets, deadlines, who waits, how it ends.

A deadline counts from the last complete reply, so a peer that dribbles bytes gains nothing.  While a message streams,
it is that of one stalled write.  One timer serves all connections (mta/deadlines.py).

See also: mta/deliver/smtp_session.py (what is said), RFC 5321 s4.5.3.2
"""

import asyncio
import ssl
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

from mta.clock import Clock
from mta.deadlines import NEVER, Deadlines
from mta.deliver.smtp_failure import Failure
from mta.deliver.smtp_settings import SmtpSettings
from mta.outbox import Outbox
from mta.smtp.client import Client
from mta.smtp.client_events import HANDSHAKE_STEPS, Event, Step
from mta.smtp.reply import Reply


class Wire(asyncio.Protocol):
    """host, address, port: the peer, for texts; port 0: a unix socket.  clock and settings: for the deadlines."""

    def __init__(
        self,
        client: Client,
        host: str,
        address: str,
        port: int,
        settings: SmtpSettings,
        clock: Clock,
        outbox: Outbox,
        deadlines: Deadlines,
    ) -> None:
        self.client = client
        self.host = host
        self.address = address
        self.namaddr = f"{host}[{address}]"
        self.relay = f"{self.namaddr}:{port}" if port else self.namaddr
        self.uses = 0  # messages begun
        self.opened = clock.monotonic()
        self.reusable = False
        self.reset_needed = False
        self.on_lost: Callable[[Any], None] | None = None  # called with the session
        self._settings, self._clock, self._outbox, self._deadlines = settings, clock, outbox, deadlines
        self._transport: asyncio.Transport | None = None
        self._failure: Failure | None = None
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self.deadline = NEVER
        self._seen = 0
        self._busy = True  # a handshake or a message is under way, the first from the moment the connection stands
        self._paused = False

    def abort(self) -> None:
        """Drop the connection at once."""
        self.reusable = False
        self.deadline = NEVER
        if self._transport is not None and not self._lost:
            self._transport.abort()

    @property
    def alive(self) -> bool:
        """True while nothing speaks against sending another message."""
        if self._lost or self._failure is not None or self.client.closed:
            return False
        return self._transport is not None and not self._transport.is_closing()

    def _put(self, data: bytes, *, now: bool = False) -> None:
        """Write; into a connection that is closing, nothing.  now: see at once whether the peer takes it."""
        if self._transport is not None and not self._transport.is_closing():
            self._outbox.write(self._transport, data)
            if now:
                self._outbox.flush()

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS connection, None in the clear."""
        found = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        return found if isinstance(found, ssl.SSLObject) else None

    @abstractmethod
    def _handle(self, events: Iterable[Event]) -> None:
        """What the dialogue says."""

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the server speaks first."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one only by behaviour
        self._deadlines.watch(self)

    def data_received(self, data: bytes) -> None:
        """Run the dialogue as far as it goes."""
        self._handle(self.client.receive(data))
        if self.client.progress != self._seen:
            self._seen = self.client.progress
            self._arm()

    def eof_received(self) -> None:
        """The peer is done: so are we."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears of it; an idle session leaves the cache."""
        self._lost = True
        self.reusable = False
        self._deadlines.forget(self)
        if self._busy and self._failure is None:
            self._fail(self._lost_failure())
        self._wake()
        if self.on_lost is not None:
            self.on_lost(self)

    def pause_writing(self) -> None:
        """The kernel's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has room again."""
        self._paused = False
        self._wake()

    # -- how it fails -----------------------------------------------------------------------------

    def _fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure
        self.reusable = False
        self.deadline = NEVER
        self._wake()

    def _lost_failure(self) -> Failure:
        return self._broken_off(f"lost connection with {self.namaddr} while {self.client.where}")

    def _broken_off(self, text: str) -> Failure:
        return Failure(Reply(451, "4.4.2", text), text, tls=self._blames_tls(self.client.step))

    def _blames_tls(self, step: Step) -> bool:
        """Would it have gone well in the clear?  From STARTTLS to the EHLO inside TLS we think so."""
        return step in (Step.STARTTLS, Step.HANDSHAKE) or (self.client.tls and step in HANDSHAKE_STEPS)

    # -- waiting ----------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Sleep until something happens; callers look for themselves what it was."""
        if self._failure is not None:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        """Start the deadline of the current step anew."""
        step = self.client.step
        if step is Step.IDLE or (step is Step.BODY and not self._paused):
            self.deadline = NEVER
            return
        self.deadline = self._clock.monotonic() + float(getattr(self._settings, step.limit))
        self._deadlines.earlier(self.deadline)

    def expired(self) -> None:
        """The deadline has passed, if nothing was heard since."""
        if self._lost:
            return
        if self.deadline > self._clock.monotonic():
            self._deadlines.earlier(self.deadline)
            return
        if self._busy:
            self._fail(self._broken_off(f"conversation with {self.namaddr} timed out while {self.client.where}"))
        self.abort()
