"""Next hop -> addresses to try: the walk through MX and address records.

Hosts are looked up one MX preference at a time, best first, and no further than needed: a domain with a hundred
MX records costs as many lookups as there are addresses to try, or those of the first MAX_HOSTS hosts when a worse one
may have what is missing of the other protocol (smtp_balance_inet_protocols).  While nothing is found, several
preferences are looked up at once, to the end of the list: mail is returned only when no host has an address.

Whether this host is among them is told by addresses alone; the greeting tells the rest (mta/deliver/smtp_attempt.py).

See also: mta/dns/mx.py (the decisions), RFC 5321 s5.1, postconf(5) smtp_mx_address_limit, smtp_host_lookup
"""

import asyncio
from collections.abc import Sequence

from mta.deliver.smtp_settings import SMTP_PORT, Destination, SmtpSettings
from mta.dns.mx import (
    MX,
    DnsError,
    DnsNoData,
    DnsTemporary,
    MXAnswer,
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
from mta.dns.resolver import HostsFile, Resolver
from mta.dns.system import is_address
from mta.maillog.maillog import Maillog
from mta.smtp.reply import Reply

MAX_HOSTS = 20  # that are looked up at once


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
        ways = {word.lower() for word in settings.smtp_host_lookup}
        native_only = settings.disable_dns_lookups or ways == {"native"}
        # For the hosts that MX records name, and for those that the administrator names.
        self._mx_hosts: HostsFile = "first" if native_only else "last" if "native" in ways else "never"
        self._own_hosts: HostsFile = "first" if native_only else "last"
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
            hosts: HostsFile = "first" if destination.host.lower() == "localhost" else self._own_hosts  # RFC 6761 s6.3
            found = await self._by_host(destination.host, hosts, detect=detect)
        settings = self._settings
        return order(
            found,
            prefer=settings.smtp_address_preference.lower(),
            balance=settings.smtp_balance_inet_protocols,
            limit=settings.smtp_mx_address_limit,
            shuffle=self._shuffle,
        )

    async def _by_host(self, host: str, hosts: HostsFile, *, detect: bool) -> list[Target]:
        try:
            addresses = await self._resolver.addresses(host, hosts=hosts)
        except DnsError as error:
            raise RouteError(lookup_failure(error)) from None
        if detect and is_own(addresses, self._own_addresses):
            raise RouteError(loops_back(host))
        return [Target(host, address) for address in addresses]

    async def _by_mx(self, domain: str, *, detect: bool) -> list[Target]:
        try:
            answer = await self._resolver.mx(domain)
        except DnsNoData:
            return await self._by_host(domain, self._mx_hosts, detect=detect)  # RFC 5321 s5.1: the implicit MX
        except DnsError as error:
            if isinstance(error, DnsTemporary) and self._settings.ignore_mx_lookup_error:
                return await self._by_host(domain, self._mx_hosts, detect=detect)
            raise RouteError(lookup_failure(error)) from None
        if answer.is_null:
            raise RouteError(null_mx(domain))
        if not answer.records:
            raise RouteError(malformed_mx(domain))
        return await self._walk(domain, answer, detect=detect)

    async def _walk(self, domain: str, answer: MXAnswer, *, detect: bool) -> list[Target]:
        records = [record for group in groups(answer, self._shuffle) for record in group]
        found: list[Target] = []
        failure: Reply | None = None
        position = 0
        while position < len(records) and not self._enough(found, position):
            batch = _next(records, position, one_preference=bool(found) or not position)
            position += len(batch)
            ours: int | None = None  # the best preference at which this host appears
            for record, known in zip(batch, await asyncio.gather(*map(self._addresses, batch)), strict=True):
                if isinstance(known, Reply):
                    failure = known if failure is None or known.is_temporary else failure
                    continue
                best = record.preference == records[0].preference and not answer.cut
                found += [Target(record.host, address, record.preference, best) for address in known]
                if ours is None and detect and is_own(known, self._own_addresses):
                    ours = record.preference
            if ours is not None:
                # Whoever is not better than ourselves would send it back to us.
                found = [target for target in found if target.preference < ours]
                if found:
                    break
                is_best = ours == records[0].preference and not answer.cut
                raise RouteError(loops_back(domain) if is_best else no_primary(domain))
        if not found:
            raise RouteError(self._no_address(domain, failure, cut=answer.cut))
        return found

    def _enough(self, found: Sequence[Target], hosts: int) -> bool:
        """Are these, of so many hosts, the addresses to try?  A worse host may be the first with the other protocol."""
        limit, balance = self._settings.smtp_mx_address_limit, self._settings.smtp_balance_inet_protocols
        if len(found) < (limit or MAX_HOSTS):
            return False
        if not balance or len(self._resolver.families) < 2 or hosts >= MAX_HOSTS:
            return True
        six = sum(target.is_ipv6 for target in found)
        return min(six, len(found) - six) >= limit // 2

    async def _addresses(self, record: MX) -> list[str] | Reply:
        """Against RFC 5321 s5.1 some domains name an address; Postfix sends there, and so their mail arrives."""
        if is_address(record.host):
            if (6 if ":" in record.host else 4) in self._resolver.families:
                return [record.host]
            return lookup_failure(DnsNoData(record.host, "A"))
        try:
            return await self._resolver.addresses(record.host, hosts=self._mx_hosts)
        except DnsError as error:
            return lookup_failure(error)

    def _no_address(self, domain: str, failure: Reply | None, *, cut: bool) -> Reply:
        self._log.warning("smtp", f"no MX host for {domain} has a valid address record")
        if failure is None:
            return malformed_mx(domain)
        if failure.is_permanent and (cut or self._settings.smtp_defer_if_no_mx_address_found):
            return Reply(451, f"4{failure.enhanced[1:]}", failure.text)
        return failure


def _next(records: Sequence[MX], start: int, *, one_preference: bool) -> list[MX]:
    """The hosts to look up together."""
    batch = records[start : start + MAX_HOSTS]
    return [record for record in batch if not one_preference or record.preference == batch[0].preference]
