"""The world outside: clients that send mail, programs that call sendmail, hosts that receive.

They keep the ledger: what was promised to them, and what they got.
"""

import asyncio
import contextlib
import random
import re
from typing import Protocol

from mta.submit.options import parse_command
from mta.submit.prepare import Caller, Submission
from sendmail_compat import maildrop
from tests.sim.ledger import Attempt, Ledger
from tests.sim.mta_process import ADDRESS, SUBMIT, UID
from tests.sim.net import End, Net
from tests.sim.plan import FIXED_SCRIPTS, Message, Plan
from tests.sim.process import Killed, Process

PATIENCE = 30.0  # seconds a client waits for an answer
PAUSE = 5.0  # seconds before it tries again
TRIES = 400
_ADDRESS = re.compile(rb"<([^>]*)>")


class Host(Protocol):
    """What people know of the machine they are on (world.py)."""

    net: Net
    plan: Plan
    ledger: Ledger
    scripts: dict[str, list[int]]
    calm: bool  # the faults are over

    def count(self, what: str) -> None:
        """Something of this kind happened."""

    def ended(self, process: Process) -> None:
        """A program has come to its end."""

    def program(self, name: str) -> Process | None:
        """A new process on the machine, None while that is off."""

    def log(self, text: str) -> None:
        """Into the event log."""

    def poke(self) -> None:
        """Tell pickup."""


def text_of(message: Message, attempt: str) -> bytes:
    """The message as LF lines, complete, so that nothing needs to be added but trace headers."""
    rng = random.Random(message.seed)
    head = [
        f"X-Sim-Id: {attempt}", "Date: Fri, 15 Jan 2027 08:00:00 +0000",
        f"From: {message.sender or 'daemon@ext.example'}", f"To: {', '.join(message.recipients)}",
        f"Message-Id: <{attempt}@test.example>", "Subject: a message", "",
    ]  # fmt: skip
    body = []
    for _ in range(message.lines):
        text = "x" * rng.randint(1, 120)
        body.append(rng.choice(("", ".", "..", "From somebody", ">From", ". dot", text, "\u00e4\u00f6")))
    return "\n".join([*head, *body, f"end of {attempt}", ""]).encode()


class Talker(asyncio.Protocol):
    """Reads replies."""

    def __init__(self) -> None:
        self.buffer = b""
        self.waiter: asyncio.Future[None] | None = None
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._wake()

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def more(self) -> None:
        """Wait for more; ConnectionError, TimeoutError."""
        if self.lost:
            raise ConnectionResetError
        self.waiter = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(PATIENCE):
            await self.waiter

    async def reply(self) -> int:
        """The code of the next reply."""
        while True:
            while b"\n" in self.buffer:
                line, _, self.buffer = self.buffer.partition(b"\n")
                if line[3:4] != b"-":
                    return int(line[:3])
            await self.more()

    async def frame(self) -> tuple[bytes, bytes]:
        """The next frame of the submit protocol, text passed over."""
        while True:
            while len(self.buffer) >= 5 and len(self.buffer) >= (end := 5 + int.from_bytes(self.buffer[1:5], "big")):
                kind, data, self.buffer = self.buffer[:1], self.buffer[5:end], self.buffer[end:]
                if kind not in b"WO":
                    return kind, data
            await self.more()


async def send(host: Host, message: Message) -> None:
    """Send a message until it is taken, or refused for good."""
    await asyncio.sleep(message.at)
    way = {"smtp": _smtp, "submit": _sendmail, "maildrop": _drop}[message.door]
    for number in range(1, TRIES):
        attempt = host.ledger.attempt(message, f"m{message.number}.{number}")
        with contextlib.suppress(ConnectionError, TimeoutError, OSError, Killed):
            await way(host, message, attempt)
        host.log(f"client {attempt.name}: {attempt.state}")
        if attempt.state == "promised" or attempt.state == "refused":
            return
        await asyncio.sleep(PAUSE)
    host.ledger.complain(f"never taken: {message.number}")


