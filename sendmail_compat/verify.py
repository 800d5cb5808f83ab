"""`sendmail -bv` and `-bt`: what becomes of an address, told without sending anything.

The tables are read in this process, with the caller's rights; the daemon is not needed.  What cannot be told (a table
that fails, or that the caller may not read) is temporary, never "unknown".

See also: trivial-rewrite(8), mta/trivial_rewrite.py
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mta.cleanup.mapping import AddressMapper
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock
from mta.config.config import Config, ConfigError, load
from mta.config.main_cf import decode, parse_main_cf
from mta.deliver.alias_syntax import Destination, DestinationKind, parse_destinations
from mta.fsio.fsio import Fsio
from mta.lookup.address import find_address, split_extension
from mta.lookup.context import LookupContext
from mta.lookup.open import open_tables
from mta.lookup.table import Maps, TableError
from mta.lookup.unix import UserDb
from mta.message_address import parse_list, quote
from mta.trivial_rewrite import AddressClass, Rewriter, RewriterSettings, Route
from sendmail_compat.access import Quiet
from sendmail_compat.tool import ToolError

EX_OK, EX_USAGE, EX_NOUSER, EX_TEMPFAIL = 0, 64, 67, 75
MAX_DEPTH = 10
_ALWAYS = ("postmaster", "mailer-daemon")
_TABLES = {
    AddressClass.LOCAL: "local_recipient_maps", AddressClass.VIRTUAL_MAILBOX: "virtual_mailbox_maps",
    AddressClass.RELAY: "relay_recipient_maps",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one final address.  text: as Sendmail says it.  status: 0, 67 or 75."""

    address: str
    text: str
    status: int = EX_OK
    route: Route | None = None


class Verifier:
    """Follows an address through virtual aliases, routing and local aliases."""

    def __init__(self, config: Config, context: LookupContext) -> None:
        cleanup = config.fill(CleanupSettings)
        self._rewriter = Rewriter(config.fill(RewriterSettings), context, config.own_addresses())
        self._mapper = AddressMapper(cleanup, self._rewriter, lambda _: None)
        self._virtual = open_tables(cleanup.virtual_alias_maps, context)
        self._aliases = open_tables(config.words("alias_maps"), context, aliases=True)
        self._listed = {kind: self._open(config, name, context) for kind, name in _TABLES.items()}
        self._users = context.users

    @staticmethod
    def _open(config: Config, name: str, context: LookupContext) -> Maps:
        return open_tables(config.words(name), context)

    def complete(self, address: str) -> str:
        """user -> user@myorigin."""
        return self._rewriter.rewrite(address, local=True)

    async def transport(self, address: str) -> str:
        """Name of the transport of an address; TableError."""
        return (await self._rewriter.resolve(self.complete(address))).transport

    async def virtual(self, address: str) -> list[str]:
        """Virtual aliases of a completed address, or itself; TableError."""
        return await self._mapper.expand(self._virtual, address)

    async def verify(self, address: str) -> list[Verdict]:
        """What becomes of an address as typed."""
        try:
            found: list[Verdict] = []
            for expanded in await self.virtual(self.complete(address)):
                found += await self._one(expanded, shown="" if expanded != self.complete(address) else address, depth=0)
            return found
        except TableError as error:
            return [Verdict(address, f"cannot be verified now: {error}", EX_TEMPFAIL)]

    async def _one(self, address: str, *, shown: str, depth: int) -> list[Verdict]:
        route = await self._rewriter.resolve(address)
        name = shown or quote(address)
        if route.transport in ("error", "retry"):
            status = EX_TEMPFAIL if route.transport == "retry" or route.nexthop.startswith("4") else EX_NOUSER
            return [Verdict(name, route.nexthop or "undeliverable", status, route)]
        local = route.recipient.rpartition("@")[0]
        if route.address_class is AddressClass.LOCAL and route.transport == "local":
            members = await self._members(local)
            if members and depth < MAX_DEPTH:
                return [v for m in members for v in await self._member(m, depth + 1)]
        if not await self._exists(route, local):
            return [Verdict(name, "User unknown", EX_NOUSER, route)]
        host = f", host {route.nexthop}" if route.transport != "local" else ""
        user = local if route.transport == "local" else quote(route.recipient)
        return [Verdict(name, f"deliverable: mailer {route.transport}{host}, user {user}", EX_OK, route)]

    async def _member(self, member: Destination, depth: int) -> list[Verdict]:
        if member.kind is not DestinationKind.ADDRESS:
            mark = {DestinationKind.COMMAND: "|", DestinationKind.INCLUDE: ":include:"}.get(member.kind, "")
            return [Verdict(f"{mark}{member.value}", "deliverable: mailer local")]
        if depth >= MAX_DEPTH:
            return [Verdict(member.value, f"deliverable: mailer local, user {member.value}")]
        return await self._one(self.complete(member.value), shown=member.value, depth=depth)

    async def _members(self, local: str) -> list[Destination]:
        """What a local alias stands for; none of itself, so that `root: root, alice` ends."""
        user, _ = split_extension(local, self._rewriter.extension_rules)
        for key in dict.fromkeys((local.lower(), user.lower())):
            value = await self._aliases.get(key)
            if value is not None:
                try:
                    return [d for d in parse_destinations(value) if d.value.lower() != key]
                except ValueError as error:
                    raise TableError(f"alias {key}: {error}") from None
        return []

    async def _exists(self, route: Route, local: str) -> bool:
        maps = self._listed.get(route.address_class)
        if not maps:
            return True
        if route.address_class is AddressClass.LOCAL and local.lower() in _ALWAYS:
            return True
        rules, known_here = self._rewriter.extension_rules, self._rewriter.is_local_or_origin
        return await find_address(maps, route.recipient, rules, known_here) is not None


