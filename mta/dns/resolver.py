"""Names to addresses and back: the only module that knows dnspython.

A stub resolver: it asks the servers of dns_servers (or resolv.conf) one after the other and keeps small tuples in
a cache, by name and type, for the time the zone allows.  Equal questions in flight are asked once.  dnspython
builds the questions and reads the answers; the sockets are ours, so that a datagram that is not the answer to our
question (wrong id, wrong name, damaged: CVE-2023-29483) is passed over instead of ending the lookup.

What is not a clear answer is DnsTemporary: timeout, SERVFAIL, REFUSED, a referral, a truncated answer whose TCP
retry fails, an answer about another name, a CNAME chain that is too long.  Nothing of that ever looks like "does
not exist".

/etc/hosts is asked before DNS for addresses and for names of addresses, never for MX.

See also: mta/dns/mx.py, mta/dns/system.py, RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 7766 (TCP)
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.reversename
import dns.rrset

from mta.clock import Clock
from mta.deliver.connector import Connector
from mta.dns.mx import MX, DnsError, DnsNoData, DnsNotFound, DnsTemporary, MXAnswer
from mta.dns.system import Servers, WatchedFile, is_address, parse_hosts, parse_resolv_conf, parse_server, same_address
from mta.maillog import Maillog

__all__ = [
    "ClientName", "DnsError", "DnsNoData", "DnsNotFound", "DnsTemporary", "MXAnswer", "Resolver", "ResolverSettings",
]  # fmt: skip

PAYLOAD = 1232  # octets of a UDP answer: no fragments (DNS flag day 2020)
MAX_RECORDS = 100  # of one answer that are kept
MAX_CNAMES = 8
MAX_CACHE = 10_000  # answers
MAX_TTL = 600.0  # seconds an answer is kept at most: a local caching resolver knows better than we do
MAX_NEGATIVE_TTL = 60.0
FAILURE_TTL = 1.0  # seconds a DnsTemporary is remembered, so that a burst of mail asks dead servers once

_Found = MXAnswer | tuple[str, ...]
_Answer = _Found | type[DnsError]


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """dns_servers: address, address:port or [v6]:port; empty = nameserver lines of resolv.conf."""

    dns_servers: tuple[str, ...]
    inet_protocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClientName:
    """Who an address says it is.  name: confirmed by its own addresses, else "unknown"; reverse_name: what PTR says.

    Statuses as in Facts: 2 found, 4 temporary failure, 5 not found (or forged).
    """

    name: str
    reverse_name: str
    name_status: int
    reverse_status: int


UNKNOWN = ClientName("unknown", "unknown", 5, 5)


class _TruncatedError(Exception):
    """TC=1: ask again over TCP."""


class _RefusedError(Exception):
    """This server cannot answer: try the next one.  no_edns: it did not like the question's EDNS record."""

    def __init__(self, *, no_edns: bool = False) -> None:
        super().__init__()
        self.no_edns = no_edns


def families(inet_protocols: Sequence[str]) -> tuple[int, ...]:
    """Read inet_protocols: "all", "ipv4", "ipv6" -> (4, 6), (4,) or (6,)."""
    words = {word.lower() for word in inet_protocols} or {"all"}
    return tuple(f for f, word in ((4, "ipv4"), (6, "ipv6")) if word in words or "all" in words)


