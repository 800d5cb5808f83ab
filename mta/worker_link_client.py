"""A worker's end of the link to the scheduler; what is said on it is in mta/worker_link.py.

State: the announcements without an answer, the addresses of clients, and whether counters are shared with siblings.
They are not before the scheduler says so, nor while the link is down.
"""

import asyncio

from mta.clock import Clock
from mta.maillog.maillog import Maillog
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Verdict
from mta.smtpd.ports import Anvil
from mta.worker_link import Lines

RECONNECT = 0.2  # seconds
ANSWER = 2.0  # seconds a client may wait for its counter
MAX_UNSENT = 1 << 20  # bytes waiting for a scheduler that does not read
MAX_UNACKNOWLEDGED = 10_000  # ids; the oldest are left to the scan of incoming.  All at once are below MAX_UNSENT


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

    def __init__(self, path: str, clock: Clock, log: Maillog, own: Anvil | None = None) -> None:
        """own: counts while there are no siblings; without it the scheduler always does."""
        self._path, self._clock, self.log, self._own = path, clock, log, own
        self.shared = own is None  # the scheduler counts
        self._unacknowledged: dict[str, int] = {}
        self._asked: dict[str, asyncio.Future[Verdict]] = {}
        self._clients: dict[str, int] = {}
        self._seq = 0
        self._unsaid: list[str] = []  # announcements of this turn of the loop
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
        if self.shared:
            self._tell_clients(end)
        self._unsaid.clear()  # they are among these
        for queue_id, named in self._unacknowledged.items():
            end.say(f"Q {queue_id} {named}\n")
        if self._leaving:
            end.say("L\n")
        self._end = end

    def _tell_clients(self, end: "_SchedulerEnd") -> None:
        for address, count in self._clients.items():
            for _ in range(count):
                end.say(f"C 0 {address}\n")

    def share(self, end: "_SchedulerEnd") -> None:
        """There are siblings: the scheduler counts for all."""
        if not self.shared:
            self.shared = True
            self._tell_clients(end)

    def alone(self, end: "_SchedulerEnd") -> None:
        """There are none any more."""
        if self.shared and self._own is not None:
            self.shared = False
            end.say("N\n")

    def gone(self) -> None:
        """The link is down: whoever waits for a counter goes on without."""
        self._end = None
        self.shared = self._own is None
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

    def arrived(self, queue_id: str, named: int) -> None:
        """Announce a message, named after this moment; what the log has to say of it so far comes first."""
        self._unacknowledged[queue_id] = named
        if len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
            del self._unacknowledged[next(iter(self._unacknowledged))]
        if not self._unsaid:
            asyncio.get_running_loop().call_soon(self._announce)
        self._unsaid.append(f"Q {queue_id} {named}\n")

    def _announce(self) -> None:
        """Behind the replies to the clients, which are written first."""
        unsaid, self._unsaid = self._unsaid, []
        self.log.flush()
        if unsaid:
            self._send("".join(unsaid))

    def leaving(self) -> None:
        """This worker listens no more: somebody else must take the next client."""
        self._leaving = True
        self._send("L\n")

    async def settled(self, limit: float) -> None:
        """Wait until every announcement is acknowledged, at most so many seconds (the scan finds the others)."""
        deadline = self._clock.monotonic() + limit
        while self._unacknowledged and self.up and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)

    def _question(self, verb: str, address: str) -> asyncio.Future[Verdict]:
        """Ask, at once; the answer, or its cancellation, ends the question."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if self.up:
            self._seq += 1
            seq = str(self._seq)
            self._asked[seq] = future
            future.add_done_callback(lambda _: self._asked.pop(seq, None))
            self._send(f"{verb} {seq} {_word(address)}\n")
        else:
            future.set_result(PERMIT)
        return future

    async def _answer(self, asked: asyncio.Future[Verdict]) -> Verdict:
        try:
            async with self._clock.timeout(ANSWER):
                return await asked
        except TimeoutError:
            return PERMIT

    async def _ask(self, verb: str, address: str) -> Verdict:
        return await self._answer(self._question(verb, address))

    async def connect(self, address: str) -> Verdict:
        """A client has connected."""
        shared = self.shared
        word = _word(address)
        self._clients[word] = self._clients.get(word, 0) + 1
        if self._own is None:
            return await self._ask("C", address)
        asked = self._question("C", address) if shared else None  # now: the client may go while we wait
        try:
            verdict = await self._own.connect(address)  # always counts, so that it knows whenever it is asked again
            return await self._answer(asked) if asked is not None and self.shared else verdict
        finally:
            if asked is not None:
                asked.cancel()

    async def mail(self, address: str) -> Verdict:
        """A client sent MAIL."""
        return await (self._ask("M", address) if self._own is None or self.shared else self._own.mail(address))

    async def rcpt(self, address: str) -> Verdict:
        """A client sent RCPT."""
        return await (self._ask("R", address) if self._own is None or self.shared else self._own.rcpt(address))

    def disconnect(self, address: str) -> None:
        """A client has gone."""
        word = _word(address)
        left = self._clients.get(word, 0) - 1
        if left > 0:
            self._clients[word] = left
        else:
            self._clients.pop(word, None)
        if self._own is not None:
            self._own.disconnect(address)
        if self.shared:
            self._send(f"D 0 {word}\n")


class _SchedulerEnd(Lines):
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
        """See Lines."""
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
            case ["S"]:
                self._client.share(self)
            case ["O"]:
                self._client.alone(self)
