"""Queue file records, writing: the format of Postfix's queue, so that its tools read our spool.

A record is a type byte, a length (7 bits per byte, low group first, bit 7 = more) and data.  A file is

    C T A* F S W A* (A A O R)* M   envelope
    (L* N)*                        content: text lines without their LF, pieces of a long line first
    X A* E                         extracted segment: our own attributes, which Postfix ignores

Content up to PLAIN_LIMIT is written as Postfix writes it.  What is larger ends in one "line" of L blocks with the LFs
inside, and field 4 of the C record carries FLAG_BLOCKS: a Postfix queue manager refuses an unknown flag,
instead of sending bare LFs.

Two checksums.  content_crc32 covers the message text as LF lines.  envelope_crc32 covers C to M and X to
the record before itself, with D and "/" read as R and the warn time as blanks, because these change in place.
`crashes` is one digit, written in place too, and stands behind the checksum.

See also: mta/queue/queue_reader.py (reading), mta/INTERNALS.md (states of a file)
"""

import zlib
from collections.abc import Mapping, Sequence

from mta.envelope import VERP, Envelope
from mta.queue.api import Parent
from mta.record import dataclass

LINE_LIMIT = 2048  # bytes of one record of text, Postfix's line_length_limit
PLAIN_LIMIT = 256 * 1024  # bytes of content written line by line
BLOCK = 65536  # bytes of one L block
FLAG_BLOCKS = 4096  # in field 4 of C
SIZE_RECORD = 97  # bytes of the C record, at offset 0
SMTPUTF8_REQUESTED = 1  # in field 6 of C
WARN_DATA = 2  # offset of the digits in a W record
MAX_CRASHES = 9  # one digit
ANSWERED = 10_000  # offsets in one parent_rcpts: a reader takes no record of any length

_LINE_PREFIX = [b"N%c" % n if n < 128 else b"N%c%c" % (n & 127 | 128, n >> 7) for n in range(LINE_LIMIT + 1)]
_LENGTH = [bytes((n,)) for n in range(128)]  # of a record, where one byte will do
_ATTRIBUTE = [b"A" + length for length in _LENGTH]
_FULL_PIECE = b"L%c%c" % (LINE_LIMIT & 127 | 128, LINE_LIMIT >> 7)
_SEARCH = 8192  # bytes of content in which lines of one length are looked for
_WORTH_IT = 16  # lines
_BEFORE_SENDER = ("rewrite_context", "trace_flags")


def record(kind: bytes, data: bytes) -> bytes:
    """One record of any length."""
    n = len(data)
    if n < 128:
        return kind + _LENGTH[n] + data
    length = bytearray()
    while n > 127:
        length.append(n & 127 | 128)
        n >>= 7
    length.append(n)
    return kind + length + data


def text(value: str) -> bytes:
    """Addresses and attribute values as stored: UTF-8, with the bytes of anything else kept as they came."""
    return value.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Head:
    """An encoded envelope; data: C (still blank) to M.  flags: field 4 of C.  warn_offset: of W, 0 = none."""

    data: bytes
    recipients: tuple[int, ...]
    flags: int
    smtputf8: int
    warn_offset: int


def encode_head(envelope: Envelope) -> Head:
    """Encode an envelope; recipients keep their state ("R", "D", "/") as the type of their record."""
    named = envelope.attributes
    sec, usec = divmod(round(envelope.arrival * 1_000_000), 1_000_000)
    parts = [
        bytes(SIZE_RECORD),
        record(b"T", b"%d %d" % (sec, usec)),
        _attribute("create_time", named.get("create_time") or str(sec)),
    ]
    parts += [_attribute(name, named[name]) for name in _BEFORE_SENDER if name in named]
    if envelope.envelope_id:
        parts.append(_attribute("envelope_id", envelope.envelope_id))
    if envelope.ret:
        parts.append(_attribute("ret_flags", str(int(envelope.ret))))
    if envelope.full_name:
        parts.append(record(b"F", text(envelope.full_name)))
    parts.append(record(b"S", text(envelope.sender)))
    if VERP in named:
        parts.append(record(b"V", text(named[VERP])))
    warn_offset = 0
    if envelope.warn_time:
        warn_offset = sum(map(len, parts))
        parts.append(record(b"W", warn_digits(envelope.warn_time)))
    if envelope.encoding:
        parts.append(_attribute("encoding", envelope.encoding))
    skip = (*_BEFORE_SENDER, "create_time", VERP)
    parts += [_attribute(name, value) for name, value in named.items() if name not in skip]
    offset = sum(map(len, parts))
    offsets, flags = [], 0
    for r in envelope.recipients:
        address = text(r.address)
        before = record(b"O", text(r.original) if r.original else address)
        if r.dsn_orig_rcpt:
            before = _attribute("dsn_orig_rcpt", r.dsn_orig_rcpt) + before
        if r.notify:
            before = _attribute("notify_flags", str(int(r.notify))) + before
            flags |= int(r.notify) << 1
        after = record(r.state.encode(), address)
        offsets.append(offset + len(before))
        parts += (before, after)
        offset += len(before) + len(after)
    parts.append(b"M\0")
    return Head(b"".join(parts), tuple(offsets), flags, int(envelope.smtputf8) * SMTPUTF8_REQUESTED, warn_offset)


