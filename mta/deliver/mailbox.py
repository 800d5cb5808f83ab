"""Writing a message into a mailbox: mbox and Maildir, synchronous, with the rights of the calling process.

It runs in the child of mta-local that has become the user, or in a worker of an unprivileged daemon.  Whoever
calls has decided who the user is; here nothing is trusted about the path:

mbox     lock file -> open without following links -> regular, one link, the same file as its name, owned by the
         user -> file lock -> still the same file -> remember the length -> append -> flush -> close.
         Any error: cut back to the remembered length.
Maildir  tmp/ -> flush -> link into new/ -> flush new/.

When a step fails:
- quota, size limit: 5.2.2, the mailbox is full for good as far as we can tell;
- no space: 4.3.0, it is the system's fault;
- a lock that is held, a stale handle: 4.2.0;
- anything else about the mailbox (a link, a FIFO, another owner, no permission): 4.2.0.  Postfix bounces some
  of these with 5.2.0; a wrong 5xx loses mail, a wrong 4xx delays it.

A process killed while it appends leaves a torn message at the end (at most one).  The next delivery puts a
complete blank line before its own From_ line, so both can be read.

See also: local(8) "MAILBOX DELIVERY", postconf(5) mailbox_delivery_lock, https://cr.yp.to/proto/maildir.html
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mta.clock import mbox_date
from mta.envelope import MAILER_DAEMON
from mta.message_address import quote
from mta.smtp.reply import Reply

CHUNK = 65536  # bytes read from the content at a time
TAIL = 64 << 20  # bytes of zeros at the end of a mailbox that are looked at
OPEN_TRIES = 5  # create and open races before the mailbox counts as unusable
DIRECTORY_MODE, FILE_MODE = 0o700, 0o600
_FROM = b"From "
_FLOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: the whole file
_FULL = (errno.EDQUOT, errno.EFBIG)
_LATER = (errno.EAGAIN, errno.ESTALE)

LOCK_MODE = 0o444  # others may read whose it is
EMPTY_LOCK = 2.0  # seconds until a lock of ours without content was left by a power cut
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


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
    """What the engine may not reach for itself.  wait, now: seconds.  uid: owner the mailbox must have."""

    fsync: Callable[[int], None]
    wait: Callable[[float], None]
    now: Callable[[], float]
    uid: int


class MailboxError(Exception):
    """Nothing was delivered (or all of it cut off again).  text is for the log, mailq and a bounce."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, enhanced, text)


def deliver(path: str, message: Message, settings: MailboxSettings, system: System) -> str:
    """Deliver into a mailbox; a path that ends in "/" is a Maildir.  Return what the log says; MailboxError."""
    if path.endswith("/"):
        Maildir(path, message, settings, system).deliver()
        return "delivered to maildir"
    Mbox(path, message, settings, system).deliver()
    return "delivered to mailbox"


def failure(error: OSError, what: str) -> MailboxError:
    """Map what the system said to a reply; `what` is in front of the reason."""
    text = f"{what}: {os.strerror(error.errno or errno.EIO)}"
    if error.errno in _FULL:
        return MailboxError(552, "5.2.2", text)
    if error.errno == errno.ENOSPC:
        return MailboxError(452, "4.3.0", text)
    return MailboxError(450, "4.2.0", text)


# -- the text ---------------------------------------------------------------------------------------------


def trace_headers(message: Message) -> bytes:
    """Return-Path, X-Original-To, Delivered-To, in Postfix's order."""
    lines = [f"Return-Path: <{_one_line(message.sender)}>"]
    if message.original:
        lines.append(f"X-Original-To: {_one_line(message.original)}")
    if message.delivered_to:
        lines.append(f"Delivered-To: {_one_line(message.delivered_to)}")
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def from_line(sender: str, now: float) -> bytes:
    """The line that begins a message in an mbox."""
    return f"From {_one_line(sender) or MAILER_DAEMON}  {mbox_date(now)}\n".encode("utf-8", "surrogateescape")


def _one_line(address: str) -> str:
    """An address in quoted form; control characters cannot get here, and could not end the line if they did."""
    return "".join("?" if ord(c) < 32 or ord(c) == 127 else c for c in quote(address)) if address else ""


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


