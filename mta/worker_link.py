"""Between an smtpd worker and the scheduler process: announcements of new mail and the counters of clients.

One unix stream connection per worker, lines of text.  The scheduler says "H" when it has taken the connection:
the listening socket outlives it, so a connection alone does not mean that anybody is there.  From the worker:

    Q <queue-id> <moment>   a message is durable in the spool, which got its name after this moment (Clock.moment;
                            0: unknown); answered "A <queue-id>"
    C|D|M|R <seq> <address> a client connects | disconnects | sends MAIL | sends RCPT; C, M, R are answered
                            (address/service: at a service with limits of its own, mta/smtpd/anvil_service.py)
    "V <seq> ok" or "V <seq> <code> <enhanced> <text> ;; <for the log>"
    N                       counts anew: nothing is held for this worker
    L                       it listens no more; the link lasts as long as its clients

A worker without siblings counts its clients itself: the way to the scheduler and back would cost each client more
than all of its commands.  The scheduler says "S" (shared) to all when there is a second worker, and "O" to the only
one left.  After "S" a worker says who is connected and asks; after "O" it says "N" and asks no more.  Between the
start of a second worker and the first one's list, some milliseconds, a client may have a connection too many.

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

from mta.eager import start
from mta.maillog.maillog import Maillog
from mta.smtpd.facts import Verdict
from mta.smtpd.ports import Anvil

MAX_LINE = 1024  # bytes


def _nothing(_change: int) -> None:
    pass


class LinkServer:
    """The scheduler's end: makes a protocol for each worker (loop.create_unix_server)."""

    def __init__(
        self, anvil: Anvil, arrived: Callable[[str, int], None], log: Maillog, linked: Callable[[int], None] = _nothing
    ) -> None:
        """linked: told 1 when a worker has come, -1 when it has gone, or listens no more."""
        self.anvil, self.arrived, self.log, self.linked = anvil, arrived, log, linked
        self._ends: list[_WorkerEnd] = []

    def factory(self) -> asyncio.Protocol:
        """One worker's connection."""
        return _WorkerEnd(self)

    def come(self, end: "_WorkerEnd") -> None:
        """A worker has come."""
        self._ends.append(end)
        self.linked(1)
        end.say("H\n")
        if len(self._ends) > 1:
            for each in self._ends:
                each.say("S\n")

    def gone(self, end: "_WorkerEnd") -> None:
        """It was killed, or has left."""
        self._ends.remove(end)
        if len(self._ends) == 1:
            self._ends[0].say("O\n")


class Lines(asyncio.Protocol):
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


class _WorkerEnd(Lines):
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
        self._link.come(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It was killed, or has left."""
        self.transport = None
        self._leaves()
        self._release()
        self._link.gone(self)

    def _release(self) -> None:
        for address, count in self._held.items():
            for _ in range(count):
                self._link.anvil.disconnect(address)
        self._held.clear()

    def _leaves(self) -> None:
        if self._listens:
            self._listens = False
            self._link.linked(-1)

    def wrong(self, text: str) -> None:
        """See Lines."""
        self._link.log.warning("qmgr", f"worker link: {text}")

    def line(self, line: str) -> None:
        """See the module."""
        held = self._held
        match line.split():
            case ["Q", queue_id, named]:
                self._link.arrived(queue_id, int(named))
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
            case ["N"]:
                self._release()
            case ["L"]:
                self._leaves()
            case _:
                raise ValueError(f"unknown line {line[:80]!r}")

    def _answer(self, seq: str, counting: Coroutine[object, None, Verdict]) -> None:
        """Counting does not wait, as a rule."""

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
