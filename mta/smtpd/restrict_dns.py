"""Restrictions that ask DNS: unknown domains and hosts, block lists, tables of a domain's A, MX and NS.

A DNS failure is never "not found": it defers (unknown_address_tempfail_action and its kin at their default,
defer_if_permit), and a block list that does not answer blocks nobody, as in Postfix.
"""

import re

from mta.dns.mx import DnsError, DnsNoData, DnsNotFound
from mta.dns.system import is_address
from mta.lookup.cidr import parse_address
from mta.smtpd.access import AccessTable
from mta.smtpd.restrict_core import HELO, RECIPIENT, SENDER, Ask, Check, ServerError, Status
from mta.smtpd.restrict_simple import invalid_literal

MAX_REASON = 300  # octets of a block list's TXT records in a reply, which has 512 (RFC 5321 s4.5.3.1.5)
MAX_HOSTS = 100  # MX hosts of a domain that check_*_mx_access looks at
_RANGE = r"\d{1,3}(?:\.\.\d{1,3})?"
_OCTET = rf"(\d{{1,3}}|\[{_RANGE}(?:;{_RANGE})*\])"
_ANSWERS = re.compile(r"\.".join([_OCTET] * 4))


async def reject_unknown_sender_domain(ask: Ask, name: str, kind: str) -> Status:
    return await _unknown_domain(ask, ask.facts.sender, SENDER) if ask.facts.sender else Status.DUNNO


async def reject_unknown_recipient_domain(ask: Ask, name: str, kind: str) -> Status:
    return await _unknown_domain(ask, ask.recipient, RECIPIENT) if ask.recipient else Status.DUNNO


async def _unknown_domain(ask: Ask, address: str, kind: str) -> Status:
    route = await ask.resolve(address)
    domain = route.recipient.rpartition("@")[2].lower()
    if route.final or domain.startswith("["):
        return Status.DUNNO
    settings, said = ask.tools.settings, f"<{address}>: {kind} rejected"
    dsn = "4.1.8" if kind == SENDER else "4.1.2"
    try:
        if await ask.tools.dns.exists(domain):
            if await _null_mx(ask, domain):
                code, dsn = (550, "5.7.27") if kind == SENDER else (556, "5.1.10")
                return ask.reject(code, dsn, f"{said}: Domain {domain} does not accept mail (nullMX)")
            return Status.DUNNO
    except DnsError:
        return ask.defer_later(450, dsn, f"{said}: Domain not found")
    return ask.reject(settings.unknown_address_reject_code, dsn, f"{said}: Domain not found")


async def _null_mx(ask: Ask, domain: str) -> bool:
    try:
        return (await ask.tools.dns.mx(domain)).is_null
    except (DnsNoData, DnsNotFound):
        return False


async def reject_unknown_helo_hostname(ask: Ask, name: str, kind: str) -> Status:
    helo = ask.facts.helo
    if not helo:
        return Status.DUNNO
    literal = invalid_literal(ask, helo)
    if literal is not None:
        return literal
    text = f"<{helo}>: {HELO} rejected: Host not found"
    try:
        if await ask.tools.dns.exists(helo.removesuffix(".").lower()):
            return Status.DUNNO
    except DnsError:
        return ask.defer_later(450, "4.7.1", text)
    return ask.reject(ask.tools.settings.unknown_hostname_reject_code, "4.7.1", text)


# -- block lists ----------------------------------------------------------------------------------


def reject_rbl_client(zone: str) -> Check:
    """The client's address, reversed, in a DNS block list; "zone=127.0.0.[2;4..6]" counts only such answers."""

    async def check(ask: Ask, name: str, kind: str) -> Status:
        address = ask.facts.client_address
        parsed = parse_address(address)
        if parsed is None:
            return Status.DUNNO
        bits, value = parsed
        if bits == 32:
            parts = [str(value >> shift & 255) for shift in (0, 8, 16, 24)]
        else:
            parts = [f"{value >> shift & 15:x}" for shift in range(0, 128, 4)]
        return await _listed(ask, ".".join(parts), zone, f"Client host [{address}]")

    return check


