"""hash, btree, dbm, lmdb, sdbm and texthash: all read the text file that postmap(1) would compile.

So `hash:/etc/aliases` works without Berkeley DB and without running postmap or newaliases; a change is seen
within seconds.  Keys are folded to lower case, as postmap does by default.  cdb without a .cdb file is such a one too.
"""

from mta.lookup.context import LookupContext
from mta.lookup.lines import parse_aliases, parse_postmap
from mta.lookup.source import Source

TYPES = ("hash", "btree", "texthash", "lmdb", "dbm", "cdb", "sdbm")


class TextTable:
    """One file as a dictionary in memory."""

    def __init__(self, name: str, path: str, context: LookupContext, *, aliases: bool = False) -> None:
        self.name = name
        self._source: Source[dict[str, str]] = Source(name, path, parse_aliases if aliases else parse_postmap, context)

    async def get(self, key: str) -> str | None:
        """Look up key, folded."""
        index = self._source.current()
        if index is None:
            index = await self._source.get()
        return index.get(key.lower())
