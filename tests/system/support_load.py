"""Clients that send mail without a pause while a server is stopped and started."""

import contextlib
import threading

from tests.system.support_lifecycle import Client


class Load:
    """Clients, one after the other in each of some threads, until stop().

    accepted: last replies "250 ... queued".  turned_away: answered 421 by a server that goes away.  failures: all else.
    """

    def __init__(self, port: int, recipient: str, clients: int = 4) -> None:
        self.accepted: list[str] = []
        self.turned_away = 0
        self.failures: list[str] = []
        self._port, self._recipient, self._end = port, recipient, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            try:
                said = self._one(f"c{client}n{number}")
            except OSError as error:
                said = repr(error)
            if said.startswith("250 2.0.0 Ok: queued"):
                self.accepted.append(said)
            elif said.startswith("421 "):
                self.turned_away += 1
            else:
                self.failures.append(said)

    def _one(self, name: str) -> str:
        """One message; the last reply: 250, or that of a server that goes away."""
        lines = ["EHLO load.test", "MAIL FROM:<a@src.test>", f"RCPT TO:<{self._recipient}>", "DATA",
                 f"Subject: {name}\r\n\r\nx\r\n."]  # fmt: skip
        with Client(self._port) as client:
            reply = client.greeting
            for line in lines:
                if reply[:1] not in "23" or not reply:
                    break
                with contextlib.suppress(OSError):  # it has said 421 and closed: what it said can still be read
                    client.sock.sendall(f"{line}\r\n".encode())
                reply = client.reply()
            return reply

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
