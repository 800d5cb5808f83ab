"""Queue file records, reading: our own files, and whatever a real Postfix left in a spool.

Postfix's cleanup edits in place: it leaves zero pointers and padding ("p", "w") as room, and follows a
pointer to records appended behind the end.  Pointers are followed here everywhere.  A file without our
attributes is accepted as it is; one that has some of them must have all and the checksums must match.

Nothing is read here: callers hand in `read_at(offset, size) -> bytes`, or feed what they read.

See also: mta/queue/queue_file.py (writing)
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import field

from mta.envelope import NOTIFY_DEFAULT, VERP, Envelope, Notify, Recipient, Ret
from mta.queue.api import Parent
from mta.queue.queue_file import FLAG_BLOCKS, SMTPUTF8_REQUESTED, envelope_crc
from mta.record import dataclass

FIRST_READ = 16384  # bytes: all of most messages
WINDOW = 65536  # bytes read at a time after that
FAR = 8192  # bytes after which lines of one length are looked for again
MAX_RECORD = 1 << 20  # bytes of one envelope record
HUGE = 1 << 53  # no offset, size or time is that large
MAX_POINTERS = 1000  # a circle of pointers ends here
_C, _T, _F, _S, _A, _O, _R, _D, _SLASH, _W, _V = b"CTFSAORD/WV"
_M, _N, _L, _P, _PAD, _X, _E = b"MNLpwXE"
_STATES = {_R: "R", _D: "D", _SLASH: "/"}
_IGNORED = frozenset(b"cIVKfdrePm>nio<w")  # known to Postfix, nothing to us

_WITH_FIELD = {  # attributes that are not kept by name; log_ident is the id that a Postfix gave it
    "dsn_orig_rcpt", "notify_flags", "envelope_id", "ret_flags", "encoding", "create_time", "log_ident",
}  # fmt: skip

ReadAt = Callable[[int, int], bytes]


class DamagedError(Exception):
    """Not a whole queue file.  str() says what is wrong, for the log."""


@dataclass(slots=True)
class QueueFile:
    """What a queue file says, apart from the content.

    size: message size as Postfix counts it, 0 when the file has no C record (maildrop).  content_offset: of
    the first content record.  end: offset behind the last record read.  uid: "" in a file that is not ours.
    crashes_offset: of the digit, 0 = none.  others: attributes of the extracted segment that commit() was
    given (submit_key...).
    """

    envelope: Envelope
    size: int = 0
    content_offset: int = 0
    end: int = 0
    blocks: bool = False
    uid: str = ""
    content_crc: int | None = None
    content_8bit: bool = False
    parent: Parent | None = None
    crashes: int = 0
    crashes_offset: int = 0
    warn_offset: int = 0
    others: dict[str, str] = field(default_factory=dict)

    def identity(self, inode: int) -> str:
        """The uid, or a stand-in for the uid of a message that another MTA queued."""
        return self.uid or f"{inode:x}.{round(self.envelope.arrival * 1_000_000):x}"


def records(read_at: ReadAt, offset: int, buffer: bytes = b"", base: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Yield (type, data, offset) from a position on, following pointers, without end; DamagedError when the file ends.

    buffer: bytes already read, from position `base` of the file.
    """
    pos, size, pointers = offset - base, len(buffer), 0
    while True:
        kind, start, stop = 0, 0, pos + 2
        if stop <= size:
            kind, n, start = buffer[pos], buffer[pos + 1], stop
            if n > 127:
                n, start = _length(buffer, pos + 1)
                if n > MAX_RECORD:
                    raise DamagedError(f"record of {n} bytes at {base + pos}")
            stop = start + n
        if stop > size:
            fresh = read_at(base + pos, max(WINDOW, stop - pos + 8))
            if len(fresh) <= size - pos:
                raise DamagedError(f"ends inside a record at {base + pos}")
            base, buffer, pos, size = base + pos, fresh, 0, len(fresh)
            continue
        data = buffer[start:stop]
        if kind == _P and (target := _integer(data)) > 0:
            pointers += 1
            if pointers > MAX_POINTERS:
                raise DamagedError("pointers in a circle")
            pos = target - base
            if not 0 <= pos <= size:
                base, buffer, pos, size = target, b"", 0, 0
            continue
        if kind != _P:
            yield kind, data, base + pos
        pos = stop


