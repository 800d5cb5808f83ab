"""A next hop that keeps what it hears, byte for byte.

Recipients whose name begins with `defer` get 450, with `refuse` 550, all others are accepted.
"""

import socket
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heard:
    """One message: the addresses as sent, the content with CRLF, dots unstuffed."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class Sink:
    """Listens until close(); mail() is what came in so far."""

    def __init__(self, address: str, port: int = 25, *, eight_bit: bool = True) -> None:
        offered = [b"sink", b"PIPELINING", *([b"8BITMIME"] if eight_bit else [])]
        self._extensions = b"".join(b"250-%s\r\n" % word for word in offered) + b"250 DSN\r\n"
        self._heard: list[Heard] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server((address, port), backlog=128)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def mail(self) -> list[Heard]:
        """What was accepted so far."""
        with self._lock:
            return list(self._heard)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _recipient(self, address: str, recipients: list[str]) -> bytes:
        if address.startswith("defer"):
            return b"450 4.2.1 come back later\r\n"
        if address.startswith("refuse"):
            return b"550 5.1.1 not here\r\n"
        recipients.append(address)
        return b"250 2.1.5 Ok\r\n"

    def _serve(self, connection: socket.socket) -> None:
        sender, recipients = "", list[str]()
        with connection, connection.makefile("rb") as lines:
            connection.settimeout(120)
            connection.sendall(b"220 sink ESMTP\r\n")
            for line in lines:
                verb = line[:4].upper()
                path = line.partition(b"<")[2].rpartition(b">")[0].decode("utf-8", "surrogateescape")
                answer = b"250 2.0.0 Ok\r\n"
                if verb == b"EHLO":
                    answer = self._extensions
                elif verb == b"MAIL":
                    sender, recipients = path.split("> ")[0], []
                elif verb == b"RCPT":
                    answer = self._recipient(path.split("> ")[0], recipients)
                elif verb == b"DATA" and not recipients:
                    answer = b"554 5.5.1 no valid recipients\r\n"
                elif verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                    content = bytearray()
                    for part in lines:
                        if part == b".\r\n":
                            break
                        content += part[1:] if part.startswith(b".") else part
                    with self._lock:
                        self._heard.append(Heard(sender, tuple(recipients), bytes(content)))
                elif verb == b"QUIT":
                    connection.sendall(b"221 bye\r\n")
                    return
                connection.sendall(answer)
