"""The protocol between `sendmail` and the daemon on the submit socket: frames over a unix stream.

A frame is one type byte, a length of 4 bytes (network order) and that many bytes, at most 64 KiB.

From sendmail, in this order:
    H   16 bytes key (random, one per message), mode "m" submit | "s" SMTP dialogue | "a" what became of this key?,
        number of arguments (4 bytes), then arguments and environment entries ("NAME=value"), each ended by NUL
    D   a piece of stdin (mode m)
    E   stdin has ended: the count of its bytes (8 bytes)
From the daemon:
    G   go on; 8 bytes name this run of the daemon
    O W text for stdout, for stderr
    R   final answer: exit status (1 byte); the connection ends
    U   mode a only: this key is unknown; 8 bytes name this run of the daemon
    B   too busy to take anything: use the maildrop
After G in mode s both sides speak SMTP.

The first answer (G, R, U or B) comes after H, before any D is sent: while there is none, nothing of the message has
left the caller, and it may go elsewhere.  A lost connection after that is followed by mode a with the same key.
"""

import struct

from mta.record import dataclass

MAX_FRAME = 65536  # bytes of one frame's data
KEY_SIZE = 16
_HEAD = struct.Struct("!cI")
_COUNT = struct.Struct("!I")
_TOTAL = struct.Struct("!Q")


class WireError(Exception):
    """The peer does not speak this protocol; ends the connection, nothing else."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The H frame, decoded.  environment: what the caller sent of it."""

    key: bytes
    mode: str
    arguments: list[str]
    environment: dict[str, str]


def encode(kind: bytes, data: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(kind, len(data)) + data


def decode_hello(data: bytes) -> Hello:
    """Take an H frame apart; WireError when it is malformed."""
    if len(data) < KEY_SIZE + 5:
        raise WireError("short H frame")
    key, mode = data[:KEY_SIZE], data[KEY_SIZE : KEY_SIZE + 1].decode("latin-1")
    (count,) = _COUNT.unpack_from(data, KEY_SIZE + 1)
    words = data[KEY_SIZE + 5 :].split(b"\0")
    if words.pop() != b"" or mode not in "msa" or not 1 <= count <= len(words):
        raise WireError("malformed H frame")
    decoded = [word.decode("utf-8", "surrogateescape") for word in words]
    pairs = (entry.partition("=") for entry in decoded[count:])
    return Hello(key, mode, decoded[:count], {name: value for name, _, value in pairs})


def decode_total(data: bytes) -> int:
    """The byte count of an E frame."""
    if len(data) != _TOTAL.size:
        raise WireError("malformed E frame")
    return int(_TOTAL.unpack(data)[0])


class FrameReader:
    """Cuts a byte stream into frames; bounded by one frame plus what is fed at once."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer += data

    def next(self) -> tuple[bytes, bytes] | None:
        """The next whole frame as (kind, data), None when more bytes are needed; WireError when it is too long."""
        if len(self._buffer) < _HEAD.size:
            return None
        kind, size = _HEAD.unpack_from(self._buffer)
        if size > MAX_FRAME:
            raise WireError("frame too long")
        end = _HEAD.size + size
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[_HEAD.size : end])
        del self._buffer[:end]
        return kind, data

    def rest(self) -> bytes:
        """Bytes not consumed."""
        return bytes(self._buffer)
