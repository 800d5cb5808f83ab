"""Match lists: mydestination, relay_domains, mynetworks and their kind, compiled once.

A list is asked "is this name (or address) in you?"; patterns are tried in order: a plain name or network,
.domain, /file (whose content is part of the list), type:table (any value counts), and !pattern, which ends the
search with "no".  A run of plain patterns between two others costs one set or dictionary probe.  A word that begins
with "#" ends the list, or its line in a /file: what stands behind it was commented out.

See also: postconf(5) mydestination, mynetworks, parent_domain_matches_subdomains
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Protocol

from mta.clock import others_run
from mta.lookup.cidr import Address, Network, NetworkIndex, parse_address, parse_network, unmapped
from mta.lookup.context import LookupContext
from mta.lookup.lines import SPACE, Warnings, text_of
from mta.lookup.open import open_table, split_list
from mta.lookup.source import Source
from mta.lookup.table import Table, TableError

MAX_REMEMBERED = 2048  # client addresses whose answer a list of plain networks keeps
SLICE = 1000  # words of a /file that are taken between two pauses
MAX_DEPTH = 10  # /files in /files


def _is_table(word: str) -> bool:
    """type:table, and not an IPv6 address."""
    return bool(re.match(r"[A-Za-z0-9_-]+:(?!:)", word)) and parse_address(word.partition("/")[0]) is None


def network_of(word: str) -> Network | None:
    """The network that a word of a list of networks is; None: a host name, /file or type:table; ValueError: malformed.

    !pattern: without its "!".
    """
    if word.startswith("/") or _is_table(word) or not re.match(r"[\[\d]|[0-9A-Fa-f]*:", word):
        return None
    if not re.search("[/:[]", word) and parse_address(word) is None:
        return None
    return parse_network(word)


def _uncommented(words: list[str], name: str, warn: Callable[[str], None]) -> list[str]:
    """The words of a line in front of a "#"."""
    for at, word in enumerate(words):
        if word.startswith("#"):
            warn(f"{name}: comment at end of line is not supported: {' '.join(words[at:])}")
            return words[:at]
    return words


class _Pattern(Protocol):
    async def match(self, name: str, address: Address | None, text: str) -> bool:
        """Name in lower case; address and its text for lists of networks."""


class _Names:
    """Plain names; with parents=True a name stands for its subdomains too, otherwise .domain does."""

    def __init__(self, *, parents: bool | None) -> None:
        self._parents = parents
        self.names: set[str] = set()

    async def match(self, name: str, address: Address | None, text: str) -> bool:
        return self.has(name)

    def has(self, name: str) -> bool:
        if name in self.names:
            return True
        if self._parents is None:
            return False
        at = name.find(".", 1)
        while at >= 0:
            if (name[at + 1 :] if self._parents else name[at:]) in self.names:
                return True
            at = name.find(".", at + 1)
        return False


class _Networks:
    """Plain networks."""

    def __init__(self) -> None:
        self.index = NetworkIndex()

    async def match(self, name: str, address: Address | None, text: str) -> bool:
        return address is not None and self.index.find(address) is not None


class _Malformed:
    """What should be a network: the list cannot tell whether a client of this kind is in it, so it says neither.

    Left out, a mistyped !exclusion would let through whom it is there to stop, and a mistyped network would refuse
    its own clients for good.
    """

    def __init__(self, word: str, problem: str) -> None:
        self._bits, self._problem = 128 if ":" in word else 32, problem

    async def match(self, name: str, address: Address | None, text: str) -> bool:
        if address is not None and address[0] == self._bits:
            raise TableError(self._problem)
        return False


class _InTable:
    """type:table."""

    def __init__(self, table: Table, *, parents: bool | None) -> None:
        self._table, self._parents = table, parents

    async def match(self, name: str, address: Address | None, text: str) -> bool:
        if text and await self._table.get(text) is not None:
            return True
        key = name
        while key:
            if await self._table.get(key) is not None:
                return True
            if self._parents is None or getattr(self._table, "pattern", False):
                return False
            at = key.find(".", 1)
            if at < 0:
                return False
            key = key[at + 1 :] if self._parents else key[at:]
        return False


class _InFile:
    """/file: its words are patterns of this list."""

    def __init__(self, path: str, owner: "MatchList", depth: int) -> None:
        def parse(data: bytes, warnings: Warnings) -> list[str]:
            lines = (text_of(line.strip(SPACE)) for line in data.split(b"\n"))
            words = (split_list(line) for line in lines if not line.startswith("#"))
            return [word for line in words for word in _uncommented(line, owner.name, warnings.add)]

        self._source = Source(path, path, parse, owner.context)
        self._owner, self._depth = owner, depth
        self._words: list[str] | None = None
        self._patterns: list[tuple[bool, _Pattern]] = []
        self._compiling: asyncio.Task[None] | None = None

    async def verdict(self, name: str, address: Address | None, text: str) -> bool | None:
        words = await self._source.get()
        if words is not self._words:
            if len(words) <= SLICE:
                self._words, self._patterns = words, self._owner.compile(words, self._depth + 1)
            else:
                await self._compile_slowly(words)
        return await self._owner.ask(self._patterns, name, address, text)

    async def _compile_slowly(self, words: list[str]) -> None:
        """For all who wait for it at once."""
        if self._compiling is None:
            self._compiling = asyncio.ensure_future(self._compile(words))
            self._compiling.add_done_callback(self._compiled)
        await asyncio.shield(self._compiling)

    async def _compile(self, words: list[str]) -> None:
        patterns: list[tuple[bool, _Pattern]] = []
        for at in range(0, len(words), SLICE):
            self._owner.compile(words[at : at + SLICE], self._depth + 1, patterns)
            await others_run()
        self._words, self._patterns = words, patterns

    def _compiled(self, task: asyncio.Task[None]) -> None:
        self._compiling = None
        if not task.cancelled():
            task.exception()

    async def match(self, name: str, address: Address | None, text: str) -> bool:
        return bool(await self.verdict(name, address, text))


class MatchList:
    """What the two kinds of list share.

    parents: None = names only match themselves (mydestination); True = also their subdomains; False = .domain
    stands for subdomains.
    """

    def __init__(self, name: str, spec: str | Iterable[str], context: LookupContext, *, parents: bool | None) -> None:
        self.name, self.context, self._parents = name, context, parents
        self._patterns = self.compile(_uncommented(split_list(spec), name, context.warn), 0)
        self._plain = all(positive and isinstance(p, (_Names, _Networks)) for positive, p in self._patterns)
        self._names = [p for _, p in self._patterns if isinstance(p, _Names)]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def compile(
        self, words: Iterable[str], depth: int, before: list[tuple[bool, _Pattern]] | None = None
    ) -> list[tuple[bool, _Pattern]]:
        """Turn words into (positive, pattern) in order, behind those before; runs of plain ones become one."""
        patterns = [] if before is None else before
        for word in words:
            positive = True
            while word.startswith("!"):
                positive, word = not positive, word[1:]
            self._add(patterns, positive, word, depth)
        return patterns

    def _add(self, patterns: list[tuple[bool, _Pattern]], positive: bool, word: str, depth: int) -> None:
        if word.startswith("/"):
            if depth < MAX_DEPTH:
                patterns.append((positive, _InFile(word, self, depth)))
            else:
                self.context.warn(f"{self.name}: {word}: too many files in files")
        elif _is_table(word):
            patterns.append((positive, _InTable(open_table(word, self.context), parents=self._parents)))
        elif word:
            self._add_plain(patterns, positive, word.lower())

    def _add_plain(self, patterns: list[tuple[bool, _Pattern]], positive: bool, word: str) -> None:
        last = patterns[-1][1] if patterns and patterns[-1][0] == positive else None
        if not isinstance(last, _Names):
            last = _Names(parents=self._parents)
            patterns.append((positive, last))
        last.names.add(word)

    async def ask(
        self, patterns: list[tuple[bool, _Pattern]], name: str, address: Address | None, text: str
    ) -> bool | None:
        """True or False from the first pattern that matches, None when none does."""
        for positive, pattern in patterns:
            if isinstance(pattern, _InFile):
                inner = await pattern.verdict(name, address, text)
                if inner is not None:
                    return inner is positive
            elif await pattern.match(name, address, text):
                return positive
        return None


class DomainList(MatchList):
    """A list of domains; match() raises TableError when a table or file in it fails."""

    async def match(self, domain: str) -> bool:
        """Is this domain in the list?"""
        domain = domain.lower()
        if self._plain:
            return any([pattern.has(domain) for pattern in self._names])
        return bool(await self.ask(self._patterns, domain, None, ""))


class NetworkList(MatchList):
    """A list of networks, and of host names where the caller knows one; match() raises TableError as above, and when
    it comes to a word that is no network."""

    def __init__(
        self, name: str, spec: str | Iterable[str], context: LookupContext, *, parents: bool | None = None
    ) -> None:
        super().__init__(name, spec, context, parents=parents)
        self._known: dict[tuple[str, str], bool] = {}

    def _add_plain(self, patterns: list[tuple[bool, _Pattern]], positive: bool, word: str) -> None:
        try:
            network = network_of(word)
        except ValueError as error:
            self.context.warn(f"{self.name}: {error}")
            patterns.append((positive, _Malformed(word, f"{self.name}: {error}")))
            return
        if network is None:
            super()._add_plain(patterns, positive, word)
            return
        last = patterns[-1][1] if patterns and patterns[-1][0] == positive else None
        if not isinstance(last, _Networks):
            last = _Networks()
            patterns.append((positive, last))
        last.index.add(network, 0, "in")

    async def match(self, address: str, host: str = "") -> bool:
        """Is this client in the list?  An IPv4 address in IPv6 form counts as the IPv4 address."""
        known = self._known.get((address, host))
        if known is not None:
            return known
        parsed = parse_address(address)
        if parsed is not None:
            parsed = unmapped(parsed)
        text = address.removeprefix("::ffff:") if parsed is not None and parsed[0] == 32 else address
        found = bool(await self.ask(self._patterns, host.lower(), parsed, text))
        if self._plain:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[address, host] = found
        return found


def parent_style(list_name: str, parent_domain_matches_subdomains: Iterable[str]) -> bool:
    """True when "example.com" in this list stands for its subdomains too."""
    return list_name in parent_domain_matches_subdomains
