"""What is said in one turn of the loop goes out at its end, in order, and nobody's trouble is another's."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import cast

from mta.outbox import MANY, Outbox


class Line:
    """A transport on a socket pair, and what the other end has got so far."""

    def __init__(self, transport: asyncio.Transport, peer: socket.socket) -> None:
        self.transport, self._peer = transport, peer

    def got(self) -> bytes | None:
        """None: nothing yet; b"": it was closed."""
        try:
            return self._peer.recv(1 << 20)
        except BlockingIOError:
            return None

    def hang_up(self) -> None:
        self._peer.close()


@contextlib.asynccontextmanager
async def lines(count: int) -> AsyncIterator[list[Line]]:
    made, ends = [], []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        made.append(Line(transport, theirs))
        ends.append(theirs)
    try:
        yield made
    finally:
        for line in made:
            line.transport.abort()
        await asyncio.sleep(0)
        for end in ends:
            end.close()


async def turns() -> None:
    """Some of them: who closes does so in the one after."""
    for _ in range(4):
        await asyncio.sleep(0)


async def test_nothing_goes_out_before_the_turn_ends_and_then_all_in_order() -> None:
    outbox = Outbox()
    async with lines(2) as (a, b):
        outbox.write(a.transport, b"250 one\r\n")
        outbox.write(b.transport, b"250 two\r\n")
        outbox.write(a.transport, b"250 three\r\n")
        assert [a.got(), b.got()] == [None, None]
        await turns()
        assert [a.got(), b.got()] == [b"250 one\r\n250 three\r\n", b"250 two\r\n"]


async def test_what_was_said_goes_out_before_the_close() -> None:
    outbox = Outbox()
    async with lines(1) as (a,):
        outbox.write(a.transport, b"221 Bye\r\n")
        outbox.close(a.transport)
        assert not a.transport.is_closing()
        await turns()
        assert [a.got(), a.got()] == [b"221 Bye\r\n", b""]


async def test_nothing_said_is_not_the_end() -> None:
    outbox = Outbox()
    async with lines(1) as (a,):
        outbox.write(a.transport, b"")
        outbox.write(a.transport, b"still here")
        await turns()
        assert a.got() == b"still here"
        assert not a.transport.is_closing()


async def test_no_more_than_so_many_wait_for_each_other() -> None:
    outbox = Outbox()
    async with lines(1) as (a,):
        for _ in range(MANY - 1):
            outbox.write(a.transport, b"x")
        assert a.got() is None
        outbox.write(a.transport, b"y")
        assert a.got() == b"x" * (MANY - 1) + b"y"
        outbox.write(a.transport, b"z")
        assert a.got() is None
        await turns()
        assert a.got() == b"z"


async def test_what_must_not_wait_is_flushed() -> None:
    outbox = Outbox()
    async with lines(1) as (a,):
        outbox.write(a.transport, b"220 Ready to start TLS\r\n")
        outbox.flush()
        assert a.got() == b"220 Ready to start TLS\r\n"
        await turns()
        assert a.got() is None


async def test_who_is_gone_disturbs_nobody() -> None:
    outbox = Outbox()
    async with lines(3) as (a, b, c):
        outbox.write(a.transport, b"to nobody")
        outbox.write(b.transport, b"to b")
        a.transport.abort()
        c.hang_up()
        outbox.write(c.transport, b"to nobody")
        await turns()
        assert b.got() == b"to b"


async def test_a_transport_that_fails_is_reported_and_the_others_hear() -> None:
    outbox = Outbox()
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
    async with lines(2) as (a, b):
        outbox.write(a.transport, cast(bytes, "text"))
        outbox.write(b.transport, b"to b")
        await turns()
        assert b.got() == b"to b"
    assert reported == ["outbox"]