async def _smtp(host: Host, message: Message, attempt: Attempt) -> None:
    end, talker = await host.net.join(Talker, (ADDRESS, 25), ("192.0.2.7", 30000 + message.number))
    try:
        await talker.reply()
        end.write(b"EHLO client.example\r\n")
        if await talker.reply() != 250:
            return
        notify = f" NOTIFY={message.notify}" if message.notify else ""
        lines = [f"MAIL FROM:<{message.sender}>", *(f"RCPT TO:<{r}>{notify}" for r in message.recipients), "DATA"]
        end.write("".join(f"{line}\r\n" for line in lines).encode())
        mail = await talker.reply()
        taken = [r for r in message.recipients if await talker.reply() == 250]
        if await talker.reply() != 354:
            if mail >= 500:
                attempt.state = "refused"
            return
        attempt.recipients = taken
        attempt.state = "unknown"
        end.write(attempt.text.replace(b"\n", b"\r\n").replace(b"\r\n.", b"\r\n..") + b".\r\n")
        code = await talker.reply()
        if code == 250:
            host.ledger.promise(attempt)
            end.write(b"QUIT\r\n")
        else:
            attempt.state = f"answered {code}"
    finally:
        end.close()


def _arguments(message: Message) -> list[str]:
    notify = ["-N", message.notify.lower()] if message.notify else []
    return ["sendmail", "-i", "-f", message.sender, *notify, "--", *message.recipients]


async def _sendmail(host: Host, message: Message, attempt: Attempt) -> None:
    """As sendmail_compat/fast.py: the daemon, or the maildrop when nothing of the message was sent."""
    attempt.recipients = list(message.recipients)
    key = random.Random(attempt.name).randbytes(16)
    hello = key + b"m" + _words(message)
    try:
        end, talker = await _connect(host, hello)
        kind, run_id = await talker.frame()
    except (OSError, TimeoutError):
        await _drop(host, message, attempt)
        return
    if kind == b"G":
        attempt.state = "unknown"
        with contextlib.suppress(OSError, TimeoutError):
            end.write(_frame(b"D", attempt.text) + _frame(b"E", len(attempt.text).to_bytes(8, "big")))
            kind, data = await talker.frame()
            _exited(host, attempt, kind, data)
            end.close()
            return
        end.close()
        await _what_became(host, message, attempt, key, run_id)
        return
    end.close()
    if kind == b"B":
        await _drop(host, message, attempt)
    else:
        _exited(host, attempt, kind, run_id)


async def _what_became(host: Host, message: Message, attempt: Attempt, key: bytes, run_id: bytes) -> None:
    """The connection broke: ask with the key; in the end it is not known."""
    for _ in range(20):
        await asyncio.sleep(0.5)
        with contextlib.suppress(OSError, TimeoutError):
            end, talker = await _connect(host, key + b"a" + _words(message))
            try:
                kind, data = await talker.frame()
            finally:
                end.close()
            if kind == b"U":
                if data == run_id:
                    await _drop(host, message, attempt)
                return
            if kind != b"B":
                _exited(host, attempt, kind, data)
                return


async def _connect(host: Host, hello: bytes) -> tuple[End, Talker]:
    end, talker = await host.net.join(Talker, SUBMIT, "", UID)
    end.write(_frame(b"H", hello))
    return end, talker


def _exited(host: Host, attempt: Attempt, kind: bytes, data: bytes) -> None:
    if kind == b"R" and data == b"\0":
        host.ledger.promise(attempt)
    elif kind == b"R":
        attempt.state = f"status {data[0]}"


def _frame(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "big") + data


def _words(message: Message) -> bytes:
    arguments = _arguments(message)
    return len(arguments).to_bytes(4, "big") + b"".join(a.encode() + b"\0" for a in arguments)


async def _drop(host: Host, message: Message, attempt: Attempt) -> None:
    """sendmail without the daemon: a file in maildrop, exit 0 when it is durable."""
    process = host.program("sendmail")
    if process is None:
        return
    attempt.recipients = list(message.recipients)
    attempt.state = "unknown"
    submission = Submission(parse_command(_arguments(message), uid=UID), Caller(UID, "anna", "", {}))
    try:
        process.context.run(maildrop.write, "/spool", submission, [attempt.text])
    except maildrop.MaildropError as error:
        attempt.state = f"status 75: {error}"
        return
    finally:
        host.ended(process)
    host.ledger.promise(attempt)
    host.poke()


