"""The log: one function per event, in Postfix's line formats, so that pflogsumm, fail2ban and logwatch read it.

A line is "Nov 21 00:01:03 host postfix/smtpd[812]: text".  It goes to a file (maillog_file), to stdout
(maillog_file = /dev/stdout, or start-fg), to the journal when our output is connected to it, or to syslog at
/dev/log.  Lines are collected for up to GATHER seconds and written to a file in one system call; a worker writes
before it announces a message, so that what it says of one stands before what the scheduler says.  Whatever is not
printable becomes "?", here and nowhere else, so no peer can forge a line or move a terminal's cursor.

A log that cannot be written is no reason to stop mail: the line is dropped and counted, and the count is
the first thing logged when writing works again.  A file that cannot be opened when the mail system starts ends the
start; later on lines go to syslog, or to standard error where there is none, until it can be opened.

See also: docs/logs.md, mta/maillog/sinks.py, RFC 3164 (syslog)
"""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Protocol

from mta.clock import Clock, syslog_date
from mta.deliver.request import Result
from mta.envelope import Recipient
from mta.maillog.sinks import DEV_LOG, JournalSink, SyslogSink, is_journal
from mta.record import dataclass
from mta.smtp.path import quote_address

MAX_LINKS = 40  # as the kernel has it
GATHER = 0.02  # seconds a line may wait for others; kill -9 loses no more than that


@dataclass(frozen=True, slots=True)
class MaillogSettings:
    """postconf(5): where the log goes and under which name."""

    maillog_file: str
    syslog_name: str
    myhostname: str


class Sink(Protocol):
    """Where finished lines go; write never raises, it says whether it worked."""

    with_header: bool

    def write(self, lines: list[str]) -> bool:
        """Write lines without newlines; False when they are lost."""

    def reopen(self) -> None:
        """After log rotation."""

    def close(self) -> None:
        """Release the descriptor."""


class FileSink:
    """A file opened for append, or an open descriptor such as stdout.  problem: why it cannot be opened, or ""."""

    with_header = True

    def __init__(self, path: str, fd: int = -1) -> None:
        self._path, self._fd = path, fd
        self._instead: SyslogSink | FileSink | None = None  # while there is no file
        self.problem = ""
        self._torn = False  # the disk was full in the middle of a line
        if fd < 0:
            self.reopen()

    def reopen(self) -> None:
        """Open the path again; the old descriptor stays when that fails."""
        if self._path in ("/dev/stdout", "-"):
            self._fd = sys.stdout.fileno()
            return
        try:
            fd = open_log(self._path)
        except OSError as error:
            self.problem = error.strerror or type(error).__name__
            return
        self.close()
        self._fd, self.problem = fd, ""

    def write(self, lines: list[str]) -> bool:
        """One write(2) for all lines."""
        if self._fd < 0:
            self.reopen()
            if self._fd < 0:
                return self._write_instead(lines)
        data = ("\n" * self._torn + "\n".join(lines) + "\n").encode("utf-8", "replace")
        try:
            while data:
                written = os.write(self._fd, data)
                self._torn = data[written - 1 : written] != b"\n"
                data = data[written:]
        except OSError:
            return False
        return True

    def _write_instead(self, lines: list[str]) -> bool:
        """To syslog, which wants no host name, or standard error; why this is so comes first."""
        if self._instead is None:
            self._instead = SyslogSink() if os.path.exists(DEV_LOG) else FileSink("", 2)
            head = lines[0].partition("]: ")[0]
            lines = [f"{head}]: warning: maillog_file: open {self._path}: {self.problem}; the log is here now", *lines]
        if not self._instead.with_header:
            lines = [line[:16] + line[16:].partition(" ")[2] for line in lines]
        return self._instead.write(lines)

    def give_to(self, uid: int, gid: int) -> None:
        """Change the owner of what is open, if it is a file."""
        if self._fd > 2 and stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.fchown(self._fd, uid, gid)

    def close(self) -> None:
        """Close the file; stdout is left open."""
        if self._instead is not None:
            self._instead.close()
            self._instead = None
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1


def open_log(path: str) -> int:
    """Open a log for append, make it if there is none; OSError.

    Root follows only links that are root's: whoever else may write in one of the directories could lead it to any file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    if os.geteuid() or path.startswith("/dev/"):
        return os.open(path, flags, 0o640)
    steps = os.path.abspath(path).split("/")[:0:-1]  # the next one last
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    links = 0
    try:
        while len(steps) > 1 or (steps and _is_link(steps[0], here)):
            step = os.open(steps.pop(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            info = os.fstat(step)
            if not stat.S_ISLNK(info.st_mode):
                os.close(here)
                here = step
                continue
            target = os.readlink("", dir_fd=step)
            os.close(step)
            links += 1
            if info.st_uid or links > MAX_LINKS:
                raise OSError(errno.ELOOP, "a symbolic link on the way is not root's")
            steps += [name for name in reversed(target.split("/")) if name]
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_CLOEXEC)
        return os.open(steps[0] if steps else ".", flags | os.O_NOFOLLOW, 0o640, dir_fd=here)
    finally:
        os.close(here)


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode)
    except FileNotFoundError:
        return False


def sink_for(settings: MaillogSettings) -> Sink:
    """A file, or standard output, or syslog; the journal instead of the last two when we are connected to it."""
    fds = {"": (1, 2), "/dev/stdout": (1,)}.get(settings.maillog_file, ())
    if is_journal(os.environ, fds):
        return JournalSink()
    return FileSink(settings.maillog_file) if settings.maillog_file else SyslogSink()


def printable(text: str) -> str:
    """Return text with every character that is not printable replaced by "?" (includes C1 and bidi controls)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


