"""A network in memory with latency, cut streams, dead hosts and processes that die in mid-sentence.

Each end of a connection belongs to a process (None: the world outside) and its callbacks run in that process.  Bytes
arrive in order, each piece after the latency of its connection; what a process wrote before it was killed arrives,
and then the end of the connection.  After a power cut there is only silence.
"""

import asyncio
import contextvars
import errno
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tests.sim.process import PROCESS, Process

P = TypeVar("P", bound=asyncio.BaseProtocol)
Factory = Callable[[], asyncio.BaseProtocol]
Address = tuple[str, int]
SILENCE = 60.0  # seconds until the world notices that a machine has no power
TICK = 1e-9


class _Socket:
    """What is asked of a connection's socket; family 1 is AF_UNIX, with the credentials of uid."""

    def __init__(self, uid: int) -> None:
        self.family, self._uid = (1, uid) if uid >= 0 else (2, 0)

    proto = 6

    def fileno(self) -> int:
        return 9

    def setsockopt(self, *_arguments: object) -> None:
        return

    def getsockopt(self, *_arguments: object) -> bytes:
        return struct.pack("3i", 1, self._uid, self._uid)


class End(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, net: "Net", local: object, remote: object, uid: int, latency: float) -> None:
        super().__init__({"sockname": local, "peername": remote, "socket": _Socket(uid)})
        self.net, self.loop = net, net.loop
        self.process: Process | None = PROCESS.get()
        self.context = self.process.context if self.process is not None else net.context
        self.protocol: Any = None
        self.peer: End | None = None
        self.latency = latency
        self.closing = self.lost = self.paused = False
        self.held: list[Callable[[], None]] = []
        self.due = 0.0  # when what was last sent arrives
        self.received = 0  # bytes given to the protocol
        self.sent = 0
        if self.process is not None:
            self.process.on_death.append(self._owner_died)

    def dead(self) -> bool:
        """Does the owner not run any more?"""
        return self.process is not None and not self.process.alive

    # -- asyncio.Transport --------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return not self.paused

    def write(self, data: Any) -> None:
        if not data or self.closing or self.dead():
            return
        if self.process is not None:
            self.process.step()
        self.sent += len(data)
        data = bytes(data)
        if self.net.split and len(data) > 1 and self.net.rng.random() < self.net.split:
            at = self.net.rng.randrange(1, len(data))
            self._send(self._arrives, data[:at])
            data = data[at:]
        self._send(self._arrives, data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        held, self.held = self.held, []
        for arrival in held:
            self.loop.call_soon(self._take, arrival, context=self.context)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._send(self._half_closed)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._send(self._ended, None)
            self.loop.call_soon(self._lose, None, context=self.context)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self._send(self._ended, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
            self.loop.call_soon(self._lose, None, context=self.context)

    # -- on the way -----------------------------------------------------------------------------------

    def _send(self, arrival: Callable[..., None], *arguments: Any) -> None:
        """Run something at the other end after the latency, in order."""
        peer = self.peer
        if peer is None or (self.net.off and self.process is not None):
            return
        self.due = max(self.due + TICK, self.loop.time() + self.latency)  # timers of one moment have no order
        self.loop.call_at(self.due, self._reach, peer, arrival, arguments, context=peer.context)

    def _reach(self, peer: "End", arrival: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        peer._take(lambda: arrival(peer, *arguments))

    def _take(self, arrival: Callable[[], None]) -> None:
        if self.paused:
            self.held.append(arrival)
        else:
            arrival()

    @staticmethod
    def _arrives(end: "End", data: bytes) -> None:
        if end.lost or end.closing:
            return
        end.received += len(data)
        protocol = end.protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            while data:
                buffer = memoryview(protocol.get_buffer(-1))
                size = min(len(data), len(buffer))
                buffer[:size] = data[:size]
                protocol.buffer_updated(size)
                data = data[size:]
        elif protocol is not None:
            protocol.data_received(data)

    @staticmethod
    def _half_closed(end: "End") -> None:
        if not end.lost and end.protocol is not None and not end.protocol.eof_received():
            end.close()

    @staticmethod
    def _ended(end: "End", error: Exception | None) -> None:
        if end.lost or end.closing:
            return
        if error is None and end.protocol is not None:
            end.protocol.eof_received()
        end.closing = True
        end._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            if self.protocol is not None and not self.dead():
                self.protocol.connection_lost(error)

    def _owner_died(self) -> None:
        """kill -9: the kernel closes; power cut: nobody says anything, until the other side loses patience."""
        if self.closing or self.peer is None:
            return
        self.closing = self.lost = True
        peer, net = self.peer, self.net
        gone = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        later = net.rng.uniform(1.0, SILENCE) if net.off else self.latency
        self.due = max(self.due + TICK, self.loop.time() + later)
        self.loop.call_at(self.due, self._reach, peer, self._ended, (gone,), context=peer.context)


class Net:
    """Implements Connector (mta/deliver/connector.py) for addresses that only exist here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, *, split: float = 0.0) -> None:
        """split: share of writes that arrive in two pieces."""
        self.loop, self.rng, self.split = loop, rng, split
        self.context = contextvars.copy_context()
        self.listeners: dict[object, tuple[Factory, Process | None]] = {}
        self.refusing: set[str] = set()
        self.silent: set[str] = set()
        self.met_silence = self.met_refusal = 0
        self.off = False  # while the machine loses its power
        self._port = 40000

    def listen(self, where: object, factory: Factory) -> None:
        """Serve an address ((ip, port) or a path) in the calling process."""
        process = PROCESS.get()
        self.listeners[where] = (factory, process)
        if process is not None:
            process.on_death.append(lambda: self.listeners.pop(where, None) and None)

    def latency(self) -> float:
        """Of a new connection, seconds one way."""
        return self.rng.choice((0.0001, 0.001, 0.01, 0.05))

    async def join(self, factory: Callable[[], P], where: Any, source: object, uid: int = -1) -> tuple[End, P]:
        """Connect; ConnectionRefusedError when nobody listens."""
        latency = self.latency()
        await asyncio.sleep(2 * latency)
        found = self.listeners.get(where)
        if found is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        listener, process = found
        ours = End(self, source, where, -1, latency)
        theirs_context = process.context if process is not None else self.context
        theirs = theirs_context.run(lambda: End(self, where, source, uid, latency))
        ours.peer, theirs.peer = theirs, ours
        ours.protocol = client = factory()
        theirs.protocol = theirs_context.run(listener)
        client.connection_made(ours)
        self.loop.call_soon(theirs.protocol.connection_made, theirs, context=theirs_context)
        return ours, client

    async def connect(
        self, factory: Callable[[], P], address: str, port: int, *, local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (Connector's contract)
    ) -> tuple[asyncio.Transport, P]:  # fmt: skip
        async with asyncio.timeout(timeout):
            if address in self.silent:
                self.met_silence += 1
                await asyncio.get_running_loop().create_future()
            if address in self.refusing:
                self.met_refusal += 1
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            self._port += 1
            return await self.join(factory, (address, port), ("192.0.2.1", self._port))

    async def connect_unix(
        self,
        factory: Callable[[], P],
        path: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    async def datagrams(self, factory: Callable[[], P], address: str, port: int) -> tuple[asyncio.DatagramTransport, P]:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
