"""One question to name servers, and the answer that counts: UDP, TCP when it did not fit, the next server.

The sockets are ours, so that a datagram that is not the answer to our question (wrong id, wrong name, damaged:
CVE-2023-29483) is passed over instead of ending the lookup.  State: only that of the questions in flight; each ends
with an answer or within the seconds and attempts of resolv.conf.

See also: mta/dns/answers.py, RFC 6891 (EDNS), RFC 7766 (TCP)
"""

import asyncio
import contextlib
from collections.abc import Callable

import dns.message
import dns.name

from mta.clock import Clock
from mta.deliver.connector import Connector
from mta.dns.answers import MAX_CNAMES, MAX_TTL, Answer, RefusedError, TruncatedError, judge, read
from mta.dns.mx import DnsTemporary
from mta.dns.system import Servers

PAYLOAD = 1232  # octets of a UDP answer: no fragments (DNS flag day 2020)


class Exchange:
    """Asks.  servers: called for each question, so that a changed resolv.conf counts at once."""

    def __init__(self, servers: Callable[[], Servers], connector: Connector, clock: Clock) -> None:
        self._servers, self._connector, self._clock = servers, connector, clock

    async def ask(self, name: dns.name.Name, kind: str) -> tuple[Answer, float]:
        """Follow CNAMEs that the server did not follow; -> (answer, seconds to keep it)."""
        ttl = MAX_TTL
        seen = {name}
        while True:
            found, end, seconds = read(await self._query(name, kind), name, kind)
            ttl = min(ttl, seconds)
            if found is not None:
                return found, ttl
            if end in seen or len(seen) > MAX_CNAMES:
                raise DnsTemporary(name.to_text(), kind)
            seen.add(end)
            name = end

    async def _query(self, name: dns.name.Name, kind: str) -> dns.message.Message:
        """Ask each server, each as often as resolv.conf says; the first clear answer counts.

        Again without EDNS: some forwarders and firewalls drop what they do not know (RFC 6891 s6.2.2).
        """
        servers = self._servers()
        for attempt in range(servers.attempts):
            for server in servers.addresses:
                with contextlib.suppress(OSError, TimeoutError, RefusedError):
                    return await self._query_server(name, kind, server, servers.seconds, edns=not attempt)
        raise DnsTemporary(name.to_text(), kind)

    async def _query_server(
        self, name: dns.name.Name, kind: str, server: tuple[str, int], seconds: float, *, edns: bool
    ) -> dns.message.Message:
        if edns:
            query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
            try:
                return await self._exchange(query, server, seconds)
            except RefusedError as refused:
                if not refused.no_edns:
                    raise
        return await self._exchange(dns.message.make_query(name, kind, use_edns=False), server, seconds)

    async def _exchange(
        self, query: dns.message.Message, server: tuple[str, int], seconds: float
    ) -> dns.message.Message:
        """UDP, and TCP when the answer did not fit."""
        udp, waiting = await self._connector.datagrams(lambda: _UdpClient(query), *server)
        try:
            udp.sendto(query.to_wire())
            async with self._clock.timeout(seconds):
                return await waiting.answer
        except TruncatedError:
            pass
        finally:
            waiting.abandon()
            udp.close()
        tcp, reading = await self._connector.connect(lambda: _TcpClient(query), *server, timeout=seconds)
        try:
            wire = query.to_wire()
            tcp.write(len(wire).to_bytes(2, "big") + wire)
            async with self._clock.timeout(seconds):
                return await reading.answer
        finally:
            reading.abandon()
            tcp.abort()


class _Waiting:
    """One question and the future of its answer."""

    def __init__(self, query: dns.message.Message) -> None:
        self.query = query
        self.answer: asyncio.Future[dns.message.Message] = asyncio.get_running_loop().create_future()

    def take(self, wire: bytes, *, tcp: bool) -> None:
        """Judge what arrived; what is not our answer is passed over."""
        if self.answer.done():
            return
        try:
            answer = judge(self.query, wire, tcp=tcp)
        except (TruncatedError, RefusedError) as verdict:
            self.answer.set_exception(verdict)
            return
        if answer is not None:
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def abandon(self) -> None:
        """Nobody waits any more."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # now it counts as seen


class _UdpClient(_Waiting, asyncio.DatagramProtocol):
    """Waits for the datagram that answers the query."""

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Junk is passed over until the time of this try is up."""
        self.take(data, tcp=False)

    def error_received(self, exc: Exception) -> None:
        """ICMP: nobody is there."""
        self.fail(exc)


class _TcpClient(_Waiting, asyncio.Protocol):
    """Reads one answer with its length in front; at most 65,537 octets and one read are kept."""

    _buffer = b""

    def data_received(self, data: bytes) -> None:
        """Collect until the announced length is there."""
        self._buffer += data
        length = int.from_bytes(self._buffer[:2], "big")
        if len(self._buffer) >= max(2, 2 + length):
            self.take(self._buffer[2 : 2 + length], tcp=True)
            self.fail(RefusedError())

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed before the answer was complete."""
        self.fail(exc or ConnectionResetError())
