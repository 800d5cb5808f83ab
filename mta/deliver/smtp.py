"""The SMTP and LMTP delivery agent: one transport of master.cf, with what its requests share: connections that wait,
the way to a next hop, deadlines, and how a connection is made.

See also: mta/deliver/smtp_attempt.py (one request), smtp(8), lmtp(8)
"""

import os
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM

from mta.clock import Clock
from mta.deadlines import Deadlines
from mta.deliver.connector import Connector
from mta.deliver.request import DeliveryRequest
from mta.deliver.smtp_attempt import Attempt
from mta.deliver.smtp_failure import Failure
from mta.deliver.smtp_pool import Pool
from mta.deliver.smtp_route import Router
from mta.deliver.smtp_session import Session
from mta.deliver.smtp_settings import Destination, SmtpSettings, parse_nexthop
from mta.dns.mx import Shuffle, Target
from mta.dns.resolver import Resolver
from mta.maillog.maillog import Maillog
from mta.outbox import Outbox
from mta.smtp.client import Client
from mta.smtp.reply import Reply
from mta.tls import ClientTls

LOCAL_TROUBLE = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})  # ours, not the server's
MAX_REMEMBERED = 1000  # next hops


class SmtpAgent:
    """One transport of master.cf.  lmtp: speak LMTP.

    own_addresses: numeric addresses this host receives mail on; shuffle: random.shuffle or None (keep the order).
    """

    def __init__(
        self,
        settings: SmtpSettings,
        resolver: Resolver,
        connector: Connector,
        tls: ClientTls,
        log: Maillog,
        clock: Clock,
        *,
        lmtp: bool = False,
        own_addresses: frozenset[str] = frozenset(),
        shuffle: Shuffle | None = None,
    ) -> None:
        self.settings, self.connector, self.tls = settings, connector, tls
        self.log, self.clock, self.lmtp = log, clock, lmtp
        self.router = Router(settings, resolver, log, own_addresses, shuffle)
        self.pool = Pool(settings, clock)
        self.outbox = Outbox()
        self.deadlines = Deadlines(clock)
        self._destinations: dict[str, list[Destination]] = {}
        self._ignored = frozenset(word.upper() for word in settings.smtp_discard_ehlo_keywords)

    async def deliver(self, request: DeliveryRequest) -> None:
        """Try once; report each recipient through request.done."""
        self.pool.enter(request.nexthop)
        try:
            await Attempt(self, request).run()
        finally:
            self.pool.leave(request.nexthop)

    async def close(self) -> None:
        """Drop cached connections."""
        await self.pool.close()

    def destinations(self, nexthop: str) -> list[Destination]:
        """The next hops to try, fallback relays last; remembered, since mail comes in runs.  Raises NexthopError."""
        found = self._destinations.get(nexthop)
        if found is None:
            found = parse_nexthop(nexthop, self.settings, lmtp=self.lmtp)
            for relay in self.settings.smtp_fallback_relay:
                found += parse_nexthop(relay, self.settings, lmtp=False)
            if len(self._destinations) >= MAX_REMEMBERED:
                self._destinations.clear()
            self._destinations[nexthop] = found
        return found

    def new_session(self, target: Target, destination: Destination, *, use_tls: bool) -> Session:
        """A session object for a connection about to be made."""
        settings = self.settings
        client = Client(
            settings.smtp_helo_name,
            lmtp=self.lmtp,
            starttls=use_tls,
            ehlo="never" if settings.smtp_never_send_ehlo else "always" if settings.smtp_always_send_ehlo else "banner",
            ignored=self._ignored,
        )
        return Session(
            client, target.host, target.address, destination.port, settings, self.clock, self.outbox, self.deadlines
        )

    async def connect(self, session: Session, destination: Destination) -> Failure | None:
        """Make the connection; None: it stands."""
        settings = self.settings
        seconds = settings.smtp_connect_timeout or None
        try:
            if destination.path:
                await self.connector.connect_unix(lambda: session, destination.path, timeout=seconds)
            else:
                await self._dial(session, destination.port, seconds)
        except OSError as error:  # TimeoutError is one
            cause = os.strerror(error.errno) if error.errno else "Connection timed out"
            text = f"connect to {session.relay}: {cause}"
            return Failure(Reply(451, "4.4.1", text), text, site=error.errno not in LOCAL_TROUBLE)
        self.pool.adopt(session)
        return None

    async def _dial(self, session: Session, port: int, seconds: float | None) -> None:
        """TCP, from smtp_bind_address if this host has it; mail does not wait until it has (as in Postfix)."""
        address, settings = session.address, self.settings
        own = (settings.smtp_bind_address6 if ":" in address else settings.smtp_bind_address) or None
        try:
            await self.connector.connect(lambda: session, address, port, local_address=own, timeout=seconds)
        except OSError as error:
            if own is None or error.errno != EADDRNOTAVAIL:
                raise
            service, cause = "lmtp" if self.lmtp else "smtp", os.strerror(error.errno)
            self.log.warning(service, f"smtp_connect_addr: bind {own}: {cause}")
            await self.connector.connect(lambda: session, address, port, timeout=seconds)
