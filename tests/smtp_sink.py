"""The next hop of tests with real processes: an SMTP server in threads.

What it answers to a recipient and what it keeps of a message is for a subclass to say; both are called from the
connections' threads, one at a time.
"""

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

OK = b"250 2.1.5 Ok"
SILENCE = 120.0  # seconds until a client that says nothing is given up


class SmtpSink(ABC):
    """Listens until close().  port 0: an ephemeral one, then in `port`.  busy: messages that are being taken."""

    def __init__(
        self, address: str = "127.0.0.1", port: int = 0, *, offers: tuple[bytes, ...] = (b"PIPELINING", b"8BITMIME")
    ) -> None:
        words = [b"sink", *offers]
        self._greeting = b"".join(b"250-%b\r\n" % word for word in words[:-1]) + b"250 %b" % words[-1]
        self.busy = 0
        self.lock = threading.Lock()
        self._listener = socket.create_server((address, port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @abstractmethod
    def answer(self, sender: str, recipient: str) -> bytes:
        """The reply to RCPT, without its line end; 2xx takes the recipient.  Called with the lock held."""

    @abstractmethod
    def take(self, sender: str, recipients: tuple[str, ...], content: bytes) -> None:
        """Keep a message, CRLF and dots unstuffed, just before its 250.  Called with the lock held."""

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                connection.settimeout(SILENCE)
                self._serve(connection, iter(lines))
            except OSError:  # the MTA was killed
                return

    def _serve(self, connection: socket.socket, lines: Iterator[bytes]) -> None:
        sender, recipients = "", list[str]()
        connection.sendall(b"220 sink ESMTP\r\n")
        for line in lines:
            verb = line[:4].upper()
            answer = b"250 2.0.0 Ok"
            if verb == b"EHLO":
                answer = self._greeting
            elif verb == b"MAIL":
                sender, recipients = _address(line), []
            elif verb == b"RCPT":
                with self.lock:
                    answer = self.answer(sender, _address(line))
                recipients += [_address(line)] if answer.startswith(b"2") else []
            elif verb == b"DATA" and not recipients:
                answer = b"554 5.5.1 no valid recipients"
            elif verb == b"DATA":
                connection.sendall(b"354 go\r\n")
                with self._working():
                    content = _content(lines)
                    if content is None:
                        return
                    with self.lock:
                        self.take(sender, tuple(recipients), content)
                    connection.sendall(answer + b"\r\n")
                continue
            elif verb == b"QUIT":
                connection.sendall(b"221 bye\r\n")
                return
            connection.sendall(answer + b"\r\n")

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self.lock:
            self.busy += 1
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1


def _address(line: bytes) -> str:
    """What stands between the brackets; parameters may have brackets of their own (AUTH=<>)."""
    return line.partition(b"<")[2].rpartition(b">")[0].split(b"> ")[0].decode("utf-8", "surrogateescape")


def _content(lines: Iterator[bytes]) -> bytes | None:
    """The text before the final dot, None when the connection ended first."""
    content = bytearray()
    for line in lines:
        if line == b".\r\n":
            return bytes(content)
        content += line.removeprefix(b".")
    return None
