"""The next hop of the bit rot tests: notes what it is offered and what it accepts, on a network in memory.

Recipients named perm... get 550, temp... 450 the first time; all else 250.
"""

import asyncio
import re
from typing import cast

_ADDRESS = re.compile(r"[^:]*:<([^>]*)>")


class Sink:
    """offered: (sender, recipient) of each RCPT.  accepted: (sender, recipient, content with LF) after a final dot."""

    def __init__(self) -> None:
        self.offered: set[tuple[str, str]] = set()
        self.accepted: list[tuple[str, str, bytes]] = []
        self.greylisted: set[str] = set()

    def connection(self) -> asyncio.Protocol:
        return _Connection(self)


class _Connection(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._data: list[bytes] | None = None
        self._sender = ""
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._say("220 sink ESMTP")

    def _say(self, text: str) -> None:
        self._transport.write(text.encode() + b"\r\n")

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            if self._data is None:
                self._command(line.decode("utf-8", "surrogateescape"))
            elif line == b".":
                content = b"".join(self._data)
                self._data = None
                self._sink.accepted += [(self._sender, r, content) for r in self._recipients]
                self._say("250 2.0.0 taken")
            else:
                self._data.append(line.removeprefix(b".") + b"\n")

    def _command(self, line: str) -> None:
        verb = line[:4].upper()
        if verb == "EHLO":
            self._say("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES")
        elif verb == "MAIL":
            self._sender, self._recipients = self._address(line), []
            self._say("250 2.1.0 ok")
        elif verb == "RCPT":
            self._recipient(self._address(line))
        elif verb == "DATA" and self._recipients:
            self._data = []
            self._say("354 go")
        elif verb == "DATA":
            self._say("554 5.5.1 nobody")
        elif verb == "QUIT":
            self._say("221 bye")
            self._transport.close()
        else:
            self._say("250 ok")

    @staticmethod
    def _address(line: str) -> str:
        found = _ADDRESS.match(line)
        return found[1] if found else f"?{line}"

    def _recipient(self, address: str) -> None:
        self._sink.offered.add((self._sender, address))
        if address.startswith("perm"):
            self._say("550 5.1.1 no such user")
        elif address.startswith("temp") and address not in self._sink.greylisted:
            self._sink.greylisted.add(address)
            self._say("450 4.2.0 greylisted")
        else:
            self._recipients.append(address)
            self._say("250 2.1.5 ok")
