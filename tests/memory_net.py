"""A network in memory: the deterministic twin of mta.deliver.connector.NetConnector.

Listeners are protocol factories by (address, port); bytes written on one side arrive at the other on the next
turn of the loop, in order.  Works on virtual time, opens no descriptor.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

P = TypeVar("P", bound=asyncio.BaseProtocol)
Factory = Callable[[], asyncio.BaseProtocol]


class _NoSocket:
    """What is asked of a connection's socket."""

    family = 0

    def fileno(self) -> int:
        return 0

    def setsockopt(self, *_arguments: object) -> None:
        return


class MemoryTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, local: tuple[str, int], remote: tuple[str, int]) -> None:
        super().__init__({"sockname": local, "peername": remote, "socket": _NoSocket()})
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol | None = None
        self._peer: MemoryTransport | None = None
        self._closing = self._lost = self._paused = False
        self._held: list[bytes] = []

    @classmethod
    def pair(cls, one: tuple[str, int], other: tuple[str, int]) -> "tuple[MemoryTransport, MemoryTransport]":
        """Two connected ends; set_protocol before anything is written."""
        a, b = cls(one, other), cls(other, one)
        a._peer, b._peer = b, a
        return a, b

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        if self._protocol is None:
            raise RuntimeError("no protocol yet")
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and self._peer is not None and not self._closing:
            self._loop.call_soon(self._peer._deliver, bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def _deliver(self, data: bytes) -> None:
        if self._lost:
            return
        if self._paused:
            self._held.append(data)
        elif self._protocol is not None:
            self._protocol.data_received(data)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        held, self._held = self._held, []
        for data in held:
            self._loop.call_soon(self._deliver, data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._peer is not None:
            self._loop.call_soon(self._peer._end)

    def _end(self) -> None:
        if not self._lost and self._protocol is not None and not self._protocol.eof_received():
            self.close()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lose)

    def abort(self) -> None:
        self.close()

    def _lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        if self._protocol is not None:
            self._protocol.connection_lost(None)
        if self._peer is not None:
            self._loop.call_soon(self._peer._end)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return


class MemoryNet:
    """Implements Connector for host names and addresses that only exist here."""

    def __init__(self) -> None:
        self.listeners: dict[tuple[str, int], Factory] = {}
        self._port = 40000

    def join(self, factory: Callable[[], P], address: str, port: int) -> tuple[MemoryTransport, P]:
        """Connect now; ConnectionRefusedError when nobody listens."""
        listener = self.listeners.get((address, port))
        if listener is None:
            raise ConnectionRefusedError(111, "Connection refused")
        self._port += 1
        ours, theirs = MemoryTransport.pair(("192.0.2.1", self._port), (address, port))
        client, server = factory(), listener()
        ours.set_protocol(client)
        theirs.set_protocol(server)
        client.connection_made(ours)
        theirs._loop.call_soon(server.connection_made, theirs)
        return ours, client

    async def connect(
        self, factory: Callable[[], P], address: str, port: int, *, local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (Connector's contract)
    ) -> tuple[asyncio.Transport, P]:  # fmt: skip
        return self.join(factory, address, port)

    async def connect_unix(
        self, factory: Callable[[], P], path: str, *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:  # fmt: skip
        raise FileNotFoundError(2, "No such file or directory")

    async def datagrams(
        self, factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.DatagramTransport, P]:
        raise ConnectionRefusedError(111, "Connection refused")
