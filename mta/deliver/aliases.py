"""aliases(5): what an alias expands to.

An alias is followed through nested aliases and :include: files down to its leaves: mailboxes of local users and
addresses elsewhere.  Nothing is delivered here.

- An alias found again inside its own expansion means the user of that name ("alice: alice, bob"), where there is
  one; otherwise it is a loop: said in a warning, and 5.4.6 when nothing else is left.
  An :include: file found again inside itself has said everything already.
- A nested list with an owner-LIST of its own stays one leaf: the child message expands it under its own sender.  So
  does what is nested too deeply, for the child to go on.
- A user is one leaf, in whatever way the name is written.
- A member that can be no address (a control character, too long) becomes an address in a domain that cannot be: the
  child bounces it, 5.1.3, and the others have their mail.
- "|command" and /file are not built: the recipient waits, 4.3.5; so does one whose :include: cannot be read or
  trusted.  A table that fails: TableError, the caller says 4.3.0.

A leaf that must not be looked up again is written \\user, as Postfix's local(8) knows it; in an alias file a
backslash before a name means nothing.

See also: mta/deliver/alias_syntax.py, aliases(5), local(8) "SYSTEM-WIDE AND USER-LEVEL ALIASING"
"""

from collections.abc import Awaitable, Callable
from dataclasses import field
from typing import Protocol

from mta.clock import others_run
from mta.deliver.alias_syntax import Destination, DestinationKind, destinations, include_text, items
from mta.deliver.local_wire import possible
from mta.lookup.address import ExtensionRules, split_extension
from mta.lookup.table import Maps
from mta.message_address import SLICE, parse_list
from mta.record import dataclass

MAX_DEPTH = 100  # nested aliases and :include: files, Postfix's limit too
MAX_LEAVES = 50_000  # recipients of one alias
SHOWN = 200  # characters of either side of an impossible address
MAX_WARNINGS = 20  # lines in the log about bad addresses of one alias


@dataclass(frozen=True, slots=True)
class Leaf:
    """address: fully qualified, unquoted, as a child's recipient.  local: its local part when it is ours, else ""."""

    address: str
    local: str = ""


@dataclass(frozen=True, slots=True)
class Expanded:
    """leaves: without duplicates, in order.  sender: owner-LIST address, None = as it was.  warnings: for the log."""

    leaves: tuple[Leaf, ...]
    sender: str | None
    warnings: tuple[str, ...]


class AliasProblemError(Exception):
    """The recipient waits until the administrator has changed something (4.3.5).  text: says what."""


class AliasLoopError(Exception):
    """There is nothing at the end of this alias but itself (5.4.6)."""


class Route(Protocol):
    """The part of trivial-rewrite's Route used here."""

    @property
    def transport(self) -> str: ...

    @property
    def recipient(self) -> str: ...

    @property
    def final(self) -> bool: ...


class Router(Protocol):
    """The part of mta/trivial_rewrite.py used here."""

    def rewrite(self, address: str, *, local: bool) -> str:
        """Complete an unquoted address."""

    async def resolve(self, address: str, sender: str = "") -> Route:
        """Where it goes; TableError."""


@dataclass(frozen=True, slots=True)
class AliasRules:
    """From postconf(5).  propagate: an unmatched +extension is added to what the alias expands to; include: also to
    what stands in its :include: files.

    transport: name under which local deliveries run; other transports are elsewhere.
    """

    extensions: ExtensionRules
    propagate: bool
    expand_owner_alias: bool
    transport: str
    include: bool = False


@dataclass(slots=True)
class _State:
    """Of one expansion.  stack: aliases that are being expanded; done: all that were begun, with what they pass on.

    included: :include: files with the alias they were read for and what that passes on; reading: those that are not
    at their end.  leaves: by user, or address elsewhere.
    """

    stack: list[str] = field(default_factory=list)
    done: set[tuple[str, str]] = field(default_factory=set)
    included: set[tuple[str, str, str]] = field(default_factory=set)
    reading: list[str] = field(default_factory=list)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    loops: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Found:
    """An alias.  name: its key.  extension: what the key did not have, with its delimiter."""

    name: str
    value: str
    extension: str


