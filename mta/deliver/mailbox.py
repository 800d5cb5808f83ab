"""What a delivery into a mailbox is, and what mbox and Maildir have in common: headers, writing, errors.

Whoever calls has decided who the user is; this runs in the child of mta-local that has become the user, or in a
worker of an unprivileged daemon.  No state: a Message is one delivery, a Writer belongs to one open file.

When a step fails:
- quota, size limit: 5.2.2, the mailbox is full for good as far as we can tell;
- no space: 4.3.0, it is the system's fault;
- a lock that is held, a stale handle: 4.2.0;
- anything else about the mailbox (a link, a FIFO, another owner, no permission): 4.2.0.  Postfix bounces some
  of these with 5.2.0; a wrong 5xx loses mail, a wrong 4xx delays it.

See also: mta/deliver/mbox.py, mta/deliver/maildir.py, local(8) "MAILBOX DELIVERY"
"""

import errno
import os
from collections.abc import Callable, Iterator

from mta.message_address import quote
from mta.record import dataclass
from mta.smtp.reply import Reply

CHUNK = 65536  # bytes read from the content at a time
FILE_MODE = 0o600
FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FULL = (errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class MailboxSettings:
    """postconf(5); bytes, seconds, counts.  mailbox_size_limit 0 = none."""

    mailbox_size_limit: int
    mailbox_delivery_lock: tuple[str, ...]
    deliver_lock_attempts: int
    deliver_lock_delay: float
    stale_lock_time: float
    strict_mailbox_ownership: bool
    myhostname: str


@dataclass(frozen=True, slots=True)
class Message:
    """What is delivered.  content: descriptor of plain LF text, read by position.  Addresses unquoted.

    sender: "" = null sender.  original: X-Original-To, "" = no such header.  delivered_to: Delivered-To, "" =
    none.  arrival: Unix seconds of now, for the From_ line and Maildir names.
    """

    content: int
    sender: str
    original: str
    delivered_to: str
    now: float


@dataclass(frozen=True, slots=True)
class System:
    """What the engine may not reach for itself.  wait, now: seconds.  uid: owner the mailbox must have.

    written_out: see Journals in mta/fsio/linux_writeback.py; without it a new file and its name are flushed in turn.
    wanted: False when nobody waits for the delivery any more: it will be asked for again.
    """

    fsync: Callable[[int], None]
    wait: Callable[[float], None]
    now: Callable[[], float]
    uid: int
    written_out: Callable[[int], bool] = lambda fd: False
    wanted: Callable[[], bool] = lambda: True

    def check_wanted(self) -> None:
        """MailboxError when it is not; to be called after every wait, before anything is written."""
        if not self.wanted():
            raise MailboxError(451, "4.3.0", "nobody waits for this delivery any more")


class MailboxError(Exception):
    """Nothing was delivered (or all of it cut off again).  text is for the log, mailq and a bounce."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, enhanced, text)


def failure(error: OSError, what: str) -> MailboxError:
    """Map what the system said to a reply; `what` is in front of the reason."""
    text = f"{what}: {os.strerror(error.errno or errno.EIO)}"
    if error.errno in _FULL:
        return MailboxError(552, "5.2.2", text)
    if error.errno == errno.ENOSPC:
        return MailboxError(452, "4.3.0", text)
    return MailboxError(450, "4.2.0", text)


def trace_headers(message: Message) -> bytes:
    """Return-Path, X-Original-To, Delivered-To, in Postfix's order."""
    lines = [f"Return-Path: <{one_line(message.sender)}>"]
    if message.original:
        lines.append(f"X-Original-To: {one_line(message.original)}")
    if message.delivered_to:
        lines.append(f"Delivered-To: {one_line(message.delivered_to)}")
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def one_line(address: str) -> str:
    """An address in quoted form; control characters cannot get here, and could not end the line if they did."""
    return "".join("?" if ord(c) < 32 or ord(c) == 127 else c for c in quote(address)) if address else ""


def chunks_of(fd: int) -> Iterator[bytes]:
    """The content by position, so that a shared file offset does not matter."""
    offset = 0
    while chunk := os.pread(fd, CHUNK, offset):
        offset += len(chunk)
        yield chunk


class Writer:
    """Appends to a descriptor, all of each piece, and not beyond the limit."""

    def __init__(self, fd: int, position: int, limit: int) -> None:
        self._fd, self._position, self._limit = fd, position, limit

    def write(self, data: bytes) -> None:
        """Write it; OSError EFBIG when it is too much."""
        if self._limit and self._position + len(data) > self._limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._position += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def flush_directory(path: str, fsync: Callable[[int], None]) -> None:
    """Make the names in a directory durable; where the file system cannot, nothing happens."""
    fd = os.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(fd)