# -- who receives -------------------------------------------------------------------------------------------


class Peer(asyncio.Protocol):
    """One connection to a host that takes mail for a domain."""

    def __init__(self, host: Host, domain: str) -> None:
        self.host, self.domain = host, domain
        self.end: End | None = None
        self.buffer = b""
        self.sender = ""
        self.taken: list[str] = []
        self.in_data = False
        self.action = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, End)
        self.end = transport
        actions = self.host.plan.dots.get(self.domain, [])
        if actions and actions[0] == "421" and not self.host.calm:
            actions.pop(0)
            self.host.count("peer 421")
            self._say(421, "busy")
            transport.close()
            return
        self._say(220, f"mx.{self.domain} ESMTP")

    def _say(self, code: int, text: str) -> None:
        if self.end is not None:
            self.end.write(f"{code} {text}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.end is not None and not self.end.is_closing():
            if self.in_data:
                head, dot, rest = (b"\r\n" + self.buffer).partition(b"\r\n.\r\n")
                if not dot:
                    return
                self.buffer, self.in_data = rest, False
                self._content(head[2:] + b"\r\n")
            else:
                line, newline, rest = self.buffer.partition(b"\r\n")
                if not newline:
                    return
                self.buffer = rest
                self._command(line)

    def _command(self, line: bytes) -> None:
        match line[:4].upper():
            case b"EHLO":
                if self.end is not None:
                    words = ("mx", "PIPELINING", "SIZE 0", "8BITMIME", "DSN")
                    lines = "".join(f"250-{word}\r\n" for word in words) + "250 ENHANCEDSTATUSCODES\r\n"
                    self.end.write(lines.encode())
            case b"MAIL":
                self.sender, self.taken = _address(line), []
                self._say(250, "2.1.0 Ok")
            case b"RCPT":
                self._recipient(_address(line))
            case b"DATA":
                if self.taken:
                    self.in_data = True
                    self._say(354, "go on")
                else:
                    self._say(554, "5.5.1 no recipients")
            case b"RSET" | b"NOOP":
                self.taken = []
                self._say(250, "2.0.0 Ok")
            case b"QUIT":
                self._say(221, "2.0.0 bye")
                if self.end is not None:
                    self.end.close()
            case _:
                self._say(500, "5.5.1 what?")

    def _recipient(self, address: str) -> None:
        script = self.host.scripts.get(address, [250])
        code = script.pop(0) if len(script) > 1 else script[0]
        self.host.ledger.asked(address, self.sender, code)
        if code == 250:
            self.taken.append(address)
            self._say(250, "2.1.5 Ok")
        elif code == 421:
            self._say(421, "4.3.2 closing")
            if self.end is not None:
                self.end.close()
        else:
            self._say(code, f"{code // 100}.1.1 no")

    def _content(self, content: bytes) -> None:
        actions = self.host.plan.dots.get(self.domain, [])
        action = actions.pop(0) if actions and not self.host.calm else "ok"
        if action not in ("ok", "421"):
            self.host.count(f"peer {action}")
        end = self.end
        assert end is not None
        if action == "drop-before":
            end.abort()
        elif action == "451":
            self._say(451, "4.3.0 try later")
        elif action == "hang":
            pass  # neither takes it nor says so: the other side runs out of patience
        else:
            text = content.replace(b"\r\n..", b"\r\n.").replace(b"\r\n", b"\n")
            text = text[1:] if text.startswith(b"..") else text
            if action == "drop-after":
                end.abort()
                self.host.ledger.arrived(self.sender, self.taken, text, end, heard=False)
            else:
                self._say(250, "2.0.0 Ok")
                self.host.ledger.arrived(self.sender, self.taken, text, end, heard=True)
        self.taken = []


def _address(line: bytes) -> str:
    found = _ADDRESS.search(line)
    return found[1].decode() if found else ""


def scripts_of(plan: Plan) -> dict[str, list[int]]:
    """A copy that is used up."""
    return {a: list(codes) for a, codes in (*plan.scripts.items(), *FIXED_SCRIPTS.items())}
