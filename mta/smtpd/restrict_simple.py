"""Restrictions that need no table and no DNS: words, client, helo and address forms.

Each function is one restriction of postconf(5) by its name; they share the signature Check.
"""

from mta.lookup.cidr import parse_address
from mta.lookup.names import mailhost_address, valid_hostname
from mta.smtpd.facts import Stage
from mta.smtpd.restrict_core import HELO, RECIPIENT, SENDER, Ask, ServerError, Status


async def permit(ask: Ask, name: str, kind: str) -> Status:
    return Status.OK


async def reject(ask: Ask, name: str, kind: str) -> Status:
    return ask.reject(ask.tools.settings.reject_code, "5.7.1", f"<{name}>: {kind} rejected: Access denied")


async def defer(ask: Ask, name: str, kind: str) -> Status:
    return ask.reject(ask.tools.settings.defer_code, "4.3.2", f"<{name}>: {kind} rejected: Try again later")


async def defer_if_permit(ask: Ask, name: str, kind: str) -> Status:
    return ask.defer_later(450, "4.7.0", f"<{name}>: {kind} rejected: defer_if_permit requested")


async def defer_if_reject(ask: Ask, name: str, kind: str) -> Status:
    return ask.soften(450, "4.7.0", f"<{name}>: {kind} rejected: defer_if_reject requested")


async def permit_mynetworks(ask: Ask, name: str, kind: str) -> Status:
    facts = ask.facts
    return Status.OK if await ask.tools.mynetworks.match(facts.client_address, facts.client_name) else Status.DUNNO


async def permit_inet_interfaces(ask: Ask, name: str, kind: str) -> Status:
    return Status.OK if await ask.tools.own_addresses.match(ask.facts.client_address) else Status.DUNNO


async def permit_sasl_authenticated(ask: Ask, name: str, kind: str) -> Status:
    return Status.OK if ask.facts.sasl_username else Status.DUNNO


async def login_is_not_offered(ask: Ask, name: str, kind: str) -> Status:
    """reject_*_sender_login_mismatch, permit_tls_*clientcerts: of no effect while nobody can log in.

    So it is in Postfix with smtpd_sasl_auth_enable = no and without smtpd_tls_ask_ccert, and no other setting of
    the first is accepted here.  Were somebody logged in after all, the answer is "later", not a guess.
    """
    if ask.facts.sasl_username:
        raise ServerError("no restriction on logins can be judged")
    return Status.DUNNO


async def reject_unauth_pipelining(ask: Ask, name: str, kind: str) -> Status:
    if not ask.facts.unauth_pipelining:
        return Status.DUNNO
    return ask.reject(503, "5.5.0", f"<{name}>: {kind} rejected: Improper use of SMTP command pipelining")


async def reject_plaintext_session(ask: Ask, name: str, kind: str) -> Status:
    if ask.facts.tls:
        return Status.DUNNO
    return ask.reject(ask.tools.settings.plaintext_reject_code, "4.7.1", "Session encryption is required")


async def reject_multi_recipient_bounce(ask: Ask, name: str, kind: str) -> Status:
    accepted = ask.facts.recipient_count
    if ask.facts.sender != "" or accepted < (1 if ask.stage is Stage.RCPT else 2):
        return Status.DUNNO
    code = ask.tools.settings.multi_recipient_bounce_reject_code
    return ask.reject(code, "5.5.3", f"<{name}>: {kind} rejected: Multi-recipient bounce")


# -- client ---------------------------------------------------------------------------------------


async def reject_unknown_client_hostname(ask: Ask, name: str, kind: str) -> Status:
    return _nameless(ask, ask.facts.client_name_status, "4.7.25", "hostname")


async def reject_unknown_reverse_client_hostname(ask: Ask, name: str, kind: str) -> Status:
    return _nameless(ask, ask.facts.reverse_name_status, "4.7.1", "reverse hostname")


