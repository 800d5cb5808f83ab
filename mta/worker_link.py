"""Between an smtpd worker and the scheduler process: announcements of new mail and the counters of clients.

One unix stream connection per worker, lines of text.  From the worker:

    Q <queue-id>            a message is durable in the spool; answered "A <queue-id>"
    C|D|M|R <seq> <address> a client connects | disconnects | sends MAIL | sends RCPT; C, M, R are answered
    "V <seq> ok" or "V <seq> <code> <enhanced> <text>"

State: the worker keeps every id until it is acknowledged and sends it again after a reconnect, so an
announcement is never lost while both live; when one dies the scan of incoming finds the message.  While the
link is down clients are not counted (mail is not refused because a counter is away), and a disconnect that
could not be sent is forgotten with the counters of the dead connection: the scheduler releases everything a
lost worker held.

A stream, not datagrams: those get lost when the receiver is busy.
"""

import asyncio
from collections.abc import Callable

from mta.clock import Clock
from mta.maillog import Maillog
from mta.smtp.reply import Reply
from mta.smtpd.anvil import Anvil
from mta.smtpd.facts import PERMIT, Verdict

RECONNECT = 1.0  # seconds
MAX_LINE = 1024


class LinkServer:
    """The scheduler's end."""

    def __init__(self, anvil: Anvil, arrived: Callable[[str], None], log: Maillog) -> None:
        self._anvil, self._arrived, self._log = anvil, arrived, log

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one worker until it goes away, then release the clients it held."""
        held: dict[str, int] = {}
        try:
            while line := await reader.readline():
                answer = await self._line(line.decode("ascii", "replace").split(), held)
                if answer:
                    writer.write(answer.encode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            self._log.warning("qmgr", f"worker link: {error}")
        finally:
            for address, count in held.items():
                for _ in range(count):
                    self._anvil.disconnect(address)
            writer.close()

    async def _line(self, words: list[str], held: dict[str, int]) -> str:
        match words:
            case ["Q", queue_id]:
                self._arrived(queue_id)
                return f"A {queue_id}\n"
            case ["D", _, address]:
                if held.get(address, 0) > 0:
                    held[address] -= 1
                    if not held[address]:
                        del held[address]
                    self._anvil.disconnect(address)
                return ""
            case ["C", seq, address]:
                held[address] = held.get(address, 0) + 1
                return _encode(seq, await self._anvil.connect(address))
            case ["M", seq, address]:
                return _encode(seq, await self._anvil.mail(address))
            case ["R", seq, address]:
                return _encode(seq, await self._anvil.rcpt(address))
        raise ValueError(f"unknown line {' '.join(words)[:80]!r}")


def _encode(seq: str, verdict: Verdict) -> str:
    if verdict.reply is None:
        return f"V {seq} ok\n"
    reply = verdict.reply
    return f"V {seq} {reply.code} {reply.enhanced or '-'} {reply.text}\n"


def _decode(words: list[str]) -> Verdict:
    if words[0] == "ok":
        return PERMIT
    code, enhanced, text = int(words[0]), words[1], " ".join(words[2:])
    return Verdict(Reply(code, "" if enhanced == "-" else enhanced, text), close=code == 421)


class LinkClient:
    """A worker's end; stands in for Anvil and for the store's `arrived`."""

    def __init__(self, path: str, clock: Clock, log: Maillog) -> None:
        self._path, self._clock, self._log = path, clock, log
        self._unacknowledged: dict[str, None] = {}
        self._asked: dict[str, asyncio.Future[Verdict]] = {}
        self._seq = 0
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
            except OSError:
                await self._clock.sleep(RECONNECT)
                continue
            self._writer = writer
            try:
                for queue_id in self._unacknowledged:
                    writer.write(f"Q {queue_id}\n".encode())
                while line := await reader.readline():
                    self._line(line.decode("utf-8", "replace").split())
            except (OSError, ValueError) as error:
                self._log.warning("smtpd", f"worker link: {error}")
            finally:
                self._writer = None
                writer.close()
                self._release()
            await self._clock.sleep(RECONNECT)

    def _release(self) -> None:
        """The link is down: whoever waits for a counter goes on without."""
        for future in self._asked.values():
            if not future.done():
                future.set_result(PERMIT)
        self._asked.clear()

    def _line(self, words: list[str]) -> None:
        match words:
            case ["A", queue_id]:
                self._unacknowledged.pop(queue_id, None)
            case ["V", seq, *rest] if rest:
                future = self._asked.pop(seq, None)
                if future is not None and not future.done():
                    future.set_result(_decode(rest))

    def arrived(self, queue_id: str) -> None:
        """Announce a message."""
        self._unacknowledged[queue_id] = None
        if self._writer is not None:
            self._writer.write(f"Q {queue_id}\n".encode())

    async def settled(self, limit: float) -> None:
        """Wait until every announcement is acknowledged, at most so many seconds (the scan finds the others)."""
        deadline = self._clock.monotonic() + limit
        while self._unacknowledged and self._writer is not None and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)

    async def _ask(self, verb: str, address: str) -> Verdict:
        if self._writer is None:
            return PERMIT
        self._seq += 1
        seq = str(self._seq)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked[seq] = future
        self._writer.write(f"{verb} {seq} {address}\n".encode())
        return await future

    async def connect(self, address: str) -> Verdict:
        """A client has connected."""
        return await self._ask("C", address)

    async def mail(self, address: str) -> Verdict:
        """A client sent MAIL."""
        return await self._ask("M", address)

    async def rcpt(self, address: str) -> Verdict:
        """A client sent RCPT."""
        return await self._ask("R", address)

    def disconnect(self, address: str) -> None:
        """A client has gone."""
        if self._writer is not None:
            self._writer.write(f"D 0 {address}\n".encode())
