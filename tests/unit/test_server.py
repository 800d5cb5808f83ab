"""The listener on real sockets, on asyncio and uvloop."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from mta.awake import Awake
from mta.lookup.match_list import NetworkList
from mta.queue.api import QueueError, QueueFullError
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.server import SMTPServer
from tests.smtpd_support import (
    Client,
    FreeAnvil,
    LocalPolicy,
    MemoryCleanup,
    certificate,
    serving,
    until,
    with_settings,
)
from tests.unit.lookup_fixture import World

ENVELOPE = ("EHLO c.example", "MAIL FROM:<s@c.example>", "RCPT TO:<user@test.example>", "DATA")
TEXT = b"Subject: t\r\n\r\n..x\r\n.\r\n"


def committing(server: SMTPServer) -> int:
    """How many messages are on their way to the disk."""
    return sum(connection.dialogue.committing for connection in server.connections)


async def test_a_message_goes_from_the_socket_into_the_queue() -> None:
    cleanup = MemoryCleanup()
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        assert (await client.say(*ENVELOPE))[-1].startswith("354 ")
        await client.send(TEXT)
        assert await client.reply() == "250 2.0.0 Ok: queued as 4TEST000001\r\n"
        assert await client.say("QUIT") == ["221 2.0.0 Bye\r\n"]
        assert await client.end() == b""
        await client.close()
    [message] = cleanup.messages
    assert message.content == b"Subject: t\n\n.x\n"
    assert message.origin.client_name == "client.example" and message.origin.protocol == "ESMTP"
    assert rooms.log.lines == [
        "smtpd: connect from client.example[127.0.0.1]",
        "smtpd: 4TEST000001: client=client.example[127.0.0.1]",
        "smtpd: disconnect from client.example[127.0.0.1] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5",
    ]


async def test_a_pipelined_group_is_answered_in_one_packet() -> None:
    async with serving() as rooms:
        client = await Client.connect(rooms.port)
        await client.say("EHLO c.example")
        await client.send(b"MAIL FROM:<s@c.example>\r\n" + b"RCPT TO:<user@test.example>\r\n" * 300 + b"DATA\r\n")
        expected = b"250 2.1.0 Ok\r\n" + b"250 2.1.5 Ok\r\n" * 300 + b"354 End data with <CR><LF>.<CR><LF>\r\n"
        assert await client.reader.readexactly(len(expected)) == expected
        await client.close()


async def test_after_a_reply_it_stays_awake_for_the_answer_of_one_client_and_not_of_three() -> None:
    async with serving() as rooms:
        rooms.server.awake = Awake(asyncio.get_running_loop(), processors=2)

        def awake() -> bool:
            return rooms.server.awake.looking

        first = await Client.connect(rooms.port)
        assert awake()
        await first.say("HELO c.example")
        assert awake()
        others = [await Client.connect(rooms.port) for _ in range(2)]
        await until(lambda: not awake())
        await first.say("NOOP")
        assert not awake()
        for client in (first, *others):
            await client.close()


async def test_half_close_during_the_commit_does_not_cancel_it() -> None:
    cleanup = MemoryCleanup()
    go = asyncio.get_running_loop().create_future()
    cleanup.commit_delay = lambda: go
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        await client.send(TEXT)
        client.writer.write_eof()
        await until(lambda: committing(rooms.server) == 1)
        await asyncio.sleep(0.05)  # the end of what the client says is heard
        assert cleanup.messages == [] and committing(rooms.server) == 1
        go.set_result(None)
        assert (await client.reply()).startswith("250 2.0.0 Ok: queued")
        assert await client.end() == b""
        await client.close()
    assert len(cleanup.messages) == 1


async def test_a_lost_connection_does_not_cancel_the_commit() -> None:
    cleanup = MemoryCleanup()
    go = asyncio.get_running_loop().create_future()
    cleanup.commit_delay = lambda: go
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        await client.send(TEXT)
        await until(lambda: committing(rooms.server) == 1)
        client.writer.transport.abort()
        await asyncio.sleep(0.05)
        assert "disconnect" not in rooms.log.lines[-1]
        assert not await rooms.server.drain(0.01)
        go.set_result(None)
        assert await rooms.server.drain(60)
    assert len(cleanup.messages) == 1
    assert "smtpd: lost connection after END-OF-MESSAGE from client.example[127.0.0.1]" in rooms.log.lines


async def test_what_breaks_off_in_the_text_leaves_nothing() -> None:
    cleanup = MemoryCleanup()
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        await client.send(b"Subject: t\r\n")
        client.writer.write_eof()
        assert await client.end() == b""
        await client.close()
    assert cleanup.messages == [] and cleanup.open_now == 0 and cleanup.aborted == 1
    assert "smtpd: lost connection after DATA (12 bytes) from client.example[127.0.0.1]" in rooms.log.lines


class _Broken:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        if stage is self.stage:
            raise RuntimeError("/var/spool/secret")
        return PERMIT


@pytest.mark.parametrize("stage", [Stage.EHLO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE])
async def test_a_bug_in_the_policy_is_a_451_that_tells_nothing(stage: Stage) -> None:
    async with serving(policy=_Broken(stage)) as rooms:
        client = await Client.connect(rooms.port)
        replies = await client.say(*ENVELOPE)
        if stage is Stage.END_OF_MESSAGE:
            await client.send(TEXT)
            replies.append(await client.reply())
        assert "451 4.3.0 Error: internal error, try again later\r\n" in replies
        assert not any("secret" in reply for reply in replies)
        await client.close()
    assert any("secret" in line for line in rooms.log.lines)


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (QueueError("disk"), "451 4.3.0 Error: queue file write error\r\n"),
        (QueueFullError("disk"), "452 4.3.1 Insufficient system storage\r\n"),
        (RuntimeError("disk"), "451 4.3.0 Error: internal error, try again later\r\n"),
    ],
)
async def test_a_queue_that_cannot_take_mail_is_a_4xx(error: Exception, reply: str) -> None:
    cleanup = MemoryCleanup()
    cleanup.error = error
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        assert (await client.say(*ENVELOPE))[-1] == reply
        assert await client.say("RSET", "NOOP") == ["250 2.0.0 Ok\r\n"] * 2
        await client.close()


class _Slow(LocalPolicy):
    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        if stage is Stage.RCPT:
            async with asyncio.timeout(5):  # needs a current task, even in the part that runs at once
                await asyncio.sleep(0.01)
        return await super().check(stage, facts)


async def test_a_policy_that_waits_may_use_timeouts() -> None:
    async with serving(policy=_Slow()) as rooms:
        client = await Client.connect(rooms.port)
        await client.say("EHLO c.example")
        await client.send(b"MAIL FROM:<s@c.example>\r\n" + b"RCPT TO:<user@test.example>\r\n" * 3)
        assert [await client.reply() for _ in range(4)] == ["250 2.1.0 Ok\r\n"] + ["250 2.1.5 Ok\r\n"] * 3
        await client.close()


async def test_too_many_connections_get_421_and_the_counter_comes_back() -> None:
    anvil = FreeAnvil(limit=1)
    async with serving(anvil=anvil) as rooms:
        first = await Client.connect(rooms.port)
        second = await Client.connect(rooms.port, greeting=False)
        assert await second.end() == b"421 4.7.0 mx.test.example Error: too many connections from 127.0.0.1\r\n"
        await first.say("QUIT")
        await first.end()
        await first.close()
        await second.close()
        await until(lambda: anvil.now == {"127.0.0.1": 0})
    text = "Connection concurrency limit exceeded: 2 from client.example[127.0.0.1] for service smtp"
    assert f"smtpd: warning: {text}" in rooms.log.lines


async def test_a_secret_of_one_client_never_reaches_the_mail_of_another(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path)
    cleanup = MemoryCleanup()
    secret = b"SECRET-" * 8000
    body = b"".join(b"%05d %b\r\n" % (i, b"x" * 72) for i in range(760))
    async with serving(cleanup=cleanup, tls=server_tls) as rooms:
        for n in range(4):
            plain = await Client.connect(rooms.port)
            await plain.say(*ENVELOPE)
            await plain.send(secret + b"\r\n.\r\n")
            await plain.reply()
            client = await Client.connect(rooms.port)
            await client.say("EHLO c.example")
            await client.send(b"STARTTLS\r\n")
            assert await client.reply() == "220 2.0.0 Ready to start TLS\r\n"
            await client.writer.start_tls(client_tls)
            assert "STARTTLS" not in (await client.say("EHLO c.example"))[0]
            await client.say(*ENVELOPE[1:])
            await client.send(body + b".\r\n")
            assert (await client.reply()).startswith("250 ")
            assert cleanup.messages[-1].content == body.replace(b"\r\n", b"\n"), n
            assert cleanup.messages[-1].origin.protocol == "ESMTPS"
            assert cleanup.messages[-1].origin.tls.startswith("TLSv1.")
            await client.close()
            await plain.close()
    logged = "Anonymous TLS connection established from client.example[127.0.0.1]: TLSv1"
    assert any(logged in line for line in rooms.log.lines)


async def test_plaintext_behind_starttls_ends_the_session(tmp_path: Path) -> None:
    server_tls, _ = certificate(tmp_path)
    async with serving(with_settings(smtpd_forbid_unauth_pipelining=False), tls=server_tls) as rooms:
        client = await Client.connect(rooms.port)
        await client.say("EHLO c.example")
        await client.send(b"STARTTLS\r\nEHLO evil\r\nMAIL FROM:<smuggled@test.example>\r\n")
        assert await client.end() == b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
        await client.close()


async def test_a_failed_handshake_ends_one_connection_and_is_logged(tmp_path: Path) -> None:
    server_tls, _ = certificate(tmp_path)
    async with serving(tls=server_tls) as rooms:
        client = await Client.connect(rooms.port)
        await client.say("EHLO c.example")
        await client.send(b"STARTTLS\r\n")
        await client.reply()
        await client.send(b"this is no TLS\r\n" * 10)
        with contextlib.suppress(OSError):
            await client.end()
        await client.close()
        await until(lambda: not rooms.server.connections)
    assert any("SSL_accept error from client.example[127.0.0.1]" in line for line in rooms.log.lines)
    assert "smtpd: lost connection after STARTTLS from client.example[127.0.0.1]" in rooms.log.lines


async def test_implicit_tls(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path)
    cleanup = MemoryCleanup()
    async with serving(cleanup=cleanup, tls=server_tls, wrapper=True) as rooms:
        client = await Client.connect(rooms.port, tls=client_tls)
        assert "STARTTLS" not in (await client.say("EHLO c.example"))[0]
        await client.say(*ENVELOPE[1:])
        await client.send(TEXT)
        assert (await client.reply()).startswith("250 ")
        assert await client.say("STARTTLS") == ["554 5.5.1 Error: TLS already active\r\n"]
        await client.close()
    assert cleanup.messages[0].origin.protocol == "ESMTPS"
    logged = [line for line in rooms.log.lines if "onnect" in line]
    assert logged[0] == "smtpd: connect from client.example[127.0.0.1]"
    assert logged[1].startswith("smtpd: Anonymous TLS connection established from client.example[127.0.0.1]: TLSv1.3 w")


async def test_drain_ends_idle_sessions_and_lets_a_transaction_end() -> None:
    cleanup = MemoryCleanup()
    async with serving(cleanup=cleanup) as rooms:
        idle = await Client.connect(rooms.port)
        busy = await Client.connect(rooms.port)
        await idle.say("EHLO c.example")
        await busy.say(*ENVELOPE)
        draining = asyncio.create_task(rooms.server.drain(60))
        assert await idle.end() == b"421 4.3.2 mx.test.example Error: service shutting down\r\n"
        await busy.send(TEXT)
        assert (await busy.reply()).startswith("250 ")
        assert await busy.end() == b"421 4.3.2 mx.test.example Error: service shutting down\r\n"
        assert await draining
        await idle.close()
        await busy.close()
    assert len(cleanup.messages) == 1


async def test_a_client_that_never_reads_is_bounded() -> None:
    settings = with_settings(smtpd_junk_command_limit=10**9, smtpd_hard_error_limit=10**9)
    async with serving(settings) as rooms:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rooms.port))
            await asyncio.sleep(0.05)
            sock.send(b"EHLO c.example\r\n")
            await asyncio.sleep(0.05)
            sent = 0
            for _ in range(400):
                with contextlib.suppress(BlockingIOError):
                    sent += sock.send(b"RSET\r\n" * 1000)
                await asyncio.sleep(0.001)
            [connection] = rooms.server.connections
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 1 << 20
            assert connection.dialogue.buffered <= 65536 + 256 * 1024  # the limit and what uvloop reads at once
            assert sent < 20_000_000


async def test_a_session_that_meets_a_bug_ends_alone() -> None:
    cleanup = MemoryCleanup()
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        [connection] = rooms.server.connections
        connection.dialogue._receiver = object()  # type: ignore[assignment]  # something that cannot be
        await client.send(TEXT)
        assert await client.end() == b"421 4.3.0 mx.test.example Error: internal error\r\n"
        other = await Client.connect(rooms.port)
        assert await other.say("NOOP") == ["250 2.0.0 Ok\r\n"]
        await other.close()
        await client.close()
    assert cleanup.open_now == 0


async def test_effects_of_verdicts_reach_cleanup() -> None:
    class Effects(LocalPolicy):
        async def check(self, stage: Stage, facts: Facts) -> Verdict:
            if stage is Stage.RCPT:
                return Verdict(hold=True, prepend=("X-A: 1",), redirect="abuse@test.example", bcc=("b@test.example",))
            return PERMIT

    cleanup = MemoryCleanup()
    async with serving(policy=Effects(), cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        await client.send(TEXT)
        assert (await client.reply()).startswith("250 ")
        await client.close()
    assert cleanup.effects == [(True, ("X-A: 1",))]
    assert [r.address for r in cleanup.messages[0].envelope.recipients] == ["abuse@test.example", "b@test.example"]


async def test_filter_is_never_left_out_silently() -> None:
    class Filter(LocalPolicy):
        async def check(self, stage: Stage, facts: Facts) -> Verdict:
            return Verdict(filter="smtp:[127.0.0.1]:10024") if stage is Stage.MAIL else PERMIT

    async with serving(policy=Filter()) as rooms:
        client = await Client.connect(rooms.port)
        assert (await client.say(*ENVELOPE))[-1] == "451 4.3.5 Server configuration error\r\n"
        await client.close()


async def test_discard_swallows_the_text() -> None:
    class Discard(LocalPolicy):
        async def check(self, stage: Stage, facts: Facts) -> Verdict:
            return Verdict(discard=True) if stage is Stage.RCPT else PERMIT

    cleanup = MemoryCleanup()
    async with serving(policy=Discard(), cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        assert (await client.say(*ENVELOPE))[-1].startswith("354")
        await client.send(TEXT)
        assert await client.reply() == "250 2.0.0 Ok\r\n"
        await client.close()
    assert cleanup.messages == [] and cleanup.open_now == 0


async def test_the_reply_of_a_refusing_commit_is_the_answer() -> None:
    class Refusing(MemoryCleanup):
        pass

    cleanup = Refusing()
    async with serving(cleanup=cleanup) as rooms:
        client = await Client.connect(rooms.port)
        await client.say(*ENVELOPE)
        await client.send(b"Received: x\r\n" * 60 + b"\r\nx\r\n.\r\n")
        assert await client.reply() == str(Reply(554, "5.4.6", "Error: too many hops")) + "\r\n"
        assert (await client.say("RCPT TO:<user@test.example>"))[0].startswith("503 ")
        await client.close()


@pytest.mark.parametrize(
    ("exceptions", "parents", "free"),
    [
        ("127.0.0.0/8", False, True),
        ("client.example", False, True),
        (".example", False, True),
        ("example", False, False),
        ("example", True, True),
        ("!client.example 127.0.0.0/8", False, False),
        ("other.example 10.0.0.0/8", False, False),
        ("fail:x", False, True),
    ],
)
async def test_excepted_clients_have_no_limit_and_a_failing_list_limits_nobody(
    exceptions: str, parents: bool, free: bool
) -> None:
    clients = NetworkList("smtpd_client_event_limit_exceptions", exceptions, World().context, parents=parents)
    async with serving(anvil=FreeAnvil(limit=1), exceptions=clients) as rooms:
        first, second = [await Client.connect(rooms.port, greeting=False) for _ in range(2)]
        assert [(await client.reply())[:3] for client in (first, second)] == ["220", "220" if free else "421"]
        await first.close()
        await second.close()
    assert ("limit exceeded" in "".join(rooms.log.lines)) is not free
    assert ("smtpd_client_event_limit_exceptions" in "".join(rooms.log.lines)) is exceptions.startswith("fail")


async def test_rate_limits_are_asked_before_the_policy() -> None:
    class Full(FreeAnvil):
        async def mail(self, address: str) -> Verdict:
            return Verdict(Reply(450, "4.7.1", f"Error: too much mail from {address}"))

    policy = LocalPolicy()
    async with serving(with_settings(smtpd_client_message_rate_limit=1), anvil=Full(), policy=policy) as rooms:
        client = await Client.connect(rooms.port)
        replies = await client.say("EHLO c.example", "MAIL FROM:<s@c.example>")
        assert replies[1] == "450 4.7.1 Error: too much mail from 127.0.0.1\r\n"
        assert Stage.MAIL not in [stage for stage, _ in policy.asked]
        await client.close()
