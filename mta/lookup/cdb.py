"""The cdb file format: a constant database, written at once, read by two probes.

2048 bytes of 256 pairs (position, slots) of hash tables; records (key length, value length, key, value); the tables
of (hash, position) slots.  Numbers are 32 bits, little-endian.

See also: https://cr.yp.to/cdb/cdb.txt
"""

import struct
from collections.abc import Iterable, Iterator

HEADER = 2048
LIMIT = 1 << 32  # bytes of a file
_PAIR = struct.Struct("<II")


class CdbError(Exception):
    """Not a whole cdb file, or too large for one; str() says what is wrong."""


def cdb_hash(key: bytes) -> int:
    """The hash of the format."""
    h = 5381
    for c in key:
        h = ((h << 5) + h & 0xFFFFFFFF) ^ c
    return h


def build(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The file with these (key, value) records in this order; CdbError when it would be too large."""
    parts, at = [bytes(HEADER)], HEADER
    tables: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, value in records:
        parts += (_PAIR.pack(len(key), len(value)), key, value)
        h = cdb_hash(key)
        tables[h & 255].append((h, at))
        at += 8 + len(key) + len(value)
        if at >= LIMIT:
            raise CdbError("too large for a cdb file")
    header = b""
    for table in tables:
        size = 2 * len(table)
        slots: list[tuple[int, int]] = [(0, 0)] * size
        for h, position in table:
            slot = (h >> 8) % size
            while slots[slot][1]:
                slot = (slot + 1) % size
            slots[slot] = (h, position)
        header += _PAIR.pack(at, size)
        parts += (_PAIR.pack(*slot) for slot in slots)
        at += 8 * size
    if at >= LIMIT:
        raise CdbError("too large for a cdb file")
    parts[0] = header
    return b"".join(parts)


class Cdb:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        """CdbError when it is none; what is inside is checked when it is used."""
        if len(data) < HEADER:
            raise CdbError("shorter than its header")
        self._data = data
        for position, slots in _PAIR.iter_unpack(data[:HEADER]):
            if position + 8 * slots > len(data):
                raise CdbError("a table lies outside of the file")

    def get(self, key: bytes) -> bytes | None:
        """The first value of a key; CdbError when the file is damaged there."""
        h = cdb_hash(key)
        table, slots = _PAIR.unpack_from(self._data, (h & 255) * 8)
        for n in range(slots):
            found, position = _PAIR.unpack_from(self._data, table + 8 * (((h >> 8) + n) % slots))
            if not position:
                return None
            if found == h:
                stored, value = self._record(position)
                if stored == key:
                    return value
        return None

    def _record(self, position: int) -> tuple[bytes, bytes]:
        if position + 8 > len(self._data):
            raise CdbError("a record lies outside of the file")
        size, length = _PAIR.unpack_from(self._data, position)
        start = position + 8
        if start + size + length > len(self._data):
            raise CdbError("a record lies outside of the file")
        return self._data[start : start + size], self._data[start + size : start + size + length]

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All records in the order of the file; CdbError."""
        end = min((position for position, slots in _PAIR.iter_unpack(self._data[:HEADER])), default=HEADER)
        at = HEADER
        while at < end:
            key, value = self._record(at)
            yield key, value
            at += 8 + len(key) + len(value)