def _length(buffer: bytes, pos: int) -> tuple[int, int]:
    """Decode a length of several bytes; one that is cut off counts as too long for the buffer."""
    n = shift = 0
    for i in range(pos, min(pos + 5, len(buffer))):
        byte = buffer[i]
        n |= (byte & 127) << shift
        if byte < 128:
            return n, i + 1
        shift += 7
    if pos + 5 <= len(buffer):
        raise DamagedError("length of more than five bytes")
    return 1, len(buffer)


def _integer(data: bytes | str) -> int:
    try:
        number = int(data)
    except ValueError:
        number = HUGE
    if abs(number) >= HUGE:
        raise DamagedError(f"not a number: {data[:20]!r}")
    return number


def decode(read_at: ReadAt, limit: int = 0) -> QueueFile:
    """Read everything but the content and check it; DamagedError when it is not whole.

    A file with a C record is not read from M to X, so this costs the same for any size of message.  limit: most
    records of an envelope from strangers, because each may cost a hundred times its size; 0 = none.
    """
    return _Decoder(read_at, limit).run()


class _Decoder:
    def __init__(self, read_at: ReadAt, limit: int) -> None:
        self._read_at = read_at
        self._left = limit or HUGE
        self._buffer = read_at(0, FIRST_READ)
        self.file = QueueFile(Envelope("", [], 0.0))
        self._own: dict[str, str] = {}
        self._own_offset: dict[str, int] = {}
        self._forget_dsn()

    def _forget_dsn(self) -> None:
        self._notify, self._orcpt, self._original = NOTIFY_DEFAULT, "", ""

    def run(self) -> QueueFile:
        file, seen_sender = self.file, False
        attributes = file.envelope.attributes
        stream = records(self._read_at, 0, self._buffer)
        kind, data, offset = next(stream)
        while kind != _M:
            self._count()
            if kind == _A:
                name, _, value = data.decode("utf-8", "surrogateescape").partition("=")
                if name in _WITH_FIELD:
                    self._attribute(name, value)
                else:
                    attributes[name] = value
            elif kind == _O:
                self._original = _text(data)
            elif kind in _STATES:
                self._recipient(kind, data, offset)
            elif kind == _S:
                file.envelope.sender, seen_sender = _text(data), True
            else:
                self._other(kind, data, offset)
            kind, data, offset = next(stream)
        file.content_offset = offset + 2
        if not seen_sender:
            raise DamagedError("no sender")
        extracted = file.content_offset + file.size if file.size else self._skip_content()
        self._extracted(extracted)
        self._check(extracted)
        return file

    def _other(self, kind: int, data: bytes, offset: int) -> None:
        file, envelope = self.file, self.file.envelope
        if kind == _T:
            if envelope.arrival == 0.0:
                sec, _, usec = data.partition(b" ")
                envelope.arrival = _integer(sec) + (_integer(usec) / 1_000_000 if usec else 0.0)
        elif kind == _C:
            if offset == 0:
                self._size(data)
        elif kind == _F:
            envelope.full_name = _text(data)
        elif kind == _W:
            file.warn_offset, envelope.warn_time = offset, float(_integer(data or b"0"))
        elif kind == _L:
            envelope.attributes["content_filter"] = _text(data)
        elif kind == _V:
            envelope.attributes[VERP] = _text(data)
        elif kind not in _IGNORED:
            raise DamagedError(f"record type {kind} at {offset}")

    def _size(self, data: bytes) -> None:
        try:
            fields = list(map(int, data.split()))
        except ValueError:
            fields = []
        if not fields or not 0 <= fields[0] < HUGE:
            raise DamagedError("size record")
        self.file.size = fields[0]
        flags = fields[3] if len(fields) > 3 else 0
        self.file.blocks = bool(flags & FLAG_BLOCKS)
        if len(fields) > 5:
            self.file.envelope.smtputf8 = bool(fields[5] & SMTPUTF8_REQUESTED)

    def _recipient(self, kind: int, data: bytes, offset: int) -> None:
        address = _text(data)
        original = "" if self._original == address else self._original
        self.file.envelope.recipients.append(
            Recipient(address, original, self._notify, self._orcpt, offset, _STATES[kind])
        )
        self._forget_dsn()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise DamagedError("too many envelope records")

    def _attribute(self, name: str, value: str) -> None:
        envelope = self.file.envelope
        match name:
            case "dsn_orig_rcpt":
                self._orcpt = value
            case "notify_flags":
                self._notify = Notify(_integer(value) & 15)
            case "envelope_id":
                envelope.envelope_id = value
            case "ret_flags":
                envelope.ret = Ret(_integer(value) & 3)
            case "encoding":
                envelope.encoding = value
            case "create_time" if value != str(int(envelope.arrival)):
                envelope.attributes[name] = value

    def _skip_content(self) -> int:
        stream = records(self._read_at, self.file.content_offset, self._buffer)
        kind, _, offset = next(stream)
        while kind in (_N, _L, _PAD):
            kind, _, offset = next(stream)
        if kind != _X:
            raise DamagedError("content without end")
        return offset

    def _extracted(self, offset: int) -> None:
        buffer = self._buffer
        if offset + 2 > len(buffer):
            buffer = b""
        first = True
        for kind, data, at in records(self._read_at, offset, buffer, 0 if buffer else offset):
            if first and kind != _X:
                raise DamagedError(f"no extracted segment at {offset}")
            first = False
            self._count()
            if kind == _E:
                if data:  # one bit makes it of an A, and a file without attributes would need no checksum
                    raise DamagedError(f"end with data at {at}")
                self.file.end = at + 2
                return
            if kind == _A:
                name, _, value = _text(data).partition("=")
                if name in ("encoding", "dsn_orig_rcpt", "notify_flags", "envelope_id", "ret_flags"):
                    self._attribute(name, value)
                else:
                    self._own[name], self._own_offset[name] = value, at
            elif kind == _O:
                self._original = _text(data)
            elif kind in _STATES:
                self._recipient(kind, data, at)
            elif kind != _X and kind not in _IGNORED:
                raise DamagedError(f"record type {kind} at {at}")

    def _check(self, extracted: int) -> None:
        """Ours: all of our attributes are there and the checksum over the envelope is right."""
        own, file = self._own, self.file
        ours = {"uid", "content_crc32", "envelope_crc32", "crashes"}
        present = ours & own.keys()
        if not present:
            if file.size and self._skip_content() != extracted:
                raise DamagedError("size record")  # of a file of ours it may have led into the text
            file.content_8bit = file.envelope.encoding == "8bit"
            return
        if present != ours:
            raise DamagedError("incomplete attributes")
        covered = self._own_offset["envelope_crc32"]
        crc = envelope_crc(
            self._read(0, file.content_offset),
            [r.offset for r in file.envelope.recipients if r.offset < file.content_offset],
            file.warn_offset,
            self._read(extracted, covered - extracted),
        )
        if own["envelope_crc32"] != f"{crc:08x}":
            raise DamagedError("checksum of the envelope")
        try:
            file.content_crc = int(own.pop("content_crc32"), 16)
            if "parent_kind" in own:
                offsets = tuple(map(int, own.pop("parent_rcpts").split()))
                file.parent = Parent(own.pop("parent_kind"), own.pop("parent_uid"), own.pop("parent_id"), offsets)
        except (KeyError, ValueError):
            raise DamagedError("our attributes make no sense") from None
        file.uid = own.pop("uid")
        file.content_8bit = own.pop("content_8bit", "") == "1"
        crashes = own.pop("crashes")
        file.crashes = int(crashes) if len(crashes) == 1 and crashes in "0123456789" else 0
        file.crashes_offset = self._own_offset["crashes"] + 2 + len("crashes=")
        del own["envelope_crc32"]
        file.others = own

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size <= len(self._buffer):
            return self._buffer[offset : offset + size]
        return self._read_at(offset, size)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _even_lines(raw: bytes, pos: int, size: int) -> tuple[bytes | bytearray, int]:
    """Decode N records of one length, as lines of base64 are: (their lines, where they end); b"" when they are few.

    A fifth of the time of taking them one by one.
    """
    head, step = raw[pos : pos + 2], raw[pos + 1] + 2
    if step > 129 or raw[pos + step : pos + step + 2] != head or raw[pos + 8 * step : pos + 8 * step + 2] != head:
        return b"", pos
    stop = pos + (size - pos) // step * step
    kinds, lengths = raw[pos:stop:step], raw[pos + 1 : stop : step]
    count = min(len(kinds) - len(kinds.lstrip(b"N")), len(lengths) - len(lengths.lstrip(head[1:])))
    stop = pos + count * step
    lines = bytearray(raw[pos:stop])
    lines[::step] = b"\n" * count
    del lines[1::step], lines[0]
    return lines, stop


