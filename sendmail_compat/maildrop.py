"""A message put into maildrop when the daemon does not answer: a file that pickup, ours or Postfix's, takes.

    T A* F S (A R)* M N* X R* E

Written as USEC.PID, mode 0750 means complete, renamed to 32 hex digits, then fsync: a file that is renamed
before its fsync has its name on disk too.  Interrupted, it is removed.

See also: mta/queue/queue_file.py (records), mta/pickup.py, sendmail(1)
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from mta.envelope import VERP, Envelope
from mta.submit_prepare import Submission

LINE_LIMIT = 2048  # bytes of one text record
COMPLETE = 0o750
_TRIES = 20
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class MaildropError(Exception):
    """Nothing was written; str() says why."""


def record(kind: bytes, data: bytes) -> bytes:
    """One record; its length in groups of 7 bits, the lowest first."""
    n, length = len(data), bytearray()
    while n > 127:
        length.append(n & 127 | 128)
        n >>= 7
    length.append(n)
    return kind + bytes(length) + data


def text(value: str) -> bytes:
    """As stored."""
    return value.encode("utf-8", "surrogateescape")


def envelope_records(envelope: Envelope, arguments: int) -> tuple[bytes, bytes]:
    """Records before the content, and recipients after it; arguments: how many recipients stand before."""
    sec, usec = divmod(int(envelope.arrival * 1_000_000), 1_000_000)
    out = [record(b"T", b"%d %d" % (sec, usec))]
    named = dict(envelope.attributes)
    verp = named.pop(VERP, "")
    if envelope.envelope_id:
        named["envelope_id"] = envelope.envelope_id
    if envelope.ret:
        named["ret_flags"] = str(int(envelope.ret))
    if envelope.encoding:
        named["encoding"] = envelope.encoding
    out += [record(b"A", text(f"{name}={value}")) for name, value in named.items()]
    if envelope.full_name:
        out.append(record(b"F", text(envelope.full_name)))
    out.append(record(b"S", text(envelope.sender)))
    if verp:
        out.append(record(b"V", text(verp)))
    recipients = []
    for r in envelope.recipients:
        flags = record(b"A", b"notify_flags=%d" % r.notify) if r.notify else b""
        recipients.append(flags + record(b"R", text(r.address)))
    before = b"".join(out + recipients[:arguments] + [record(b"M", b"")])
    return before, b"".join(recipients[arguments:])


class LineRecords:
    """Text records from pieces of LF lines."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        """Records of the whole lines so far."""
        *lines, last = (self._partial + data).split(b"\n")
        out = [_line(line) for line in lines]
        cut = len(last) // LINE_LIMIT * LINE_LIMIT
        if cut == len(last) and cut:
            cut -= LINE_LIMIT  # the last piece of a line is an N
        out += [record(b"L", last[i : i + LINE_LIMIT]) for i in range(0, cut, LINE_LIMIT)]
        self._partial = last[cut:]
        return b"".join(out)

    def end(self) -> bytes:
        """The last line, if it has no LF."""
        return record(b"N", self._partial) if self._partial else b""


def _line(line: bytes) -> bytes:
    if len(line) <= LINE_LIMIT:
        return record(b"N", line)
    cut = (len(line) - 1) // LINE_LIMIT * LINE_LIMIT
    pieces = [record(b"L", line[i : i + LINE_LIMIT]) for i in range(0, cut, LINE_LIMIT)]
    return b"".join([*pieces, record(b"N", line[cut:])])


def write(queue: str, submission: Submission, chunks: Iterable[bytes]) -> str:
    """Store a message; return its name.  Raises MaildropError, or UsageError from the submission."""
    return store(queue, new_name(), lambda fd: _fill(fd, submission, chunks))


def new_name() -> str:
    """A name that nobody can guess or meet."""
    return os.urandom(16).hex()


def store(queue: str, name: str, fill: Callable[[int], None]) -> str:
    """Have a file filled and put it in place, durably; whatever fill raises, nothing of it stays.  MaildropError."""
    folder = f"{queue}/maildrop"
    fd, temporary = _create(folder)
    try:
        with _removed_by_signal(temporary):
            fill(fd)
            os.fchmod(fd, COMPLETE)
            os.rename(temporary, f"{folder}/{name}")
            temporary = f"{folder}/{name}"
            os.fsync(fd)
            _sync_directory(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise MaildropError(f"write {folder}: {os.strerror(error.errno or 0)}") from None
        raise
    finally:
        os.close(fd)
    poke(queue)
    return name


def _sync_directory(folder: str) -> None:
    """Who may read the directory flushes it too; for the others the file's own fsync has to do (INTERNALS.md)."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(folder: str) -> tuple[int, str]:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_TRIES):
        path = f"{folder}/{time.time_ns() // 1000 % 1_000_000}.{os.getpid()}"
        try:
            return os.open(path, flags, 0o600), path
        except FileExistsError:
            continue
        except OSError as error:
            raise MaildropError(f"create a file in {folder}: {os.strerror(error.errno or 0)}") from None
    raise MaildropError(f"create a file in {folder}: no free name")


def _fill(fd: int, submission: Submission, chunks: Iterable[bytes]) -> None:
    """Write all records.  The header is held back by the submission until its recipients are known."""
    lines = LineRecords()
    after: bytes | None = None
    for piece in _pieces(submission, chunks):
        if after is None:
            before, after = envelope_records(submission.envelope(time.time()), len(submission.arguments))
            write_all(fd, before)
        write_all(fd, lines.feed(piece))
    write_all(fd, lines.end() + record(b"X", b"") + (after or b"") + record(b"E", b""))


def _pieces(submission: Submission, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Message text once the submission is ready; at least one piece, which may be empty."""
    for chunk in chunks:
        if submission.ended:
            break
        piece = submission.feed(chunk)
        if submission.ready:
            yield piece
    yield submission.end()


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written."""
    while data:
        data = data[os.write(fd, data) :]


@contextlib.contextmanager
def _removed_by_signal(path: str) -> Iterator[None]:
    """A signal that ends us removes the unfinished file first."""

    def stop(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os._exit(128 + number)

    before = [(n, signal.signal(n, stop)) for n in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def poke(queue: str) -> None:
    """Tell a running pickup; nobody there is no error."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        sock.connect(f"{queue}/public/pickup")
        sock.send(b"W")
