"""Who a uid is, and whether that user may use the command line tools.

See also: postconf(5) authorized_submit_users, authorized_mailq_users, authorized_flush_users
"""

from collections.abc import Sequence
from typing import Protocol

from mta.lookup.context import LookupContext
from mta.lookup.match_list import DomainList

UNKNOWN = "unknown"  # Postfix's name for a uid without an entry


class User(Protocol):
    """The part of a passwd entry that is used."""

    @property
    def name(self) -> str: ...

    @property
    def gecos(self) -> str: ...


class Users(Protocol):
    """mta/lookup/unix.py UserDb."""

    async def by_uid(self, uid: int) -> User | None:
        """None: there is no such user.  TableError: it cannot be told."""


class Access:
    """Matches users against lists such as `!root, alice, /etc/mta/operators, static:all`."""

    def __init__(self, users: Users, context: LookupContext, *, owner: int = 0) -> None:
        """owner: uid of mail_owner, who may do everything, as root may."""
        self._users, self._context, self._owner = users, context, owner
        self._lists: dict[tuple[str, ...], DomainList] = {}

    async def denied(self, allowed: Sequence[str], uid: int) -> str | None:
        """None when this uid may; else its name for the message.  Raises TableError.

        First match decides; root and a list of `static:anyone` need no look-up of the name.
        """
        words = tuple(allowed)
        if uid in (0, self._owner) or words == ("static:anyone",):
            return None
        user = await self._users.by_uid(uid)
        name = user.name if user is not None else UNKNOWN
        if words not in self._lists:
            self._lists[words] = DomainList("list of users", words, self._context, parents=None)
        return None if await self._lists[words].match(name) else name
