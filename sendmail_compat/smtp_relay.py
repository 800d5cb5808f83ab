"""`sendmail -bs`: stdin and stdout become an SMTP dialogue with the daemon, which knows who we are.

Callers may end lines with LF alone (LSB): when the first line does, CRs are added.  A dialogue with CRLF is passed
on untouched, so a bare LF inside a message cannot become a line of its own.

See also: mta/submit/wire.py (mode s)
"""

import os
import selectors
import socket
import sys

from sendmail_compat import fast

CHUNK = 65536
EX_TEMPFAIL = 75


class BusyError(Exception):
    """There is no dialogue.  str(): why, "" when the daemon has said it.  status: exit status."""

    def __init__(self, text: str, status: int = EX_TEMPFAIL) -> None:
        super().__init__(text)
        self.status = status


def relay(path: str, argv: list[str]) -> int:
    """Run the dialogue on the submit socket; return the exit status."""
    try:
        sock = open_dialogue(path, argv)
    except BusyError as busy:
        if str(busy):
            sys.stderr.write(f"{fast.program(argv)}: {busy}\n")
        return busy.status
    with sock:
        return _copy(sock)


def open_dialogue(path: str, argv: list[str]) -> socket.socket:
    """A socket on which the daemon speaks SMTP; BusyError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(fast.FIRST_ANSWER)
        sock.connect(path)
        sock.sendall(fast.frame(b"H", os.urandom(16) + b"s" + fast.words(argv)))
        kind, data = _frame(sock)
        while kind in (b"W", b"O"):
            fast.write_all(2 if kind == b"W" else 1, data)
            kind, data = _frame(sock)
    except (OSError, ValueError):
        sock.close()
        raise BusyError("fatal: mail system is down; stand-alone mode needs it") from None
    if kind == b"G":
        sock.settimeout(None)
        return sock
    sock.close()
    if kind == b"R" and data:
        raise BusyError("", data[0])
    raise BusyError("fatal: mail system is busy, try again later")


def _frame(sock: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(sock, 5)
    return head[:1], _exactly(sock, int.from_bytes(head[1:], "big"))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("connection closed")
        data += piece
    return data


class _Dialogue:
    """stdin to the daemon and its replies to stdout, each as fast as the other end takes it."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self._sock, self._selector = sock, selector
        self._waiting = b""  # commands that the daemon has not taken yet
        self._convert: bool | None = None
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)

    def take_input(self) -> None:
        """More commands, one piece at a time."""
        self._selector.unregister(0)
        data = os.read(0, CHUNK)
        if self._convert is None and (end := data.find(b"\n")) >= 0:
            self._convert = not data[:end].endswith(b"\r")
        self._waiting = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") if self._convert else data
        if data:
            self._selector.modify(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        else:
            self._sock.shutdown(socket.SHUT_WR)

    def send(self) -> None:
        """Commands to the daemon; when it has ended the dialogue its last replies are still to be read."""
        try:
            self._waiting = self._waiting[self._sock.send(self._waiting) :]
        except BlockingIOError:
            return
        except OSError:
            self._selector.modify(self._sock, selectors.EVENT_READ)
            return
        if not self._waiting:
            self._selector.modify(self._sock, selectors.EVENT_READ)
            self._selector.register(0, selectors.EVENT_READ)

    def show(self) -> bool:
        """Replies to stdout; False when there will be no more."""
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        fast.write_all(1, data)
        return bool(data)


def _copy(sock: socket.socket) -> int:
    """Both directions until the daemon closes: who only writes, while the other does the same, waits for ever."""
    with selectors.PollSelector() as selector:  # a regular file is always ready; epoll does not take one
        dialogue = _Dialogue(sock, selector)
        while True:
            for key, ready in selector.select():
                if key.fileobj is not sock:
                    dialogue.take_input()
                    continue
                if ready & selectors.EVENT_READ and not dialogue.show():
                    return 0
                if ready & selectors.EVENT_WRITE:
                    dialogue.send()
