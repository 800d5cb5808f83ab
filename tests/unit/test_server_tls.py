"""Handshakes of the listener, on asyncio and uvloop: those that end badly, and those of wrapper mode."""

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

import pytest

from tests.smtpd_support import (
    Client,
    FixedNames,
    FoundName,
    FreeAnvil,
    certificate,
    serving,
    until,
    with_settings,
)


@pytest.mark.parametrize("last", ["reset", "reset before 220", "reset in it", "half closed", "closed", "silent"])
async def test_whoever_breaks_off_a_handshake_is_gone(last: str, tmp_path: Path) -> None:
    server_tls, _ = certificate(tmp_path)
    anvil = FreeAnvil()
    limit = 0.5 if last == "silent" else 300.0
    async with serving(with_settings(smtpd_starttls_timeout=limit), anvil=anvil, tls=server_tls) as rooms:
        reader, writer = await asyncio.open_connection("127.0.0.1", rooms.port)
        await reader.readline()
        writer.write(b"STARTTLS\r\n")
        if last != "reset before 220":
            assert (await reader.readline()).startswith(b"220 ")
        if last == "reset in it":
            writer.write(b"\x16\x03\x01\x02\x00\x01")
            await until(lambda: rooms.server.handshakes)
        if last.startswith("reset"):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif last == "half closed":
            writer.write_eof()
        elif last == "closed":
            writer.close()
        await until(lambda: not rooms.server.connections)
        assert anvil.now == {"127.0.0.1": 0}
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    ended = [line.partition(" ")[2] for line in rooms.log.lines[1:]]
    if last != "reset before 220":  # which may have come before the command
        client = "from client.example[127.0.0.1]"
        assert ended[0].startswith(f"SSL_accept error {client}: ")
        assert ended[1] == f"lost connection after STARTTLS {client}"
        assert ended[2:] == [f"disconnect {client} starttls=0/1 commands=0/1"]
    if last == "silent":
        assert ended[0].endswith(": Connection timed out")
    assert sum("disconnect" in line for line in ended) == 1


async def test_in_wrapper_mode_clients_are_counted_before_the_handshake(tmp_path: Path) -> None:
    server_tls, _ = certificate(tmp_path)
    anvil = FreeAnvil(limit=1)
    async with serving(anvil=anvil, tls=server_tls, wrapper=True) as rooms:
        silent = await Client.connect(rooms.port, greeting=False)
        await until(lambda: anvil.now)
        second = await Client.connect(rooms.port, greeting=False)
        assert await second.end() == b""
        await silent.close()
        await second.close()
        await until(lambda: anvil.now == {"127.0.0.1": 0})
    client = "from client.example[127.0.0.1]"
    assert [line for line in rooms.log.lines if "concurrency" not in line] == [
        f"smtpd: connect {client}", f"smtpd: connect {client}", f"smtpd: disconnect {client} commands=0/0",
        f"smtpd: SSL_accept error {client}: lost connection", f"smtpd: lost connection after CONNECT {client}",
        f"smtpd: disconnect {client} commands=0/0",
    ]  # fmt: skip


async def test_in_wrapper_mode_a_handshake_may_begin_before_the_client_has_a_name(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path)
    asked, known = asyncio.Event(), asyncio.Event()

    class Slow(FixedNames):
        async def client_name(self, address: str) -> FoundName:
            asked.set()
            await known.wait()
            return FoundName()

    async with serving(names=Slow(), tls=server_tls, wrapper=True) as rooms:
        connecting = asyncio.create_task(Client.connect(rooms.port, tls=client_tls))
        await asked.wait()
        (connection,) = rooms.server.connections
        await until(lambda: connection.early)
        known.set()
        client = await connecting
        assert await client.say("NOOP") == ["250 2.0.0 Ok\r\n"]
        await client.close()


async def test_what_follows_the_handshake_at_once_is_heard(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path)
    settings = with_settings(smtpd_forbid_unauth_pipelining=False)
    async with serving(settings, tls=server_tls, wrapper=True) as rooms:
        for _ in range(20):
            client = await Client.connect(rooms.port, tls=client_tls, greeting=False)
            client.writer.write(b"NOOP\r\n" * 3 + b"QUIT\r\n")  # with the client's last octets of the handshake
            said = (await client.end()).splitlines()
            assert [line[:3] for line in said] == [b"220", b"250", b"250", b"250", b"221"]
            await client.close()


async def test_wrapper_mode_says_nothing_in_the_clear(tmp_path: Path) -> None:
    server_tls, _ = certificate(tmp_path)
    async with serving(tls=server_tls, wrapper=True) as rooms:
        plain, silent = [await Client.connect(rooms.port, greeting=False) for _ in range(2)]
        await plain.send(b"EHLO in.the.clear\r\n" * 10)
        with contextlib.suppress(ConnectionResetError):
            said = await plain.end()
            assert b"220" not in said and b"250" not in said
        await until(lambda: rooms.server.handshakes and len(rooms.server.connections) == 1)
        assert await rooms.server.drain(60)
        assert await silent.end() == b""
        await plain.close()
        await silent.close()


async def test_wrapper_mode_without_a_usable_certificate_closes_and_warns() -> None:
    async with serving(wrapper=True) as rooms:
        client = await Client.connect(rooms.port, greeting=False)
        assert await client.end() == b""
        await client.close()
        await until(lambda: not rooms.server.connections)
    assert any("warning: client.example[127.0.0.1]: no usable certificate" in line for line in rooms.log.lines)
