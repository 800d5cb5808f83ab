"""check_*_access: which fact each of them looks up in its table, and what the reply names."""

from collections.abc import Callable

from mta.smtpd.access import AccessTable
from mta.smtpd.restrict_core import (
    CLIENT,
    ETRN,
    HELO,
    RECIPIENT,
    REVERSE_CLIENT,
    SENDER,
    Ask,
    Check,
    ServerError,
    Status,
)
from mta.smtpd.restrict_dns import judge_hosts

ACCESS = {
    f"check_{what}{how}_access": (what, how.strip("_"))
    for what in ("client", "reverse_client_hostname", "helo", "sender", "recipient", "etrn")
    for how in ("", "_a", "_mx")
}


def access_check(name: str, table: AccessTable) -> Check:
    """Return the restriction called name (a key of ACCESS) on this table."""
    what, how = ACCESS[name]
    return _access_by_host(table, what, how) if how else _BY_NAME[what](table)


def _client_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        facts = ask.facts
        return await table.client(ask, facts.client_name, facts.client_address, facts.client, CLIENT)

    return check


def _reverse_client_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        host = ask.facts.reverse_client_name
        status = await table.client(ask, host, ask.facts.client_address, host, REVERSE_CLIENT)
        return _permits_nothing(ask, status, "check_reverse_client_hostname_access", host)

    return check


def _permits_nothing(ask: Ask, status: Status, restriction: str, target: str) -> Status:
    """Names that anybody can claim, and the DNS of a stranger, open no door; DISCARD does not either."""
    if status is Status.OK and not ask.discard:
        ask.tools.warn(f'restriction {restriction} returns OK for "{target}"')
        ask.tools.warn("this is not allowed for security reasons")
        raise ServerError("use DUNNO instead of OK if you want to make an exception")
    return status


def _helo_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        helo = ask.facts.helo
        return await table.domain(ask, helo, helo, HELO) if helo else Status.DUNNO

    return check


def _sender_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        sender = ask.facts.sender
        if sender is None:
            return Status.DUNNO
        if not sender:
            return await table.key(ask, ask.tools.settings.smtpd_null_access_lookup_key, sender, SENDER)
        return await table.address(ask, sender, sender, SENDER)

    return check


def _recipient_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        recipient = ask.recipient
        return await table.address(ask, recipient, recipient, RECIPIENT) if recipient else Status.DUNNO

    return check


def _etrn_access(table: AccessTable) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        return await table.domain(ask, name, name, ETRN)

    return check


_BY_NAME: dict[str, Callable[[AccessTable], Check]] = {
    "client": _client_access,
    "reverse_client_hostname": _reverse_client_access,
    "helo": _helo_access,
    "sender": _sender_access,
    "recipient": _recipient_access,
    "etrn": _etrn_access,
}


def _access_by_host(table: AccessTable, what: str, how: str) -> Check:
    """check_*_a_access, check_*_mx_access: the table judges the mail servers behind a name."""

    async def check(ask: Ask, name: str, kind: str) -> Status:
        facts = ask.facts
        sender, recipient = facts.sender or "", ask.recipient or ""
        domain, about, kind = {
            "client": (facts.client_name, facts.client, CLIENT),
            "reverse_client_hostname": (facts.reverse_client_name, facts.reverse_client_name, REVERSE_CLIENT),
            "helo": (facts.helo, facts.helo, HELO),
            "sender": (sender.rpartition("@")[2] if "@" in sender else "", sender, SENDER),
            "recipient": (recipient.rpartition("@")[2] if "@" in recipient else "", recipient, RECIPIENT),
            "etrn": (name, name, ETRN),
        }[what]
        status = await judge_hosts(table, ask, domain, how, about, kind)
        return _permits_nothing(ask, status, f"check_{what}_{how}_access", domain)

    return check
