"""Between an smtpd worker and the scheduler process: announcements of new mail and the counters of clients.

One unix stream connection per worker, lines of text.  The scheduler says "H" when it has taken the connection:
the listening socket outlives it, so a connection alone does not mean that anybody is there.  From the worker:

    Q <queue-id>            a message is durable in the spool; answered "A <queue-id>"
    C|D|M|R <seq> <address> a client connects | disconnects | sends MAIL | sends RCPT; C, M, R are answered
    "V <seq> ok" or "V <seq> <code> <enhanced> <text> ;; <for the log>"

State: the worker keeps every id until it is acknowledged, and the addresses of its clients; both are sent again
after a reconnect.  So an announcement is never lost while the worker lives (else the scan of incoming finds the
message), and a new scheduler knows who is connected.  When a worker dies the scheduler releases its clients.
While the link is down, or no answer comes for ANSWER seconds, clients are served uncounted: mail is not refused
because a counter is away.

A stream, not datagrams: those get lost when the receiver is busy.
"""

import asyncio
from collections.abc import Callable

from mta.clock import Clock
from mta.maillog import Maillog
from mta.smtp.reply import Reply
from mta.smtpd.anvil import Anvil
from mta.smtpd.facts import PERMIT, Verdict

RECONNECT = 0.2  # seconds
ANSWER = 2.0  # seconds a client may wait for its counter
MAX_LINE = 1024  # bytes
MAX_UNSENT = 1 << 20  # bytes waiting for a scheduler that does not read
MAX_UNACKNOWLEDGED = 100_000  # ids; the oldest are left to the scan of incoming


def _nothing(_change: int) -> None:
    pass


class LinkServer:
    """The scheduler's end."""

    def __init__(
        self, anvil: Anvil, arrived: Callable[[str], None], log: Maillog, linked: Callable[[int], None] = _nothing
    ) -> None:
        """linked: told 1 when a worker has come, -1 when it has gone."""
        self._anvil, self._arrived, self._log, self._linked = anvil, arrived, log, linked

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one worker until it goes away, then release the clients it held."""
        held: dict[str, int] = {}
        self._linked(1)
        writer.write(b"H\n")
        try:
            while line := await reader.readline():
                answer = await self._line(line.decode("ascii", "replace").split(), held)
                if answer:
                    writer.write(answer.encode("utf-8", "replace"))
        except ValueError as error:
            self._log.warning("qmgr", f"worker link: {error}")
        except OSError:  # the worker was killed
            pass
        finally:
            self._linked(-1)
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
    return f"V {seq} {reply.code} {reply.enhanced or '-'} {reply.text} ;; {' '.join(verdict.log)}\n"


def _decode(words: list[str]) -> Verdict:
    if words[0] == "ok":
        return PERMIT
    code, enhanced = int(words[0]), words[1]
    text, _, log = " ".join(words[2:]).partition(" ;;")
    reply = Reply(code, "" if enhanced == "-" else enhanced, text)
    return Verdict(reply, close=code == 421, log=(log.strip(),) if log.strip() else ())


def _word(address: str) -> str:
    """An address as one word of a line."""
    return "".join(address.split()) or "unknown"


class LinkClient:
    """A worker's end; stands in for Anvil and for the store's `arrived`."""

    def __init__(self, path: str, clock: Clock, log: Maillog) -> None:
        self._path, self._clock, self._log = path, clock, log
        self._unacknowledged: dict[str, None] = {}
        self._asked: dict[str, asyncio.Future[Verdict]] = {}
        self._clients: dict[str, int] = {}
        self._seq = 0
        self._writer: asyncio.StreamWriter | None = None

    @property
    def up(self) -> bool:
        """True while a scheduler is there."""
        return self._writer is not None

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
            except OSError:
                await self._clock.sleep(RECONNECT)
                continue
            try:
                await self._follow(reader, writer)
            except ValueError as error:
                self._log.warning("smtpd", f"worker link: {error}")
            except OSError:  # the scheduler was killed
                pass
            finally:
                self._writer = None
                writer.close()
                self._release()
            await self._clock.sleep(RECONNECT)

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wait for the greeting, say again what it may not know, then hear answers until the end."""
        if not await reader.readline():
            return
        for address, count in self._clients.items():
            writer.write(f"C 0 {address}\n".encode() * count)
        for queue_id in self._unacknowledged:
            writer.write(f"Q {queue_id}\n".encode())
        self._writer = writer
        while line := await reader.readline():
            self._line(line.decode("utf-8", "replace").split())

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

    def _send(self, line: str) -> None:
        if self._writer is None:
            return
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            self._writer.transport.abort()
            self._writer = None
            return
        self._writer.write(line.encode())

    def arrived(self, queue_id: str) -> None:
        """Announce a message."""
        self._unacknowledged[queue_id] = None
        if len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
            del self._unacknowledged[next(iter(self._unacknowledged))]
        self._send(f"Q {queue_id}\n")

    async def settled(self, limit: float) -> None:
        """Wait until every announcement is acknowledged, at most so many seconds (the scan finds the others)."""
        deadline = self._clock.monotonic() + limit
        while self._unacknowledged and self.up and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)

    async def _ask(self, verb: str, address: str) -> Verdict:
        if not self.up:
            return PERMIT
        self._seq += 1
        seq = str(self._seq)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked[seq] = future
        self._send(f"{verb} {seq} {_word(address)}\n")
        try:
            async with self._clock.timeout(ANSWER):
                return await future
        except TimeoutError:
            return PERMIT
        finally:
            self._asked.pop(seq, None)

    async def connect(self, address: str) -> Verdict:
        """A client has connected."""
        word = _word(address)
        self._clients[word] = self._clients.get(word, 0) + 1
        return await self._ask("C", address)

    async def mail(self, address: str) -> Verdict:
        """A client sent MAIL."""
        return await self._ask("M", address)

    async def rcpt(self, address: str) -> Verdict:
        """A client sent RCPT."""
        return await self._ask("R", address)

    def disconnect(self, address: str) -> None:
        """A client has gone."""
        word = _word(address)
        left = self._clients.get(word, 0) - 1
        if left > 0:
            self._clients[word] = left
        else:
            self._clients.pop(word, None)
        self._send(f"D 0 {word}\n")