class Resolver:
    """One per process.  close() ends what is in flight.  ValueError: dns_servers holds something but addresses."""

    def __init__(
        self,
        settings: ResolverSettings,
        connector: Connector,
        clock: Clock,
        log: Maillog,
        *,
        resolv_conf: str = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
    ) -> None:
        self.families = families(settings.inet_protocols)
        self._fixed = tuple(parse_server(text) for text in settings.dns_servers)
        self._connector, self._clock, self._log = connector, clock, log
        self._cache: dict[tuple[str, str], tuple[float, _Answer]] = {}
        self._flying: dict[tuple[str, str], asyncio.Task[_Answer]] = {}
        self._resolv = WatchedFile(resolv_conf, clock, parse_resolv_conf)
        self._hosts = WatchedFile(hosts, clock, parse_hosts)

    # -- what others ask --------------------------------------------------------------------------

    async def mx(self, domain: str) -> MXAnswer:
        """MX records, best first, at most MAX_RECORDS.  DnsNoData: the domain has none, its address counts instead.

        A record that names no host (an IP address) is left out, so the answer may be empty.
        """
        found = await self._lookup(domain, "MX")
        if not isinstance(found, MXAnswer):
            raise DnsTemporary(domain, "MX")
        return found

    async def addresses(self, host: str, wanted: Sequence[int] = ()) -> list[str]:
        """Addresses of a host: IPv4 first, then IPv6 (wanted: 4, 6; default inet_protocols).

        DnsNotFound/DnsNoData only when no family has any; DnsTemporary when one fails and none has an answer.
        """
        kinds = [("A" if family == 4 else "AAAA") for family in (wanted or self.families)]
        local = self._hosts.get().addresses.get(host.lower().rstrip("."), ())
        found = [a for a in local if ("AAAA" if ":" in a else "A") in kinds]
        if found:
            return found
        if len(kinds) == 1:
            return _texts(await self._lookup(host, kinds[0]))
        failure: DnsError | None = None
        for answer in await asyncio.gather(*(self._lookup(host, kind) for kind in kinds), return_exceptions=True):
            if isinstance(answer, DnsError):
                if not isinstance(failure, DnsTemporary):
                    failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += _texts(answer)
        if not found and failure is not None:
            raise failure
        return found

    async def exists(self, domain: str) -> bool:
        """Can mail be sent to this domain: has it MX records, or an address?  Raises DnsTemporary when unknown.

        True for a domain with a null MX, too: ask `(await mx(domain)).is_null`, it is in the cache.
        """
        try:
            await self._lookup(domain, "MX")
            return True
        except DnsNoData:
            return await self.host_exists(domain)
        except DnsNotFound:
            return False

    async def host_exists(self, name: str) -> bool:
        """Has this name an address, of whatever family?  Raises DnsTemporary when unknown."""
        try:
            return bool(await self.addresses(name, (4, 6)))
        except (DnsNoData, DnsNotFound):
            return False

    async def client_name(self, address: str) -> ClientName:
        """PTR, then back: a name counts only when it has this address (warned about otherwise, as in Postfix)."""
        local = self._hosts.get().names.get(address)
        if local is not None:
            return ClientName(local, local, 2, 2)
        try:
            pointer = dns.reversename.from_address(address).to_text()
            name = _texts(await self._lookup(pointer, "PTR"))[0]
        except DnsTemporary:
            return ClientName("unknown", "unknown", 4, 4)
        except (DnsError, ValueError, IndexError, dns.exception.DNSException):
            return UNKNOWN
        return await self._confirm(name, address) if _is_host(name) else UNKNOWN

    async def _confirm(self, name: str, address: str) -> ClientName:
        problem = f"hostname {name} does not resolve to address {address}"
        try:
            for found in await self.addresses(name, (6 if ":" in address else 4,)):
                if same_address(found, address):
                    return ClientName(name, name, 2, 2)
        except DnsTemporary:
            self._log.warning("smtpd", f"{problem}: Temporary failure in name resolution")
            return ClientName("unknown", name, 4, 2)
        except DnsError:
            problem += ": Name or service not known"
        self._log.warning("smtpd", problem)
        return ClientName("unknown", name, 5, 2)

    async def close(self) -> None:
        """Cancel lookups in flight; whoever waits for one gets CancelledError."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cache.clear()

    # -- cache and single flight ------------------------------------------------------------------

    async def _lookup(self, name: str, kind: str) -> _Found:
        """Answer from the cache or the network; raises DnsError."""
        key = (name.lower(), kind)
        cached = self._cache.get(key)
        if cached is not None and cached[0] > self._clock.monotonic():
            found = cached[1]
        else:
            task = self._flying.get(key)
            if task is None:
                task = asyncio.get_running_loop().create_task(self._fetch(key))
                self._flying[key] = task
                task.add_done_callback(lambda _: self._flying.pop(key, None))
            found = await asyncio.shield(task)
        if isinstance(found, type):
            raise found(name, kind)
        return found

    async def _fetch(self, key: tuple[str, str]) -> _Answer:
        name, kind = key
        found: _Answer
        try:
            found, ttl = await self._ask(_wire_name(name), kind)
        except DnsNotFound:
            found, ttl = DnsNotFound, MAX_NEGATIVE_TTL
        except DnsTemporary:
            found, ttl = DnsTemporary, FAILURE_TTL
        except Exception as error:
            self._log.warning("dns", f"lookup of {name} type {kind} failed: {type(error).__name__}: {error}")
            found, ttl = DnsTemporary, FAILURE_TTL
        self._cache.pop(key, None)
        if ttl > 0:
            while len(self._cache) >= MAX_CACHE:
                del self._cache[next(iter(self._cache))]  # the oldest
            self._cache[key] = (self._clock.monotonic() + ttl, found)
        return found

    # -- the network ------------------------------------------------------------------------------

    async def _ask(self, name: dns.name.Name, kind: str) -> tuple[_Answer, float]:
        """Follow CNAMEs that the server did not follow; -> (answer, seconds to keep it)."""
        ttl = MAX_TTL
        seen = {name}
        while True:
            found, end, seconds = _read(await self._query(name, kind), name, kind)
            ttl = min(ttl, seconds)
            if found is not None:
                return found, ttl
            if end in seen or len(seen) > MAX_CNAMES:
                raise DnsTemporary(name.to_text(), kind)
            seen.add(end)
            name = end

    async def _query(self, name: dns.name.Name, kind: str) -> dns.message.Message:
        """Ask each server, each as often as resolv.conf says; the first clear answer counts."""
        servers = self._servers()
        for _ in range(servers.attempts):
            for server in servers.addresses:
                with contextlib.suppress(OSError, TimeoutError, _RefusedError):
                    return await self._query_server(name, kind, server, servers.seconds)
        raise DnsTemporary(name.to_text(), kind)

    async def _query_server(
        self, name: dns.name.Name, kind: str, server: tuple[str, int], seconds: float
    ) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
        try:
            return await self._exchange(query, server, seconds)
        except _RefusedError as refused:
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
        except _TruncatedError:
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

    def _servers(self) -> Servers:
        found = self._resolv.get()
        return Servers(self._fixed, found.seconds, found.attempts) if self._fixed else found


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
            answer = _judge(self.query, wire, tcp=tcp)
        except (_TruncatedError, _RefusedError) as verdict:
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
            self.fail(_RefusedError())

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed before the answer was complete."""
        self.fail(exc or ConnectionResetError())


