"""Queue file records, reading: our own files, and whatever a real Postfix left in a spool.

Postfix's cleanup edits in place: it leaves zero pointers and padding ("p", "w") as room, and follows a
pointer to records appended behind the end.  Pointers are followed here everywhere.  A file without our
attributes is accepted as it is; one that has some of them must have all and the checksums must match.

Nothing is read here: callers hand in `read_at(offset, size) -> bytes`.

See also: mta/queue/queue_file.py (writing), mta/queue/content_reader.py (the text of the message)
"""

from collections.abc import Callable, Iterator
from dataclasses import field

from mta.envelope import NOTIFY_DEFAULT, VERP, Envelope, Notify, Recipient, Ret
from mta.queue.api import Parent
from mta.queue.queue_file import FLAG_BLOCKS, SMTPUTF8_REQUESTED, envelope_crc
from mta.record import dataclass

FIRST_READ = 16384  # bytes: all of most messages
WINDOW = 65536  # bytes read at a time after that
MAX_RECORD = 1 << 20  # bytes of one envelope record
HUGE = 1 << 53  # no offset, size or time is that large
MAX_POINTERS = 1000  # a circle of pointers ends here
_C, _T, _F, _S, _A, _O, _R, _D, _SLASH, _W, _V = b"CTFSAORD/WV"
_M, N, L, P, PAD, X, _E = b"MNLpwXE"
_STATES = {_R: "R", _D: "D", _SLASH: "/"}
_IGNORED = frozenset(b"cIVKfdrePm>nio<w")  # known to Postfix, nothing to us

_WITH_FIELD = {  # attributes that are not kept by name; log_ident is the id that a Postfix gave it
    "dsn_orig_rcpt", "notify_flags", "envelope_id", "ret_flags", "encoding", "create_time", "log_ident",
}  # fmt: skip
_ANSWERED = "parent_rcpts"  # stands there again and again when they are many

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
                n, start = length_at(buffer, pos + 1)
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
        if kind == P and (target := integer(data)) > 0:
            pointers += 1
            if pointers > MAX_POINTERS:
                raise DamagedError("pointers in a circle")
            pos = target - base
            if not 0 <= pos <= size:
                base, buffer, pos, size = target, b"", 0, 0
            continue
        if kind != P:
            yield kind, data, base + pos
        pos = stop


def _run_of(buffer: bytes, pos: int, last: int) -> list[tuple[int, bytes, int]]:
    """The records from a position up to one of the type `last`, if all are here and plain; else [] (see records())."""
    found: list[tuple[int, bytes, int]] = []
    try:
        while True:
            kind, n, start = buffer[pos], buffer[pos + 1], pos + 2
            if n > 127 or kind == P:
                return []
            stop = start + n
            found.append((kind, buffer[start:stop], pos))
            if kind == last:
                return found if stop <= len(buffer) else []
            pos = stop
    except IndexError:
        return []


def length_at(buffer: bytes, pos: int) -> tuple[int, int]:
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


def integer(data: bytes | str) -> int:
    """Decode a decimal number; DamagedError when it is none, or beyond HUGE."""
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
        self._answered: list[str] = []
        self._forget_dsn()

    def _forget_dsn(self) -> None:
        self._notify, self._orcpt, self._original = NOTIFY_DEFAULT, "", ""

    def run(self) -> QueueFile:
        file, seen_sender = self.file, False
        attributes = file.envelope.attributes
        stream = iter(_run_of(self._buffer, 0, _M) or records(self._read_at, 0, self._buffer))
        kind, data, offset = next(stream)
        while kind != _M:
            self._left -= 1
            if self._left < 0:
                raise DamagedError("too many envelope records")
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
                envelope.arrival = integer(sec) + (integer(usec) / 1_000_000 if usec else 0.0)
        elif kind == _C:
            if offset == 0:
                self._size(data)
        elif kind == _F:
            envelope.full_name = _text(data)
        elif kind == _W:
            file.warn_offset, envelope.warn_time = offset, float(integer(data or b"0"))
        elif kind == L:
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

    def _attribute(self, name: str, value: str) -> None:
        envelope = self.file.envelope
        match name:
            case "dsn_orig_rcpt":
                self._orcpt = value
            case "notify_flags":
                self._notify = Notify(integer(value) & 15)
            case "envelope_id":
                envelope.envelope_id = value
            case "ret_flags":
                envelope.ret = Ret(integer(value) & 3)
            case "encoding":
                envelope.encoding = value
            case "create_time" if value != str(int(envelope.arrival)):
                envelope.attributes[name] = value

    def _skip_content(self) -> int:
        stream = records(self._read_at, self.file.content_offset, self._buffer)
        kind, _, offset = next(stream)
        while kind in (N, L, PAD):
            kind, _, offset = next(stream)
        if kind != X:
            raise DamagedError("content without end")
        return offset

    def _extracted(self, offset: int) -> None:
        buffer = self._buffer
        if offset + 2 > len(buffer):
            buffer = b""
        first = True
        rest = _run_of(buffer, offset, _E) or records(self._read_at, offset, buffer, 0 if buffer else offset)
        for kind, data, at in rest:
            if first and kind != X:
                raise DamagedError(f"no extracted segment at {offset}")
            first = False
            self._left -= 1
            if self._left < 0:
                raise DamagedError("too many envelope records")
            if kind == _E:
                if data:  # one bit makes it of an A, and a file without attributes would need no checksum
                    raise DamagedError(f"end with data at {at}")
                self.file.end = at + 2
                return
            if kind == _A:
                name, _, value = _text(data).partition("=")
                if name in ("encoding", "dsn_orig_rcpt", "notify_flags", "envelope_id", "ret_flags"):
                    self._attribute(name, value)
                elif name == _ANSWERED:
                    self._answered.append(value)
                    self._own[name] = ""
                else:
                    self._own[name], self._own_offset[name] = value, at
            elif kind == _O:
                self._original = _text(data)
            elif kind in _STATES:
                self._recipient(kind, data, at)
            elif kind != X and kind not in _IGNORED:
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
                del own[_ANSWERED]
                offsets = tuple(map(int, " ".join(self._answered).split()))
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