def _nameless(ask: Ask, status: int, dsn: str, what: str) -> Status:
    if status == 2:
        return Status.DUNNO
    code = ask.tools.settings.unknown_client_reject_code if status >= 5 else 450
    return ask.reject(code, dsn, f"Client host rejected: cannot find your {what}, [{ask.facts.client_address}]")


# -- helo -----------------------------------------------------------------------------------------


def invalid_literal(ask: Ask, helo: str) -> Status | None:
    """For "[...]": whether it holds an address; None when helo is no literal."""
    if not helo.startswith("["):
        return None
    if helo.endswith("]") and mailhost_address(helo[1:-1]) is not None:
        return Status.DUNNO
    code = ask.tools.settings.invalid_hostname_reject_code
    return ask.reject(code, "5.5.2", f"<{helo}>: {HELO} rejected: invalid ip address")


def _undotted(name: str) -> str:
    return name[:-1] if name.endswith(".") and not name.endswith("..") else name


async def reject_invalid_helo_hostname(ask: Ask, name: str, kind: str) -> Status:
    helo = ask.facts.helo
    if not helo:
        return Status.DUNNO
    literal = invalid_literal(ask, helo)
    if literal is not None:
        return literal
    bare = _undotted(helo)
    if valid_hostname(bare) or parse_address(bare) is not None:
        return Status.DUNNO
    code = ask.tools.settings.invalid_hostname_reject_code
    return ask.reject(code, "5.5.2", f"<{helo}>: {HELO} rejected: Invalid name")


async def reject_non_fqdn_helo_hostname(ask: Ask, name: str, kind: str) -> Status:
    helo = ask.facts.helo
    if not helo:
        return Status.DUNNO
    literal = invalid_literal(ask, helo)
    if literal is not None:
        return literal
    bare = _undotted(helo)
    if valid_hostname(bare) and "." in bare:
        return Status.DUNNO
    code = ask.tools.settings.non_fqdn_reject_code
    return ask.reject(code, "5.5.2", f"<{helo}>: {HELO} rejected: need fully-qualified hostname")


# -- addresses ------------------------------------------------------------------------------------


async def reject_non_fqdn_sender(ask: Ask, name: str, kind: str) -> Status:
    return _non_fqdn(ask, ask.facts.sender, SENDER) if ask.facts.sender else Status.DUNNO


async def reject_non_fqdn_recipient(ask: Ask, name: str, kind: str) -> Status:
    return _non_fqdn(ask, ask.recipient, RECIPIENT) if ask.recipient else Status.DUNNO


def _non_fqdn(ask: Ask, address: str, kind: str) -> Status:
    _, at, domain = address.rpartition("@")
    if domain.startswith("[") and domain.endswith("]"):
        return Status.DUNNO
    bare = _undotted(domain)
    if at and valid_hostname(bare) and "." in bare:
        return Status.DUNNO
    code = ask.tools.settings.non_fqdn_reject_code
    return ask.reject(code, "5.5.2", f"<{address}>: {kind} rejected: need fully-qualified address")


SIMPLE = {
    function.__name__: function
    for function in (
        permit,
        reject,
        defer,
        defer_if_permit,
        defer_if_reject,
        permit_mynetworks,
        permit_inet_interfaces,
        permit_sasl_authenticated,
        reject_unauth_pipelining,
        reject_plaintext_session,
        reject_multi_recipient_bounce,
        reject_unknown_client_hostname,
        reject_unknown_reverse_client_hostname,
        reject_invalid_helo_hostname,
        reject_non_fqdn_helo_hostname,
        reject_non_fqdn_sender,
        reject_non_fqdn_recipient,
    )
}
LOGIN = dict.fromkeys(
    (
        "reject_sender_login_mismatch",
        "reject_authenticated_sender_login_mismatch",
        "reject_known_sender_login_mismatch",
        "reject_unauthenticated_sender_login_mismatch",
        "permit_tls_clientcerts",
        "permit_tls_all_clientcerts",
    ),
    login_is_not_offered,
)