def reject_rhsbl(zone: str, which: str) -> Check:
    """A domain (of sender, recipient, helo, client, reverse_client) in a DNS block list."""

    async def check(ask: Ask, name: str, kind: str) -> Status:
        facts = ask.facts
        domain, what = {
            "sender": (_domain(facts.sender), SENDER),
            "recipient": (_domain(ask.recipient), RECIPIENT),
            "helo": (facts.helo, HELO),
            "client": (facts.client_name, "Client host"),
            "reverse_client": (facts.reverse_client_name, "Unverified Client host"),
        }[which]
        if not domain or domain == "unknown" or domain.startswith("[") or parse_address(domain):
            return Status.DUNNO
        shown = {SENDER: facts.sender or "", RECIPIENT: ask.recipient or ""}.get(what, domain)
        return await _listed(ask, domain.removesuffix("."), zone, f"{what} [{shown}]")

    return check


def _domain(address: str | None) -> str:
    return address.rpartition("@")[2] if address and "@" in address else ""


def parse_answers(pattern: str) -> tuple[frozenset[int], ...]:
    """ "127.0.0.[2;4..6]" -> the numbers that each octet may be; () when it means no address (postconf(5))."""
    match = _ANSWERS.fullmatch(pattern)
    octets = []
    for text in match.groups() if match else ():
        ranges = [part.partition("..") for part in text.strip("[]").split(";")]
        bounds = [(int(first), int(last or first)) for first, _, last in ranges]
        if not all(first <= last <= 255 for first, last in bounds):
            return ()
        octets.append(frozenset(number for first, last in bounds for number in range(first, last + 1)))
    return tuple(octets)


def _counts(answer: str, wanted: tuple[frozenset[int], ...]) -> bool:
    """Does this answer mean that the name is listed?  No address outside of 127.0.0.0/8 does, unless wanted says so."""
    if not wanted:
        return answer.startswith("127.")
    return all(int(octet) in allowed for octet, allowed in zip(answer.split("."), wanted, strict=True))


async def _listed(ask: Ask, key: str, zone: str, what: str) -> Status:
    domain, _, pattern = zone.partition("=")
    wanted = parse_answers(pattern)
    if pattern and not wanted:
        raise ServerError(f"bad address pattern in {zone}")
    try:
        answers = await ask.tools.dns.addresses(f"{key}.{domain}", (4,))
    except DnsError:
        return Status.DUNNO
    if not any(_counts(answer, wanted) for answer in answers):
        return Status.DUNNO
    reason = await _reason(ask, f"{key}.{domain}")
    code = ask.tools.settings.maps_rbl_reject_code
    return ask.reject(code, "5.7.1", f"Service unavailable; {what} blocked using {domain}{reason}")


async def _reason(ask: Ask, name: str) -> str:
    """What the list says about it (RFC 5782 s2.1), most often where the refused can read more; "" for nothing."""
    try:
        said = [text.strip() for text in await ask.tools.dns.texts(name)]
    except DnsError:
        return ""
    return f"; {' / '.join(filter(None, said))}"[:MAX_REASON].rstrip("; ")


# -- access tables on what a domain's mail servers are --------------------------------------------


async def judge_hosts(table: AccessTable, ask: Ask, domain: str, which: str, name: str, kind: str) -> Status:
    """check_*_a_access and check_*_mx_access: the host names and addresses behind a domain."""
    domain = domain.removesuffix(".").lower()
    if not domain or domain == "unknown":
        return Status.DUNNO
    if domain.startswith("["):
        return await table.client(ask, "", domain[1:].removesuffix("]"), name, kind)
    hosts = [domain]
    try:
        if which == "mx":
            hosts = [mx.host for mx in (await ask.tools.dns.mx(domain)).records if mx.host][:MAX_HOSTS]
    except (DnsNoData, DnsNotFound):
        hosts = [domain]
    except DnsError:
        return ask.defer_later(450, "4.1.8", f"<{name}>: {kind} rejected: Unable to look up mail exchanger information")
    for host in hosts:
        status = await table.domain(ask, host, name, kind)
        if status:
            return status
        try:
            addresses = [host] if is_address(host) else await ask.tools.dns.addresses(host, (4, 6))
        except DnsError:
            continue
        for address in addresses:
            status = await table.client(ask, "", address, name, kind)
            if status:
                return status
    return Status.DUNNO


DNS = {
    "reject_unknown_sender_domain": reject_unknown_sender_domain,
    "reject_unknown_recipient_domain": reject_unknown_recipient_domain,
    "reject_unknown_helo_hostname": reject_unknown_helo_hostname,
}