@asynccontextmanager
async def verifier(directory: str) -> AsyncIterator[Verifier]:
    """One for the configuration in this directory; ToolError when that is broken."""
    config = _configuration(directory)
    fsio = Fsio(aio=False)
    try:
        users = UserDb(fsio, Clock())
        kind = config.text("default_database_type")
        context = LookupContext(fsio, Clock(), Quiet(), users, default_database_type=kind, environ=dict(os.environ))
        yield Verifier(config, context)
    finally:
        fsio.close()


def _configuration(directory: str) -> Config:
    """The configuration, without master.cf when that is missing or broken: it does not decide about addresses."""
    try:
        return load(directory)
    except ConfigError as error:
        problem = str(error.problems[0]) if error.problems else "configuration broken"
    path = os.path.join(directory, "main.cf")
    try:
        with open(path, "rb") as file:
            config = Config(directory, parse_main_cf(decode(file.read()), path).settings)
        config.fill(RewriterSettings)
        config.fill(CleanupSettings)
    except (OSError, ValueError):
        raise ToolError(problem) from None
    return config


def verify(directory: str, addresses: Sequence[str]) -> int:
    """-bv: one line per final address; 67 when one is unknown, else 75 when one cannot be told, else 0."""

    async def run() -> int:
        worst = EX_OK
        async with verifier(directory) as judge:
            for address in addresses:
                for verdict in await judge.verify(address):
                    print(f"{verdict.address}... {verdict.text}")
                    if worst != EX_NOUSER:
                        worst = verdict.status or worst
        return worst

    return asyncio.run(run())


def address_test(directory: str) -> int:
    """-bt: addresses on stdin, one list per line; how each is understood, expanded and routed."""

    async def run() -> int:
        async with verifier(directory) as judge:
            for line in sys.stdin:
                parsed = parse_list(line.strip())
                if parsed.malformed:
                    print(f"{line.strip()}: {parsed.malformed}")
                for address in parsed.addresses:
                    await _test(judge, address)
        return EX_OK

    return asyncio.run(run())


async def _test(judge: Verifier, address: str) -> None:
    complete = judge.complete(address)
    print(f"{quote(address) or '<>'}")
    print(f"    address: {quote(complete) or '<>'}")
    try:
        expanded = await judge.virtual(complete)
    except TableError as error:
        print(f"    temporary error: {error}")
        return
    if expanded != [complete]:
        print(f"    virtual: {', '.join(map(quote, expanded))}")
    for verdict in await judge.verify(address):
        route = verdict.route
        if route is not None:
            print(f"    route: {route.transport}:{route.nexthop} {quote(route.recipient)} ({route.address_class})")
        print(f"    {verdict.address}... {verdict.text}")


def transports(directory: str) -> Callable[[str], str]:
    """Address -> name of its transport; "" when that cannot be told."""

    async def ask(address: str) -> str:
        async with verifier(directory) as judge:
            try:
                return await judge.transport(address)
            except TableError:
                return ""

    known: dict[str, str] = {}

    def transport(address: str) -> str:
        domain = address.rpartition("@")[2]
        if domain not in known:
            known[domain] = asyncio.run(ask(address))
        return known[domain]

    return transport
