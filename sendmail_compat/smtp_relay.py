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


def _copy(sock: socket.socket) -> int:
    """Both directions until the daemon closes."""
    convert: bool | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        files = _register_stdin(selector, sock)
        while True:
            for key, _ in selector.select() if files else [(selector.get_key(sock), 0)]:
                if key.fileobj is sock:
                    try:
                        data = sock.recv(CHUNK)
                    except OSError:
                        return 0
                    if not data:
                        return 0
                    fast.write_all(1, data)
                    continue
                data = os.read(0, CHUNK)
                if not data:
                    selector.unregister(0)
                    files = False
                    sock.shutdown(socket.SHUT_WR)
                    continue
                if convert is None and (end := data.find(b"\n")) >= 0:
                    convert = not data[:end].endswith(b"\r")
                if convert:
                    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                try:
                    sock.sendall(data)
                except OSError:
                    return 0  # the daemon ended the dialogue


def _register_stdin(selector: selectors.BaseSelector, sock: socket.socket) -> bool:
    """Watch stdin; a regular file cannot be watched and is sent at once."""
    try:
        selector.register(0, selectors.EVENT_READ)
        return True
    except (PermissionError, ValueError, OSError):
        pass
    first = True
    convert = False
    while data := os.read(0, CHUNK):
        if first:
            end = data.find(b"\n")
            convert, first = end >= 0 and not data[:end].endswith(b"\r"), False
        sock.sendall(data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") if convert else data)
    sock.shutdown(socket.SHUT_WR)
    return False
