"""Plays one session of hostile.jsonl against a server and judges what came of it.

A session is a list of steps.  A string (text with Python escapes) is sent as it is, then everything is read until
the server has nothing more to say.  Objects: repeat/n, seq/n ({i} from 0, {i1} from 1), drip/delay (octet by
octet), drip_cmds/n/delay, sleep, starttls, close, rst, shutdown_wr, noread, nowait.  The greeting is read first
unless the session begins with noread or nowait.  Times are shortened by TIME_SCALE, in the steps as in the
server's settings.
"""

import asyncio
import contextlib
import ctypes
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

from mta.smtp.data import DotStuffer
from mta.smtpd.server import SMTPServer

TIME_SCALE = 0.02
M_MMAP_THRESHOLD = -3  # malloc.h
QUIET = 0.002  # seconds without anything new, three times over, before the next step
PATIENCE = 20.0  # seconds after which a server that is still busy is a failure


class Step(TypedDict, total=False):
    """A step that is not a string."""

    repeat: str
    seq: str
    n: int
    drip: str
    drip_cmds: str
    delay: float
    sleep: float
    starttls: bool
    close: bool
    rst: bool
    shutdown_wr: bool
    noread: bool
    nowait: bool


class Expect(TypedDict, total=False):
    """What is judged; see judge()."""

    prose: str
    reply_regex: str
    max_accepted: int
    min_accepted: int
    forbid_sender: str
    forbid_rcpt: str
    forbid_reply: str
    stored_forbid: str
    env_clean: bool
    env_verbatim: bool
    stored_canonical: bool
    forbid_delivery_domain: str
    forbid_file: str
    forbid_dsn_ctl: bool
    alive: bool
    closed: bool
    reply_lines_max: int
    reply_within_s: float
    rss_delta_max_mib: float
    tmp_clean: bool
    tls: bool
    heavy: bool


@dataclass(frozen=True)
class Case:
    """One line of the corpus."""

    id: str
    kind: str
    steps: tuple[str | Step, ...]
    expect: Expect


@dataclass
class Message:
    """A message in the queue: addresses unquoted, content as LF lines; dsn: ENVID and ORCPT values."""

    sender: str
    recipients: list[str]
    content: bytes
    dsn: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What a session left behind."""

    replies: str
    closed: bool  # the server closed the connection
    seconds: float
    rss_mib: float
    messages: list[Message]
    alive: bool
    left_open: int  # messages begun and neither committed nor aborted
    sent: bytes


def load(path: Path) -> Iterator[Case]:
    """The cases of a corpus file."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["class"] != "meta":
            steps = cast("list[str | Step]", row["client_bytes"])
            yield Case(row["id"], row["class"], tuple(steps), cast(Expect, row["expect"]))


def raw(text: str) -> bytes:
    """The bytes of a corpus string."""
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


