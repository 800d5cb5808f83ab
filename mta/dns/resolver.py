"""Names to addresses and back, for the rest of the house.

A stub resolver: it asks the servers of dns_servers (or resolv.conf) one after the other and keeps small tuples in
a cache, by name and type, for the time the zone allows.  Equal questions in flight are asked once.

What is not a clear answer is DnsTemporary: timeout, SERVFAIL, REFUSED, a referral, a truncated answer whose TCP
retry fails, an answer about another name, a CNAME chain that is too long.  Nothing of that ever looks like "does
not exist".

/etc/hosts is never asked for MX; for names of addresses it comes before DNS, for addresses as the caller says.

State: the cache and the lookups in flight, of one process.

See also: mta/dns/exchange.py (asking), mta/dns/answers.py (reading), mta/dns/mx.py, mta/dns/system.py
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from mta.clock import Clock
from mta.deliver.connector import Connector
from mta.dns.answers import MAX_NEGATIVE_TTL, Answer, Found, is_host, pointer_name, texts, wire_name
from mta.dns.exchange import Exchange
from mta.dns.mx import DnsError, DnsNoData, DnsNotFound, DnsTemporary, MXAnswer
from mta.dns.system import Servers, WatchedFile, parse_hosts, parse_resolv_conf, parse_server, same_address
from mta.maillog.maillog import Maillog
from mta.record import dataclass

MAX_CACHE = 10_000  # answers
FAILURE_TTL = 1.0  # seconds a DnsTemporary is remembered, so that a burst of mail asks dead servers once


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


HostsFile = Literal["first", "last", "never"]  # when /etc/hosts is asked; last: when DNS knows that there is none
UNKNOWN = ClientName("unknown", "unknown", 5, 5)


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
        self._clock, self._log = clock, log
        self._cache: dict[tuple[str, str], tuple[float, Answer]] = {}
        self._flying: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self._resolv = WatchedFile(resolv_conf, clock, parse_resolv_conf)
        self._hosts = WatchedFile(hosts, clock, parse_hosts)
        self._exchange = Exchange(self._servers, connector, clock)

    # -- what others ask --------------------------------------------------------------------------

    async def mx(self, domain: str) -> MXAnswer:
        """MX records, best first, at most MAX_RECORDS.  DnsNoData: the domain has none, its address counts instead.

        A record that can name no host is left out, so the answer may be empty.
        """
        found = await self._lookup(domain, "MX")
        if not isinstance(found, MXAnswer):
            raise DnsTemporary(domain, "MX")
        return found

    async def addresses(self, host: str, wanted: Sequence[int] = (), *, hosts: HostsFile = "first") -> list[str]:
        """Addresses of a host: IPv4 first, then IPv6 (wanted: 4, 6; default inet_protocols).

        DnsNotFound/DnsNoData only when no family has any; DnsTemporary when one fails and none has an answer.
        """
        kinds = [("A" if family == 4 else "AAAA") for family in (wanted or self.families)]
        if hosts == "first" and (local := self._local(host, kinds)):
            return local
        try:
            return await self._addresses(host, kinds)
        except (DnsNoData, DnsNotFound):
            if hosts == "last" and (local := self._local(host, kinds)):
                return local
            raise

    def _local(self, host: str, kinds: Sequence[str]) -> list[str]:
        try:
            known = self._hosts.get().addresses.get(host.lower().rstrip("."), ())
        except OSError:
            raise DnsTemporary(host, "A") from None
        return [a for a in known if ("AAAA" if ":" in a else "A") in kinds]

    async def _addresses(self, host: str, kinds: Sequence[str]) -> list[str]:
        if len(kinds) == 1:
            return texts(await self._lookup(host, kinds[0]))
        found: list[str] = []
        failure: DnsError | None = None
        for answer in await asyncio.gather(*(self._lookup(host, kind) for kind in kinds), return_exceptions=True):
            if isinstance(answer, DnsError):
                if not isinstance(failure, DnsTemporary):
                    failure = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += texts(answer)
        if not found and failure is not None:
            raise failure
        return found

    async def texts(self, name: str) -> list[str]:
        """TXT records, printable ASCII.  Raises DnsError."""
        return texts(await self._lookup(name, "TXT"))

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
        """Has this name an address in DNS, of whatever family?  Raises DnsTemporary when unknown."""
        try:
            return bool(await self.addresses(name, (4, 6), hosts="never"))
        except (DnsNoData, DnsNotFound):
            return False

    async def client_name(self, address: str) -> ClientName:
        """PTR, then back: a name counts only when it has this address (warned about otherwise, as in Postfix)."""
        try:
            local = self._hosts.get().names.get(address)
        except OSError:
            return ClientName("unknown", "unknown", 4, 4)
        if local is not None:
            return ClientName(local, local, 2, 2)
        pointer = pointer_name(address)
        if pointer is None:
            return UNKNOWN
        try:
            name = texts(await self._lookup(pointer, "PTR"))[0]
        except DnsTemporary:
            return ClientName("unknown", "unknown", 4, 4)
        except (DnsError, IndexError):
            return UNKNOWN
        return await self._confirm(name, address) if is_host(name) else UNKNOWN

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

    async def _lookup(self, name: str, kind: str) -> Found:
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

    async def _fetch(self, key: tuple[str, str]) -> Answer:
        name, kind = key
        found: Answer
        try:
            found, ttl = await self._exchange.ask(wire_name(name), kind)
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

    def _servers(self) -> Servers:
        found = self._resolv.get()
        return Servers(self._fixed, found.seconds, found.attempts) if self._fixed else found