# -- reading answers ------------------------------------------------------------------------------


def _judge(query: dns.message.Message, wire: bytes, *, tcp: bool) -> dns.message.Message | None:
    """Return the message when it is an answer to the question, None when it is something else.

    Raises _TruncatedError, or _RefusedError when the server answered that it cannot.
    """
    try:
        answer = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, LookupError):
        if not tcp and _looks_cut(query, wire):
            raise _TruncatedError from None
        return None
    rcode = answer.rcode()
    bad_question = rcode in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)
    if not query.is_response(answer):
        about_us = answer.id == query.id and answer.flags & dns.flags.QR and not answer.question
        if not (about_us and bad_question):
            return None
    if bad_question:
        raise _RefusedError(no_edns=query.edns >= 0)
    if answer.flags & dns.flags.TC and not tcp:
        raise _TruncatedError
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise _RefusedError
    referral = any(rrset.rdtype == dns.rdatatype.NS for rrset in answer.authority) and not _soa(answer)
    if rcode == dns.rcode.NOERROR and not answer.answer and referral:
        raise _RefusedError  # this server neither knows nor asks on our behalf (lame)
    return answer


def _looks_cut(query: dns.message.Message, wire: bytes) -> bool:
    """An answer to our id with TC set that ends in the middle of a record."""
    return len(wire) > 12 and wire[:2] == query.id.to_bytes(2, "big") and bool(wire[2] & 0x80) and bool(wire[2] & 2)