class Player:
    """The client's side of one connection."""

    def __init__(self, server: SMTPServer, port: int, tls: ssl.SSLContext) -> None:
        self._server, self._port, self._tls = server, port, tls
        self._heard = bytearray()
        self._peak_kib = 0
        self.sent = bytearray()
        self.closed = False
        self._gone = False

    async def play(self, steps: tuple[str | Step, ...]) -> None:
        """Run all steps, or until the server has closed."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        listening = asyncio.create_task(self._listen())
        first = steps[0] if steps and not isinstance(steps[0], str) else Step()
        if not first.get("noread") and not first.get("nowait"):
            await self._quiet()
        for step in steps:
            if self.closed or self._gone:
                break
            await (self._send(raw(step)) if isinstance(step, str) else self._step(step))
            if not (not isinstance(step, str) and step.get("nowait")):
                await self._quiet()
        self._transport.resume_reading()
        await self._quiet()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        await self._quiet()

    @property
    def replies(self) -> str:
        return self._heard.decode("utf-8", "replace")

    @property
    def _transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self._writer.transport)

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(65536):
                self._heard += data
        self.closed = not self._gone

    async def _send(self, data: bytes) -> None:
        self.sent += data
        view = memoryview(data)
        for start in range(0, len(data), 65536):
            if self.closed:
                return
            self._writer.write(bytes(view[start : start + 65536]))
            try:
                async with asyncio.timeout(1.0):
                    await self._writer.drain()
            except (OSError, TimeoutError):
                return

    async def _step(self, step: Step) -> None:
        if "repeat" in step:
            await self._send(raw(step["repeat"]) * step["n"])
        elif "seq" in step:
            text = step["seq"]
            lines = (text.replace("{i}", str(i)).replace("{i1}", str(i + 1)) for i in range(step["n"]))
            await self._send(b"".join(raw(line) for line in lines))
        elif "drip" in step:
            for octet in raw(step["drip"]):
                await self._send(bytes((octet,)))
                await asyncio.sleep(step["delay"] * TIME_SCALE)
        elif "drip_cmds" in step:
            for _ in range(step["n"]):
                await self._send(raw(step["drip_cmds"]))
                await asyncio.sleep(step["delay"])
        elif "sleep" in step:
            await asyncio.sleep(step["sleep"] * TIME_SCALE)
        elif step.get("starttls"):
            with contextlib.suppress(OSError):
                await self._writer.start_tls(self._tls)
        elif step.get("noread"):
            self._transport.pause_reading()
        elif step.get("shutdown_wr"):
            self._writer.write_eof()
        elif step.get("close"):
            self._gone = True
            self._writer.close()
        elif step.get("rst"):
            self._gone = True
            sock = self._writer.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()

    async def _quiet(self) -> None:
        """Until nothing new has come for a while and the server waits for nobody but us."""
        still = 0
        limit = time.monotonic() + PATIENCE
        while still < 3:
            before = len(self._heard)
            await asyncio.sleep(QUIET)
            self._peak_kib = max(self._peak_kib, rss_kib())
            busy = any(c.dialogue.waiting for c in self._server.connections if hasattr(c, "dialogue"))
            still = 0 if busy or len(self._heard) != before else still + 1
            assert time.monotonic() < limit, "the server is busy for too long"

    @property
    def peak_kib(self) -> int:
        return self._peak_kib


def return_what_is_freed() -> None:
    """Have glibc give large blocks back when they are freed; it stops to when a test before has freed a larger one."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def rss_kib() -> int:
    """Resident memory of this process, in which the server runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def judge(case: Case, outcome: Outcome) -> list[str]:
    """Everything in which an outcome is not as expected."""
    expect = case.expect
    wrong = [*_judge_replies(expect, outcome), *_judge_session(expect, outcome)]
    for message in outcome.messages:
        wrong += _judge_message(expect, message, bytes(outcome.sent))
    accepted = len(outcome.messages)
    if accepted != len(re.findall(r"(?m)^250 \S+ Ok: queued as", outcome.replies)) and not outcome.left_open:
        wrong.append(f"{accepted} messages in the queue do not fit the replies")
    if expect.get("max_accepted") is not None and accepted > expect["max_accepted"]:
        wrong.append(f"accepted {accepted} messages")
    if expect.get("min_accepted") is not None and accepted < expect["min_accepted"]:
        wrong.append(f"accepted only {accepted} messages")
    return wrong


def _judge_replies(expect: Expect, outcome: Outcome) -> Iterator[str]:
    replies = outcome.replies
    if expect.get("reply_regex") and not re.match(expect["reply_regex"], replies):
        yield f"replies do not match {expect['reply_regex']}"
    if expect.get("forbid_reply") and re.search(expect["forbid_reply"], replies):
        yield f"a reply matches {expect['forbid_reply']}"
    if expect.get("reply_lines_max") is not None and replies.count("\n") > expect["reply_lines_max"]:
        yield f"{replies.count(chr(10))} lines of replies"
    if re.search(r"Traceback|Exception|Error: \(", replies):
        yield "a reply shows our insides"
    if any(len(line) > 512 for line in replies.encode().splitlines(keepends=True)):
        yield "a reply line is too long"


def _judge_session(expect: Expect, outcome: Outcome) -> Iterator[str]:
    if expect.get("closed") and not outcome.closed:
        yield "the server did not close"
    if expect.get("alive") and not outcome.alive:
        yield "the server does not answer any more"
    if expect.get("reply_within_s") is not None and outcome.seconds > expect["reply_within_s"]:
        yield f"took {outcome.seconds:.1f} s"
    if expect.get("rss_delta_max_mib") is not None and outcome.rss_mib > expect["rss_delta_max_mib"]:
        yield f"took {outcome.rss_mib:.1f} MiB"
    if outcome.left_open:
        yield f"{outcome.left_open} messages left unfinished"
    if expect.get("forbid_file") and Path(expect["forbid_file"]).exists():
        yield f"{expect['forbid_file']} was made"


def _judge_message(expect: Expect, message: Message, sent: bytes) -> Iterator[str]:
    addresses = [message.sender, *message.recipients]
    if expect.get("forbid_sender") and re.search(expect["forbid_sender"], message.sender):
        yield f"sender {message.sender!r}"
    for recipient in message.recipients:
        if expect.get("forbid_rcpt") and re.search(expect["forbid_rcpt"], recipient):
            yield f"recipient {recipient!r}"
        domain = recipient.rpartition("@")[2]
        if expect.get("forbid_delivery_domain") and re.search(expect["forbid_delivery_domain"], domain):
            yield f"would be delivered to {domain!r}"
    if any(ord(c) < 32 or ord(c) == 127 for address in addresses for c in address):
        yield "control characters in the envelope"
    if expect.get("env_verbatim"):
        yield from (f"{a!r} was not sent so" for a in addresses if a and not _was_sent(a, sent))
    if any(ord(c) < 32 or ord(c) == 127 for value in message.dsn for c in value):
        yield "control characters in ENVID or ORCPT"
    if expect.get("stored_forbid") and re.search(expect["stored_forbid"].encode(), message.content):
        yield f"stored content matches {expect['stored_forbid']}"
    yield from _judge_next_hop(message.content)


def _was_sent(address: str, sent: bytes) -> bool:
    """True when these bytes stood between < and >, or their quoted form did, with no octet decoded or lost."""
    shown = address.encode("utf-8", "surrogateescape")
    local, at, domain = shown.rpartition(b"@")
    quoted = b'"' + local.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"' + at + domain
    return any(b"<" + form + b">" in sent for form in (shown, quoted, shown.removesuffix(b"@mx.test.example")))


def _judge_next_hop(content: bytes) -> Iterator[str]:
    """Sent on, three receivers (strict, taking a bare LF, taking a bare CR for a line end) see one message."""
    stuffer = DotStuffer()
    wire = b"\r\n" + stuffer.feed(content) + stuffer.finish()
    if wire.count(b"\r") != wire.count(b"\r\n") or wire.count(b"\n") != wire.count(b"\r\n"):
        yield "the next hop would get stray line ends"
    for name, pattern in {
        "strict": rb"\r\n\.\r\n",
        "LF-lenient": rb"\r?\n\.\r?\n",
        "CR-lenient": rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)",
    }.items():
        found = [match.end() for match in re.finditer(pattern, wire)]
        if found != [len(wire)]:
            yield f"a {name} next hop would see {len(found)} ends"
