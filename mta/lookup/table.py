"""The one table protocol: a value, None, or TableError.

TableError always becomes a 4xx, never "not found" (postconf(5): a lookup that failed is not an answer).
Keys and values are str; keys are folded to lower case by the table type that folds (hash, texthash, cdb...).
"""

from typing import Protocol


class TableError(Exception):
    """A lookup that could not be answered.  str() is for the log: table name, file, cause; never for a peer."""


class Table(Protocol):
    """type:name as in postconf(5); `name` is that text, for messages."""

    name: str

    async def get(self, key: str) -> str | None:
        """Return the value, None when the table says there is none; raise TableError when it cannot tell."""


class Maps:
    """Several tables asked in order, as in `alias_maps = hash:/a, hash:/b`; the first value wins."""

    def __init__(self, tables: tuple[Table, ...]) -> None:
        self.tables = tables

    def __bool__(self) -> bool:
        return bool(self.tables)

    async def get(self, key: str) -> str | None:
        """First value found, None, or TableError from the first table that fails (later ones are not asked)."""
        for table in self.tables:
            value = await table.get(key)
            if value is not None:
                return value
        return None
