"""Delivery into an mbox: append under locks, all of the message or nothing.

Nothing is trusted about the path:

    lock file -> open without following links -> regular, one link, the same file as its name, owned by the user ->
    file lock -> still the same file -> remember the length -> append -> flush -> close

Any error: cut back to the remembered length.  A process killed while it appends leaves a torn message at the end (at
most one).  The next delivery puts a complete blank line before its own From_ line, so both can be read.

State: the file, for as long as one delivery takes.

See also: mta/deliver/mbox_lock.py, mta/deliver/mailbox.py (what which error means)
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from mta.clock import mbox_date
from mta.deliver.mailbox import (
    CHUNK,
    FILE_MODE,
    FLAGS,
    MailboxError,
    MailboxSettings,
    Message,
    System,
    Writer,
    chunks_of,
    failure,
    flush_directory,
    one_line,
    trace_headers,
)
from mta.deliver.mbox_lock import MboxLocks
from mta.envelope import MAILER_DAEMON

TAIL = 64 << 20  # bytes of zeros at the end of a mailbox that are looked at
OPEN_TRIES = 5  # create and open races before the mailbox counts as unusable
_FROM = b"From "


class Mbox:
    """One delivery into one file."""

    def __init__(self, path: str, message: Message, settings: MailboxSettings, system: System) -> None:
        self._path, self._message, self._settings, self._system = path, message, settings, system
        self._locks = MboxLocks(path, settings, system)
        self._what = ""

    def deliver(self) -> None:
        """Lock, append, unlock; MailboxError."""
        try:
            with self._locks.file():
                fd = self._open()
                try:
                    self._locks.lock(fd)
                    self._check(fd)  # once more: a POP3 server may have replaced it
                    self._system.check_wanted()
                    self._append(fd)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.close(fd)
                    raise
                with contextlib.suppress(OSError):  # what was flushed is there: another try would be a second copy
                    os.close(fd)
        except OSError as error:
            raise failure(error, self._what) from error

    def _refuse(self, text: str) -> MailboxError:
        return MailboxError(450, "4.2.0", text)

    def _open(self) -> int:
        """Open what is there, or create it; never something that only has the right name."""
        self._what = "cannot open file"
        for _ in range(OPEN_TRIES):
            with contextlib.suppress(FileNotFoundError):
                return self._checked(os.open(self._path, os.O_RDWR | os.O_APPEND | FLAGS))
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | FLAGS
                return self._checked(os.open(self._path, flags, FILE_MODE))
        raise self._refuse("the mailbox comes and goes")  # a dangling link, or somebody plays

    def _checked(self, fd: int) -> int:
        try:
            self._check(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check(self, fd: int) -> None:
        """The open file is a mailbox of this user, and still what the name says."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise self._refuse("not a regular file")
        if found.st_nlink != 1:
            raise self._refuse(f"file has {found.st_nlink} hard links")
        named = os.lstat(self._path)
        if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
            raise self._refuse("the file was replaced while it was opened")
        if self._settings.strict_mailbox_ownership and found.st_uid != self._system.uid:
            raise self._refuse(f"destination {self._path} is not owned by recipient")

    def _append(self, fd: int) -> None:
        """All of the message or nothing."""
        message = self._message
        self._what = "error writing message"
        length = _without_zeros(fd, os.lseek(fd, 0, os.SEEK_END))
        writer = Writer(fd, length, self._settings.mailbox_size_limit)
        try:
            if not length:  # nobody knows whether the name of an empty file is durable: its maker may have been killed
                flush_directory(os.path.dirname(self._path) or ".", self._system.fsync)
            writer.write(_separator(fd, length) + from_line(message.sender, message.now) + trace_headers(message))
            for piece in quoted(chunks_of(message.content)):
                writer.write(piece)
            self._system.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, length)
            raise


def _without_zeros(fd: int, length: int) -> int:
    """Cut off zeros at the end and return the length: a power cut can leave the length of an append without its text.

    Such a tail is at most one message; a mailbox that ends in more zeros than TAIL is none of our making.
    """
    if not length or os.pread(fd, 1, length - 1) != b"\0":
        return length
    start, end = length, length
    while start > 0 and length - start < TAIL:
        start = max(0, end - CHUNK)
        text = os.pread(fd, end - start, start).rstrip(b"\0")
        end = start + len(text)
        if text:
            break
    if length - end >= TAIL:
        return length
    os.ftruncate(fd, end)
    return end


def _separator(fd: int, length: int) -> bytes:
    """What is missing of the blank line before us, when something was torn or another program is sloppy."""
    if not length:
        return b""
    end = os.pread(fd, 2, max(0, length - 2))
    if end.endswith(b"\n\n") or end == b"\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


def from_line(sender: str, now: float) -> bytes:
    """The line that begins a message in an mbox."""
    return f"From {one_line(sender) or MAILER_DAEMON}  {mbox_date(now)}\n".encode("utf-8", "surrogateescape")


def quoted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Put ">" before each line that begins with "From ", wherever the chunks are cut; end with a blank line."""
    start, carry = True, b""  # start: the next byte begins a line
    ended = True
    for chunk in chunks:
        data = carry + chunk
        if start and len(data) < len(_FROM) and _FROM.startswith(data):
            carry = data
            continue
        keep = data.rfind(b"\n") + 1 or (0 if start else len(data))
        tail = data[keep:]
        if len(tail) < len(_FROM) and _FROM.startswith(tail):
            data, carry = data[:keep], tail
        else:
            carry = b""
        if start and data.startswith(_FROM):
            data = b">" + data
        start = data.endswith(b"\n") if data else start
        ended = start
        yield data.replace(b"\nFrom ", b"\n>From ")
    if carry:
        yield carry
        ended = False
    yield b"\n" if ended else b"\n\n"
