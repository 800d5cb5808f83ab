"""Next hop -> addresses to try: the walk through MX and address records.

Hosts are looked up one MX preference at a time, best first, and no further than needed: a domain with a hundred
MX records costs as many lookups as there are addresses to try.

See also: mta/dns/mx.py (the decisions), RFC 5321 s5.1, postconf(5) smtp_mx_address_limit
"""

import asyncio
from collections.abc import Sequence

from mta.deliver.smtp_settings import SMTP_PORT, Destination, SmtpSettings
from mta.dns.mx import (
    MX,
    DnsError,
    DnsNoData,
    DnsTemporary,
    Shuffle,
    Target,
    groups,
    is_own,
    lookup_failure,
    loops_back,
    malformed_mx,
    no_primary,
    null_mx,
    order,
)
from mta.dns.resolver import Resolver
from mta.maillog import Maillog
from mta.smtp.reply import Reply

MAX_HOSTS = 20  # of one preference that are looked up
MAX_WALK = 50  # hosts of one domain that are looked up


class RouteError(Exception):
    """There is nowhere to go; reply says why and whether to come back."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


class Router:
    """own_addresses: those this host receives mail on (inet_interfaces, proxy_interfaces), in canonical spelling."""

    def __init__(
        self,
        settings: SmtpSettings,
        resolver: Resolver,
        log: Maillog,
        own_addresses: frozenset[str],
        shuffle: Shuffle | None,
    ) -> None:
        self._settings, self._resolver, self._log = settings, resolver, log
        self._own_addresses = own_addresses
        self._own_names = frozenset({settings.myhostname.lower()})
        self._shuffle = shuffle if settings.smtp_randomize_addresses else None

    async def targets(self, destination: Destination) -> list[Target]:
        """Addresses to try, best first, at least one and at most smtp_mx_address_limit.  Raises RouteError."""
        if destination.numeric:
            return [Target(destination.host, destination.host)]
        # Another port than 25 is another service: that it is on this host is no loop (as in Postfix).
        detect = destination.port == SMTP_PORT
        if destination.lookup_mx:
            found = await self._by_mx(destination.host, detect=detect)
        else:
            found = await self._by_host(destination.host, detect=detect)
        settings = self._settings
        return order(
            found,
            prefer=settings.smtp_address_preference.lower(),
            balance=settings.smtp_balance_inet_protocols,
            limit=settings.smtp_mx_address_limit,
            shuffle=self._shuffle,
        )

    async def _by_host(self, host: str, *, detect: bool) -> list[Target]:
        try:
            addresses = await self._resolver.addresses(host)
        except DnsError as error:
            raise RouteError(lookup_failure(error)) from None
        if detect and is_own(host, addresses, self._own_names, self._own_addresses):
            raise RouteError(loops_back(host))
        return [Target(host, address) for address in addresses]

    async def _by_mx(self, domain: str, *, detect: bool) -> list[Target]:
        try:
            answer = await self._resolver.mx(domain)
        except DnsNoData:
            return await self._by_host(domain, detect=detect)  # RFC 5321 s5.1: the implicit MX
        except DnsError as error:
            if isinstance(error, DnsTemporary) and self._settings.ignore_mx_lookup_error:
                return await self._by_host(domain, detect=detect)
            raise RouteError(lookup_failure(error)) from None
        if answer.is_null:
            raise RouteError(null_mx(domain))
        if not answer.records:
            raise RouteError(malformed_mx(domain))
        return await self._walk(domain, groups(answer, self._shuffle), detect=detect)

    async def _walk(self, domain: str, ordered: list[list[MX]], *, detect: bool) -> list[Target]:
        found: list[Target] = []
        failure: Reply | None = None
        limit = self._settings.smtp_mx_address_limit or MAX_HOSTS
        asked = 0
        for number, group in enumerate(ordered):
            hosts = [record.host for record in group[:MAX_HOSTS]]
            asked += len(hosts)
            answers = await asyncio.gather(*(self._addresses(host) for host in hosts))
            if detect and self._includes_us(hosts, answers):
                # Whoever is not better than ourselves would send it back to us.
                if found:
                    break
                raise RouteError(no_primary(domain) if number else loops_back(domain))
            for host, answer in zip(hosts, answers, strict=True):
                if isinstance(answer, Reply):
                    failure = answer if failure is None or answer.is_temporary else failure
                else:
                    found += [Target(host, address, group[0].preference) for address in answer]
            if len(found) >= limit or asked >= MAX_WALK:
                break
        if not found:
            raise RouteError(self._no_address(domain, failure))
        return found

    async def _addresses(self, host: str) -> list[str] | Reply:
        try:
            return await self._resolver.addresses(host)
        except DnsError as error:
            return lookup_failure(error)

    def _includes_us(self, hosts: Sequence[str], answers: Sequence[list[str] | Reply]) -> bool:
        return any(
            is_own(host, [] if isinstance(answer, Reply) else answer, self._own_names, self._own_addresses)
            for host, answer in zip(hosts, answers, strict=True)
        )

    def _no_address(self, domain: str, failure: Reply | None) -> Reply:
        self._log.warning("smtp", f"no MX host for {domain} has a valid address record")
        if failure is None:
            return malformed_mx(domain)
        if failure.is_permanent and self._settings.smtp_defer_if_no_mx_address_found:
            return Reply(451, f"4{failure.enhanced[1:]}", failure.text)
        return failure