def _soa(answer: dns.message.Message) -> dns.rrset.RRset | None:
    for rrset in answer.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return rrset
    return None


def _read(answer: dns.message.Message, name: dns.name.Name, kind: str) -> tuple[_Answer | None, dns.name.Name, float]:
    """-> (answer, the name at the end of the CNAME chain, seconds to keep this); None: ask for that name.

    Raises DnsTemporary for an answer section that has nothing to do with the question, or CNAMEs without end.
    """
    wanted = dns.rdatatype.from_text(kind)
    by_name: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}
    for rrset in answer.answer[: MAX_RECORDS + MAX_CNAMES]:
        by_name.setdefault((rrset.name, int(rrset.rdtype)), rrset)
    ttl, end = MAX_TTL, name
    for _ in range(MAX_CNAMES + 1):
        records = by_name.get((end, int(wanted)))
        if records is not None:
            return _values(records), end, min(ttl, records.ttl)
        alias = by_name.get((end, int(dns.rdatatype.CNAME)))
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        target = next(iter(alias))
        if isinstance(target, dns.rdtypes.ANY.CNAME.CNAME):
            end = target.target
    else:
        raise DnsTemporary(name.to_text(), kind)
    if answer.rcode() == dns.rcode.NXDOMAIN:
        return DnsNotFound, end, min(ttl, _negative_ttl(answer))
    if end != name and not _soa(answer):
        return None, end, ttl
    if end == name and answer.answer:
        raise DnsTemporary(name.to_text(), kind)
    return DnsNoData, end, min(ttl, _negative_ttl(answer))


def _negative_ttl(answer: dns.message.Message) -> float:
    """RFC 2308 s5: the lesser of the SOA's own TTL and its minimum field."""
    rrset = _soa(answer)
    first = next(iter(rrset)) if rrset is not None else None
    if rrset is None or not isinstance(first, dns.rdtypes.ANY.SOA.SOA):
        return 0.0
    return float(min(rrset.ttl, first.minimum, MAX_NEGATIVE_TTL))


def _values(rrset: dns.rrset.RRset) -> _Found:
    """Our own small values of an RRset: an MXAnswer, or texts."""
    texts: list[str] = []
    records: list[MX] = []
    for rdata in rrset:
        if isinstance(rdata, dns.rdtypes.ANY.MX.MX):
            host = _host(rdata.exchange)
            if not host or _is_host(host):
                records.append(MX(rdata.preference, host))
        elif isinstance(rdata, dns.rdtypes.ANY.PTR.PTR):
            texts.append(_host(rdata.target))
        elif isinstance(rdata, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
            texts.append(rdata.address)
    if rrset.rdtype != dns.rdatatype.MX:
        return tuple(texts[:MAX_RECORDS])
    if len(records) > 1:
        records = [record for record in records if record.host]  # "." says nothing beside others
    records.sort(key=lambda record: record.preference)
    return MXAnswer(tuple(records[:MAX_RECORDS]))


def _texts(found: _Found) -> list[str]:
    return list(found) if isinstance(found, tuple) else []


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _is_host(host: str) -> bool:
    """A name that a host may have: no address, nothing that would be odd in a log or on the wire."""
    if not host or len(host) > 253 or is_address(host) or host.replace(".", "").isdigit():
        return False
    return host.isascii() and all(c.isalnum() or c in "-._" for c in host)


def _wire_name(name: str) -> dns.name.Name:
    """Absolute name; U-labels become A-labels.  DnsNotFound: no such name can exist."""
    text = name.removesuffix(".")
    try:
        if not text.isascii():
            text = text.encode("idna").decode("ascii")
        if any(not label or len(label) > 63 for label in text.split(".")):
            raise DnsNotFound(name, "")
        return dns.name.from_text(text.replace("\\", "\\\\") + ".").canonicalize()
    except (UnicodeError, dns.exception.DNSException):
        raise DnsNotFound(name, "") from None
