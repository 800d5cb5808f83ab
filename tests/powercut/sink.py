"""The next hop: an SMTP server in threads that keeps a record of everything it said 250 to.

By the local part of the recipient: temp.. gets 450 at its first try, perm.. 550, late.. 450 and then 550, slow.. 450 at
its first two tries; any other is accepted.  Tries are counted per sender and recipient.
"""

import socket
import threading
import time
from collections import Counter

from tests.powercut.message import Copy, read

_ANSWERS = {"temp": (450,), "perm": (550, 550), "late": (450, 550), "slow": (450, 450)}
_TEXT = {250: b"250 2.1.5 Ok\r\n", 450: b"450 4.2.0 come back later\r\n", 550: b"550 5.1.1 no such user\r\n"}


class Sink:
    """Listens on a port of 127.0.0.1 (0: an ephemeral one) until close()."""

    def __init__(self, port: int = 0) -> None:
        self._copies: list[Copy] = []
        self._tries: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def copies(self) -> list[Copy]:
        """Everything accepted so far."""
        with self._lock:
            return list(self._copies)

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
            except OSError:  # the MTA was killed
                return

    def _answer(self, sender: str, recipient: str) -> int:
        codes = _ANSWERS.get(recipient[:4], ())
        with self._lock:
            number = self._tries[sender, recipient]
            self._tries[sender, recipient] += 1
        return codes[min(number, len(codes) - 1)] if number < len(codes) or 550 in codes else 250

    def _serve(self, connection: socket.socket) -> None:
        sender, recipients = "", list[str]()
        with connection.makefile("rb") as lines:
            connection.sendall(b"220 sink ESMTP\r\n")
            for line in lines:
                verb, path = line[:4].upper(), line.partition(b"<")[2].partition(b">")[0].decode()
                answer = b"250 2.0.0 Ok\r\n"
                if verb == b"EHLO":
                    answer = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
                elif verb == b"MAIL":
                    sender, recipients = path, []
                elif verb == b"RCPT":
                    code = self._answer(sender, path)
                    recipients += [path] if code == 250 else []
                    answer = _TEXT[code]
                elif verb == b"DATA" and not recipients:
                    answer = b"554 5.5.1 no valid recipients\r\n"
                elif verb == b"DATA":
                    connection.sendall(b"354 go\r\n")
                    content = bytearray()
                    for part in lines:
                        if part == b".\r\n":
                            break
                        content += part.removeprefix(b".")
                    else:
                        return
                    with self._lock:
                        self._copies += [read(bytes(content), r, time.monotonic()) for r in recipients]
                elif verb == b"QUIT":
                    connection.sendall(b"221 bye\r\n")
                    return
                connection.sendall(answer)
