"""Restrictions on where a recipient goes: relaying, and recipients that do not exist.

The decision is made on the final form of an address (mta/trivial_rewrite.py), and an address whose local part
could send a later host elsewhere (@, %, !) is not an authorised destination, whatever its domain.
"""

from mta.lookup.address import find_address
from mta.lookup.table import Maps, TableError
from mta.smtpd.access import fit_dsn
from mta.smtpd.restrict_core import RECIPIENT, SENDER, Ask, Status
from mta.trivial_rewrite import AddressClass, Route

_ALWAYS = ("postmaster", "mailer-daemon")
_TABLES = {  # by class: who lists its recipients, and the code for those who are not in it
    AddressClass.LOCAL: ("local recipient", "unknown_local_recipient_reject_code"),
    AddressClass.VIRTUAL_MAILBOX: ("virtual mailbox", "unknown_virtual_mailbox_reject_code"),
    AddressClass.RELAY: ("relay recipient", "unknown_relay_recipient_reject_code"),
}


async def _authorized(ask: Ask, recipient: str) -> bool:
    route = await ask.resolve(recipient)
    if route.error or (route.routed and not ask.tools.settings.allow_untrusted_routing):
        return False
    return route.final or route.address_class is AddressClass.RELAY


async def permit_auth_destination(ask: Ask, name: str, kind: str) -> Status:
    if ask.recipient is not None and await _authorized(ask, ask.recipient):
        return Status.OK
    return Status.DUNNO


async def reject_unauth_destination(ask: Ask, name: str, kind: str) -> Status:
    return await _unauth(ask, ask.tools.settings.relay_domains_reject_code, "5.7.1")


async def defer_unauth_destination(ask: Ask, name: str, kind: str) -> Status:
    return await _unauth(ask, ask.tools.settings.relay_domains_reject_code - 100, "4.7.1")


async def _unauth(ask: Ask, code: int, dsn: str) -> Status:
    if ask.recipient is None or await _authorized(ask, ask.recipient):
        return Status.DUNNO
    return ask.reject(code, dsn, f"<{ask.recipient}>: Relay access denied")


# -- does the recipient exist? --------------------------------------------------------------------


async def reject_unlisted_recipient(ask: Ask, name: str, kind: str) -> Status:
    if ask.recipient is None or ask.recipient_checked:
        return Status.DUNNO
    if not ask.warning:
        ask.recipient_checked = True
    return await _unlisted(ask, ask.recipient, RECIPIENT)


async def reject_unlisted_sender(ask: Ask, name: str, kind: str) -> Status:
    if not ask.facts.sender or ask.sender_checked:
        return Status.DUNNO
    if not ask.warning:
        ask.sender_checked = True
    return await _unlisted(ask, ask.facts.sender, SENDER)


async def _unlisted(ask: Ask, address: str, kind: str) -> Status:
    tools, settings = ask.tools, ask.tools.settings
    route = await ask.resolve(address)
    try:
        if await _rewritten(ask, route, kind):
            return Status.DUNNO
        said = f"<{address}>: {kind} rejected"
        dsn = "5.1.0" if kind == SENDER else "5.1.1"
        if route.transport in ("error", "retry"):
            return _undeliverable(ask, route, said, kind)
        if route.address_class not in _TABLES:
            return Status.DUNNO
        table, parameter = _TABLES[route.address_class]
        if _always_there(ask, route) or await _listed(ask, tools.recipient_maps[table], route):
            return Status.DUNNO
    except TableError as error:
        tools.warn(str(error))
        return ask.fault(451, "4.3.0", f"<{address}>: Temporary lookup failure")
    where = f" in {table} table" if settings.show_user_unknown_table_name else ""
    code: int = getattr(settings, parameter)
    return ask.reject(code, dsn, f"{said}: User unknown{where}")


async def _rewritten(ask: Ask, route: Route, kind: str) -> bool:
    """Whether a later stage turns this address into another one, so that nothing can be said of it here."""
    for maps in ask.tools.rewriting[kind]:
        if await _listed(ask, maps, route):
            return True
    return False


async def _listed(ask: Ask, maps: Maps, route: Route) -> bool:
    """True when the maps know the address, or are empty: then every address counts as known."""
    if not maps:
        return True
    rewriter = ask.tools.rewriter
    found = await find_address(maps, route.recipient, ask.tools.extension_rules, rewriter.is_local_or_origin)
    return found is not None


def _always_there(ask: Ask, route: Route) -> bool:
    if route.address_class is not AddressClass.LOCAL:
        return False
    local = route.recipient.rpartition("@")[0].lower()
    return local in _ALWAYS or local == ask.tools.settings.double_bounce_sender.lower()


def _undeliverable(ask: Ask, route: Route, said: str, kind: str) -> Status:
    """A recipient that resolves to the error or retry transport: "5.1.1 text" or just text."""
    from_error = route.transport == "error"
    default = ("5" if from_error else "4") + (".1.0" if kind == SENDER else ".1.1")
    word, _, rest = route.nexthop.partition(" ")
    dsn, text = (word, rest) if word[:1].isdigit() and word.count(".") == 2 else (default, route.nexthop)
    if kind == SENDER:
        dsn = fit_dsn(dsn, SENDER)
    code = ask.tools.settings.unknown_virtual_alias_reject_code if from_error else 450
    return ask.reject(code, dsn, f"{said}: {text}")


RELAY = {
    function.__name__: function
    for function in (
        permit_auth_destination,
        reject_unauth_destination,
        defer_unauth_destination,
        reject_unlisted_recipient,
        reject_unlisted_sender,
    )
}
