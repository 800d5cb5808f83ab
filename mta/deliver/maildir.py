"""Delivery into a Maildir: tmp/ -> flush -> link into new/ -> flush new/.

Where a journal keeps the order: tmp/ -> write out -> link into new/ -> flush the file, with one commit less.
A name in new/ is always a whole message, also after a power cut.

State: the file in tmp/, for as long as one delivery takes.

See also: mta/deliver/mailbox.py (what which error means), https://cr.yp.to/proto/maildir.html
"""

import contextlib
import errno
import os

from mta.deliver.mailbox import (
    FILE_MODE,
    FLAGS,
    MailboxSettings,
    Message,
    System,
    Writer,
    chunks_of,
    failure,
    flush_directory,
    trace_headers,
)

DIRECTORY_MODE = 0o700


class Maildir:
    """One delivery into one directory."""

    def __init__(self, path: str, message: Message, settings: MailboxSettings, system: System) -> None:
        self._path, self._message, self._settings, self._system = path.rstrip("/"), message, settings, system
        self._what = ""

    def deliver(self) -> None:
        """tmp -> flush -> new -> flush; MailboxError."""
        try:
            self._make_directories()
            self._system.check_wanted()
            self._store()
        except OSError as error:
            raise failure(error, f"maildir delivery failed: {self._what}") from error

    def _make_directories(self) -> None:
        made = False
        for name in ("", "/tmp", "/new", "/cur"):  # noqa: S108  parts of a Maildir
            directory = self._path + name
            self._what = f"create maildir directory {directory}"
            if not os.path.isdir(directory):
                os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
                made = True
        if made:
            for directory in (self._path, os.path.dirname(self._path)):
                flush_directory(directory, self._system.fsync)

    def _store(self) -> None:
        now = self._message.now
        seconds, micros = int(now), int(now % 1 * 1_000_000)
        host = self._settings.myhostname.replace("/", "\\057").replace(":", "\\072")
        temporary = f"{self._path}/tmp/{seconds}.P{os.getpid()}Q{os.urandom(6).hex()}.{host}"  # noqa: S108  part of a Maildir
        self._what = f"create maildir file {temporary}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, FILE_MODE)
        final = ""
        try:
            try:
                found = os.fstat(fd)
                self._write(fd)
                ordered = self._system.written_out(fd)
                if not ordered:
                    self._system.fsync(fd)
                final = f"{self._path}/new/{seconds}.V{found.st_dev:x}I{found.st_ino:x}M{micros}.{host}"
                self._what = f"create maildir file {final}"
                _move(temporary, final)
                self._what = f"error flushing {self._path}/new"
                if ordered:
                    self._system.fsync(fd)
            finally:
                os.close(fd)
            if not ordered:
                flush_directory(f"{self._path}/new", self._system.fsync)
        except BaseException as error:
            taken = isinstance(error, FileExistsError)  # then the name in new/ is not ours
            for name in (temporary, "" if taken else final):
                with contextlib.suppress(OSError):
                    os.unlink(name)
            raise

    def _write(self, fd: int) -> None:
        self._what = "error writing message"
        writer = Writer(fd, 0, self._settings.mailbox_size_limit)
        writer.write(trace_headers(self._message))
        last = b"\n"
        for chunk in chunks_of(self._message.content):
            writer.write(chunk)
            last = chunk[-1:]
        if last != b"\n":
            writer.write(b"\n")


def _move(temporary: str, final: str) -> None:
    """link, because it never replaces; rename where the file system has no links: the name is unique anyway."""
    try:
        os.link(temporary, final, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        os.rename(temporary, final)
        return
    with contextlib.suppress(OSError):  # what is in new/ is delivered: another try would be a second copy
        os.unlink(temporary)
