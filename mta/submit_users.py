"""Who a uid is, and whether that user may use the command line tools.

See also: postconf(5) authorized_submit_users, authorized_mailq_users, authorized_flush_users
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from mta.lookup.table import Maps

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
    """Matches users against lists such as `!root, alice, static:all`."""

    def __init__(self, users: Users, tables: Callable[[tuple[str, ...]], Maps]) -> None:
        """tables: opens a list of "type:name" as one Maps."""
        self._users, self._tables = users, tables

    async def denied(self, allowed: Sequence[str], uid: int) -> str | None:
        """None when this uid may; else its name for the message.  Raises TableError.

        First match decides; root and a list of `static:anyone` need no look-up of the name.
        """
        if uid == 0 or tuple(allowed) == ("static:anyone",):
            return None
        user = await self._users.by_uid(uid)
        name = user.name if user is not None else UNKNOWN
        for item in allowed:
            wanted, pattern = not item.startswith("!"), item.lstrip("!")
            table = self._tables((pattern,)) if ":" in pattern else None
            if pattern == name or (table and await table.get(name) is not None):
                return None if wanted else name
        return name
