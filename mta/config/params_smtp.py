"""Parameters of the SMTP and LMTP clients.  The lmtp_ ones are the smtp_ ones with their own defaults."""

from mta.config.declare import count, items, not_yet, only_default, size, tables, text, time, word, yes_no
from mta.config.param import Param

_CHECKS = "mail would go out unchecked"

CLIENT: tuple[Param, ...] = (
    text("smtp_helo_name", "$myhostname", "Name in EHLO and HELO."),
    yes_no("smtp_always_send_ehlo", "yes", "Send EHLO even when the greeting has no ESMTP."),
    yes_no("smtp_never_send_ehlo", "no", "Never send EHLO."),
    time("smtp_connect_timeout", "30s", "Limit for a TCP connection; 0: the system's.", 0),
    time("smtp_helo_timeout", "300s", "Limit for the greeting, and for EHLO or HELO."),
    time("smtp_mail_timeout", "300s", "Limit for MAIL FROM and its reply."),
    time("smtp_rcpt_timeout", "300s", "Limit for RCPT TO and its reply."),
    time("smtp_data_init_timeout", "120s", "Limit for DATA and its reply."),
    time("smtp_data_xfer_timeout", "180s", "Limit for the message text to move on."),
    time("smtp_data_done_timeout", "600s", "Limit for the reply to the final dot; short ones cause duplicates."),
    time("smtp_rset_timeout", "20s", "Limit for RSET and its reply."),
    time("smtp_quit_timeout", "300s", "Limit for QUIT and its reply."),
    time("smtp_starttls_timeout", "300s", "Limit for STARTTLS and the handshake."),
    text("smtp_tcp_port", "smtp", "Port used when the next hop names none."),
    text("smtp_bind_address", "", "Source IPv4 address of connections; a warning where this host does not have it."),
    text("smtp_bind_address6", "", "Source IPv6 address of connections; a warning where this host does not have it."),
    items("smtp_host_lookup", "dns",
          "Where hosts are looked up: dns, native (/etc/hosts, then DNS), or both: DNS, and /etc/hosts for a name that "
          "DNS does not know. Other than in Postfix, dns alone does this too for a next hop in [] and for LMTP, and "
          "looks for such a localhost in /etc/hosts first.", "dns", "native"),
    word("smtp_address_preference", "any", "Protocol tried first.", "any", "ipv4", "ipv6"),
    yes_no("smtp_balance_inet_protocols", "yes", "Mix IPv4 and IPv6 addresses when many are known."),
    yes_no("smtp_randomize_addresses", "yes", "Shuffle addresses of equal preference."),
    count("smtp_mx_address_limit", "5", "Addresses tried per delivery; 0: no limit."),
    count("smtp_mx_session_limit", "2", "Sessions tried per delivery; 0: no limit."),
    yes_no("smtp_skip_5xx_greeting", "yes", "Try the next server when the greeting is 5xx."),
    yes_no("smtp_defer_if_no_mx_address_found", "no", "Defer, not bounce, when no MX host has an address."),
    items("smtp_fallback_relay", "$fallback_relay", "Hosts to try when the destination cannot be reached."),
    items("smtp_discard_ehlo_keywords", "", "EHLO keywords of the server to overlook."),
    count("smtp_line_length_limit", "998", "Longest text line sent; longer ones are folded; 0: no limit."),
    word("smtp_dns_support_level", "", "DNS for the next hop.", "", "disabled", "enabled", later=("dnssec",)),
    yes_no("smtp_connection_cache_on_demand", "yes", "Keep a connection open while more mail waits for it."),
    time("smtp_connection_cache_time_limit", "2s", "How long an idle connection is kept."),
    time("smtp_connection_reuse_time_limit", "300s", "How long a connection is used altogether."),
    count("smtp_connection_reuse_count_limit", "0", "Deliveries per connection; 0: no limit."),
    *(only_default(tables(f"smtp_{name}", "", "Inspects outgoing mail, see header_checks(5)."), _CHECKS)
      for name in ("header_checks", "mime_header_checks", "nested_header_checks", "body_checks")),
    only_default(yes_no("smtp_sasl_auth_enable", "no", "Log in at the server."),
                 "mail would be sent without logging in"),
    *not_yet(
        yes_no("smtp_skip_quit_response", "yes", "Do not wait for the reply to QUIT."),
        tables("smtp_discard_ehlo_keyword_address_maps", "", "The same by server address."),
        yes_no("smtp_quote_rfc821_envelope", "yes", "Quote addresses in MAIL and RCPT as RFC 5321 demands."),
        tables("smtp_generic_maps", "", "Rewrites addresses of mail that leaves by SMTP, see generic(5)."),
        items("smtp_connection_cache_destinations", "", "Destinations whose connections are always kept."),
        yes_no("smtp_send_xforward_command", "no", "Tell the server about our client (XFORWARD)."),
        size("smtp_min_data_rate", "500", "Least bytes per second with smtp_per_request_deadline.", 1),
    ),
)  # fmt: skip

DNS: tuple[Param, ...] = (
    yes_no("disable_dns_lookups", "no", "No MX lookups; hosts by name service. Old form of smtp_dns_support_level."),
    yes_no("ignore_mx_lookup_error", "no", "Use the address of a domain whose MX lookup fails."),
    only_default(text("best_mx_transport", "",
                      "Transport for domains that list this host as best MX; empty: such mail bounces."),
                 "mail for such domains would be returned"),
    *not_yet(
        items("known_tcp_ports", "lmtp=24, smtp=25, smtps=submissions=465, submission=587",
              "Port numbers of names, before the system's list is asked."),
    ),
)  # fmt: skip

_LMTP_NAMES = {
    "helo_name": "lhlo_name",
    "helo_timeout": "lhlo_timeout",
    "discard_ehlo_keywords": "discard_lhlo_keywords",
    "discard_ehlo_keyword_address_maps": "discard_lhlo_keyword_address_maps",
}
_LMTP_DEFAULTS = {"connect_timeout": "0s", "skip_quit_response": "no", "fallback_relay": "", "tcp_port": "24"}
_SMTP_ONLY = {"always_send_ehlo", "never_send_ehlo"}
_LMTP_NOT_YET = {"address_preference", "balance_inet_protocols", "randomize_addresses", "skip_5xx_greeting",
                 "defer_if_no_mx_address_found", "fallback_relay", "dns_support_level"}  # fmt: skip


def lmtp_name(name: str) -> str:
    """The LMTP client's parameter for one of the SMTP client; other names unchanged."""
    bare = name.removeprefix("smtp_")
    return name if bare == name else f"lmtp_{_LMTP_NAMES.get(bare, bare)}"


def _lmtp(param: Param) -> Param:
    bare = param.name.removeprefix("smtp_")
    default = _LMTP_DEFAULTS.get(bare, param.default)
    doc = f"As {param.name}, for LMTP."
    return Param(
        lmtp_name(param.name), param.kind, default, doc, param.low, param.high, param.words, param.later,
        honoured=param.honoured and bare not in _LMTP_NOT_YET, unsafe_if_ignored=param.unsafe_if_ignored,
    )  # fmt: skip


LMTP = tuple(_lmtp(p) for p in CLIENT if p.name.removeprefix("smtp_") not in _SMTP_ONLY)

PARAMS = CLIENT + DNS + LMTP
