"""Which hosts take mail for a domain, in which order: decisions only.

The resolver supplies answers and random numbers; what stands here is the order of preferences, null MX, when an
address record may replace a missing MX (only when DNS said that there is none, never when it failed), cutting
the list where this host itself appears, and the replies that follow when nothing is left.

See also: RFC 5321 s5.1, RFC 7505 (null MX), postconf(5) smtp_address_preference, smtp_balance_inet_protocols
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from mta.record import dataclass
from mta.smtp.reply import Reply

T = TypeVar("T")
_LOOKUP = "Host or domain name not found. Name service error for name={} type={}: {}"


class Shuffle(Protocol):
    """random.shuffle, or something that decides for a test."""

    def __call__(self, x: list[T], /) -> None:
        """Reorder in place."""


class DnsError(Exception):
    """A lookup without an answer.  name, kind: what was asked ("dst.test", "MX")."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"{name} {kind}")
        self.name = name
        self.kind = kind


class DnsTemporary(DnsError):
    """No answer could be had (timeout, SERVFAIL, refused, nonsense): nothing is known, try again later."""


class DnsNotFound(DnsError):
    """NXDOMAIN: the name does not exist, or cannot exist."""


class DnsNoData(DnsError):
    """The name exists, but has no record of this type."""


@dataclass(frozen=True, slots=True)
class MX:
    """preference: the lower the better.  host: lower case, no final dot, or an address; "" for the root (null MX)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True)
class MXAnswer:
    """MX records of a domain, best preference first; empty = none of them can be used.

    cut: there are more, or some that name no host; so nothing follows from what is missing.
    """

    records: tuple[MX, ...]
    cut: bool = False

    @property
    def is_null(self) -> bool:
        """RFC 7505: the domain says that it takes no mail.  Only when "." is the only record."""
        return len(self.records) == 1 and not self.records[0].host and not self.cut


@dataclass(frozen=True, slots=True)
class Target:
    """One address to try.  host: name for the log, TLS and Remote-MTA; address: numeric.

    best: no MX of the domain is better, be it one whose address is not known.
    """

    host: str
    address: str
    preference: int = 0
    best: bool = True

    @property
    def is_ipv6(self) -> bool:
        """True for an IPv6 address."""
        return ":" in self.address


def groups(answer: MXAnswer, shuffle: Shuffle | None) -> list[list[MX]]:
    """Return the usable records by preference, best first, each group shuffled (None: as they came)."""
    by_preference: dict[int, list[MX]] = {}
    for record in answer.records:
        if record.host:
            by_preference.setdefault(record.preference, []).append(record)
    found = [by_preference[preference] for preference in sorted(by_preference)]
    if shuffle is not None:
        for group in found:
            shuffle(group)
    return found


def is_own(addresses: Sequence[str], own_addresses: frozenset[str]) -> bool:
    """True when one of the addresses leads to one that this host receives mail on.

    Neither a name nor another loopback address tells: a domain may list such a host beside good ones, and who is
    behind it says so in its greeting.
    """
    return any(_reached(address) in own_addresses for address in addresses)


def _reached(address: str) -> str:
    """Where a connection to this address ends: Linux takes the unspecified one for loopback, a mapped one for IPv4."""
    address = address.removeprefix("::ffff:") if "." in address else address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104


def order(
    targets: list[Target],
    *,
    prefer: str,
    balance: bool,
    limit: int,
    shuffle: Shuffle | None,
) -> list[Target]:
    """Return the addresses to try, at most `limit` (0 = all), best MX preference first.

    prefer: "any", "ipv4" or "ipv6", within one MX preference.  balance: when the limit would keep only one
    protocol although both exist, keep some of each.
    """
    mixed = list(targets)
    if shuffle is not None:
        shuffle(mixed)
    if prefer in ("ipv4", "ipv6"):
        mixed.sort(key=lambda t: (t.preference, t.is_ipv6 != (prefer == "ipv6")))
    else:
        mixed.sort(key=lambda t: t.preference)
    if not limit or len(mixed) <= limit:
        return mixed
    if not balance or limit < 2:
        return mixed[:limit]
    six = sum(t.is_ipv6 for t in mixed)
    four = len(mixed) - six
    keep_six = max(min(six, limit // 2), limit - four)
    keep = {True: keep_six, False: limit - keep_six}
    kept = []
    for target in mixed:
        if keep[target.is_ipv6]:
            keep[target.is_ipv6] -= 1
            kept.append(target)
    return kept


def lookup_failure(error: DnsError) -> Reply:
    """Postfix's words and codes for a failed lookup: 5.4.4 when the name is not there, else 4.4.3."""
    match error:
        case DnsNotFound():
            return Reply(550, "5.4.4", _LOOKUP.format(error.name, error.kind, "Host not found"))
        case DnsNoData():
            cause = "Host found but no data record of requested type"
            return Reply(550, "5.4.4", _LOOKUP.format(error.name, error.kind, cause))
        case _:
            return Reply(451, "4.4.3", _LOOKUP.format(error.name, error.kind, "Host not found, try again"))


def null_mx(domain: str) -> Reply:
    """RFC 7505 s4.1 gives 5.1.10 to this; Postfix says 5.1.0."""
    return Reply(556, "5.1.10", f"Domain {domain} does not accept mail (nullMX)")


def loops_back(domain: str) -> Reply:
    """The best MX is this host, which does not think so."""
    return Reply(554, "5.4.6", f"mail for {domain} loops back to myself")


def no_primary(domain: str) -> Reply:
    """This host is a backup MX, and none better is known at the moment."""
    return Reply(451, "4.4.6", f"unable to find primary relay for {domain}")


def malformed_mx(domain: str) -> Reply:
    """There are MX records, none of which can name a host: somebody's typing error, not the recipient's fault."""
    cause = "Malformed or unexpected name server reply"
    return Reply(451, "4.4.4", f"Name service error for name={domain} type=MX: {cause}")
