"""The next hop of the kill matrix: keeps whole messages, and answers by the recipient's name.

ok... src...  250        perm...  550        temp...  450 the first time, then 250
late...       450 the first time, then 550   (a second recipient that fails while the first report waits)
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Taken:
    """One copy that was answered with 250.  content: with LF, without dot-stuffing."""

    sender: str
    recipient: str
    content: bytes


class KeepingSink:
    """Listens on an ephemeral port of 127.0.0.1; `taken` grows, `forget()` empties it."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.arriving: Callable[[Taken], None] = lambda _: None
        self._tried: set[str] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """Begin a new run; connections of the last one are cut."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.taken, self._tried = [], set()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        self.forget()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(connection)
        with connection, contextlib.suppress(OSError):
            self._dialogue(connection)
        with self._lock:
            self._open.discard(connection)

    def _dialogue(self, connection: socket.socket) -> None:
        def say(text: str) -> None:
            connection.sendall(text.encode() + b"\r\n")

        file = connection.makefile("rb")
        sender, recipients = "", list[str]()
        say("220 sink ESMTP")
        for raw in file:
            line = raw.decode("latin1").rstrip("\r\n")
            address = line.partition("<")[2].partition(">")[0]
            match line[:4].upper():
                case "EHLO" | "HELO":
                    say("250-sink\r\n250-PIPELINING\r\n250 8BITMIME")
                case "MAIL":
                    sender, recipients = address, []
                    say("250 2.1.0 Ok")
                case "RCPT":
                    answer = self._answer(address)
                    if answer.startswith("250"):
                        recipients.append(address)
                    say(answer)
                case "DATA" if recipients:
                    say("354 go")
                    content = _content(file)
                    if content is None:
                        return
                    self._keep(sender, recipients, content)
                    say("250 2.0.0 taken")
                case "DATA":
                    say("554 5.5.1 no valid recipients")
                case "QUIT":
                    say("221 bye")
                    return
                case _:
                    say("250 ok")

    def _keep(self, sender: str, recipients: list[str], content: bytes) -> None:
        """From here on the message is delivered, whether or not the 250 is heard."""
        for recipient in recipients:
            copy = Taken(sender, recipient, content)
            self.arriving(copy)
            with self._lock:
                self.taken.append(copy)

    def _answer(self, address: str) -> str:
        with self._lock:
            again = address in self._tried
            self._tried.add(address)
        if address.startswith("perm") or (address.startswith("late") and again):
            return "550 5.1.1 no such user"
        if address.startswith(("temp", "late")) and not again:
            return "450 4.2.0 greylisted"
        return "250 2.1.5 Ok"


def _content(file: object) -> bytes | None:
    """Up to the final dot; None when the connection ends before."""
    lines: list[bytes] = []
    for raw in file:  # type: ignore[attr-defined]  # a socket's makefile
        if raw == b".\r\n":
            return b"".join(lines)
        line = raw[:-2] + b"\n" if raw.endswith(b"\r\n") else raw
        lines.append(line[1:] if line.startswith(b".") else line)
    return None