def warn_digits(when: float) -> bytes:
    """Data of a W record: when to send the delay notice, 0 = it was sent."""
    return b"%15d" % int(when)


def encode_size(head: Head, content_size: int, *, blocks: bool) -> bytes:
    """The C record; content_size: bytes of the content section as stored, framing included."""
    return record(
        b"C",
        b"%15d %15d %15d %15d %15d %15d"
        % (
            content_size,
            len(head.data),
            len(head.recipients),
            head.flags | (FLAG_BLOCKS if blocks else 0),
            content_size,
            head.smtputf8,
        ),
    )


def encode_lines(content: bytes) -> bytes:
    """Content as text records.  Takes LF lines; a last line without LF gets one.  15 us for 5 KB in 100 lines."""
    if len(content) > _SEARCH:
        start, run, end = _even_lines(content)
        if run:
            return _uneven_lines(content[:start]) + run + _uneven_lines(content[end:])
    return _uneven_lines(content)


def _even_lines(content: bytes) -> tuple[int, bytes, int]:
    """Find the lines in the middle that are of one length, as those of base64 are: (start, their records, end).

    A third of the time of cutting them one by one.
    """
    middle = content.find(b"\n", len(content) // 2)
    step = content.find(b"\n", middle + 1) - middle
    if not 0 < step <= 128:
        return 0, b"", 0
    before, after = content[middle::-step], content[middle::step]  # LF as long as lines are that long
    lines = len(before) - len(before.lstrip(b"\n")) - 1
    start = middle + 1 - lines * step
    lines += len(after) - len(after.lstrip(b"\n")) - 1
    end = start + lines * step
    prefix = _LINE_PREFIX[step - 1]
    run = prefix + content[start : end - 1].replace(b"\n", prefix)
    if lines < _WORTH_IT or len(run) != end - start + lines:  # the latter: there are shorter lines among them
        return 0, b"", 0
    return start, run, end


def _uneven_lines(content: bytes) -> bytes:
    if not content:
        return b""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    try:
        prefixes = list(map(_LINE_PREFIX.__getitem__, map(len, lines)))
    except IndexError:  # a line over LINE_LIMIT
        return b"".join(map(_long_line, lines))
    out = [b""] * (2 * len(lines))
    out[::2] = prefixes
    out[1::2] = lines
    return b"".join(out)


def _long_line(line: bytes) -> bytes:
    if len(line) <= LINE_LIMIT:
        return _LINE_PREFIX[len(line)] + line
    cut = (len(line) - 1) // LINE_LIMIT * LINE_LIMIT
    pieces = [_FULL_PIECE + line[i : i + LINE_LIMIT] for i in range(0, cut, LINE_LIMIT)]
    return b"".join(pieces) + _LINE_PREFIX[len(line) - cut] + line[cut:]


def encode_block(content: bytes) -> bytes:
    """A piece of large content, LFs inside; encode_last_block ends it."""
    return record(b"L", content)


def encode_last_block(content: bytes) -> bytes:
    """The rest of large content; the record itself stands for the LF at its end."""
    return record(b"N", content.removesuffix(b"\n"))


def encode_tail(
    head: Head,
    size_record: bytes,
    *,
    uid: str,
    content_crc: int,
    content_8bit: bool = False,
    parent: Parent | None = None,
    attributes: Mapping[str, str] | None = None,
) -> bytes:
    """The extracted segment and the end; with it the file is complete."""
    parts = [b"X\0", _attribute("uid", uid), _attribute("content_crc32", f"{content_crc:08x}")]
    if content_8bit:
        parts.append(_attribute("content_8bit", "1"))
    if parent is not None:
        parts += [
            _attribute("parent_kind", parent.kind),
            _attribute("parent_uid", parent.uid),
            _attribute("parent_id", parent.queue_id),
        ]
        offsets = parent.recipients
        for i in range(0, len(offsets) or 1, ANSWERED):
            parts.append(_attribute("parent_rcpts", " ".join(map(str, offsets[i : i + ANSWERED]))))
    parts += [_attribute(name, value) for name, value in (attributes or {}).items()]
    covered = b"".join(parts)
    crc = envelope_crc(size_record + head.data[SIZE_RECORD:], head.recipients, head.warn_offset, covered)
    return b"%b%b%bE\0" % (covered, _attribute("envelope_crc32", f"{crc:08x}"), _attribute("crashes", "0"))


def envelope_crc(head: bytes, recipients: Sequence[int], warn_offset: int, tail: bytes) -> int:
    """Checksum over C to M and the covered part of the extracted segment, blind to what changes in place."""
    plain = bytearray(head)
    for offset in recipients:
        plain[offset] = 0x52  # R
    if warn_offset:
        plain[warn_offset + WARN_DATA : warn_offset + WARN_DATA + 15] = b" " * 15
    return zlib.crc32(tail, zlib.crc32(plain))


def _attribute(name: str, value: str) -> bytes:
    data = f"{name}={value}".encode("utf-8", "surrogateescape")
    n = len(data)
    return _ATTRIBUTE[n] + data if n < 128 else record(b"A", data)
