"""postdrop(1): a message in queue file records on stdin, into maildrop.  For programs that were made for a Postfix.

Takes what Postfix's takes: envelope F S A R V i n, M, content N L, X, extracted A R, E; the arrival time is ours.
Answers in Postfix's attribute protocol on stdout.  Errors are exit 1, nothing is kept; what pickup could never queue
is one.

See also: sendmail_compat/maildrop.py, pickup(8)
"""

import os
import sys
import time
from collections.abc import Sequence

from mta.lookup.table import TableError
from mta.queue.maildrop_rules import envelope_of, file_limit
from mta.queue.queue_reader import DamagedError
from sendmail_compat import fast, maildrop
from sendmail_compat.access import denied
from sendmail_compat.config import Config
from sendmail_compat.tool import ToolError, configuration, options, say

USAGE = "postdrop [-c config_dir] [-v]"
MAX_RECORD = 1 << 20
_NEXT = {"envelope": b"MFSRVAin", "content": b"XLN", "extracted": b"EAR"}
_ATTRIBUTES = frozenset((
    b"rewrite_context", b"encoding", b"envelope_id", b"ret_flags", b"notify_flags", b"dsn_orig_rcpt", b"trace_flags",
))  # fmt: skip
_NAMED = {b"i": b"envelope_id=", b"n": b"notify_flags="}  # records for what else is an attribute


class _NothingError(Exception):
    """stdin ended without an E record: the caller has changed its mind."""


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, _ = options(argv, "c:rv", USAGE)
    config = configuration(found)
    try:
        if name := denied(config, "authorized_submit_users"):
            raise ToolError(f"User {name}({os.getuid()}) is not allowed to submit mail")
    except TableError:
        raise ToolError("cannot look up who may submit mail") from None
    name = maildrop.new_name()
    _answer(protocol="postdrop_protocol", queue_id=name)
    try:
        maildrop.store(config.queue, name, _Copy(config).fill, last=True)
    except _NothingError:
        return 0
    except DamagedError as error:
        _answer(status="1", reason="")
        raise ToolError(f"uid={os.getuid()}: not a message: {error}") from None
    except maildrop.MaildropError as error:
        raise ToolError(f"uid={os.getuid()}: {error}") from None
    _answer(status="0", reason="")
    return 0


def _answer(**attributes: str) -> None:
    """Nobody listening is no error: the exit status says what became of the message."""
    fast.write_all(1, ("".join(f"{name}\0{value}\0" for name, value in attributes.items()) + "\0").encode())


class _Copy:
    """Reads records from stdin, checks them, writes them."""

    def __init__(self, config: Config) -> None:
        self._text_limit, self._file_limit = config.size_limit, file_limit(config.size_limit)
        self._recipients = 0
        self._text = self._file = 0  # bytes so far

    def fill(self, fd: int) -> None:
        """See maildrop.store; DamagedError for what pickup would refuse."""
        sec, usec = divmod(time.time_ns() // 1000, 1_000_000)
        maildrop.write_all(fd, maildrop.record(b"T", b"%d %d" % (sec, usec)))
        place = "envelope"
        while True:
            kind, data = _record()
            if kind not in _NEXT[place]:
                raise ToolError(f"uid={os.getuid()}: unexpected record type: {kind[0]}")
            if kind == b"E":
                break
            place = {b"M": "content", b"X": "extracted"}.get(kind, place)
            self._recipients += kind == b"R"
            if kind in _NAMED:
                kind, data = b"A", _NAMED[kind] + data
            if kind == b"A" and data.partition(b"=")[0] not in _ATTRIBUTES:
                shown = data.decode("utf-8", "replace")
                say("postdrop", f"warning: uid={os.getuid()}: ignoring attribute record: {shown}")
                continue
            self._write(fd, kind, data)
        if not self._recipients:
            raise ToolError(f"uid={os.getuid()}: no recipients specified")
        self._write(fd, b"E", b"")
        envelope_of(lambda offset, size: os.pread(fd, size, offset))

    def _write(self, fd: int, kind: bytes, data: bytes) -> None:
        whole = maildrop.record(kind, data)
        self._file += len(whole)
        self._text += len(data) + 1 if kind == b"N" else len(data) if kind == b"L" else 0
        if self._text_limit and (self._text > self._text_limit or self._file > self._file_limit):
            raise ToolError(f"uid={os.getuid()}: File too large")
        maildrop.write_all(fd, whole)


def _record() -> tuple[bytes, bytes]:
    """The next record of stdin."""
    stdin = sys.stdin.buffer
    kind = stdin.read(1)
    if not kind:
        raise _NothingError
    size = shift = 0
    while byte := stdin.read(1):
        size |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128 or shift > 28:
            break
    data = stdin.read(size) if size <= MAX_RECORD else b""
    if not byte or len(data) != size:
        say("postdrop", f"warning: stdin: unexpected EOF in data, record type {kind[0]} length {size}")
        raise ToolError(f"uid={os.getuid()}: malformed input")
    return kind, data
