"""Addresses: bringing them into user@domain form, and deciding where one goes.

`rewrite` completes an address; `resolve` strips what is ours from it until a remote domain or a bare local part
is left, and that final form decides the address class, so that no percent sign, bang path, quoted local part or
nested domain can smuggle a remote destination past a check on the first domain seen.

No state.  A table that fails raises TableError: the caller defers.

See also: trivial-rewrite(8), transport(5), ADDRESS_CLASS_README
"""

import re
from collections.abc import Iterable
from enum import StrEnum

from mta.lookup.address import ExtensionRules, find_address, find_key, split_extension
from mta.lookup.cidr import Address, parse_address, unmapped
from mta.lookup.context import LookupContext
from mta.lookup.match_list import DomainList, parent_style
from mta.lookup.names import literal_address, valid_hostname
from mta.lookup.open import open_tables
from mta.lookup.table import TableError
from mta.record import dataclass

_ORDINARY = re.compile(r"[^@%!\"\\\s]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_DOT_STRING = re.compile(r"[^\x00-\x20\x7f()<>@,;:\\\".\[\]]+(?:\.[^\x00-\x20\x7f()<>@,;:\\\".\[\]]+)*")
_ROUTE = re.compile(r"@[^:@]*(?:,@[^:@]*)*:(?=.)", re.DOTALL)  # not the colon of "@a@[IPv6:...]"
_ROUTING = frozenset("@%!")


class AddressClass(StrEnum):
    """Which list of domains an address belongs to (ADDRESS_CLASS_README)."""

    LOCAL = "local"
    VIRTUAL_ALIAS = "virtual_alias"
    VIRTUAL_MAILBOX = "virtual_mailbox"
    RELAY = "relay"
    DEFAULT = "default"


FINAL = (AddressClass.LOCAL, AddressClass.VIRTUAL_ALIAS, AddressClass.VIRTUAL_MAILBOX)


@dataclass(frozen=True, slots=True)
class Route:
    """Where one recipient goes.

    recipient: final form, unquoted.  error: not an address anybody can deliver to (transport is "error" then).
    routed: the local part contains @, % or !, so the next host may read another destination out of it.
    """

    transport: str
    nexthop: str
    recipient: str
    address_class: AddressClass
    error: bool = False
    routed: bool = False

    @property
    def final(self) -> bool:
        """This system is the final destination of the domain."""
        return self.address_class in FINAL


@dataclass(frozen=True, slots=True)
class RewriterSettings:
    """postconf(5)."""

    myhostname: str
    mydomain: str
    myorigin: str
    remote_header_rewrite_domain: str
    append_at_myorigin: bool
    append_dot_mydomain: bool
    swap_bangpath: bool
    allow_percent_hack: bool
    resolve_dequoted_address: bool
    resolve_null_domain: bool
    resolve_numeric_domain: bool
    allow_min_user: bool
    empty_address_recipient: str
    mydestination: tuple[str, ...]
    relay_domains: tuple[str, ...]
    virtual_alias_domains: tuple[str, ...]
    virtual_mailbox_domains: tuple[str, ...]
    parent_domain_matches_subdomains: tuple[str, ...]
    local_transport: str
    virtual_transport: str
    relay_transport: str
    default_transport: str
    relayhost: str
    transport_maps: tuple[str, ...]
    relocated_maps: tuple[str, ...]
    sender_dependent_relayhost_maps: tuple[str, ...]
    sender_dependent_default_transport_maps: tuple[str, ...]
    empty_address_relayhost_maps_lookup_key: str
    empty_address_default_transport_maps_lookup_key: str
    show_user_unknown_table_name: bool
    recipient_delimiter: str
    owner_request_special: bool
    double_bounce_sender: str


class Rewriter:
    """Rewrites and resolves.  own_addresses: of inet_interfaces and proxy_interfaces, as text."""

    def __init__(
        self, settings: RewriterSettings, context: LookupContext, own_addresses: Iterable[str] = ()
    ) -> None:
        s = self._settings = settings
        self._own: frozenset[Address | None] = frozenset(map(parse_address, own_addresses)) - {None}
        parents = s.parent_domain_matches_subdomains
        self._destination = DomainList("mydestination", s.mydestination, context, parents=None)
        self._virtual_alias = DomainList("virtual_alias_domains", s.virtual_alias_domains, context, parents=None)
        self._virtual_mailbox = DomainList("virtual_mailbox_domains", s.virtual_mailbox_domains, context, parents=None)
        self._relay = DomainList(
            "relay_domains", s.relay_domains, context, parents=parent_style("relay_domains", parents)
        )
        self._transport_parents = parent_style("transport_maps", parents)
        self._transport_maps = open_tables(s.transport_maps, context)
        self._relocated_maps = open_tables(s.relocated_maps, context)
        self._relayhost_maps = open_tables(s.sender_dependent_relayhost_maps, context)
        self._default_maps = open_tables(s.sender_dependent_default_transport_maps, context)
        self._context = context
        self.extension_rules = ExtensionRules(
            s.recipient_delimiter, s.owner_request_special, s.double_bounce_sender
        )

    # -- rewriting --------------------------------------------------------------------------------

    def rewrite(self, address: str, *, local: bool) -> str:
        """Return the unquoted address in its standard form.

        local: complete it with myorigin and mydomain (envelopes, and headers of our own clients); otherwise with
        remote_header_rewrite_domain, which by default leaves it incomplete.
        """
        if _ORDINARY.fullmatch(address):
            return address
        if "@" not in address and not _DOT_STRING.fullmatch(address) and address:
            # It would be a quoted string: what looks like an operator in it is none (resolve looks inside).
            return self._complete(address, local=local)
        return self._rewrite(address, local=local)

    def _rewrite(self, address: str, *, local: bool) -> str:
        """As rewrite(), with operators seen everywhere."""
        if address in ("", "@"):
            return ""
        if address[0] == "@" and (route := _ROUTE.match(address)) is not None:
            address = address[route.end() :]
        if "@" not in address:
            if self._settings.swap_bangpath and "!" in address:
                site, _, user = address.partition("!")
                address = f"{user}@{site}"
            elif self._settings.allow_percent_hack and "%" in address:
                address = "@".join(address.rsplit("%", 1))
        return self._complete(address, local=local)

    def _complete(self, address: str, *, local: bool) -> str:
        s = self._settings
        origin, domain = (s.myorigin, s.mydomain) if local else (s.remote_header_rewrite_domain,) * 2
        if "@" not in address and s.append_at_myorigin and origin:
            address = f"{address}@{origin}"
        host = address.rpartition("@")[2] if "@" in address else ""
        if host and "." not in host and "[" not in host and s.append_dot_mydomain and domain:
            address = f"{address}.{domain}"
        return _without_last_dot(address)

    # -- resolving --------------------------------------------------------------------------------

    def is_faultless(self, address: str) -> bool:
        """Would resolve() find no fault with this address, whatever the tables say?  False when it must be asked."""
        if not _ORDINARY.fullmatch(address) or address[0] == "-":
            return False
        return valid_hostname(address.rpartition("@")[2])

    async def is_local(self, domain: str) -> bool:
        """Does the domain match mydestination, or an address of ours in brackets?  TableError when a table fails."""
        if domain.endswith("."):
            domain = domain[:-1]
            if domain.endswith("."):
                return False
        if not domain:
            return False
        if await self._destination.match(domain):
            return True
        literal = literal_address(domain) if domain[0] == "[" else None
        return literal is not None and unmapped(literal) in self._own

    async def is_local_or_origin(self, domain: str) -> bool:
        """For tables in which "user" without a domain may stand (virtual(5), canonical(5))."""
        return domain == self._settings.myorigin.lower() or await self.is_local(domain)

    async def resolve(self, address: str, sender: str = "") -> Route:
        """Return where a recipient of a message from this sender goes; both unquoted, as rewritten.

        TableError: a table failed.
        """
        recipient, is_local = await self._strip(address)
        local, _, domain = recipient.rpartition("@")
        if not self._valid_domain(domain):
            if not (self._settings.resolve_numeric_domain and parse_address(domain)):
                return _bad(recipient)
            domain = f"[{domain}]"
            recipient = f"{local}@{domain}"
            is_local = await self.is_local(domain)
        if recipient.startswith("-") and not self._settings.allow_min_user:
            return _bad(recipient)  # an external program would take it for an option
        domain = domain.lower()
        if is_local:
            address_class = AddressClass.LOCAL
            transport, nexthop = self._settings.local_transport, domain
        else:
            address_class, transport, nexthop = await self._remote(domain, sender)
        if address_class is not AddressClass.VIRTUAL_ALIAS:
            name, colon, destination = transport.partition(":")
            transport, nexthop = name, destination if colon and destination else nexthop
        if not transport:
            raise TableError(f"null transport is not allowed for class {address_class}")
        if self._transport_maps and address_class is not AddressClass.VIRTUAL_ALIAS:
            transport, nexthop = await self._transport(recipient, domain, transport, nexthop)
        if self._relocated_maps:
            moved = await find_address(
                self._relocated_maps, recipient, self.extension_rules, self.is_local_or_origin
            )
            if moved:
                transport, nexthop = "error", f"5.1.6 User has moved to {moved[0]}"
        routed = not _ROUTING.isdisjoint(local)
        return Route(transport, nexthop, recipient, address_class, routed=routed)

    async def _strip(self, address: str) -> tuple[str, bool]:
        """Take local domains and routing operators off until nothing of ours is left; (recipient, is local)."""
        s = self._settings
        saved: str | None = None
        opened = s.resolve_dequoted_address
        for _ in range(len(address) + 100):
            if "@" in address:
                address = _without_last_dot(address)
                if s.resolve_null_domain:
                    address = address.removesuffix("@")
            if "@" in address:
                local, _, domain = address.rpartition("@")
                if domain and not await self.is_local(domain):
                    return address, False
                saved, address = domain, local
            operators = "@" + "!" * s.swap_bangpath + "%" * s.allow_percent_hack
            if any(c in address for c in operators) and (opened or _DOT_STRING.fullmatch(address)):
                address = self._rewrite(address, local=True)
                continue
            if address:
                return f"{address}@{s.myhostname if saved is None else saved}", True
            address = s.empty_address_recipient or "MAILER-DAEMON"
        raise TableError(f"resolve <{address}>: giving up")

    def _valid_domain(self, domain: str) -> bool:
        if domain.startswith("["):
            return literal_address(domain) is not None
        return valid_hostname(domain)

    async def _remote(self, domain: str, sender: str) -> tuple[AddressClass, str, str]:
        """Class, transport (perhaps with :nexthop) and next hop of a domain that is not local."""
        s = self._settings
        if self._virtual_alias and await self._virtual_alias.match(domain):
            table = " in virtual alias table" if s.show_user_unknown_table_name else ""
            return AddressClass.VIRTUAL_ALIAS, "error", f"5.1.1 User unknown{table}"
        if self._virtual_mailbox and await self._virtual_mailbox.match(domain):
            return AddressClass.VIRTUAL_MAILBOX, s.virtual_transport, domain
        if self._relay and await self._relay.match(domain):
            address_class, transport = AddressClass.RELAY, s.relay_transport
        else:
            address_class, transport = AddressClass.DEFAULT, s.default_transport
            if self._default_maps:
                transport = await self._sender_dependent("default_transport", sender) or transport
        relayhost = await self._sender_dependent("relayhost", sender) if self._relayhost_maps else None
        return address_class, transport, relayhost or s.relayhost or domain

    async def _sender_dependent(self, which: str, sender: str) -> str | None:
        """What the sender's table says, None when the parameter for all counts: no entry, or DUNNO."""
        maps = self._relayhost_maps if which == "relayhost" else self._default_maps
        s = self._settings
        if not sender:
            sender = (
                s.empty_address_relayhost_maps_lookup_key
                if which == "relayhost"
                else s.empty_address_default_transport_maps_lookup_key
            )
            value = await maps.get(sender)
        else:
            found = await find_address(maps, sender, self.extension_rules, self.is_local_or_origin)
            value = found[0] if found else None
        return None if value is None or value.upper() == "DUNNO" else value

    # -- transport(5) -----------------------------------------------------------------------------

    async def _transport(self, recipient: str, domain: str, transport: str, nexthop: str) -> tuple[str, str]:
        """Apply transport_maps: user+ext@domain, user@domain, domain and its parents, "*"."""
        entry = await self._transport_entry(recipient, domain)
        if entry is None:
            return transport, nexthop
        name, _, destination = entry.partition(":")
        name = name.strip()
        destination = destination.strip()
        if not name:
            return transport, destination or nexthop
        if not destination:
            destination = "Address is undeliverable" if name in ("error", "retry") else domain
        return name, destination

    async def _transport_entry(self, recipient: str, domain: str) -> str | None:
        maps = self._transport_maps
        local = recipient.rpartition("@")[0]
        value = await find_key(maps, local, f"@{domain}", fixed=False)
        user, extension = split_extension(local, self.extension_rules)
        if value is None and extension:
            value = await find_key(maps, user, f"@{domain}", fixed=True)
        name = domain
        while value is None and name:
            value = await maps.get(name, fixed=True)
            at = name.find(".", 1)
            if at < 0:
                break
            name = name[at + 1 :] if self._transport_parents else name[at:]
        return await maps.get("*", fixed=True) if value is None else value


def _bad(recipient: str) -> Route:
    return Route("error", "5.1.3 bad address syntax", recipient, AddressClass.DEFAULT, error=True)


def _without_last_dot(address: str) -> str:
    """Strip one dot from the end of a domain; "..", "@." and a bare local part stay, so that errors show."""
    if address.endswith(".") and len(address) > 1 and address[-2] not in ".@":
        return address[:-1]
    return address
