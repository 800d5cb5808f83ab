"""access(5): which keys a table is asked for, and what its answer does.

See also: access(5), postconf(5) access_map_reject_code and its kin
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

from mta.lookup.address import quoted, split_extension
from mta.lookup.cidr import parse_address
from mta.lookup.match_list import parent_style
from mta.lookup.table import Table, TableError
from mta.smtpd.facts import Stage
from mta.smtpd.restrict_core import (
    CONFIGURATION_ERROR,
    RECIPIENT,
    SENDER,
    Ask,
    Restriction,
    ServerError,
    Status,
    run,
)

MAX_RESULTS = 1000  # compiled restriction lists found in tables
_DSN = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")
_SENDER_DETAIL = {"0": "0", "1": "7", "2": "8", "3": "7", "4": "7", "6": "7", "7": "7", "8": "8"}
_RECIPIENT_DETAIL = {**{c: c for c in "0123456"}, "7": "3", "8": "2"}

CompileList = Callable[[str], Sequence[Restriction]]


def fit_dsn(dsn: str, kind: str) -> str:
    """Turn an address status (x.1.y) of one kind into that of another (access(5), ENHANCED STATUS CODES)."""
    first, subject, detail = dsn.split(".")
    if subject != "1":
        return dsn
    if kind == SENDER:
        return f"{first}.1.{_SENDER_DETAIL.get(detail, '0')}"
    if kind == RECIPIENT:
        return f"{first}.1.{_RECIPIENT_DETAIL.get(detail, '0')}"
    return f"{first}.0.0"


def split_dsn(text: str, default: str) -> tuple[str, str]:
    """Return (status, text) of "4.7.1 text" or "text"."""
    match = _DSN.match(text)
    return (match[1], text[match.end() :]) if match else (default, text)


class AccessTable:
    """One table used by check_*_access."""

    def __init__(self, table: Table, parents: Sequence[str], compile_list: CompileList) -> None:
        self.table = table
        self._pattern: bool = getattr(table, "pattern", False)
        self._parents = parent_style("smtpd_access_maps", parents)
        self._compile_list = compile_list
        self._compiled: OrderedDict[str, Sequence[Restriction]] = OrderedDict()

    # -- which keys -------------------------------------------------------------------------------

    async def client(self, ask: Ask, host: str, address: str, name: str, kind: str) -> Status:
        """Host name and its parents, then the address and shorter and shorter parts of it."""
        return await self._judge(ask, (host, address), name, kind, host=host, address=address)

    async def domain(self, ask: Ask, domain: str, name: str, kind: str) -> Status:
        """A name and its parents."""
        return await self._judge(ask, (domain,), name, kind, host=domain)

    async def address(self, ask: Ask, address: str, name: str, kind: str) -> Status:
        """A mail address: user+ext@domain, user@domain, domain and parents, user+ext@, user@."""
        final = (await ask.resolve(address)).recipient
        return await self._judge(ask, (final,), name, kind, mail=final)

    async def key(self, ask: Ask, key: str, name: str, kind: str) -> Status:
        """Just this key."""
        return await self._judge(ask, (key,), name, kind)

    async def _judge(
        self, ask: Ask, asked: Sequence[str], name: str, kind: str, *, host: str = "", address: str = "", mail: str = ""
    ) -> Status:
        keys = list(asked)
        if not self._pattern:
            if mail:
                keys = _mail_keys(mail, ask, self._host_keys)
            elif host or address:
                keys = [*self._host_keys(host), *_network_keys(address)]
        key = ""
        try:
            for key in keys:
                value = await self.table.get(key) if key else None
                if value is not None:
                    if not value:
                        raise TableError("returns an empty string result")
                    return await self._act(ask, value, key, name, kind)
        except TableError as error:
            ask.tools.warn(f"{self.table.name} lookup error for {quoted_key(key)}: {error}")
            code, dsn, text = CONFIGURATION_ERROR
            return ask.fault(code, dsn, f"<{name}>: {kind} rejected: {text}")
        return Status.DUNNO

    def _host_keys(self, host: str) -> list[str]:
        host = host.lower()
        if len(host) > 1 and host.endswith("."):
            host = host[:-1]
        keys = [host] if host else []
        if parse_address(host) is not None:
            return keys
        at = host.find(".", 1)
        while at >= 0:
            keys.append(host[at + 1 :] if self._parents else host[at:])
            at = host.find(".", at + 1)
        return keys

    # -- what the answer does ---------------------------------------------------------------------

    async def _act(self, ask: Ask, value: str, key: str, name: str, kind: str) -> Status:
        word, text = (*value.split(None, 1), "", "")[:2]
        action, text = word.upper(), text.strip()
        said = f"<{name}>: {kind}"
        settings = ask.tools.settings
        if action == "DUNNO":
            return Status.DUNNO
        if action == "REJECT":
            dsn, text = split_dsn(text, "5.7.1")
            code = settings.access_map_reject_code
            return ask.reject(code, fit_dsn(dsn, kind), f"{said} rejected: {text or 'Access denied'}")
        if action in ("DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT"):
            return _defer(ask, action, text, said, kind)
        if action in ("INFO", "WARN"):
            ask.note(action.lower(), text)
            return Status.DUNNO
        if action in ("HOLD", "DISCARD", "FILTER", "REDIRECT", "BCC", "PREPEND"):
            return self._effect(ask, action, text, value, said)
        if value.strip().isdigit():
            return Status.OK
        if re.fullmatch(r"[45]\d\d", word) and text:
            dsn, text = split_dsn(text, f"{word[0]}.7.1")
            return ask.reject(int(word), fit_dsn(dsn, kind), f"{said} rejected: {text or 'Access denied'}")
        if action in ("OK", "RELAY"):
            return await self._ok(ask, kind)
        if ":" in value:
            ask.tools.warn(f"access table {self.table.name} has entry with lookup table: {value}")
            ask.tools.warn("do not specify lookup tables inside SMTPD access maps")
            raise ServerError("define a restriction class and specify its name instead.")
        return await run(self._list(value), ask, name, kind)

    async def _ok(self, ask: Ask, kind: str) -> Status:
        """An address that may be routed on by the next host is not let through by a table (open relay)."""
        if kind == RECIPIENT and ask.recipient is not None and not ask.tools.settings.allow_untrusted_routing:
            route = await ask.resolve(ask.recipient)
            if route.routed:
                return Status.DUNNO
        return Status.OK

    def _effect(self, ask: Ask, action: str, text: str, value: str, said: str) -> Status:
        """Actions on the whole message; they are undone when it is refused later."""
        entry = f'access table {self.table.name} entry "{value}"'
        if action == "HOLD":
            ask.hold = True
            ask.note("hold", f"{said} {text or 'triggers HOLD action'}")
        elif action == "DISCARD":
            ask.discard = True
            ask.note("discard", f"{said} {text or 'triggers DISCARD action'}")
            return Status.OK
        elif action == "PREPEND":
            if ask.stage is Stage.END_OF_MESSAGE:
                ask.tools.warn(f"{entry}: action PREPEND must be used before END-OF-MESSAGE")
            elif not re.match(r"[!-9;-~]+:", text):
                ask.tools.warn(f"{entry} requires header: text")
            else:
                ask.prepend.append(text)
        elif not text:
            ask.tools.warn(f"{entry} has {action} entry without value")
        elif action == "FILTER" and ":" not in text:
            ask.tools.warn(f"{entry} requires transport:destination")
        elif action != "FILTER" and "@" not in text:
            ask.tools.warn(f"{entry} requires user@domain target")
        else:
            ask.note(action.lower(), f"{said} triggers {action} {text}")
            if action == "FILTER":
                ask.filter = text
            elif action == "REDIRECT":
                ask.redirect = text
            else:
                ask.bcc = (text,)
        return Status.DUNNO

    def _list(self, value: str) -> Sequence[Restriction]:
        compiled = self._compiled.get(value)
        if compiled is None:
            compiled = self._compiled[value] = self._compile_list(value)
            if len(self._compiled) > MAX_RESULTS:
                self._compiled.popitem(last=False)
        return compiled


def _defer(ask: Ask, action: str, text: str, said: str, kind: str) -> Status:
    dsn, text = split_dsn(text, "4.7.1")
    code, dsn = ask.tools.settings.access_map_defer_code, fit_dsn(dsn, kind)
    if action == "DEFER":
        return ask.reject(code, dsn, f"{said} rejected: {text or 'Access denied'}")
    text = f"{said} rejected: {text or 'Service unavailable'}"
    return ask.defer_later(code, dsn, text) if action == "DEFER_IF_PERMIT" else ask.soften(code, dsn, text)


def _network_keys(address: str) -> list[str]:
    """1.2.3.4, 1.2.3, 1.2, 1; for IPv6 the same at colons."""
    separator = ":" if ":" in address else "."
    keys = [address.lower()] if address else []
    while separator in address:
        address = address.rpartition(separator)[0].rstrip(separator)
        if address:
            keys.append(address.lower())
    return keys


def _mail_keys(address: str, ask: Ask, host_keys: Callable[[str], list[str]]) -> list[str]:
    local, _, domain = address.rpartition("@")
    user, extension = split_extension(local, ask.tools.extension_rules)
    names = [local, user] if extension else [local]
    forms = [form for name in names for form in dict.fromkeys((quoted(name), name))]
    return [*(f"{form}@{domain}" for form in forms), *host_keys(domain), *(f"{form}@" for form in forms)]


def quoted_key(key: str) -> str:
    """A key as log lines show it."""
    return f'"{key}"'


