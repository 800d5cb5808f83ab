"""Peers of the SMTP server for its own tests: settings, a policy, a store in memory, and a client that steps.

They stand for other rooms only where a test is about the server; tests/hostile runs on the real ones.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mta.clock import Clock
from mta.envelope import Envelope, Origin
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.ports import Anvil, Cleanup, Exceptions, PeerNames, Policy
from mta.smtpd.server import SMTPServer
from mta.smtpd.server_settings import ServerSettings
from mta.smtpd.session import Session
from mta.smtpd.session_events import (
    Abort,
    Ask,
    Begin,
    Body,
    Close,
    Commit,
    Event,
    Log,
    Send,
    StartTls,
    Transaction,
    Wait,
)
from mta.smtpd.session_plan import SessionPlan

LIMIT = 60.0  # seconds anything may take
SETTINGS = ServerSettings(
    myhostname="mx.test.example",
    smtpd_banner="mx.test.example ESMTP aiomta",
    message_size_limit=1048576,
    line_length_limit=2048,
    smtpd_recipient_limit=1000,
    smtpd_recipient_overshoot_limit=1000,
    smtpd_soft_error_limit=10,
    smtpd_hard_error_limit=20,
    smtpd_error_sleep_time=0.0,
    smtpd_junk_command_limit=100,
    smtpd_helo_required=False,
    disable_vrfy_command=False,
    smtpd_discard_ehlo_keywords=(),
    smtpd_forbid_bare_newline="normalize",
    smtpd_forbid_unauth_pipelining=True,
    smtpd_forbidden_commands=("CONNECT", "GET", "POST", "regexp:{{/^[^A-Z]/ Bogus}}"),
    smtpd_noop_commands=(),
    smtpd_tls_security_level="may",
    smtputf8_enable=True,
    strict_rfc821_envelopes=False,
    allow_min_user=False,
    soft_bounce=False,
    smtpd_timeout=300.0,
    smtpd_starttls_timeout=300.0,
    smtpd_min_data_rate=500,
    smtpd_peername_lookup=True,
    smtpd_tls_wrappermode=False,
    smtpd_tls_loglevel=1,
    smtpd_client_message_rate_limit=0,
    smtpd_client_recipient_rate_limit=0,
)


class MemoryLog:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, service: str, text: str) -> None:
        self.lines.append(f"{service}: {text}")

    def warning(self, service: str, text: str) -> None:
        self.lines.append(f"{service}: warning: {text}")


class LocalPolicy:
    """test.example has user, postmaster and abuse; everything else is remote, and nobody may relay."""

    def __init__(self, users: tuple[str, ...] = ("user", "postmaster", "abuse")) -> None:
        self.users = users
        self.asked: list[tuple[Stage, str]] = []

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        self.asked.append((stage, facts.recipient))
        if stage not in (Stage.RCPT, Stage.VRFY):
            return PERMIT
        local, at, domain = facts.recipient.rpartition("@")
        if (at and domain.lower().rstrip(".") != "test.example") or re.search(r"[@%!]", local):
            return Verdict(Reply(554, "5.7.1", f"<{facts.recipient}>: Relay access denied"))
        if (local if at else facts.recipient).lower() not in self.users:
            text = f"<{facts.recipient}>: Recipient address rejected: User unknown in local recipient table"
            return Verdict(Reply(550, "5.1.1", text))
        return PERMIT


@dataclass
class Stored:
    """A message that was committed."""

    origin: Origin
    envelope: Envelope
    content: bytes


class MemoryIntake:
    """A message being received into memory."""

    def __init__(self, store: "MemoryCleanup", number: int, origin: Origin, envelope: Envelope) -> None:
        self.queue_id = f"4TEST{number:06d}"
        self._store, self._origin, self._envelope = store, origin, envelope
        self._chunks: list[bytes] = []
        store.open_now += 1

    def write(self, content: bytes) -> None:
        assert len(content) <= 65536
        self._chunks.append(content)

    async def commit(self) -> Reply:
        if self._store.commit_delay is not None:
            await self._store.commit_delay()
        self._store.open_now -= 1
        content = b"".join(self._chunks)
        if content.partition(b"\n\n")[0].count(b"Received:") > 50:
            return Reply(554, "5.4.6", "Error: too many hops")
        self._store.messages.append(Stored(self._origin, self._envelope, content))
        return Reply(250, "2.0.0", f"Ok: queued as {self.queue_id}")

    def abort(self) -> None:
        self._store.open_now -= 1
        self._store.aborted += 1


class MemoryCleanup:
    """Keeps what is committed.  commit_delay: called and awaited in each commit."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.open_now = 0
        self.aborted = 0
        self.commit_delay: Callable[[], asyncio.Future[None]] | None = None
        self.error: Exception | None = None
        self.effects: list[tuple[bool, tuple[str, ...]]] = []
        self._number = 0

    async def open(
        self,
        origin: Origin,
        envelope: Envelope,
        *,
        hold: bool = False,
        prepend: tuple[str, ...] = (),
        size_hint: int = 0,
    ) -> MemoryIntake:
        if self.error is not None:
            raise self.error
        self._number += 1
        self.effects.append((hold, prepend))
        return MemoryIntake(self, self._number, origin, envelope)


