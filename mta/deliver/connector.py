"""How network connections are made: the one thing an agent or the resolver gets handed in to reach the outside.

Addresses are numeric; names are the resolver's business.  Tests hand in a connector of their own, for example
one that leads port 25 of any address to a scripted peer.

See also: mta/dns/resolver.py, postconf(5) smtp_bind_address
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, TypeVar

from mta.clock import Clock

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Connector(Protocol):
    """Makes connections; OSError (with errno) or TimeoutError when it cannot."""

    async def connect(
        self,
        protocol_factory: Callable[[], P],
        address: str,
        port: int,
        *,
        local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (part of the contract: seconds for the TCP handshake)
    ) -> tuple[asyncio.Transport, P]:
        """TCP to a numeric IPv4 or IPv6 address, from local_address when given."""

    async def connect_unix(
        self,
        protocol_factory: Callable[[], P],
        path: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:
        """A stream socket in the file system."""

    async def datagrams(
        self, protocol_factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.DatagramTransport, P]:
        """A new UDP socket, on a port the kernel picks at random, that talks to this address only."""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class NetConnector:
    """The real one.  TCP_NODELAY is set: a command group is one write, and must not wait for an acknowledgement."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def connect(
        self,
        protocol_factory: Callable[[], P],
        address: str,
        port: int,
        *,
        local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:
        """See Connector."""
        sock = socket.socket(_family(address), socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if local_address:
                sock.bind((local_address, 0))
            return await self._finish(sock, (address, port), protocol_factory, timeout)
        except BaseException:
            sock.close()
            raise

    async def connect_unix(
        self,
        protocol_factory: Callable[[], P],
        path: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:
        """See Connector."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            return await self._finish(sock, path, protocol_factory, timeout)
        except BaseException:
            sock.close()
            raise

    async def _finish(
        self,
        sock: socket.socket,
        where: tuple[str, int] | str,
        protocol_factory: Callable[[], P],
        seconds: float | None,
    ) -> tuple[asyncio.Transport, P]:
        loop = asyncio.get_running_loop()
        async with self._clock.timeout(seconds):
            await loop.sock_connect(sock, where)
            if sock.family == socket.AF_UNIX:
                return await loop.create_unix_connection(protocol_factory, sock=sock)
            return await loop.create_connection(protocol_factory, sock=sock)

    async def datagrams(
        self, protocol_factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.DatagramTransport, P]:
        """See Connector."""
        sock = socket.socket(_family(address), socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        try:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((address, port))  # UDP: sets the peer, sends nothing
            return await asyncio.get_running_loop().create_datagram_endpoint(protocol_factory, sock=sock)
        except BaseException:
            sock.close()
            raise
