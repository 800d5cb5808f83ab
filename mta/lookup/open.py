"""From "hash:/etc/aliases, unix:passwd.byname" to tables.

Opening never fails and touches no file: a table that cannot work (unknown type, bad name) fails its lookups,
so that mail waits for the administrator.  `problems()` says beforehand what is wrong, for `mta check`.
"""

import contextlib
import re
from collections.abc import Iterable

from mta.lookup.cdb_table import CdbTable
from mta.lookup.cidr import cidr_table
from mta.lookup.context import LookupContext
from mta.lookup.regexp import regexp_table
from mta.lookup.rules import braced, inline_rules
from mta.lookup.simple import (
    EnvironTable,
    InlineTable,
    PipeTable,
    StaticTable,
    UnavailableTable,
    UnionTable,
    UnixTable,
    unsupported,
)
from mta.lookup.table import Maps, Table
from mta.lookup.text_file import TYPES, TextTable

UNIX_MAPS = ("passwd.byname", "passwd.byuid", "group.byname")
KNOWN = (*TYPES, "cidr", "regexp", "pcre", "inline", "static", "fail", "environ", "unix", "unionmap", "pipemap")


def split_list(spec: str | Iterable[str]) -> list[str]:
    """Split a parameter value at commas and white space outside { }; words of an already split value stay whole."""
    if not isinstance(spec, str):
        return [word for part in spec for word in split_list(part)]
    words, word, depth = [], "", 0
    for c in spec:
        if depth == 0 and c in ", \t\r\n":
            if word:
                words.append(word)
            word = ""
        else:
            depth = max(0, depth + (c == "{") - (c == "}"))
            word += c
    return [*words, word] if word else words


def _split_name(spec: str, default_type: str) -> tuple[str, str]:
    """Return (type, name); "proxy:" is taken off, because there is nothing to share tables with."""
    while spec.startswith(("proxy:", "proxy-write:")):
        spec = spec.partition(":")[2]
    kind, colon, name = spec.partition(":")
    return (kind, name) if colon and re.fullmatch(r"[A-Za-z0-9_-]+", kind) else (default_type, spec)


def open_table(spec: str, context: LookupContext, *, aliases: bool = False) -> Table:
    """Open one "type:name"; aliases: text files are in aliases(5) syntax instead of postmap(1)'s."""
    table = context.shared.get((spec, aliases))
    if table is None:
        table = _open(spec, context, aliases=aliases)
        context.shared[spec, aliases] = table
        if isinstance(table, UnavailableTable) and not spec.startswith("fail:"):
            context.warn(f"{table.name}: {table.problem}")
    return table


def _open(spec: str, context: LookupContext, *, aliases: bool) -> Table:
    kind, name = _split_name(spec, context.default_database_type)
    full = f"{kind}:{name}"
    try:
        match kind:
            case "cidr":
                return cidr_table(full, name, context)
            case "regexp" | "pcre":
                return regexp_table(full, name, context, posix=kind == "regexp")
            case "inline":
                return InlineTable(full, name)
            case "static":
                return StaticTable(full, name)
            case "environ":
                return EnvironTable(full, context)
            case "fail":
                return UnavailableTable(full, "this table always fails")
            case "unix" if name in UNIX_MAPS:
                return UnixTable(full, name, context.users)
            case "unix":
                return UnavailableTable(full, f"unknown map; there are {', '.join(UNIX_MAPS)}")
            case "unionmap" | "pipemap":
                tables = tuple(open_table(part, context, aliases=aliases) for part in braced(name))
                return UnionTable(full, tables) if kind == "unionmap" else PipeTable(full, tables)
            case "cdb":
                return CdbTable(full, name, context, aliases=aliases)
            case _ if kind in TYPES:
                return TextTable(full, name, context, aliases=aliases)
    except ValueError as error:
        return UnavailableTable(full, str(error))
    return UnavailableTable(full, unsupported(full, kind))


def open_tables(spec: str | Iterable[str], context: LookupContext, *, aliases: bool = False) -> Maps:
    """Open all tables of a parameter such as alias_maps, to be asked in this order."""
    return Maps(tuple(open_table(word, context, aliases=aliases) for word in split_list(spec)))


def files(spec: str | Iterable[str], default_database_type: str = "hash") -> list[str]:
    """Absolute paths of what these tables read, whether it is there or not."""
    found: list[str] = []
    for word in split_list(spec):
        kind, name = _split_name(word, default_database_type)
        if kind in ("unionmap", "pipemap"):
            with contextlib.suppress(ValueError):  # then it fails every look-up
                found += files(braced(name), default_database_type)
        elif name.startswith("/"):
            found += [name, f"{name}.cdb"] if kind == "cdb" else [name]
    return found


def problems(spec: str | Iterable[str], default_database_type: str = "hash") -> list[str]:
    """Say what will make lookups in these tables fail for good; [] when nothing is known."""
    found = []
    for word in split_list(spec):
        kind, name = _split_name(word, default_database_type)
        if kind not in KNOWN:
            found.append(f"{word}: {unsupported(word, kind)}")
        elif kind == "unix" and name not in UNIX_MAPS:
            found.append(f"{word}: unknown map; there are {', '.join(UNIX_MAPS)}")
        else:
            try:
                found += _text_problems(kind, word, name, default_database_type)
            except ValueError as error:
                found.append(str(error) if kind == "inline" else f"{word}: {error}")
    return found


def _text_problems(kind: str, word: str, name: str, default_database_type: str) -> list[str]:
    """The same about a table whose text is in its name; ValueError: it has not the form of one."""
    if kind == "inline":
        InlineTable(word, name)
    elif kind == "static":
        StaticTable(word, name)
    elif kind in ("cidr", "regexp", "pcre") and name.startswith("{"):
        inline_rules(name)
    elif kind in ("unionmap", "pipemap"):
        return problems(braced(name), default_database_type)
    return []
