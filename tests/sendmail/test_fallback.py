"""A chroot without socket and maildrop: SMTP to submit_fallback_relay, where that is configured."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sendmail_compat.smtp_fallback import place
from tests.sendmail.world import World

MESSAGE = b"To: bob@r.test\r\nBcc: secret@r.test\r\nSubject: s\r\n\r\n.dot\r\nbody"


class Sink:
    """Speaks as much SMTP as a client needs.  replies: what to answer instead of 250, by verb; "" = hang up."""

    def __init__(self, **replies: str) -> None:
        self.replies, self.seen, self.port = replies, list[str](), 0
        self.bare = 0  # lines that do not end in CRLF

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink\r\n")
        data = False
        while line := (await reader.readline()).decode():
            self.seen.append(line.rstrip("\r\n"))
            self.bare += not line.endswith("\r\n")
            verb = "DOT" if data and line == ".\r\n" else line[:4].upper().strip()
            if data and verb != "DOT":
                continue
            data = verb == "DATA" and verb not in self.replies
            answer = self.replies.get(verb, "354 go" if data else "250 2.0.0 ok")
            if not answer:
                break
            writer.write(f"{answer}\r\n".encode())
        writer.close()


@asynccontextmanager
async def cut_off(sink: Sink) -> AsyncIterator[World]:
    """No daemon, no maildrop, a server on loopback."""
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with World() as world:
        await world.stop()
        os.rmdir(world.queue / "maildrop")
        world.write_config(submit_fallback_relay=f"127.0.0.1:{port}")
        yield world
    server.close()


async def test_the_server_gets_the_message_with_the_headers_it_needs() -> None:
    sink = Sink()
    async with cut_off(sink) as world:
        done = await world.run(["-t", "-i", "-f", "a@s.test", "carol"], MESSAGE)
    assert (done.status, done.stderr) == (0, "")
    commands = [line for line in sink.seen if line[:4] in ("mail", "rcpt", "MAIL", "RCPT")]
    assert commands[0].lower().startswith("mail from:<a@s.test>")
    assert [c.lower()[9:].rstrip(">") for c in commands[1:]][1:] == ["bob@r.test", "secret@r.test"]
    body = sink.seen[sink.seen.index("data" if "data" in sink.seen else "DATA") + 1 :]
    assert "Subject: s" in body and not any("secret" in line for line in body)
    assert all(any(line.startswith(name) for line in body) for name in ("Date: ", "From: a@s.test", "Message-Id: <"))
    assert body[body.index("") :][:3] == ["", "..dot", "body"]


@pytest.mark.parametrize(
    ("stdin", "header", "body"),
    [
        (b"Subject: s\n\n.dot\nbody\n", ["Subject: s"], ["..dot", "body"]),
        (b"Subject: s\n", ["Subject: s"], []),
        (b"Subject: a\n\tb\nX-Y: z", ["Subject: a", "\tb", "X-Y: z"], []),
        (b"\nbody\n", [], ["body"]),
        (b"", [], []),
        (b"no header: at all\nbody\n\nmore\n", [], ["no header: at all", "body", "", "more"]),
        (b"Subject: s\nno header\n\nmore\n", ["Subject: s"], ["no header", "", "more"]),
    ],
)
async def test_the_message_has_a_header_and_a_body_and_lines_that_end_as_smtp_wants_it(
    stdin: bytes, header: list[str], body: list[str]
) -> None:
    sink = Sink()
    async with cut_off(sink) as world:
        done = await world.run(["-i", "-f", "a@s.test", "bob@r.test"], stdin)
    assert (done.status, done.stderr) == (0, "")
    text = sink.seen[sink.seen.index("data") + 1 : sink.seen.index(".")]
    end = text.index("")
    assert text[: len(header)] == header and text[end + 1 :] == body
    assert [line.partition(":")[0] for line in text[len(header) : end]] == ["Date", "From", "Message-Id"]
    assert sink.bare == 0


@pytest.mark.parametrize(
    ("replies", "status", "text"),
    [
        ({"RCPT": "550 5.1.1 no such user"}, 67, "nothing was queued"),
        ({"MAIL": "451 4.3.0 later"}, 75, "nothing was queued"),
        ({"DOT": "552 5.3.4 too big"}, 65, "nothing was queued"),
        ({"DATA": "451 4.3.0 no"}, 75, "nothing was queued"),
        ({"DOT": ""}, 75, "the message may have been queued"),
    ],
)
async def test_a_refusal_is_an_exit_status_and_doubt_is_said(replies: dict[str, str], status: int, text: str) -> None:
    async with cut_off(Sink(**replies)) as world:
        done = await world.run(["-i", "-f", "a@s.test", "bob@r.test"], MESSAGE)
    assert done.status == status and text in done.stderr, done


async def test_without_the_server_it_is_75() -> None:
    async with World() as world:
        await world.stop()
        os.rmdir(world.queue / "maildrop")
        world.write_config(submit_fallback_relay="127.0.0.1:1")
        done = await world.run(["-i", "bob@r.test"], MESSAGE)
        assert done.status == 75 and "nothing was queued" in done.stderr and done.stderr.count("\n") == 1


def test_a_place_is_a_host_and_a_port() -> None:
    assert [place(text) for text in ("h", "127.0.0.1:26", "[::1]:27", "[::1]")] == [
        ("h", 25), ("127.0.0.1", 26), ("::1", 27), ("::1", 25),
    ]  # fmt: skip
