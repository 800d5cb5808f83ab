"""Counters of clients: connections open at once, and connections, messages, recipients per time unit.

State: one entry per client address, kept while a connection is open or its time unit runs; at most MAX_CLIENTS
entries, of which those without a connection go first.  Nothing survives a restart.

See also: anvil(8), postconf(5) smtpd_client_connection_count_limit and its kin
"""

from collections import OrderedDict

from mta.clock import Clock
from mta.record import dataclass
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Verdict

MAX_CLIENTS = 20_000
_OVER = "limit exceeded"


@dataclass(frozen=True, slots=True)
class AnvilSettings:
    """postconf(5); limits are counts, 0 = no limit; anvil_rate_time_unit in seconds."""

    myhostname: str
    smtpd_client_connection_count_limit: int
    smtpd_client_connection_rate_limit: int
    smtpd_client_message_rate_limit: int
    smtpd_client_recipient_rate_limit: int
    anvil_rate_time_unit: float


@dataclass(slots=True)
class _Client:
    start: float
    open: int = 0
    connections: int = 0
    messages: int = 0
    recipients: int = 0


class Anvil:
    """One per mail system.

    Verdict.log of a refusal is what the server warns about, who knows the client's name and whether it is excepted.
    """

    def __init__(self, settings: AnvilSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    async def connect(self, address: str) -> Verdict:
        """A connection was accepted; PERMIT, or the 421 that closes it.  One disconnect() follows in both cases."""
        client = self._client(address)
        client.open += 1
        client.connections += 1
        s = self._settings
        count, rate = client.open, client.connections
        if 0 < s.smtpd_client_connection_count_limit < count:
            return self._too_many(address, f"Connection concurrency {_OVER}: {count}")
        if 0 < s.smtpd_client_connection_rate_limit < rate:
            return self._too_many(address, f"Connection rate {_OVER}: {rate}")
        return PERMIT

    def _too_many(self, address: str, why: str) -> Verdict:
        text = f"{self._settings.myhostname} Error: too many connections from {address}"
        return Verdict(Reply(421, "4.7.0", text), close=True, log=(why,))

    def disconnect(self, address: str) -> None:
        """The connection is gone."""
        client = self._clients.get(address)
        if client is None:
            return
        client.open = max(0, client.open - 1)
        if not client.open and self._over(client):
            del self._clients[address]

    async def mail(self, address: str) -> Verdict:
        """A MAIL command."""
        client = self._client(address)
        client.messages += 1
        count, limit = client.messages, self._settings.smtpd_client_message_rate_limit
        if not 0 < limit < count:
            return PERMIT
        reply = Reply(450, "4.7.1", f"Error: too much mail from {address}")
        return Verdict(reply, log=(f"Message delivery request rate {_OVER}: {count}",))

    async def rcpt(self, address: str) -> Verdict:
        """A RCPT command."""
        client = self._client(address)
        client.recipients += 1
        count, limit = client.recipients, self._settings.smtpd_client_recipient_rate_limit
        if not 0 < limit < count:
            return PERMIT
        reply = Reply(450, "4.7.1", f"Error: too many recipients from {address}")
        return Verdict(reply, log=(f"Recipient address rate {_OVER}: {count}",))

    def _over(self, client: _Client) -> bool:
        return self._clock.monotonic() > client.start + self._settings.anvil_rate_time_unit

    def _client(self, address: str) -> _Client:
        client = self._clients.get(address)
        now = self._clock.monotonic()
        if client is None:
            client = self._clients[address] = _Client(now)
            self._shrink()
        else:
            self._clients.move_to_end(address)
            if self._over(client):
                client.start = now
                client.connections = client.messages = client.recipients = 0
        return client

    def _shrink(self) -> None:
        """Drop the oldest entry without a connection while there are too many; look at a few per call."""
        looked = 0
        while len(self._clients) > MAX_CLIENTS and looked < 8:
            address, client = next(iter(self._clients.items()))
            if client.open:
                self._clients.move_to_end(address)
            else:
                del self._clients[address]
            looked += 1
