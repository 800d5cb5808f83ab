"""The one table protocol: a value, None, or TableError.

TableError always becomes a 4xx, never "not found" (postconf(5): a lookup that failed is not an answer).
Keys and values are str; keys are folded to lower case by the table type that folds (hash, texthash, cdb...).
"""

from typing import Protocol


class TableError(Exception):
    """A lookup that could not be answered.  str() is for the log: table name, file, cause; never for a peer."""


class Table(Protocol):
    """type:name as in postconf(5); `name` is that text, for messages.

    A table of patterns (regexp, pcre, cidr) also has an attribute `pattern = True`.
    """

    name: str

    async def get(self, key: str) -> str | None:
        """Return the value, None when the table says there is none; raise TableError when it cannot tell."""


class Maps:
    """Several tables asked in order, as in `alias_maps = hash:/a, hash:/b`; the first value wins."""

    def __init__(self, tables: tuple[Table, ...]) -> None:
        self.tables = tables
        self._fixed = tuple(t for t in tables if not getattr(t, "pattern", False))

    def __bool__(self) -> bool:
        return bool(self.tables)

    async def get(self, key: str, *, fixed: bool = False) -> str | None:
        """First value found, None, or TableError from the first table that fails (later ones are not asked).

        fixed: ask only tables of fixed keys, because key is a part of an address or name, and patterns are
        matched against whole ones only (access(5), virtual(5): REGULAR EXPRESSION TABLES).
        """
        for table in self._fixed if fixed else self.tables:
            value = await table.get(key)
            if value is not None:
                if not value:
                    raise TableError(f"{table.name} lookup of {key} returns an empty string result")
                return value
        return None