class FreeAnvil:
    """Counts and refuses nobody above `limit` connections."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.now: dict[str, int] = {}

    async def connect(self, address: str) -> Verdict:
        self.now[address] = self.now.get(address, 0) + 1
        if self.limit and self.now[address] > self.limit:
            text = f"mx.test.example Error: too many connections from {address}"
            log = (f"Connection concurrency limit exceeded: {self.now[address]}",)
            return Verdict(Reply(421, "4.7.0", text), close=True, log=log)
        return PERMIT

    async def mail(self, address: str) -> Verdict:
        return PERMIT

    async def rcpt(self, address: str) -> Verdict:
        return PERMIT

    def disconnect(self, address: str) -> None:
        self.now[address] -= 1


@dataclass
class FoundName:
    """A client's name."""

    name: str = "client.example"
    reverse_name: str = "client.example"
    name_status: int = 2
    reverse_status: int = 2


class FixedNames:
    """Every client is client.example."""

    async def client_name(self, address: str) -> FoundName:
        return FoundName()


@dataclass
class Rooms:
    """A running server and what stands around it."""

    server: SMTPServer
    port: int
    log: MemoryLog
    policy: Policy
    cleanup: Cleanup
    anvil: Anvil


@asynccontextmanager
async def serving(
    settings: ServerSettings = SETTINGS,
    *,
    policy: Policy | None = None,
    cleanup: Cleanup | None = None,
    anvil: Anvil | None = None,
    exceptions: Exceptions | None = None,
    names: PeerNames | None = None,
    clock: Clock | None = None,
    tls: ssl.SSLContext | None = None,
    wrapper: bool = False,
) -> AsyncIterator[Rooms]:
    """A server on an ephemeral port of loopback; wrapper: TLS from the start."""
    log = MemoryLog()
    policy, cleanup, anvil = policy or LocalPolicy(), cleanup or MemoryCleanup(), anvil or FreeAnvil()
    settings = replace(settings, smtpd_tls_wrappermode=wrapper)
    server = SMTPServer(
        settings, policy, cleanup, anvil, names or FixedNames(), log, clock or Clock(), tls, exceptions=exceptions
    )
    listener = await server.loop.create_server(server.factory, "127.0.0.1", 0)
    try:
        yield Rooms(server, listener.sockets[0].getsockname()[1], log, policy, cleanup, anvil)
    finally:
        listener.close()
        server.close()
        for _ in range(2500):
            if not server.connections:
                break
            await asyncio.sleep(0.002)
        await listener.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    """Look again until it holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110  (of any kind of condition)
            await asyncio.sleep(0.002)


class Client:
    """A client on a socket that sends bytes and reads what comes until it is quiet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, *, tls: ssl.SSLContext | None = None, greeting: bool = True) -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=1 << 20)
        client = cls(reader, writer)
        if greeting:
            assert (await client.reply()).startswith("220 ")
        return client

    async def reply(self) -> str:
        """One reply, all of its lines; "" at the end of the connection."""
        lines = []
        while True:
            line = await asyncio.wait_for(self.reader.readline(), LIMIT)
            lines.append(line.decode("utf-8", "replace"))
            if not line or line[3:4] != b"-":
                return "".join(lines)

    async def say(self, *lines: str) -> list[str]:
        """Send each line alone and read its reply."""
        replies = []
        for line in lines:
            self.writer.write(line.encode("latin-1") + b"\r\n")
            replies.append(await self.reply())
        return replies

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def end(self) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(), LIMIT)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Driven:
    """The pure session under a shell that answers at once; keeps what it was told."""

    session: Session
    judge: Callable[[Stage, Facts], Verdict] = lambda stage, facts: PERMIT
    begin: Callable[[Transaction], Reply | None] = lambda transaction: None
    commit: Callable[[], Reply] = lambda: Reply(250, "2.0.0", "Ok: queued as 4TEST000001")
    sent: bytes = b""
    body: bytes = b""
    messages: list[tuple[Transaction, bytes]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    asked: list[Stage] = field(default_factory=list)
    aborted: int = 0
    closed: bool = False
    _transaction: Transaction | None = None

    @classmethod
    def make(cls, settings: ServerSettings = SETTINGS, *, tls: bool = False) -> "Driven":
        facts = Facts(client_name="client.example", client_address="192.0.2.1")
        return cls(Session(SessionPlan(settings, tls=tls), facts))

    def start(self) -> str:
        return self.run(self.session.start())

    def say(self, data: bytes | str) -> str:
        """Send bytes; return what was said to it."""
        return self.run(self.session.receive(data.encode("latin-1") if isinstance(data, str) else data))

    def run(self, events: list[Event]) -> str:
        before = len(self.sent)
        while events:
            following: list[Event] = []
            for event in events:
                following += self._one(event)
            events = following
        return self.sent[before:].decode("utf-8", "replace")

    def _one(self, event: Event) -> list[Event]:
        session = self.session
        match event:
            case Send(data=data):
                assert not self.closed
                self.sent += data
            case Ask(token=token, stage=stage, facts=facts):
                self.asked.append(stage)
                return session.answer(token, self.judge(stage, facts))
            case Begin(token=token, transaction=transaction):
                self.body, self._transaction = b"", transaction
                refusal = self.begin(transaction)
                if refusal is not None:
                    self._transaction = None
                return session.begun(token, refusal)
            case Body(data=data):
                assert self._transaction is not None
                self.body += data
            case Commit(token=token):
                assert self._transaction is not None
                reply = self.commit()
                if reply.is_positive:
                    self.messages.append((self._transaction, self.body))
                self._transaction = None
                return session.committed(token, reply)
            case Abort():
                assert self._transaction is not None
                self._transaction = None
                self.aborted += 1
            case Wait(token=token, seconds=seconds):
                self.waits.append(seconds)
                return session.waited(token)
            case StartTls(token=token):
                return session.tls_started(token, "TLSv1.3 with cipher X (256/256 bits)")
            case Log(text=text, warning=warning):
                self.log.append(f"warning: {text}" if warning else text)
            case Close():
                self.closed = True
        return []


def with_settings(**changes: object) -> ServerSettings:
    """SETTINGS with some values changed."""
    return replace(SETTINGS, **changes)  # type: ignore[arg-type]  # names and types are checked by the dataclass users


def certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A self-signed certificate for the server: (its context, one for a client that does not verify)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mx.test.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    pem = directory / "server.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    pem.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(encoding)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return server, client
