"""Who is cut off and who is not: hours in milliseconds, on a loop whose time jumps."""

import asyncio
import gc
import socket
import tracemalloc
from typing import cast

from mta.clock import Clock
from mta.smtpd.facts import Facts, Stage, Verdict
from tests.smtpd_support import Client, LocalPolicy, MemoryCleanup, serving, with_settings
from tests.virtual_time import run_virtual

ENVELOPE = ("EHLO c.example", "MAIL FROM:<s@c.example>", "RCPT TO:<user@test.example>", "DATA")
TIMEOUT = "421 4.4.2 mx.test.example Error: timeout exceeded\r\n"


def test_a_silent_client_is_told_and_closed_after_the_timeout() -> None:
    async def main(clock: Clock) -> None:
        async with serving(clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            await client.say("EHLO c.example")
            start = clock.monotonic()
            assert (await client.reader.read()).decode() == TIMEOUT
            assert 299 <= clock.monotonic() - start <= 301
            assert "smtpd: timeout after EHLO from client.example[127.0.0.1]" in rooms.log.lines
            await client.close()

    run_virtual(main)


def test_a_command_that_drips_in_has_one_deadline() -> None:
    async def main(clock: Clock) -> None:
        async with serving(clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            start = clock.monotonic()
            for _ in range(100):
                client.writer.write(b"x")
                await clock.sleep(10)
                if not rooms.server.connections:
                    break
            assert clock.monotonic() - start < 330
            await client.close()

    run_virtual(main)


def test_noop_moves_the_deadline() -> None:
    async def main(clock: Clock) -> None:
        async with serving(clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            for _ in range(10):
                await clock.sleep(250)
                assert await client.say("NOOP") == ["250 2.0.0 Ok\r\n"]
            await client.close()

    run_virtual(main)


def test_text_below_the_minimum_rate_is_cut() -> None:
    async def main(clock: Clock) -> None:
        cleanup = MemoryCleanup()
        async with serving(cleanup=cleanup, clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            await client.say(*ENVELOPE)
            start = clock.monotonic()
            while rooms.server.connections and clock.monotonic() - start < 1000:
                client.writer.write(b"x" * 100)  # 20 octets per second
                await clock.sleep(5)
            assert 300 <= clock.monotonic() - start <= 330
            assert cleanup.aborted == 1 and cleanup.messages == []
            assert any(line.startswith("smtpd: timeout after DATA (") for line in rooms.log.lines)
            await client.close()

    run_virtual(main)


def test_25_mb_at_10_kb_per_second_arrive() -> None:
    async def main(clock: Clock) -> None:
        cleanup = MemoryCleanup()
        async with serving(with_settings(message_size_limit=0), cleanup=cleanup, clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            await client.say(*ENVELOPE)
            start = clock.monotonic()
            for _ in range(250):
                client.writer.write((b"x" * 998 + b"\r\n") * 100)
                await clock.sleep(10)
            client.writer.write(b".\r\n")
            assert (await client.reader.readline()).startswith(b"250 ")
            assert clock.monotonic() - start > 2400
            assert len(cleanup.messages[0].content) == 250 * 100 * 999
            await client.close()

    run_virtual(main, patience=0.005)


def test_our_own_time_is_not_the_clients() -> None:
    async def main(clock: Clock) -> None:
        class Slow(LocalPolicy):
            async def check(self, stage: Stage, facts: Facts) -> Verdict:
                await clock.sleep(400)
                return await super().check(stage, facts)

        async with serving(policy=Slow(), clock=clock) as rooms:
            client = await Client.connect(rooms.port, greeting=False)
            assert (await client.reader.readline()).startswith(b"220 ")
            client.writer.write(b"HELO c.example\r\n")
            assert await client.reader.readline() == b"250 mx.test.example\r\n"
            await client.close()

    run_virtual(main)


def test_errors_are_answered_late() -> None:
    async def main(clock: Clock) -> None:
        settings = with_settings(smtpd_error_sleep_time=1.0)
        async with serving(settings, clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            start = clock.monotonic()
            client.writer.write(b"BOGUS\r\n" * 30)
            said = await client.reader.read()
            assert said.count(b"\r\n") == 21 and said.endswith(b"421 4.7.0 mx.test.example Error: too many errors\r\n")
            assert 10 <= clock.monotonic() - start < 11
            await client.close()

    run_virtual(main)


def test_a_client_that_does_not_take_its_replies_is_dropped() -> None:
    async def main(clock: Clock) -> None:
        settings = with_settings(smtpd_junk_command_limit=10**9)
        async with serving(settings, clock=clock) as rooms:
            client = await Client.connect(rooms.port)
            cast(asyncio.Transport, client.writer.transport).pause_reading()
            start = clock.monotonic()
            while rooms.server.connections and clock.monotonic() - start < 2000:
                if client.writer.transport.get_write_buffer_size() < 1 << 20:
                    client.writer.write(b"RSET\r\n" * 10000)
                await clock.sleep(1)
            assert not rooms.server.connections
            client.writer.transport.abort()

    run_virtual(main, patience=0.005)


def test_an_idle_connection_is_small() -> None:
    async def main() -> None:
        async with serving() as rooms:
            first = await Client.connect(rooms.port)
            socks = []
            gc.collect()
            tracemalloc.start(1)
            loop = asyncio.get_running_loop()
            before = tracemalloc.take_snapshot()
            for _ in range(200):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", rooms.port))
                await loop.sock_recv(sock, 100)
                await loop.sock_sendall(sock, b"EHLO c.example\r\n")
                await loop.sock_recv(sock, 1000)
                socks.append(sock)
            gc.collect()
            after = tracemalloc.take_snapshot()
            tracemalloc.stop()
            grown = sum(stat.size_diff for stat in after.compare_to(before, "filename"))
            assert len(rooms.server.connections) == 201
            for sock in socks:
                sock.close()
            await first.close()
            assert grown / 200 < 5 * 1024, grown / 200

    asyncio.run(main())
