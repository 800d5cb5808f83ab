"""What the SMTP and LMTP clients are told: parameters and next hops.

See also: postconf(5), transport(5), smtp(8)
"""

import re
from dataclasses import fields, replace

from mta.dns.system import is_address
from mta.record import dataclass

SMTP_PORT = 25
LMTP_PORT = 24
SERVICES = {"smtp": 25, "lmtp": 24, "submission": 587, "submissions": 465, "smtps": 465}  # /etc/services, what is used
_SEPARATOR = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """postconf(5); times in seconds.  For LMTP the lmtp_ values stand in the same fields: see lmtp()."""

    myhostname: str
    queue_directory: str
    inet_protocols: tuple[str, ...]
    relayhost: str
    smtp_tcp_port: str
    smtp_helo_name: str
    smtp_always_send_ehlo: bool
    smtp_never_send_ehlo: bool
    smtp_discard_ehlo_keywords: tuple[str, ...]
    smtp_skip_5xx_greeting: bool
    smtp_bind_address: str
    smtp_bind_address6: str
    smtp_host_lookup: tuple[str, ...]
    smtp_address_preference: str
    smtp_balance_inet_protocols: bool
    smtp_randomize_addresses: bool
    smtp_mx_address_limit: int
    smtp_mx_session_limit: int
    smtp_fallback_relay: tuple[str, ...]
    smtp_line_length_limit: int
    smtp_defer_if_no_mx_address_found: bool
    ignore_mx_lookup_error: bool
    disable_dns_lookups: bool
    smtp_connection_cache_on_demand: bool
    smtp_connection_cache_time_limit: float
    smtp_connection_reuse_time_limit: float
    smtp_connection_reuse_count_limit: int
    smtp_connect_timeout: float
    smtp_helo_timeout: float
    smtp_starttls_timeout: float
    smtp_mail_timeout: float
    smtp_rcpt_timeout: float
    smtp_data_init_timeout: float
    smtp_data_xfer_timeout: float
    smtp_data_done_timeout: float
    smtp_rset_timeout: float
    smtp_quit_timeout: float


@dataclass(frozen=True, slots=True)
class LmtpSettings:
    """postconf(5): what LMTP has under a name of its own."""

    lmtp_tcp_port: str
    lmtp_lhlo_name: str
    lmtp_discard_lhlo_keywords: tuple[str, ...]
    lmtp_bind_address: str
    lmtp_bind_address6: str
    lmtp_host_lookup: tuple[str, ...]
    lmtp_line_length_limit: int
    lmtp_mx_address_limit: int
    lmtp_mx_session_limit: int
    lmtp_connection_cache_on_demand: bool
    lmtp_connection_cache_time_limit: float
    lmtp_connection_reuse_time_limit: float
    lmtp_connection_reuse_count_limit: int
    lmtp_connect_timeout: float
    lmtp_lhlo_timeout: float
    lmtp_starttls_timeout: float
    lmtp_mail_timeout: float
    lmtp_rcpt_timeout: float
    lmtp_data_init_timeout: float
    lmtp_data_xfer_timeout: float
    lmtp_data_done_timeout: float
    lmtp_rset_timeout: float
    lmtp_quit_timeout: float


def lmtp(settings: SmtpSettings, own: LmtpSettings) -> SmtpSettings:
    """The settings of an LMTP client: as SMTP, with the lmtp_ values in their places."""
    values: dict[str, object] = {}
    for field in fields(own):
        name = field.name.replace("lmtp_", "smtp_", 1).replace("_lhlo_name", "_helo_name")
        name = name.replace("_lhlo_timeout", "_helo_timeout").replace("discard_lhlo", "discard_ehlo")
        values[name] = getattr(own, field.name)
    return replace(settings, smtp_fallback_relay=(), **values)  # type: ignore[arg-type]  # names and types correspond


@dataclass(frozen=True, slots=True)
class Destination:
    """One next hop.  host: domain, host name or numeric address; path instead for a unix socket.

    lookup_mx: MX records decide; else the host itself.  numeric: host is an address.
    """

    text: str
    host: str
    port: int
    lookup_mx: bool
    path: str = ""
    numeric: bool = False


class NexthopError(ValueError):
    """A next hop that nobody can reach as written: a configuration error, so mail waits."""


def parse_nexthop(text: str, settings: SmtpSettings, *, lmtp: bool) -> list[Destination]:
    """Read "domain", "[host]", "host:port", "[host]:port", for LMTP also "unix:path" and "inet:host[:port]".

    Several are separated by comma or blank, to be tried in this order.  Raises NexthopError.
    """
    found = []
    for word in filter(None, _SEPARATOR.split(text)):
        found.append(_destination(word, settings, lmtp=lmtp))
    if not found:
        raise NexthopError("null destination")
    return found


def _destination(text: str, settings: SmtpSettings, *, lmtp: bool) -> Destination:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        return Destination(text, settings.myhostname, 0, False, path if path[:1] == "/" else
                           f"{settings.queue_directory}/{path}")  # fmt: skip
    rest = text.removeprefix("inet:")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise NexthopError(f"bad next hop {text}")
        port, lookup = tail[1:], False
        if host.lower().startswith("ipv6:"):
            host = host[5:]
    elif rest.count(":") > 1:
        host, port, lookup = rest, "", False  # an IPv6 address without brackets
    else:
        host, _, port = rest.partition(":")
        lookup = not lmtp
    if not host:
        raise NexthopError(f"bad next hop {text}")
    numeric = is_address(host)
    lookup = lookup and not numeric and not settings.disable_dns_lookups
    return Destination(text, host, _port(port or settings.smtp_tcp_port, text), lookup, numeric=numeric)


def _port(port: str, text: str) -> int:
    number = SERVICES.get(port.lower(), 0)
    if port.isascii() and port.isdigit() and len(port) < 6:
        number = int(port)
    if not 0 < number < 65536:
        raise NexthopError(f"bad network port: {port} for destination: {text}")
    return number
