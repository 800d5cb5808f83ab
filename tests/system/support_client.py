"""SMTP clients for tests with many of them: every reply is kept, nothing is hidden by a library."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

PATIENCE = 60.0  # seconds for one reply


@dataclass
class Told:
    """What clients were told: replies other than 2xx and 354, and how many connections were lost or refused."""

    replies: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    def with_code(self, first: str) -> list[str]:
        """Replies of a class."""
        return [text for text in self.replies if text.startswith(first)]


class Client:
    """One connection.  command() returns the last line of the reply; OSError and EOFError as they come."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> str:
        """Connect and return the greeting."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return await self.reply()

    async def reply(self) -> str:
        """The next reply's last line."""
        async with asyncio.timeout(PATIENCE):
            while True:
                line = (await self.reader.readuntil(b"\n")).decode("latin1").rstrip("\r\n")
                if line[3:4] != "-":
                    return line

    async def command(self, line: str) -> str:
        """Send a line, return the answer."""
        self.writer.write(line.encode() + b"\r\n")
        return await self.reply()

    def close(self) -> None:
        """Drop the connection."""
        if hasattr(self, "writer"):
            self.writer.close()
            with contextlib.suppress(Exception):
                self.writer.transport.abort()


async def send_once(client: Client, sender: str, recipients: Sequence[str], content: bytes) -> str:
    """One message; returns the first reply that is not what a sender hopes for, or the 250 of the dot."""
    steps = ["EHLO client.test", f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in recipients), "DATA"]
    reply = await client.connect()
    for step in steps:
        if reply[0] not in "23":
            return reply
        reply = await client.command(step)
    if reply[0] != "3":
        return reply
    client.writer.write(content + b".\r\n")
    await client.writer.drain()
    return await client.reply()


async def send(port: int, sender: str, recipients: Sequence[str], content: bytes) -> str:
    """send_once() on a connection of its own; "lost" when the server went away."""
    client = Client(port)
    try:
        return await send_once(client, sender, recipients, content)
    except (OSError, EOFError):
        return "lost"
    finally:
        client.close()


async def persist(
    port: int, sender: str, recipients: Sequence[str], content: bytes, told: Told, *, pause: float = 0.3
) -> None:
    """Send as a real sender does: again, until it is taken."""
    while True:
        answer = await send(port, sender, recipients, content)
        if answer.startswith("250"):
            return
        if answer == "lost":
            told.lost += 1
        else:
            told.replies[answer] += 1
        await asyncio.sleep(pause)


def message(name: str, size: int = 300) -> bytes:
    """A small message with a mark that sinks and mailboxes are searched for."""
    line = b"0123456789abcdef" * 4 + b"\r\n"
    return f"X-Test-Id: {name}\r\nSubject: test\r\n\r\n".encode() + line * (size // len(line) + 1)