class ContentReader:
    """Content records -> LF lines, fed as they are read.

    Read some bytes at `offset`, feed() them, until `done`.  Any amount will do that holds the head of a record
    (fsio.LEAST); fewer bytes are the end of the file.  A feed returns at most twice as many bytes as it was
    given (empty lines are two bytes of record for one LF).
    """

    __slots__ = ("_kind", "_left", "_open_line", "_pointers", "done", "offset")

    def __init__(self, content_offset: int) -> None:
        self.offset = content_offset
        self.done = False
        self._kind = 0
        self._left = 0  # bytes of the current record still to come
        self._open_line = False
        self._pointers = 0

    def feed(self, raw: bytes) -> bytes:
        """Decode bytes read at `offset`; DamagedError when there are none, or they are no content."""
        out: list[bytes] = []
        pos, size = 0, len(raw)
        if self._left:
            pos = min(self._left, size)
            self._left -= pos
            self._take(out, raw[:pos])
        while not self._left and pos + 1 < size:
            if raw[pos] == _N:
                pos = self._whole_lines(raw, pos, size, out)
                if pos + 1 >= size:
                    break
            kind, n, start = raw[pos], raw[pos + 1], pos + 2
            if n > 127:
                n, start = _length(raw, pos + 1)
                if raw[start - 1] > 127:
                    break  # the length itself is cut off
            if kind == _X:
                if self._open_line:  # postdrop's way with a last line that has no newline
                    out.append(b"\n")
                self.done = True
                break
            if kind == _P:
                if start + n > size:
                    break
                if (target := _integer(raw[start : start + n])) > 0:
                    self._jump(target)
                    return b"".join(out)
                pos = start + n
            elif kind in (_N, _L, _PAD):
                taken = min(n, size - start)
                pos, self._kind, self._left = start + taken, kind, n - taken
                self._take(out, raw[start:pos])
            else:
                raise DamagedError(f"record type {kind} in the content")
        if pos == 0 and not self.done:
            raise DamagedError("content ends early")
        self.offset += pos
        return b"".join(out)

    def _whole_lines(self, raw: bytes, pos: int, size: int, out: list[bytes]) -> int:
        """The way of nearly all content: N records that are here whole.  Returns where the first other thing is."""
        lines: list[bytes | bytearray] = []
        take = lines.append
        look = 0  # from there on lines of one length are looked for
        try:
            while raw[pos] == _N:
                n, start = raw[pos + 1], pos + 2
                if n > 127:
                    more, start = raw[start], start + 1
                    if more > 127:
                        break
                    n += (more << 7) - 128
                end = start + n
                if end > look:
                    if end > size:
                        break
                    run, pos = _even_lines(raw, pos, size)
                    look = min(pos + FAR, size)
                    if run:
                        take(run)
                        continue
                take(raw[start:end])
                pos = end
        except IndexError:  # the input ends within the head of a record, or with a record
            pass
        if lines:
            take(b"")
            out.append(b"\n".join(lines))
            self._open_line = False
        return pos

    def _take(self, out: list[bytes], data: bytes) -> None:
        if self._kind != _PAD:
            out.append(data)
            self._open_line = True
            if self._kind == _N and not self._left:
                out.append(b"\n")
                self._open_line = False

    def _jump(self, target: int) -> None:
        self._pointers += 1
        if self._pointers > MAX_POINTERS:
            raise DamagedError("pointers in a circle")
        self.offset = target


def check_content(read_at: ReadAt, file: QueueFile) -> None:
    """DamagedError unless the content is what was committed.  Reads all of it."""
    reader, crc = ContentReader(file.content_offset), 0
    while not reader.done:
        crc = zlib.crc32(reader.feed(read_at(reader.offset, WINDOW)), crc)
    if file.content_crc not in (None, crc):
        raise DamagedError("checksum of the content")
