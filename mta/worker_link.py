"""Between an smtpd worker and the scheduler process: announcements of new mail and the counters of clients.

One unix stream connection per worker, lines of text.  The scheduler says "H" when it has taken the connection:
the listening socket outlives it, so a connection alone does not mean that anybody is there.  From the worker:

    Q <queue-id>            a message is durable in the spool; answered "A <queue-id>"
    C|D|M|R <seq> <address> a client connects | disconnects | sends MAIL | sends RCPT; C, M, R are answered
    "V <seq> ok" or "V <seq> <code> <enhanced> <text> ;; <for the log>"
    L                       it listens no more; the link lasts as long as its clients

State: the worker keeps every id until it is acknowledged, and the addresses of its clients; both are sent again
after a reconnect.  So an announcement is never lost while the worker lives (else the scan of incoming finds the
message), and a new scheduler knows who is connected.  When a worker dies the scheduler releases its clients.
While the link is down, or no answer comes for ANSWER seconds, clients are served uncounted: mail is not refused
because a counter is away.

A stream, not datagrams: those get lost when the receiver is busy.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import cast

from mta.clock import Clock
from mta.eager import start
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
    """The scheduler's end: makes a protocol for each worker (loop.create_unix_server)."""

    def __init__(
        self, anvil: Anvil, arrived: Callable[[str], None], log: Maillog, linked: Callable[[int], None] = _nothing
    ) -> None:
        """linked: told 1 when a worker has come, -1 when it has gone, or listens no more."""
        self.anvil, self.arrived, self.log, self.linked = anvil, arrived, log, linked

    def factory(self) -> asyncio.Protocol:
        """One worker's connection."""
        return _WorkerEnd(self)


class _Lines(asyncio.Protocol):
    """Cuts what comes into lines; what is said in one turn of the loop goes out in one write."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._part = b""
        self._out: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The other end is there."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand over whole lines, keep the rest."""
        lines = (self._part + data).split(b"\n")
        self._part = lines.pop()
        try:
            if len(self._part) > MAX_LINE:
                raise ValueError("line too long")
            for line in lines:
                self.line(line.decode("utf-8", "replace"))
        except ValueError as error:
            self.wrong(str(error))
            if self.transport is not None:
                self.transport.abort()

    def line(self, line: str) -> None:
        """One line; ValueError ends the connection."""

    def wrong(self, text: str) -> None:
        """The other end does not speak our language."""

    def say(self, line: str) -> None:
        """Send a line, soon."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(line)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write("".join(out).encode("utf-8", "replace"))


class _WorkerEnd(_Lines):
    """What the scheduler knows of one worker: the clients it holds, to release them when it goes."""

    def __init__(self, link: LinkServer) -> None:
        super().__init__()
        self._link = link
        self._held: dict[str, int] = {}
        self._listens = True
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet it."""
        super().connection_made(transport)
        self._link.linked(1)
        self.say("H\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """It was killed, or has left."""
        self.transport = None
        self._leaves()
        for address, count in self._held.items():
            for _ in range(count):
                self._link.anvil.disconnect(address)

    def _leaves(self) -> None:
        if self._listens:
            self._listens = False
            self._link.linked(-1)

    def wrong(self, text: str) -> None:
        """See _Lines."""
        self._link.log.warning("qmgr", f"worker link: {text}")

    def line(self, line: str) -> None:
        """See the module."""
        held = self._held
        match line.split():
            case ["Q", queue_id]:
                self._link.arrived(queue_id)
                self.say(f"A {queue_id}\n")
            case ["D", _, address]:
                if held.get(address, 0) > 0:
                    held[address] -= 1
                    if not held[address]:
                        del held[address]
                    self._link.anvil.disconnect(address)
            case ["C", seq, address]:
                held[address] = held.get(address, 0) + 1
                self._answer(seq, self._link.anvil.connect(address))
            case ["M", seq, address]:
                self._answer(seq, self._link.anvil.mail(address))
            case ["R", seq, address]:
                self._answer(seq, self._link.anvil.rcpt(address))
            case ["L"]:
                self._leaves()
            case _:
                raise ValueError(f"unknown line {line[:80]!r}")

    def _answer(self, seq: str, counting: Coroutine[object, None, Verdict]) -> None:
        """Counting waits only where a list of exceptions must be looked up."""

        async def answer() -> None:
            self.say(_encode(seq, await counting))

        done = start(answer(), asyncio.get_running_loop())
        if isinstance(done, asyncio.Task):
            self._tasks.add(done)
            done.add_done_callback(self._tasks.discard)


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
        self._path, self._clock, self.log = path, clock, log
        self._unacknowledged: dict[str, None] = {}
        self._asked: dict[str, asyncio.Future[Verdict]] = {}
        self._clients: dict[str, int] = {}
        self._seq = 0
        self._leaving = False
        self._end: _SchedulerEnd | None = None

    @property
    def up(self) -> bool:
        """True while a scheduler is there."""
        return self._end is not None

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                transport, end = await loop.create_unix_connection(lambda: _SchedulerEnd(self), self._path)
            except OSError:
                await self._clock.sleep(RECONNECT)
                continue
            try:
                await end.lost
            finally:
                transport.abort()
                self.gone()
            await self._clock.sleep(RECONNECT)

    def greeted(self, end: "_SchedulerEnd") -> None:
        """A scheduler has taken the connection: say again what it may not know."""
        for address, count in self._clients.items():
            for _ in range(count):
                end.say(f"C 0 {address}\n")
        for queue_id in self._unacknowledged:
            end.say(f"Q {queue_id}\n")
        if self._leaving:
            end.say("L\n")
        self._end = end

    def gone(self) -> None:
        """The link is down: whoever waits for a counter goes on without."""
        self._end = None
        for future in self._asked.values():
            if not future.done():
                future.set_result(PERMIT)
        self._asked.clear()

    def acknowledged(self, queue_id: str) -> None:
        """The scheduler knows of this message."""
        self._unacknowledged.pop(queue_id, None)

    def answered(self, seq: str, verdict: Verdict) -> None:
        """A counter has spoken."""
        future = self._asked.pop(seq, None)
        if future is not None and not future.done():
            future.set_result(verdict)

    def _send(self, line: str) -> None:
        end = self._end
        if end is None or end.transport is None:
            return
        if end.transport.get_write_buffer_size() > MAX_UNSENT:
            end.transport.abort()
            self._end = None
            return
        end.say(line)

    def arrived(self, queue_id: str) -> None:
        """Announce a message; what the log has to say of it so far comes first."""
        self.log.flush()
        self._unacknowledged[queue_id] = None
        if len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
            del self._unacknowledged[next(iter(self._unacknowledged))]
        self._send(f"Q {queue_id}\n")

    def leaving(self) -> None:
        """This worker listens no more: somebody else must take the next client."""
        self._leaving = True
        self._send("L\n")

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


class _SchedulerEnd(_Lines):
    """A worker's connection to the scheduler."""

    def __init__(self, client: LinkClient) -> None:
        super().__init__()
        self._client = client
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        """It was killed, or is being replaced."""
        self.transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def wrong(self, text: str) -> None:
        """See _Lines."""
        self._client.log.warning("smtpd", f"worker link: {text}")

    def line(self, line: str) -> None:
        """See the module."""
        match line.split():
            case ["A", queue_id]:
                self._client.acknowledged(queue_id)
            case ["V", seq, *rest] if rest:
                self._client.answered(seq, _decode(rest))
            case ["H"]:
                self._client.greeted(self)
