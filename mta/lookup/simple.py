"""Tables without a file of their own: inline, static, fail, environ, unix, unionmap, pipemap, and the unknown.

See also: DATABASE_README, postconf(1) -m
"""

from mta.lookup.context import LookupContext
from mta.lookup.rules import braced, unbraced
from mta.lookup.table import Table, TableError
from mta.lookup.unix import UserDb

HELP = {
    "mysql": "export it with a query to a texthash: file",
    "pgsql": "export it with a query to a texthash: file",
    "sqlite": "export it with sqlite3 -separator ' ' to a texthash: file",
    "ldap": "use unix:passwd.byname with nss, or export it to a texthash: file",
    "nis": "use unix:passwd.byname with nss",
    "tcp": "export it to a texthash: file",
    "socketmap": "export it to a texthash: file",
    "memcache": "name the table behind the cache",
}


class InlineTable:
    """inline:{ key=value, { key = text with blanks } }."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._index: dict[str, str] = {}
        try:
            items = braced(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; expected inline:{{ key=value, ... }}") from None
        for item in items:
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise ValueError(f'{name}: missing "=" in "{item}"')
            self._index[key.strip().lower()] = value.strip()

    async def get(self, key: str) -> str | None:
        """Look up key, folded."""
        return self._index.get(key.lower())


class StaticTable:
    """static:text: every key has this value; static:{ text } with blanks."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._value = unbraced(text.strip()).strip() if text.strip().startswith("{") else text

    async def get(self, key: str) -> str | None:
        """The text."""
        return self._value


class EnvironTable:
    """environ: variables of the environment; keys are not folded to lower case."""

    def __init__(self, name: str, context: LookupContext) -> None:
        self.name = name
        self._environ = context.environ

    async def get(self, key: str) -> str | None:
        """The variable."""
        return self._environ.get(key)


class UnavailableTable:
    """fail:, a type we do not have, a name that makes no sense: every lookup fails, nothing is ever absent."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem

    async def get(self, key: str) -> str | None:
        """Raise."""
        raise TableError(f"{self.name}: {self.problem}")


class UnixTable:
    """unix:passwd.byname, passwd.byuid, group.byname: lines as in passwd(5) and group(5)."""

    def __init__(self, name: str, which: str, users: UserDb) -> None:
        self.name = name
        self._which, self._users = which, users

    async def get(self, key: str) -> str | None:
        """The line of this user or group."""
        if self._which == "group.byname":
            group = await self._users.group_by_name(key)
            return f"{group.name}:{group.password}:{group.gid}:{','.join(group.members)}" if group else None
        if self._which == "passwd.byuid":
            user = await self._users.by_uid(int(key)) if key.isascii() and key.isdigit() and len(key) < 12 else None
        else:
            user = await self._users.by_name(key.lower())
        if user is None:
            return None
        return ":".join((user.name, user.password, str(user.uid), str(user.gid), user.gecos, user.home, user.shell))


class UnionTable:
    """unionmap:{ type:name, ... }: the values of all tables that have the key, joined by commas."""

    def __init__(self, name: str, tables: tuple[Table, ...]) -> None:
        self.name, self._tables = name, tables

    async def get(self, key: str) -> str | None:
        """Ask all."""
        values = [value for table in self._tables if (value := await table.get(key)) is not None]
        return ",".join(values) if values else None


class PipeTable:
    """pipemap:{ type:name, ... }: the value of one table is the key for the next."""

    def __init__(self, name: str, tables: tuple[Table, ...]) -> None:
        self.name, self._tables = name, tables

    async def get(self, key: str) -> str | None:
        """Ask one after the other."""
        for table in self._tables:
            value = await table.get(key)
            if value is None:
                return None
            key = value
        return key


def unsupported(name: str, kind: str) -> str:
    """What is wrong with a table of an unknown type, and what helps."""
    helps = HELP.get(kind)
    return f"unsupported dictionary type: {kind}" + (f"; {helps}" if helps else "")