class AliasExpander:
    """Expands aliases; keeps nothing between calls."""

    def __init__(
        self,
        rules: AliasRules,
        maps: Maps,
        router: Router,
        user_exists: Callable[[str], Awaitable[bool]],
        read_include: Callable[[str], Awaitable[bytes]],
    ) -> None:
        """user_exists: TableError when it cannot tell.  read_include: AliasProblemError when it may not or cannot."""
        self._rules, self._maps, self._router = rules, maps, router
        self._user_exists, self._read_include = user_exists, read_include

    async def find(self, local: str) -> Found | None:
        """Look a local part up, whole, then without its extension."""
        key = local.lower()
        value = await self._maps.get(key)
        if value is not None:
            return Found(key, value, "")
        user, extension = split_extension(local, self._rules.extensions)
        if not extension:
            return None
        key = user.lower()
        value = await self._maps.get(key, fixed=True)
        return None if value is None else Found(key, value, extension)

    async def expand(self, found: Found, sender: str) -> Expanded:
        """Expand an alias.  AliasProblemError, AliasLoopError, TableError.

        sender: of the message; the null sender is never replaced by owner-LIST, so a notice stays one.
        """
        state = _State([found.name], {(found.name, self._passed_on(found))})
        await self._expand(found, state, 1)
        if not state.leaves:
            if state.loops:
                raise AliasLoopError(f"alias database loop for {state.loops[0]}")
            raise AliasProblemError(f'alias "{found.name}" has no members')
        owner = await self._owner(found.name) if sender else None
        warnings = [f"alias database loop for {name}" for name in state.loops]
        warnings += [f'alias "{found.name}": bad address "{address}"' for address in state.bad[:MAX_WARNINGS]]
        return Expanded(tuple(state.leaves.values()), owner, tuple(warnings))

    async def _owner(self, name: str) -> str | None:
        """The address that gets the errors of a list: owner-NAME, or what that expands to."""
        value = await self._owner_alias(name)
        if value is None:
            return None
        owner = f"owner-{name}"
        if self._rules.expand_owner_alias:
            addresses = parse_list(value).addresses
            owner = addresses[0] if addresses and possible(addresses[0]) else owner
        return self._router.rewrite(owner, local=True)

    async def _owner_alias(self, name: str) -> str | None:
        """What owner-NAME expands to; None when there is none, or no owner means anything here."""
        if not self._rules.extensions.owner_request_special:
            return None
        return await self._maps.get(f"owner-{name}", fixed=True)

    async def _expand(self, found: Found, state: _State, depth: int) -> None:
        await self._text(found.name, found.value, self._passed_on(found), state, depth)

    def _passed_on(self, found: Found) -> str:
        return found.extension if self._rules.propagate else ""

    async def _text(self, name: str, text: str, extension: str, state: _State, depth: int) -> None:
        members: list[Destination] = []
        try:
            for n, item in enumerate(items(text)):
                if n % SLICE == SLICE - 1:
                    await others_run()
                members += destinations(item)
        except ValueError as error:
            raise AliasProblemError(f'alias "{name}": {error}') from error
        for n, destination in enumerate(members):
            if n % SLICE == SLICE - 1:
                await others_run()
            match destination.kind:
                case DestinationKind.COMMAND:
                    raise AliasProblemError(f'alias "{name}": delivery to a command is not available yet')
                case DestinationKind.FILE:
                    raise AliasProblemError(f'alias "{name}": delivery to a file is not available yet')
                case DestinationKind.INCLUDE:
                    await self._include(destination.value, extension, state, depth)
                case DestinationKind.ADDRESS:
                    await self._address(destination.value, extension, state, depth)

    async def _include(self, path: str, extension: str, state: _State, depth: int) -> None:
        extension = extension if self._rules.include else ""
        if path in state.reading and path not in state.loops:
            state.loops.append(path)
        key = (state.stack[-1], path, extension)
        if key in state.included:
            return
        if depth >= MAX_DEPTH:
            raise AliasProblemError(f"more than {MAX_DEPTH} nested :include: files: {path}")
        state.included.add(key)
        state.reading.append(path)
        await self._text(path, include_text(await self._read_include(path)), extension, state, depth + 1)
        state.reading.pop()

    async def _address(self, address: str, extension: str, state: _State, depth: int) -> None:
        if extension:
            local, at, domain = address.rpartition("@")
            address = f"{local}{extension}@{domain}" if at else f"{address}{extension}"
        address = self._router.rewrite(address, local=True)
        if not possible(address):
            shown = visible(address)
            state.bad.append(shown)
            self._add(state, Leaf(f"{shown}.."))  # no domain ends so, and none is made of it
            return
        route = await self._router.resolve(address)
        if not (route.final and route.transport == self._rules.transport):
            self._add(state, Leaf(address))
            return
        local, _, domain = route.recipient.rpartition("@")
        found = await self.find(local)
        if found is None:
            self._add(state, _mailbox(local, domain, direct=False))
        elif found.name in state.stack:
            if found.name == state.stack[-1] or await self._user_exists(self._user(local)):
                self._add(state, _mailbox(local, domain, direct=True))
            else:
                state.loops.append(found.name)
        elif (found.name, self._passed_on(found)) not in state.done:
            await self._nested(found, Leaf(f"{local}@{domain}"), state, depth)

    async def _nested(self, found: Found, leaf: Leaf, state: _State, depth: int) -> None:
        state.done.add((found.name, self._passed_on(found)))
        if len(state.done) > MAX_LEAVES:  # extensions on top of extensions: lists of lists double with each level
            raise AliasProblemError(f"alias expands to more than {MAX_LEAVES} aliases")
        if len(state.done) % SLICE == 0:
            await others_run()
        if depth >= MAX_DEPTH or await self._owner_alias(found.name) is not None:
            self._add(state, leaf)
            return
        state.stack.append(found.name)
        await self._expand(found, state, depth + 1)
        state.stack.pop()

    def _user(self, local: str) -> str:
        return split_extension(local, self._rules.extensions)[0].lower()

    def _add(self, state: _State, leaf: Leaf) -> None:
        state.leaves.setdefault(f"{leaf.local}@".lower() if leaf.local else leaf.address.lower(), leaf)
        if len(state.leaves) > MAX_LEAVES:
            raise AliasProblemError(f"alias expands to more than {MAX_LEAVES} recipients")


def visible(address: str) -> str:
    """As much of an impossible address as a person needs to find it, fit for a log and a bounce."""
    local, _, domain = "".join("?" if c < " " or c == "\x7f" else c for c in address).rpartition("@")
    return f"{local[:SHOWN]}@{domain[:SHOWN].rstrip('.')}"


def _mailbox(local: str, domain: str, *, direct: bool) -> Leaf:
    """A local user; direct: an alias has the same name, the child must not follow it again."""
    return Leaf(("\\" if direct else "") + f"{local}@{domain}", local)
