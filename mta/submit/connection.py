"""One connection on the submit socket: frames in with back-pressure and a deadline, frames out."""

import asyncio
import socket
from collections.abc import Callable

from mta.clock import Clock
from mta.submit.wire import FrameReader, WireError, encode

HIGH_WATER = 256 * 1024  # bytes read and not yet used; reading pauses above


class LostError(Exception):
    """The caller is gone."""


class Connection(asyncio.Protocol):
    """Calls `started(self)` once it stands."""

    def __init__(self, started: Callable[["Connection"], None], clock: Clock, idle: float) -> None:
        """idle: seconds to wait for a frame."""
        self._started, self._clock, self._idle = started, clock, idle
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._waiting: asyncio.Future[None] | None = None
        self._unread = 0
        self._lost = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport  # type: ignore[assignment]  # a stream server makes nothing else
        self._started(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._transport is None or self._transport.is_closing():
            return
        self._reader.feed(data)
        self._unread += len(data)
        if self._unread > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def socket(self) -> socket.socket | None:
        """The underlying socket, for SO_PEERCRED."""
        found = self._transport.get_extra_info("socket") if self._transport is not None else None
        return found

    async def frame(self) -> tuple[bytes, bytes]:
        """The next frame; LostError, TimeoutError or WireError."""
        while (found := self._reader.next()) is None:
            if self._lost:
                raise LostError
            self._waiting = asyncio.get_running_loop().create_future()
            async with self._clock.timeout(self._idle):
                await self._waiting
        self._unread -= len(found[1]) + 5
        if self._paused and self._unread <= HIGH_WATER // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return found

    def send(self, kind: bytes, data: bytes = b"") -> None:
        """Write one frame; small, so without back-pressure."""
        if self._transport is not None and not self._lost:
            self._transport.write(encode(kind, data))

    def detach(self) -> asyncio.Transport:
        """Give the transport away, not reading; nothing may have been sent by the caller after its H frame."""
        if self._transport is None or self._reader.rest():
            raise WireError("data before the answer")
        transport, self._transport = self._transport, None
        if not self._paused:
            transport.pause_reading()
        return transport

    def close(self) -> None:
        """Close after what was sent; may be called twice."""
        if self._transport is not None:
            self._transport.close()

    async def closed(self) -> None:
        """Wait until the transport is gone; a caller who does not read its answer is cut off."""
        if self._transport is None or self._lost:
            return
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with self._clock.timeout(self._idle):
                await self._waiting
        except TimeoutError:
            self._transport.abort()
