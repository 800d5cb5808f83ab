"""Which keys to ask a table for an address, in which order.

Addresses are unquoted; tables may hold them quoted as RFC 5322 wants or, as of old, unquoted: both are tried
when the two differ.

See also: virtual(5) "TABLE SEARCH ORDER", canonical(5), "ADDRESS EXTENSION" in any of them
"""

import re
from collections.abc import Awaitable, Callable

from mta.lookup.table import Maps
from mta.record import dataclass

_DOT_STRING = re.compile(r"[^\x00-\x20\x7f()<>@,;:\\\".\[\]]+(?:\.[^\x00-\x20\x7f()<>@,;:\\\".\[\]]+)*")
_NEVER_SPLIT = ("postmaster", "mailer-daemon")


@dataclass(frozen=True, slots=True)
class ExtensionRules:
    """How user+extension is split: recipient_delimiter is a set of characters, the first one found splits.

    owner_request_special: owner-list and list-request are names, not extensions, when "-" is a delimiter.
    """

    recipient_delimiter: str
    owner_request_special: bool
    double_bounce_sender: str


def split_extension(local: str, rules: ExtensionRules) -> tuple[str, str]:
    """Return (user, extension with its delimiter), (local part, "") when there is none.  user is never empty."""
    if not rules.recipient_delimiter:
        return local, ""
    lower = local.lower()
    if lower in _NEVER_SPLIT or lower == rules.double_bounce_sender.lower():
        return local, ""
    is_list = lower.startswith("owner-") or (lower.endswith("-request") and len(lower) > len("-request"))
    if is_list and "-" in rules.recipient_delimiter and rules.owner_request_special:
        return local, ""
    at = min((i for c in rules.recipient_delimiter if (i := local.find(c)) >= 0), default=0)
    return (local[:at], local[at:]) if at else (local, "")


def quoted(local: str) -> str:
    """Return the local part as RFC 5322 writes it: quoted when it is not a dot-atom."""
    if _DOT_STRING.fullmatch(local):
        return local
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


async def find_key(maps: Maps, local: str, rest: str, *, fixed: bool) -> str | None:
    """Ask for local + rest (an "@domain" or ""), the local part quoted if need be, then as it is."""
    external = quoted(local)
    if external != local:
        value = await maps.get(external + rest, fixed=fixed)
        if value is not None:
            return value
    return await maps.get(local + rest, fixed=fixed)


async def find_address(
    maps: Maps,
    address: str,
    rules: ExtensionRules,
    is_local: Callable[[str], Awaitable[bool]],
) -> tuple[str, str] | None:
    """Ask for user+ext@domain, user@domain, user+ext, user, @domain; the two without domain for local ones only.

    Return (value, extension with its delimiter when it was "user" or "user@domain" without it that matched, else ""),
    None when nothing matches.  "@domain" stands for any user with any extension, so nothing is left over there.
    Patterns (regexp:, cidr:) see the whole address only.  An address without "@" is asked as it is and without
    its extension.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    user, extension = split_extension(local, rules)
    rest = at + domain
    value = await find_key(maps, local, rest, fixed=False)
    if value is not None:
        return value, ""
    if extension:
        value = await find_key(maps, user, rest, fixed=True)
        if value is not None:
            return value, extension
    if not at:
        return None
    if await is_local(domain.lower()):
        value = await find_key(maps, local, "", fixed=True)
        if value is not None:
            return value, ""
        if extension:
            value = await find_key(maps, user, "", fixed=True)
            if value is not None:
                return value, extension
    value = await maps.get(rest, fixed=True)
    return None if value is None else (value, "")
