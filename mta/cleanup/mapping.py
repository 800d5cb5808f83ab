"""Address maps: canonical(5), virtual(5) and the bcc maps, looked up as Postfix does.

Keys in order: user+ext@domain, user@domain, then for our own domains user+ext and user, then @domain.  A failing
table raises TableError: nothing is ever accepted with half of its aliases.

See also: canonical(5), virtual(5), postconf(5) recipient_delimiter, propagate_unmatched_extensions
"""

from collections.abc import Callable
from dataclasses import dataclass

from mta.cleanup.settings import CleanupSettings
from mta.lookup.table import Maps, TableError
from mta.message_address import parse_list, quote

MAX_ADDRESS = 1000  # characters of an expanded address, Postfix's virtual_alias_address_length_limit
_NO_EXTENSION = ("mailer-daemon", "double-bounce")


class ExpansionError(TableError):
    """The aliases of one address are unreasonable: too many, too deep, too long.  Answered 451 4.6.0 by Postfix."""


@dataclass(frozen=True, slots=True)
class Found:
    """A map's answer.  extension: the part of the key's local part that was stripped to find it, with delimiter."""

    value: str
    extension: str


class AddressMapper:
    """Looks addresses up in maps and applies the result."""

    def __init__(self, settings: CleanupSettings, complete: Callable[[str], str]) -> None:
        """complete: appends our domain where it is missing (the Rewriter's envelope rewriting)."""
        self._delimiters = settings.recipient_delimiter
        self._propagate = frozenset(word.lower() for word in settings.propagate_unmatched_extensions)
        self._expansion_limit = settings.virtual_alias_expansion_limit
        self._recursion_limit = settings.virtual_alias_recursion_limit
        self._complete = complete
        own = (settings.myorigin, settings.myhostname, *settings.mydestination)
        self._own = frozenset(domain.lower() for domain in own if ":" not in domain and "/" not in domain)

    def split(self, local: str) -> tuple[str, str]:
        """Return (user, extension with its delimiter, "" when there is none)."""
        if local.lower() in _NO_EXTENSION:
            return local, ""
        at = [i for i in (local.find(d, 1) for d in self._delimiters) if i > 0]
        return (local[: min(at)], local[min(at) :]) if at else (local, "")

    async def find(self, maps: Maps, address: str) -> Found | None:
        """Look an address up under each of its keys."""
        local, at, domain = address.rpartition("@")
        if not at:
            local, domain = address, ""
        user, extension = self.split(local)
        keys = [(quote(address), "")]
        if extension:
            keys.append((quote(f"{user}@{domain}" if at else user), extension))
        if at and domain.lower() in self._own:
            keys.append((local, ""))
            if extension:
                keys.append((user, extension))
        if at:
            keys.append((f"@{domain}", extension))
        for key, stripped in keys:
            if key and (value := await maps.get(key)) is not None:
                return Found(value, stripped)
        return None

    def results(self, found: Found, key: str, kind: str) -> list[str]:
        """The addresses of a map's answer: completed, `@domain` filled in, the extension passed on."""
        local = key.rpartition("@")[0] or key
        extension = found.extension if kind in self._propagate else ""
        out = []
        for address in parse_list(found.value).addresses:
            if address.startswith("@"):
                address = local + address if not extension else self.split(local)[0] + extension + address
            elif extension and address:
                name, at, domain = address.rpartition("@")
                address = f"{name}{extension}@{domain}" if at else f"{address}{extension}"
            if address:
                out.append(self._complete(address))
        return out

    async def replace(self, maps: Maps, address: str) -> str:
        """Canonical mapping, one for one, not recursive."""
        found = await self.find(maps, address)
        results = self.results(found, address, "canonical") if found else []
        return results[0] if results else address

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
                if max(map(len, results)) > MAX_ADDRESS:
                    raise ExpansionError(f"unreasonable virtual_alias_maps result: address too long for {address}")
                todo[at] = results[0]
                todo += results[1:]
                if len(todo) > self._expansion_limit:
                    raise ExpansionError(f"unreasonable virtual_alias_maps map expansion size for {address}")
                if any(result.lower() == key.lower() for result in results):
                    done.add(key.lower())
            at += 1
        return todo