def chunks_of(fd: int) -> Iterator[bytes]:
    """The content by position, so that a shared file offset does not matter."""
    offset = 0
    while chunk := os.pread(fd, CHUNK, offset):
        offset += len(chunk)
        yield chunk


class _Writer:
    """Appends to a descriptor, all of each piece, and not beyond the limit."""

    def __init__(self, fd: int, position: int, limit: int) -> None:
        self._fd, self._position, self._limit = fd, position, limit

    def write(self, data: bytes) -> None:
        if self._limit and self._position + len(data) > self._limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._position += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


# -- mbox -------------------------------------------------------------------------------------------------


class Mbox:
    """One delivery into one file."""

    def __init__(self, path: str, message: Message, settings: MailboxSettings, system: System) -> None:
        self._path, self._message, self._settings, self._system = path, message, settings, system
        self._what = ""

    def deliver(self) -> None:
        """Lock, append, unlock; MailboxError."""
        try:
            with self._lock_file():
                fd = self._open()
                try:
                    self._lock(fd)
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

    @contextlib.contextmanager
    def _lock_file(self) -> Iterator[None]:
        """PATH.lock, for programs that look at nothing else; one left behind by a crash is removed."""
        if "dotlock" not in self._settings.mailbox_delivery_lock:
            yield
            return
        lock = f"{self._path}.lock"
        self._what = f"unable to create lock file {lock}"
        self._take(lock)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)

    def _take(self, lock: str) -> None:
        for attempt in range(max(1, self._settings.deliver_lock_attempts)):
            if attempt:
                self._system.wait(self._settings.deliver_lock_delay)
            try:
                _create_lock(lock)
            except FileExistsError:
                self._remove_stale(lock)
                continue
            return
        raise self._refuse(f"{self._what}: {os.strerror(errno.EEXIST)}")

    def _remove_stale(self, lock: str) -> None:
        """Remove a lock that is too old, or names a process that is dead (a machine or daemon that was killed).

        Between the look and the unlink somebody else may take the lock; the file lock is behind this one.
        """
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(lock)
            age = self._system.now() - found.st_ctime  # far in the future: the clock was set back
            old = abs(age) > self._settings.stale_lock_time
            if (old or self._holder_is_dead(lock, found)) and os.lstat(lock).st_ino == found.st_ino:
                os.unlink(lock)

    def _holder_is_dead(self, lock: str, found: os.stat_result) -> bool:
        """True when a lock of this user holds the pid of no process; as lockfile_create(3) judges.

        A power cut can leave the name of a lock without its content.
        """
        if found.st_uid != self._system.uid or not stat.S_ISREG(found.st_mode):
            return False
        try:
            fd = os.open(lock, os.O_RDONLY | _FLAGS)
            try:
                words = os.read(fd, 64).split()
            finally:
                os.close(fd)
            if not words and not found.st_mode & 0o222:
                return self._system.now() > found.st_ctime + EMPTY_LOCK
            os.kill(int(words[0]), 0)
            return len(words) > 1 and words[1] != _start_time(int(words[0]))  # another process with this number
        except ProcessLookupError:
            return True
        except (OSError, ValueError, OverflowError, IndexError):
            return False

    def _open(self) -> int:
        """Open what is there, or create it; never something that only has the right name."""
        self._what = "cannot open file"
        for _ in range(OPEN_TRIES):
            with contextlib.suppress(FileNotFoundError):
                return self._checked(os.open(self._path, os.O_RDWR | os.O_APPEND | _FLAGS))
            with contextlib.suppress(FileExistsError):
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _FLAGS
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

    def _lock(self, fd: int) -> None:
        """Lock the open file in all ways asked for, then look again: a POP3 server may have replaced it."""
        locks: list[Callable[[], object]] = []
        if "fcntl" in self._settings.mailbox_delivery_lock:
            locks.append(lambda: _fcntl_lock(fd))
        if "flock" in self._settings.mailbox_delivery_lock:
            locks.append(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
        for take in locks:
            self._what = "unable to lock for exclusive access"
            self._patiently(take)
        self._what = "cannot open file"
        self._check(fd)

    def _patiently(self, take: Callable[[], object]) -> None:
        for attempt in range(max(1, self._settings.deliver_lock_attempts)):
            if attempt:
                self._system.wait(self._settings.deliver_lock_delay)
            try:
                take()
                return
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes: fcntl(2)
                continue
        raise self._refuse(f"{self._what}: {os.strerror(errno.EAGAIN)}")

    def _append(self, fd: int) -> None:
        """All of the message or nothing."""
        message = self._message
        self._what = "error writing message"
        length = _without_zeros(fd, os.lseek(fd, 0, os.SEEK_END))
        writer = _Writer(fd, length, self._settings.mailbox_size_limit)
        try:
            if not length:  # nobody knows whether the name of an empty file is durable: its maker may have been killed
                _flush_directory(os.path.dirname(self._path) or ".", self._system.fsync)
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


def _start_time(pid: int) -> bytes:
    """When a process began, in clock ticks since boot: numbers of processes are used again, soon on a busy machine."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19]
    return b""


def _create_lock(lock: str) -> None:
    """Make a lock file that has our pid in it from its first moment; FileExistsError when there is one.

    It is written without a name and linked: a process killed in between leaves nothing.  Where the file system
    cannot do that, a lock that was left behind empty is stale after EMPTY_LOCK.
    """
    pid = b"%d\n%b\n" % (os.getpid(), _start_time(os.getpid()))
    try:
        fd = os.open(os.path.dirname(lock), os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, LOCK_MODE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, LOCK_MODE)
        linked = True
    else:
        linked = False
    try:
        os.write(fd, pid)
        if not linked:
            os.link(f"/proc/self/fd/{fd}", lock, src_dir_fd=fd)  # a directory makes it linkat(2), which follows
    finally:
        os.close(fd)


def _fcntl_lock(fd: int) -> None:
    """Lock the open file description: like a POSIX lock to other programs, but two threads exclude each other."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- Maildir ----------------------------------------------------------------------------------------------


class Maildir:
    """One delivery into one directory."""

    def __init__(self, path: str, message: Message, settings: MailboxSettings, system: System) -> None:
        self._path, self._message, self._settings, self._system = path.rstrip("/"), message, settings, system
        self._what = ""

    def deliver(self) -> None:
        """tmp -> flush -> new -> flush; MailboxError."""
        try:
            self._make_directories()
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
                _flush_directory(directory, self._system.fsync)

    def _store(self) -> None:
        now = self._message.now
        seconds, micros = int(now), int(now % 1 * 1_000_000)
        host = self._settings.myhostname.replace("/", "\\057").replace(":", "\\072")
        temporary = f"{self._path}/tmp/{seconds}.P{os.getpid()}Q{os.urandom(6).hex()}.{host}"  # noqa: S108  part of a Maildir
        self._what = f"create maildir file {temporary}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, FILE_MODE)
        final = ""
        try:
            try:
                found = os.fstat(fd)
                self._write(fd)
            finally:
                os.close(fd)
            final = f"{self._path}/new/{seconds}.V{found.st_dev:x}I{found.st_ino:x}M{micros}.{host}"
            self._what = f"create maildir file {final}"
            _move(temporary, final)
            self._what = f"error flushing {self._path}/new"
            _flush_directory(f"{self._path}/new", self._system.fsync)
        except BaseException as error:
            taken = isinstance(error, FileExistsError)  # then the name in new/ is not ours
            for name in (temporary, "" if taken else final):
                with contextlib.suppress(OSError):
                    os.unlink(name)
            raise

    def _write(self, fd: int) -> None:
        self._what = "error writing message"
        writer = _Writer(fd, 0, self._settings.mailbox_size_limit)
        writer.write(trace_headers(self._message))
        last = b"\n"
        for chunk in chunks_of(self._message.content):
            writer.write(chunk)
            last = chunk[-1:]
        if last != b"\n":
            writer.write(b"\n")
        self._system.fsync(fd)


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


def _flush_directory(path: str, fsync: Callable[[int], None]) -> None:
    fd = os.open(path or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(fd)
