"""A client that the kernel has handed over is served, whatever moment we stop listening in."""

import asyncio
import socket
from typing import cast

import pytest

from mta.master.scheduler import Running


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        stream.write(b"220")
        stream.close()


@pytest.mark.parametrize("turns", range(5))
async def test_a_client_accepted_just_before_is_greeted(turns: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Running(servers=[await loop.create_server(Greeter, sock=listener.dup())])
        for _ in range(3):
            await asyncio.sleep(0)
        with socket.create_connection(listener.getsockname()) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await running.stop_listening()
            client.setblocking(False)
            listener.setblocking(False)
            try:
                listener.accept()[0].close()  # nobody had taken it: it waits for a successor
            except BlockingIOError:
                async with asyncio.timeout(10):
                    assert await loop.sock_recv(client, 10) == b"220"