class Watcher(Protocol):
    """Hears every line; must not raise, wait or log."""

    def line(self, text: str) -> None:
        """One line, without its head."""


class Maillog:
    """One per process.  write() may be called from anywhere on the loop's thread, or without a loop."""

    def __init__(self, settings: MaillogSettings, clock: Clock, sink: Sink | None = None) -> None:
        self._name = settings.syslog_name
        self._host = settings.myhostname.partition(".")[0]
        self._clock = clock
        self._pid = os.getpid()
        self._sink: Sink = sink or sink_for(settings)
        self._lines: list[str] = []
        self._second = -1
        self._date = ""
        self._heads: dict[str, str] = {}  # by service, of this second
        self._lost = 0
        self._gathers: asyncio.AbstractEventLoop | None = None  # which will call _gathered
        self.watchers: list[Watcher] = []

    def write(self, service: str, text: str) -> None:
        """Log one event of a service: "smtpd", "qmgr", "submission/smtpd"..."""
        now = int(self._clock.now())
        if now != self._second:
            self._second, self._date = now, syslog_date(now)
            self._heads.clear()
        head = self._heads.get(service)
        if head is None:
            host = f" {self._host}" if self._sink.with_header else ""
            head = self._heads[service] = f"{self._date}{host} {self._name}/{service}[{self._pid}]: "
        self._lines.append(head + printable(text))
        for watcher in self.watchers:
            watcher.line(text)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # none: a short-lived or synchronous process
            self.flush()
            return
        if self._gathers is not loop:  # or that of one that has ended, with its timers
            self._clock.call_later(GATHER, self._gathered)
            self._gathers = loop

    def warning(self, service: str, text: str) -> None:
        """Log something an administrator should look at."""
        self.write(service, f"warning: {text}")

    def _gathered(self) -> None:
        self._gathers = None
        self.flush()

    def flush(self) -> None:
        """Hand collected lines to the sink."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._lost:
            head = f"{self._date} {self._host} {self._name}/log[{self._pid}]"
            lines.insert(0, f"{head}: warning: {self._lost} lines lost")
        if self._sink.write(lines):
            self._lost = 0
        else:
            self._lost += len(lines)

    @property
    def problem(self) -> str:
        """Why the log file cannot be opened, or ""."""
        return self._sink.problem if isinstance(self._sink, FileSink) else ""

    def give_to(self, uid: int, gid: int) -> None:
        """Change the owner of the log file."""
        if isinstance(self._sink, FileSink):
            self._sink.give_to(uid, gid)

    def reopen(self) -> None:
        """After rotation: flush, then continue in the new file; in the old one when the new one cannot be opened."""
        self.flush()
        self._sink.reopen()
        if self.problem:
            self.warning("log", f"maillog_file cannot be opened again: {self.problem}")

    def close(self) -> None:
        """Flush and release."""
        self._gathered()
        self._sink.close()


def seconds(value: float) -> str:
    """Format a delay as Postfix does: two digits, resolution 0.01, no trailing zeros ("0", "0.02", "1.1", "330")."""
    value = max(0.0, value)
    if value >= 9.95:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Delays:
    """The four parts of delays=a/b/c/d: before the queue manager, in it, connection set-up, transmission; seconds."""

    before: float
    queued: float
    setup: float
    transmit: float

    def __str__(self) -> str:
        parts = "/".join(map(seconds, (self.before, self.queued, self.setup, self.transmit)))
        return f"delay={seconds(self.before + self.queued + self.setup + self.transmit)}, delays={parts}"


STATUS = {2: "sent", 4: "deferred", 5: "bounced"}


def delivery(
    write: Callable[[str, str], None],
    service: str,
    queue_id: str,
    recipient: Recipient,
    result: Result,
    delays: Delays,
) -> None:
    """The line per recipient and attempt: "ID: to=<x>, relay=h[ip]:25, delay=.., dsn=2.0.0, status=sent (text)".

    Addresses stand in it as in a command (postconf(5) info_log_address_format = external): in quotes, what a stranger
    has written into one is no other field.
    """
    original = recipient.original
    other = original and original.lower() != recipient.address.lower()
    orig = f" orig_to=<{quote_address(original)}>," if other else ""
    use = f" conn_use={result.conn_use}," if result.conn_use > 1 else ""
    write(
        service,
        f"{queue_id}: to=<{quote_address(recipient.address)}>,{orig} relay={result.relay},{use} {delays}, "
        f"dsn={result.reply.enhanced}, status={STATUS[result.reply.code // 100]} ({result.text})",
    )
