"""A message put into maildrop when the daemon does not answer: a file that pickup, ours or Postfix's, takes.

    T A* F S (A R)* M N* X R* E

Written as USEC.PID, mode 0750 means complete, renamed to 32 hex digits, then fsync: a file that is renamed
before its fsync has its name on disk too.  Interrupted before it has its name, it is removed; from then on pickup may
take it at any moment, so a signal waits until it is durable.

See also: mta/queue/queue_file.py (records), mta/queue/maildrop_rules.py, mta/pickup.py, sendmail(1)
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from mta.envelope import VERP, Envelope
from mta.queue.maildrop_rules import MAX_ENVELOPE, MAX_RECIPIENTS, TOO_MANY
from mta.queue.queue_reader import MAX_RECORD
from mta.submit.options import EX_DATAERR
from mta.submit.prepare import Submission

LINE_LIMIT = 2048  # bytes of one text record
COMPLETE = 0o750
_TRIES = 20
_SIGNALS = (  # what ends a program and is no fault of its own
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
)  # fmt: skip


class MaildropError(Exception):
    """Nothing was written; str() says why."""


class TooManyError(MaildropError):
    """More recipients than pickup takes in one file."""


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


def write(queue: str, submission: Submission, chunks: Iterable[bytes], limit: int = 0) -> str:
    """Store a message; return its name.  Raises MaildropError, or UsageError from the submission.

    limit: message_size_limit, bytes of text, 0 = none.  The program is to end after this: see store().
    """
    return store(queue, new_name(), lambda fd: _fill(fd, submission, chunks, limit), last=True)


def new_name() -> str:
    """A name that nobody can guess or meet."""
    return os.urandom(16).hex()


def store(queue: str, name: str, fill: Callable[[int], None], *, last: bool = False) -> str:
    """Have a file filled and put it in place, durably; whatever fill raises, nothing of it stays.  MaildropError.

    last: the program has nothing else to do, so a signal after this ends it with 0: the message is queued.
    """
    folder = f"{queue}/maildrop"
    fd, temporary = _create(folder)
    signals = _Signals(temporary)
    try:
        fill(fd)
        os.fchmod(fd, COMPLETE)
        signals.wait()
        _put_in_place(fd, temporary, folder, name)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        signals.restore()
        if isinstance(error, OSError):
            raise MaildropError(f"write {folder}: {os.strerror(error.errno or 0)}") from None
        raise
    finally:
        os.close(fd)
    if last:
        signals.succeed()
    else:
        signals.restore()
    poke(queue)
    return name


def _put_in_place(fd: int, temporary: str, folder: str, name: str) -> None:
    """Rename and flush.  When the flush fails the file is removed, unless pickup has taken it: then it is queued."""
    path = f"{folder}/{name}"
    os.rename(temporary, path)
    try:
        os.fsync(fd)
        _sync_directory(folder)
    except OSError:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        raise


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
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_TRIES):
        path = f"{folder}/{time.time_ns() // 1000 % 1_000_000}.{os.getpid()}"
        try:
            return os.open(path, flags, 0o600), path
        except FileExistsError:
            continue
        except OSError as error:
            raise MaildropError(f"create a file in {folder}: {os.strerror(error.errno or 0)}") from None
    raise MaildropError(f"create a file in {folder}: no free name")


def _fill(fd: int, submission: Submission, chunks: Iterable[bytes], limit: int) -> None:
    """Write all records.  The header is held back by the submission until its recipients are known."""
    lines, size = LineRecords(), 0
    after: bytes | None = None
    for piece in _pieces(submission, chunks):
        if after is None:
            envelope = submission.envelope(time.time())
            before, after = envelope_records(envelope, len(submission.arguments))
            _check_envelope(envelope, len(before) + len(after))
            write_all(fd, before)
        size += len(piece)
        if limit and size > limit:
            raise submission.invocation.fatal(EX_DATAERR, f"{submission.who}: message file too big")
        write_all(fd, lines.feed(piece))
    write_all(fd, lines.end() + record(b"X", b"") + (after or b"") + record(b"E", b""))


def _check_envelope(envelope: Envelope, size: int) -> None:
    """TooManyError for what pickup would not take.  size: of its records, bytes."""
    longest = max(len(text(r.address)) for r in envelope.recipients) if size > MAX_RECORD else 0
    if len(envelope.recipients) > MAX_RECIPIENTS or size > MAX_ENVELOPE or longest > MAX_RECORD:
        raise TooManyError(TOO_MANY)


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


class _Signals:
    """What a signal that would end us does meanwhile.  One that the caller ignores stays ignored."""

    def __init__(self, path: str) -> None:
        """It removes the unfinished file first."""
        self._path, self._waits, self._done = path, False, False
        self._came: list[int] = []
        found = [(n, signal.getsignal(n)) for n in _SIGNALS]
        self._before = [(n, handler) for n, handler in found if handler not in (signal.SIG_IGN, None)]
        for number, _ in self._before:
            signal.signal(number, self._stop)

    def wait(self) -> None:
        """From now on it waits for restore() or succeed()."""
        self._waits = True

    def succeed(self) -> None:
        """From now on it ends us with 0."""
        self._done = True

    def restore(self) -> None:
        """As before; what has waited comes now."""
        for number, handler in self._before:
            signal.signal(number, handler)
        for waiting in self._came:
            os.kill(os.getpid(), waiting)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self._done:
            os._exit(0)
        if self._waits:
            self._came.append(number)
            return
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os._exit(128 + number)


def poke(queue: str) -> None:
    """Tell a running pickup; nobody there is no error."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        sock.connect(f"{queue}/public/pickup")
        sock.send(b"W")
