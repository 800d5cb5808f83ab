"""The door of `sendmail -bs`: its server is made for the first user."""

import asyncio
from collections.abc import Callable

import pytest

from mta.submit.smtp import SmtpOnStdin


class Server:
    """Makes protocols and keeps them."""

    def __init__(self) -> None:
        self.made: list[asyncio.Protocol] = []

    def factory(self, ended: Callable[[], None]) -> asyncio.Protocol:
        self.made.append(asyncio.Protocol())
        return self.made[-1]


class Transport(asyncio.Transport):
    """Remembers what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        self.closing = False
        self.protocol: object = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def resume_reading(self) -> None:
        self.done.append("resumed")

    def abort(self) -> None:
        self.done.append("aborted")


def nothing() -> None:
    pass


async def test_one_server_is_made_and_serves_all() -> None:
    servers: list[Server] = []

    def make() -> Server:
        servers.append(Server())
        return servers[-1]

    door = SmtpOnStdin(make)
    assert servers == []
    transports = [Transport(), Transport()]
    for transport in transports:
        await door.serve(transport, 1000, nothing)
    await asyncio.sleep(0)
    assert [transport.protocol for transport in transports] == servers[0].made
    assert len(servers) == 1 and transports[0].done == transports[1].done == ["resumed"]


async def test_a_user_is_not_left_waiting_when_there_is_no_server_and_the_next_one_gets_it() -> None:
    server, failures = Server(), [MemoryError()]

    def make() -> Server:
        if failures:
            raise failures.pop()
        return server

    door, first, second = SmtpOnStdin(make), Transport(), Transport()
    with pytest.raises(MemoryError):
        await door.serve(first, 1000, nothing)
    assert first.done == ["aborted"]
    await door.serve(second, 1000, nothing)
    await asyncio.sleep(0)
    assert second.done == ["resumed"]


async def test_a_user_who_has_gone_before_he_is_served_takes_no_place() -> None:
    server, gone, ended = Server(), Transport(), list[bool]()
    await SmtpOnStdin(lambda: server).serve(gone, 1000, lambda: ended.append(True))
    gone.closing = True
    await asyncio.sleep(0)
    assert server.made == [] and ended == [True]
