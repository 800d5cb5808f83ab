"""What is to happen to one local recipient: an answer, a mailbox, or other recipients.

The same decision is taken in mta-local (root, from its own reading of main.cf and aliases) and in a daemon that
runs as one user.  Order as local(8): alias > mailbox of the user > unknown.  .forward is looked at later, with
the rights of the user (local_user.py).

What is configured but not built (mailbox_transport, mailbox_command, fallback_transport, luser_relay) makes
exactly those recipients wait that it would have received: 4.3.5.  The forms with _maps: the users in the tables.

postmaster and mailer-daemon are always somebody: without an alias and a user they mean root.  Mail for the
address that sends notices to the postmaster (double-bounce) is dropped, as in Postfix.

See also: local(8), mta/deliver/aliases.py
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from mta.config.param import split
from mta.config.settings import Config
from mta.deliver.aliases import (
    AliasExpander,
    AliasLoopError,
    AliasProblemError,
    AliasRules,
    Found,
    Router,
)
from mta.deliver.mailbox import MailboxSettings
from mta.lookup.address import ExtensionRules, split_extension
from mta.lookup.table import Maps, TableError
from mta.lookup.unix import User
from mta.record import dataclass
from mta.smtp.reply import Reply

ALWAYS_THERE = ("postmaster", "mailer-daemon")
LOOKUP_FAILED = Reply(451, "4.3.0", "alias database unavailable")
USER_LOOKUP_FAILED = Reply(451, "4.3.0", "user lookup error")


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """postconf(5); bytes and seconds."""

    myhostname: str
    mail_owner: str
    alias_maps: tuple[str, ...]
    recipient_delimiter: str
    owner_request_special: bool
    expand_owner_alias: bool
    propagate_unmatched_extensions: tuple[str, ...]
    double_bounce_sender: str
    forward_path: tuple[str, ...]
    home_mailbox: str
    mail_spool_directory: str
    mailbox_size_limit: int
    mailbox_delivery_lock: tuple[str, ...]
    deliver_lock_attempts: int
    deliver_lock_delay: float
    stale_lock_time: float
    strict_mailbox_ownership: bool
    require_home_directory: bool
    data_directory: str
    prepend_delivered_header: tuple[str, ...]
    command_time_limit: float
    mailbox_transport: str
    mailbox_transport_maps: tuple[str, ...]
    mailbox_command: str
    mailbox_command_maps: tuple[str, ...]
    fallback_transport: str
    fallback_transport_maps: tuple[str, ...]
    luser_relay: str

    @property
    def extensions(self) -> ExtensionRules:
        """How user+extension is split."""
        return ExtensionRules(self.recipient_delimiter, self.owner_request_special, self.double_bounce_sender)

    @property
    def mailbox(self) -> MailboxSettings:
        """What the mailbox engine needs."""
        return MailboxSettings(
            self.mailbox_size_limit,
            self.mailbox_delivery_lock,
            self.deliver_lock_attempts,
            self.deliver_lock_delay,
            self.stale_lock_time,
            self.strict_mailbox_ownership,
            self.myhostname,
        )


def local_settings(config: Config) -> LocalSettings:
    """The settings; forward_path with its $home, $user ... still in it, which are not parameters."""
    return replace(config.fill(LocalSettings), forward_path=split(config.raw("forward_path") or ""))


@dataclass(frozen=True, slots=True)
class ToUser:
    """Deliver into the mailbox of a user.  local: local part as addressed; extension: without its delimiter."""

    user: User
    local: str
    extension: str


@dataclass(frozen=True, slots=True)
class ToOthers:
    """Forward: one child message.  sender: its envelope sender."""

    recipients: tuple[str, ...]
    sender: str


Plan = Reply | ToUser | ToOthers


class Users(Protocol):
    """The part of mta/lookup/unix.py used here."""

    async def by_name(self, name: str) -> User | None:
        """The user, None when there is none; TableError when it cannot tell."""


class Planner:
    """Decides.  warn: one line for the log, without a queue id."""

    def __init__(
        self,
        settings: LocalSettings,
        transport: str,
        maps: Maps,
        router: Router,
        users: Users,
        read_include: Callable[[str], Awaitable[bytes]],
        warn: Callable[[str], None],
        tables: Callable[[tuple[str, ...]], Maps],
    ) -> None:
        """transport: the name this agent runs under ("local").  tables: opens lookup tables."""
        self._settings, self._users, self._warn = settings, users, warn
        alias, include = (way in settings.propagate_unmatched_extensions for way in ("alias", "include"))
        rules = AliasRules(settings.extensions, alias, settings.expand_owner_alias, transport, include)
        self._mailbox_transports = tables(settings.mailbox_transport_maps)
        self._mailbox_commands = tables(settings.mailbox_command_maps)
        self._fallback_transports = tables(settings.fallback_transport_maps)
        self._aliases = AliasExpander(rules, maps, router, self._exists, read_include)

    async def plan(self, recipient: str, sender: str) -> Plan:
        """Decide about one recipient of a message from `sender`; never raises for what mail or tables can cause."""
        local = recipient.rpartition("@")[0] or recipient
        try:
            if local.lower() == self._settings.double_bounce_sender.lower():
                return Reply(250, "2.0.0", "undeliverable postmaster notification discarded")
            if local.startswith("\\"):
                return await self._mailbox(local[1:])
            found = await self._find(local)
            return await self._mailbox(local) if found is None else await self._alias(found, sender)
        except TableError as error:
            self._warn(str(error))
            return LOOKUP_FAILED
        except AliasProblemError as error:
            self._warn(f"{error}; <{recipient}> deferred")
            return Reply(451, "4.3.5", str(error))
        except AliasLoopError as error:
            self._warn(str(error))
            return Reply(554, "5.4.6", str(error))

    async def _find(self, local: str) -> Found | None:
        found = await self._aliases.find(local)
        if found is None and local.lower() in ALWAYS_THERE and not await self._exists(local.lower()):
            self._warn(f"required alias not found: {local.lower()}; taken for root")
            return Found(local.lower(), "root", "")
        return found

    async def _alias(self, found: Found, sender: str) -> Plan:
        expanded = await self._aliases.expand(found, sender)
        for text in expanded.warnings:
            self._warn(text)
        only = expanded.leaves[0]
        if len(expanded.leaves) == 1 and only.local and expanded.sender is None:
            return await self._mailbox(only.local)
        recipients = tuple(leaf.address for leaf in expanded.leaves)
        return ToOthers(recipients, sender if expanded.sender is None else expanded.sender)

    async def _mailbox(self, local: str) -> Plan:
        settings = self._settings
        name, extension = split_extension(local, settings.extensions)
        if settings.mailbox_transport or await self._mailbox_transports.get(name.lower()):
            return self._not_built("mailbox_transport")
        user = await self._user(name)
        if isinstance(user, Reply):
            return user
        if user is None:
            return await self._unknown(name)
        if settings.mailbox_command or await self._mailbox_commands.get(name.lower()):
            return self._not_built("mailbox_command")
        return ToUser(user, local, extension[1:])

    async def _unknown(self, name: str) -> Reply:
        settings = self._settings
        if settings.fallback_transport or await self._fallback_transports.get(name.lower()):
            return self._not_built("fallback_transport")
        if settings.luser_relay:
            return self._not_built("luser_relay")
        return Reply(550, "5.1.1", f'unknown user: "{name.lower()}"')

    def _not_built(self, parameter: str) -> Reply:
        return Reply(451, "4.3.5", f"{parameter} is set but not available yet")

    async def _user(self, name: str) -> User | Reply | None:
        """The user as written, in lower case as local(8) wants it."""
        try:
            return await self._users.by_name(name.lower())
        except TableError as error:
            self._warn(str(error))
            return USER_LOOKUP_FAILED

    async def _exists(self, name: str) -> bool:
        return await self._users.by_name(name) is not None
