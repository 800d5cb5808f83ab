"""A small SMTP server in a thread: the next hop of crash tests.  It tells the ledger just before it says 250.

Recipients named perm...@ get 550, temp...@ get 450 on the first try of each message; all others 250.
"""

import socket
import threading
from collections.abc import Callable

from tests.crash.ledger import Ledger


class Sink:
    """Listens on an ephemeral port of 127.0.0.1 until close()."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.busy = 0
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(connection)
            except OSError:
                return

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        say: Callable[[str], None] = lambda text: connection.sendall(text.encode() + b"\r\n")  # noqa: E731
        say("220 sink ESMTP")
        recipients: list[str] = []
        for raw in file:
            line = raw.decode("latin1").rstrip("\r\n")
            verb = line[:4].upper()
            if verb in ("EHLO", "HELO"):
                say("250-sink\r\n250-PIPELINING\r\n250 8BITMIME")
            elif verb == "MAIL":
                recipients = []
                say("250 2.1.0 Ok")
            elif verb == "RCPT":
                self._rcpt(line, recipients, say)
            elif verb == "DATA":
                if not recipients:
                    say("554 5.5.1 no valid recipients")
                    continue
                say("354 go")
                self._data(file, recipients, say)
            elif verb == "QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")

    def _rcpt(self, line: str, recipients: list[str], say: Callable[[str], None]) -> None:
        address = line.partition("<")[2].partition(">")[0]
        if address.startswith("perm"):
            say("550 5.1.1 no such user")
            return
        if address.startswith("temp") and (address, "") not in self._seen:
            with self._lock:
                self._seen.add((address, ""))
            say("450 4.2.0 greylisted")
            return
        recipients.append(address)
        say("250 2.1.5 Ok")

    def _data(self, file: object, recipients: list[str], say: Callable[[str], None]) -> None:
        message = ""
        with self._lock:
            self.busy += 1
        try:
            for raw in file:  # type: ignore[attr-defined]  # a socket's makefile
                if raw == b".\r\n":
                    break
                if not message and raw.lower().startswith(b"x-test-id:"):
                    message = raw.partition(b":")[2].strip().decode()
            else:
                return
            for recipient in recipients:
                self.ledger.deliver(message, recipient)
            say("250 2.0.0 Ok")
        finally:
            with self._lock:
                self.busy -= 1
