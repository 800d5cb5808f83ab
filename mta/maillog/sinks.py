"""Where log lines go when they go to another process: syslog, or the journal with fields beside the text.

Both are sockets for datagrams, and a reader that is slow or away must not stop mail: nothing here waits.  What does
not fit now is kept, up to BUFFER_LIMIT characters, and sent when there is room; beyond that it is dropped and
counted, and the count is sent as a line of its own.

See also: RFC 3164, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, mta/maillog/fields.py
"""

import asyncio
import contextlib
import errno
import os
import re
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from mta.maillog.fields import fields, severity

MAIL = 2  # the facility, syslog(3)
BUFFER_LIMIT = 1 << 20  # characters kept while a reader does not take them
SEND_BUFFER = 1 << 20  # octets of the socket's own buffer
LONG = 2048  # characters of a line that was too long for one datagram
CLOSE_WAIT = 500  # milliseconds a process that ends gives the reader
DEV_LOG, JOURNAL = "/dev/log", "/run/systemd/journal/socket"
_FULL = (errno.EAGAIN, errno.ENOBUFS)

Encode = Callable[[str], bytes]
Target = tuple[str, Encode]
"""Path of a socket, and what it wants to get for a line "Nov 21 00:01:03 postfix/smtpd[812]: text"."""


def split_line(line: str) -> tuple[str, str]:
    """("postfix/smtpd", text) of a line without host name."""
    head, _, text = line.partition("]: ")
    return head[16:].partition("[")[0], text


def for_syslog(line: str) -> bytes:
    """As /dev/log wants it."""
    return f"<{MAIL * 8 + severity(split_line(line)[1])}>{line}".encode("utf-8", "replace")


def for_journal(line: str) -> bytes:
    """The journal's own protocol: NAME=value lines; no value of ours has a newline."""
    name, text = split_line(line)
    known = {
        "MESSAGE": text, "PRIORITY": str(severity(text)), "SYSLOG_FACILITY": str(MAIL), "SYSLOG_IDENTIFIER": name,
        "SYSLOG_PID": str(os.getpid()), **fields(text),
    }  # fmt: skip
    return "".join(f"{key}={value}\n" for key, value in known.items()).encode("utf-8", "replace")


class DatagramSink:
    """Sends each line to the first target that takes connections; a Sink of mta/maillog/maillog.py."""

    with_header = False

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._encode: Encode = for_syslog
        self._sock: socket.socket | None = None
        self._waiting: deque[str] = deque()
        self._size = 0
        self._lost = 0
        self._watched: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    def write(self, lines: list[str]) -> bool:
        """Send, or keep; always True, since this class counts what is lost itself."""
        for line in lines:
            if self._size + len(line) > BUFFER_LIMIT:
                self._lost += 1
                self._last = line
            else:
                self._waiting.append(line)
                self._size += len(line)
        if self._watched is None:
            self._pump()
        return True

    def reopen(self) -> None:
        """Connect again at the next line."""
        self._disconnect()

    def close(self) -> None:
        """Give the reader a moment for what is left; a forked copy of another process's lines is not sent again."""
        if self._waiting and self._pid == os.getpid():
            self._unwatch()
            self._pump(last=True)
        self._waiting.clear()
        self._size = 0
        self._disconnect()

    def _pump(self, *, last: bool = False) -> None:
        """Send until there is no more, or no room."""
        if self._sock is None and not self._connect():
            return
        poll = select.poll()
        while self._waiting:
            problem = self._send(self._waiting[0])
            if problem in _FULL:
                if not last:
                    self._watch()
                    return
                if self._sock is not None:
                    poll.register(self._sock, select.POLLOUT)
                if not poll.poll(CLOSE_WAIT):
                    return
                continue
            if problem:  # the reader is gone: again with a new connection, once
                self._disconnect()
                if not self._connect() or self._send(self._waiting[0]):
                    return
            self._size -= len(self._waiting.popleft())
            if not self._waiting and self._lost:
                self._tell()
        self._unwatch()

    def _tell(self) -> None:
        """Queue a line about what was lost."""
        head = re.sub(r"/[^\[]*\[", "/log[", self._last.partition("]: ")[0], count=1)
        line = f"{head}]: warning: {self._lost} lines lost"
        self._lost = 0
        self._waiting.append(line)
        self._size += len(line)

    def _send(self, line: str) -> int:
        """0, or an errno."""
        if self._sock is None:
            return errno.ENOTCONN
        try:
            try:
                self._sock.send(self._encode(line))
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._sock.send(self._encode(line[:LONG]))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _connect(self) -> bool:
        for path, encode in self._targets:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
                sock.connect(path)
            except OSError:
                sock.close()
                continue
            self._sock, self._encode = sock, encode
            return True
        return False

    def _disconnect(self) -> None:
        self._unwatch()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _watch(self) -> None:
        """Have the loop call us when there is room; without a loop the next line tries again."""
        if self._watched is None and self._sock is not None:
            with contextlib.suppress(RuntimeError):
                self._watched = asyncio.get_running_loop()
                self._watched.add_writer(self._sock.fileno(), self._pump)

    def _unwatch(self) -> None:
        if self._watched is not None and self._sock is not None:
            self._watched.remove_writer(self._sock.fileno())
        self._watched = None


class SyslogSink(DatagramSink):
    """/dev/log; without host name, as the local socket expects."""

    def __init__(self, path: str = DEV_LOG) -> None:
        super().__init__([(path, for_syslog)])


class JournalSink(DatagramSink):
    """The journal, with fields; where its socket is out of reach, /dev/log."""

    def __init__(self, path: str = JOURNAL, syslog: str = DEV_LOG) -> None:
        super().__init__([(path, for_journal), (syslog, for_syslog)])


def is_journal(environ: Mapping[str, str], fds: Sequence[int] = (1, 2)) -> bool:
    """True when standard output or error of this process is the journal (JOURNAL_STREAM, systemd.exec(5))."""
    stream = environ.get("JOURNAL_STREAM", "")
    for fd in fds:
        with contextlib.suppress(OSError):
            found = os.fstat(fd)
            if stream == f"{found.st_dev}:{found.st_ino}":
                return True
    return False
