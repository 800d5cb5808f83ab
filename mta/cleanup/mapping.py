"""Address maps: canonical(5), virtual(5) and the bcc maps, looked up and applied as Postfix does.

A failing table raises TableError: nothing is ever accepted with half of its aliases.

See also: canonical(5), virtual(5), mta/lookup/address.py (order of keys)
"""

from collections.abc import Callable
from typing import Protocol

from mta.cleanup.settings import CleanupSettings
from mta.clock import others_run
from mta.lookup.address import ExtensionRules, find_address, split_extension
from mta.lookup.table import Maps, TableError
from mta.message_address import NO_DOMAIN, SLICE, parse_list
from mta.record import dataclass

CANONICAL_ROUNDS = 10  # Postfix's MAX_RECURSION of one canonical map


class ExpansionError(TableError):
    """The aliases of one address are unreasonable: too many, too deep, too long."""


class Rewriter(Protocol):
    """mta/trivial_rewrite.py."""

    extension_rules: ExtensionRules

    def rewrite(self, address: str, *, local: bool) -> str:
        """Complete an unquoted address."""

    async def is_local_or_origin(self, domain: str) -> bool:
        """Is this myorigin or a domain of mydestination?  TableError."""


@dataclass(frozen=True, slots=True)
class Found:
    """A map's answer.  extension: the part of the key's local part that was stripped to find it, with delimiter."""

    value: str
    extension: str


class AddressMapper:
    """Looks addresses up in maps and applies the result."""

    def __init__(self, settings: CleanupSettings, rewriter: Rewriter, warn: Callable[[str], None]) -> None:
        self._propagate = frozenset(word.lower() for word in settings.propagate_unmatched_extensions)
        self._expansion_limit = settings.virtual_alias_expansion_limit
        self._recursion_limit = settings.virtual_alias_recursion_limit
        self._length_limit = settings.virtual_alias_address_length_limit
        self._rewriter = rewriter
        self._warn = warn

    async def find(self, maps: Maps, address: str) -> Found | None:
        """Look an address up under each of its keys."""
        found = await find_address(maps, address, self._rewriter.extension_rules, self._rewriter.is_local_or_origin)
        return Found(*found) if found else None

    def results(self, found: Found, key: str, kind: str) -> list[str]:
        """The addresses of a map's answer: completed, `@domain` filled in, the extension passed on.

        TableError: it is no list of addresses.
        """
        parsed = parse_list(found.value)
        if parsed.malformed not in ("", NO_DOMAIN) or not parsed.addresses:
            raise TableError(f"{kind} table entry of {key}: {parsed.malformed or 'no address'}: {found.value}")
        local = key.rpartition("@")[0] or key
        extension = found.extension if kind in self._propagate else ""
        out = []
        for address in parsed.addresses:
            if address.startswith("@"):
                address = (
                    local + address
                    if not extension
                    else split_extension(local, self._rewriter.extension_rules)[0] + extension + address
                )
            elif extension and address:
                name, at, domain = address.rpartition("@")
                address = f"{name}{extension}@{domain}" if at else f"{address}{extension}"
            if address:
                out.append(self._rewriter.rewrite(address, local=True))
        return out

    async def replace(self, maps: Maps, address: str) -> str:
        """Canonical mapping, one for one, repeated until nothing changes, CANONICAL_ROUNDS times at most."""
        for _ in range(CANONICAL_ROUNDS):
            found = await self.find(maps, address)
            results = self.results(found, address, "canonical") if found else []
            if not results:
                return address
            before, address = address, results[0]
            if address.lower() == before.lower():
                return address
        self._warn(f"unreasonable canonical map nesting for {address}")
        return address

    async def expand(self, maps: Maps, address: str) -> list[str]:
        """Virtual aliases, recursively; an address may expand into itself once.  [address] when there is none."""
        todo = [address]
        done: set[str] = set()
        at = 0
        while at < len(todo):
            depth = 0
            while todo[at].lower() not in done:
                if depth >= self._recursion_limit:
                    raise ExpansionError(f"unreasonable virtual_alias_maps map nesting for {address}")
                depth += 1
                key = todo[at]
                found = await self.find(maps, key)
                results = self.results(found, key, "virtual") if found else []
                if not results:
                    break
                if max(map(len, results)) > self._length_limit:
                    raise ExpansionError(f"unreasonable virtual_alias_maps result: address too long for {address}")
                todo[at] = results[0]
                todo += results[1:]
                if len(todo) > self._expansion_limit:
                    raise ExpansionError(f"unreasonable virtual_alias_maps map expansion size for {address}")
                if any(result.lower() == key.lower() for result in results):
                    done.add(key.lower())
            at += 1
            if at % SLICE == 0:
                await others_run()
        return todo
