"""cdb:NAME: the file NAME.cdb, written by makemap(8) or by a Postfix's postmap; without one the text file NAME.

Which of the two it is gets decided at the first look-up, for good.  A NAME.cdb that is older than NAME is used, as
Postfix does, and warned about.

See also: mta/lookup/cdb.py (format), CDB_README
"""

import os

from mta.lookup.cdb import Cdb, CdbError
from mta.lookup.context import LookupContext
from mta.lookup.lines import Warnings, text_of
from mta.lookup.source import Source
from mta.lookup.table import TableError
from mta.lookup.text_file import TextTable


class CdbTable:
    """One table."""

    def __init__(self, name: str, path: str, context: LookupContext, *, aliases: bool = False) -> None:
        self.name = name
        self._path, self._context = path, context
        self._text = TextTable(name, path, context, aliases=aliases)
        self._binary: Source[Cdb] = Source(name, f"{path}.cdb", self._parse, context, lines=False)
        self._has_binary: bool | None = None

    def _parse(self, data: bytes, warnings: Warnings) -> Cdb:
        try:
            if os.stat(self._path).st_mtime > os.stat(f"{self._path}.cdb").st_mtime:
                warnings.add(f"database {self._path}.cdb is older than source file {self._path}")
        except OSError:
            pass  # no source file
        try:
            return Cdb(data)
        except CdbError as error:
            raise OSError(f"{self._path}.cdb: {error}") from None

    async def get(self, key: str) -> str | None:
        """Look up key, folded; with and without the NUL at the end that Sendmail's -N writes."""
        if self._has_binary is None:
            self._has_binary = await self._context.fsio.run(os.path.exists, f"{self._path}.cdb")
        if not self._has_binary:
            return await self._text.get(key)
        file = self._binary.current() or await self._binary.get()
        name = key.lower().encode("utf-8", "surrogateescape")
        try:
            value = file.get(name)
            if value is None and (value := file.get(name + b"\0")) is not None:
                value = value.removesuffix(b"\0")
        except CdbError as error:
            raise TableError(f"{self.name}: {error}") from None
        return None if value is None else text_of(value)
