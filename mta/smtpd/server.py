"""The SMTP listener: aiosmtpd's SMTP class with our dialogue in it.

What is kept of aiosmtpd is its contract with the outside: connection objects are `aiosmtpd.smtp.SMTP`, and have
its `session`, `envelope`, `event_handler`, `hostname`.  Its reader, parser, timers and command loop are not
used: bytes go to mta/smtpd/session.py (see server_connection.py).  Nor is its constructor run per connection: it
costs more than a message; what it would set is taken once from a template and shared by the class.

No other module imports aiosmtpd.  tests/unit/test_aiosmtpd_contract.py names every attribute relied upon.

    server = SMTPServer(settings, policy, cleanup, anvil, names, log, clock, tls)
    await loop.create_server(server.factory, sock=listener)          (wrapper mode too: see Connection)
    ...
    await server.drain(30); server.close()
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from mta.awake import Awake
from mta.clock import Clock
from mta.company import Company
from mta.deadlines import Deadlines
from mta.descriptors import limit
from mta.outbox import Outbox
from mta.smtpd.facts import Facts, Stage
from mta.smtpd.ports import Anvil, Cleanup, Exceptions, Log, PeerNames, Policy
from mta.smtpd.server_connection import Connection
from mta.smtpd.server_settings import ServerSettings
from mta.smtpd.server_wire import Wire
from mta.smtpd.session_plan import SessionPlan
from mta.smtpd.session_text import BUSY
from mta.spared import spared

with spared("email._header_value_parser", "attr.converters", "attr.filters", "attr.validators"):
    import aiosmtpd.smtp

BUFFER = 65536 - 64  # octets taken at once; text held back from the last piece still fits into 64 KiB with it
WARN_INTERVAL = 60.0  # seconds between two lines about the same trouble

# What aiosmtpd's constructor sets and a user of its objects may look at; the same for all connections.
SHARED = ("event_handler", "hostname", "data_size_limit", "enable_SMTPUTF8", "tls_context", "loop")


class SMTPConnection(Connection, aiosmtpd.smtp.SMTP):  # type: ignore[misc]  # `transport` is narrower here
    """One connection, for aiosmtpd an SMTP object; see Connection for what it does."""

    def __init__(self) -> None:
        # Neither base is initialised: the class of the server holds what does not differ between connections.
        pass

    def __del__(self) -> None:
        # aiosmtpd and asyncio look at a future here which we never make.
        pass

    @property
    def session(self) -> aiosmtpd.smtp.Session:
        """aiosmtpd's view of the client, made when asked for."""
        facts = self.dialogue.facts
        session = aiosmtpd.smtp.Session(self.server.loop)
        session.peer = (facts.client_address, facts.client_port)  # type: ignore[assignment]  # as aiosmtpd itself does
        session.host_name = facts.helo or None
        session.extended_smtp = facts.protocol == "ESMTP"
        session.authenticated = bool(facts.sasl_username)
        transport = self.transport
        if transport is not None and self.dialogue.in_tls:
            session.ssl = {name: transport.get_extra_info(name) for name in ("cipher", "sslcontext", "peercert")}
        return session

    @session.setter
    def session(self, value: Any) -> None:
        """Ours is the only one."""

    @property
    def envelope(self) -> aiosmtpd.smtp.Envelope:
        """aiosmtpd's view of the transaction; the content is never in memory."""
        envelope = aiosmtpd.smtp.Envelope()
        transaction = self.dialogue.transaction
        if transaction is not None:
            envelope.mail_from = transaction.sender
            envelope.rcpt_tos = [recipient.address for recipient in transaction.recipients]
            envelope.smtp_utf8 = transaction.smtputf8
        return envelope

    @envelope.setter
    def envelope(self, value: Any) -> None:
        """Ours is the only one."""


class SMTPServer:
    """One listener's settings and the connections that came through it.  Belongs to one event loop."""

    def __init__(
        self,
        settings: ServerSettings,
        policy: Policy,
        cleanup: Cleanup,
        anvil: Anvil,
        names: PeerNames,
        log: Log,
        clock: Clock,
        tls: ssl.SSLContext | None = None,
        *,
        service: str = "smtpd",
        entry: str = "smtp",
        silent: frozenset[Stage] = frozenset(),
        company: Company | None = None,
        exceptions: Exceptions | None = None,
    ) -> None:
        """service: name in the log ("submission/smtpd").  entry: name in master.cf ("submission").  silent: stages at
        which the policy has nothing to say, so that nobody need ask.  company: of the disk that cleanup writes to.
        exceptions: clients whom anvil's limits are not for.  To be called in the loop that serves."""
        self.company = company or Company(clock)
        self.settings = settings
        self.policy, self.cleanup, self.anvil, self.names = policy, cleanup, anvil, names
        self.exceptions = exceptions
        self.log, self.clock, self.tls, self.service, self.entry = log, clock, tls, service, entry
        self.plan = SessionPlan(settings, tls=tls is not None, silent=silent)
        self.loop = asyncio.get_running_loop()
        self.awake = Awake(self.loop)
        self.outbox = Outbox(lambda: self.awake.said(len(self.connections)))
        self.sets_no_delay = not type(self.loop).__module__.startswith("uvloop")  # which does it itself
        self.descriptors = limit()
        self.buffer = memoryview(bytearray(BUFFER))
        self.connections: set[Wire] = set()
        self.deadlines = Deadlines(clock)
        self.accepted = 0  # connections since the start
        self.peak = 0  # most connections at once since somebody set this back
        self.handshakes: set[asyncio.Task[asyncio.Transport | None]] = set()
        self.draining = False
        self._next_warning = float("-inf")
        self._empty = asyncio.Event()
        self._class = self._connection_class()

    def _connection_class(self) -> type[SMTPConnection]:
        template = aiosmtpd.smtp.SMTP(
            self,
            hostname=self.settings.myhostname,
            ident=self.settings.smtpd_banner,
            data_size_limit=self.settings.message_size_limit or None,
            enable_SMTPUTF8=self.settings.smtputf8_enable,
            tls_context=self.tls,
            loop=self.loop,
        )
        shared = {name: getattr(template, name) for name in SHARED}
        return type("SMTPConnection", (SMTPConnection,), {"server": self, **shared})

    def factory(self, ended: Callable[[], None] | None = None) -> SMTPConnection:
        """For loop.create_server().  ended: called when the connection is gone."""
        connection = self._class()
        if ended is not None:
            connection.ended = ended
        return connection

    def crowded(self, facts: Facts) -> None:
        """A client is refused for want of descriptors; the log hears of it at most once a minute."""
        now = self.clock.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + WARN_INTERVAL
            self.log.warning(
                self.service, f"too few file descriptors (limit {limit()}): refusing clients such as "
                f"{facts.client_address} with {BUSY.code} {BUSY.enhanced}; see LimitNOFILE"
            )  # fmt: skip

    def connection_ended(self) -> None:
        """A connection is gone and its commit, if any, is done."""
        if not self.connections:
            self._empty.set()

    async def drain(self, limit: float) -> bool:
        """Let transactions end, refuse new ones (421 4.3.2); True when all connections are gone in time.

        Stop accepting before.  limit in seconds.
        """
        self.draining = True
        self._empty.clear()
        for connection in list(self.connections):
            connection.shutdown()
        self.outbox.flush()
        if not self.connections:
            return True
        try:
            async with self.clock.timeout(limit):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Drop what is left; a commit under way still ends in the queue or not at all."""
        self.outbox.flush()
        for connection in list(self.connections):
            connection.abort()
