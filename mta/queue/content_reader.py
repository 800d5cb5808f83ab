"""The text of a message in a queue file, fed as it is read, and given out as LF lines.

See also: mta/queue/queue_reader.py (the envelope), mta/queue/queue_file.py (writing)
"""

import zlib

from mta.queue.queue_reader import (
    MAX_POINTERS,
    PAD,
    WINDOW,
    DamagedError,
    L,
    N,
    P,
    QueueFile,
    ReadAt,
    X,
    integer,
    length_at,
)

FAR = 8192  # bytes after which lines of one length are looked for again


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
            if raw[pos] == N:
                pos = self._whole_lines(raw, pos, size, out)
                if pos + 1 >= size:
                    break
            kind, n, start = raw[pos], raw[pos + 1], pos + 2
            if n > 127:
                n, start = length_at(raw, pos + 1)
                if raw[start - 1] > 127:
                    break  # the length itself is cut off
            if kind == X:
                if self._open_line:  # postdrop's way with a last line that has no newline
                    out.append(b"\n")
                self.done = True
                break
            if kind == P:
                if start + n > size:
                    break
                if (target := integer(raw[start : start + n])) > 0:
                    self._jump(target)
                    return b"".join(out)
                pos = start + n
            elif kind in (N, L, PAD):
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
            while raw[pos] == N:
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
        if self._kind != PAD:
            out.append(data)
            self._open_line = True
            if self._kind == N and not self._left:
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
