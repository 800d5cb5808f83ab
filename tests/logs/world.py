"""The world of the simulated day: our mail system on virtual time, name servers, peers and clients in memory.

What is ours is the real server, queue manager, agents and log; what is outside is here, and keeps its own books.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from mta.clock import Clock
from mta.config.config import load
from mta.maillog.maillog import FileSink, Maillog, MaillogSettings
from mta.master.build import Core, build_anvil, build_core, build_qmgr, build_smtpd
from mta.queue.store import StoreSettings, create_spool
from mta.smtpd.server import SMTPServer
from tests.inline_fsio import InlineFsio
from tests.memory_net import MemoryNet, MemoryTransport

P = TypeVar("P", bound=asyncio.BaseProtocol)
MIDNIGHT = time.mktime((2026, 11, 20, 0, 0, 0, 0, 0, -1))
OURS, NAME_SERVER = "192.0.2.10", "192.0.2.53"
USERS = ("games", "man", "lp", "mail", "news", "uucp", "backup", "list", "irc")
"""Users that Debian's base-passwd makes; mailboxes are written by whoever runs the test."""
MASTER = "smtp inet n - n - - smtpd\n" + "".join(
    f"{name} unix - - n - - {command}\n"
    for name, command in [("smtp", "smtp"), ("relay", "smtp"), ("local", "local"), ("error", "error"),
                          ("retry", "error"), ("discard", "discard")]
)  # fmt: skip


class Names:
    """A zone: records by (name, type); a name that was never mentioned does not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}

    def add(self, name: str, kind: str, *values: str) -> None:
        self.records.setdefault((name, kind), []).extend(values)

    def host(self, name: str, address: str) -> None:
        """A host with both ways of its name."""
        self.add(name, "A", address)
        self.add(".".join([*reversed(address.split(".")), "in-addr.arpa"]), "PTR", f"{name}.")

    def answer(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        reply = dns.message.make_response(query, recursion_available=True)
        found = self.records.get((name, kind))
        if found:
            reply.answer.append(dns.rrset.from_text(question.name, 3600, "IN", kind, *found))
        else:
            known = any(n == name or n.endswith(f".{name}") for n, _ in self.records)
            reply.set_rcode(dns.rcode.NOERROR if known else dns.rcode.NXDOMAIN)
            soa = "ns.test. hostmaster.test. 1 3600 600 86400 3600"
            reply.authority.append(dns.rrset.from_text("test.", 3600, "IN", "SOA", soa))
        return reply.to_wire()


class _Datagrams(asyncio.DatagramTransport):
    """A UDP socket whose peer is the zone."""

    def __init__(self, names: Names, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self._names, self._protocol = names, protocol
        self._loop = asyncio.get_running_loop()

    def sendto(self, data: bytes | bytearray | memoryview, addr: object = None) -> None:
        self._loop.call_soon(self._protocol.datagram_received, self._names.answer(bytes(data)), (NAME_SERVER, 53))

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


class Net(MemoryNet):
    """MemoryNet with name servers, clients that have addresses, and a count of refused connections."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self.names = names
        self.refused: Counter[str] = Counter()

    def enter(self, factory: Callable[[], P], source: str) -> tuple[MemoryTransport, P]:
        """Connect to our port 25 from an address."""
        self._port += 1
        ours, theirs = MemoryTransport.pair((source, 1024 + self._port % 60000), (OURS, 25))
        client, server = factory(), self.listeners[OURS, 25]()
        ours.set_protocol(client)
        theirs.set_protocol(server)
        client.connection_made(ours)
        asyncio.get_running_loop().call_soon(server.connection_made, theirs)
        return ours, client

    async def connect(
        self, factory: Callable[[], P], address: str, port: int, *, local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (Connector's contract)
    ) -> tuple[asyncio.Transport, P]:  # fmt: skip
        try:
            return self.join(factory, address, port)
        except ConnectionRefusedError:
            self.refused[address] += 1
            raise

    async def datagrams(
        self, factory: Callable[[], P], address: str, port: int
    ) -> tuple[asyncio.DatagramTransport, P]:
        protocol = factory()
        transport = _Datagrams(self.names, cast(asyncio.DatagramProtocol, protocol))
        protocol.connection_made(transport)
        return transport, protocol


@dataclass
class Books:
    """What peers say they did.  accepted: (sender, recipient) answered 250 at the end of the message."""

    accepted: list[tuple[str, str]] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Peer(asyncio.Protocol):
    """A remote server.  Its users: later-N answer 450 N times, never 450 always, gone 550, all others 250."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._buffer = b""
        self._text = False
        self._sender, self._recipients = "", list[str]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"220 peer.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            if self._text:
                if line == b".":
                    self._text = False
                    self._books.accepted += [(self._sender, each) for each in self._recipients]
                    self._transport.write(b"250 2.0.0 Ok: queued as PEER\r\n")
                continue
            self._transport.write(self._command(line.decode()) + b"\r\n")

    def _command(self, line: str) -> bytes:
        path = line.partition("<")[2].partition(">")[0]
        match line[:4].upper():
            case "EHLO":
                return b"250-peer.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 DSN"
            case "MAIL":
                self._sender, self._recipients = path, []
            case "RCPT":
                return self._recipient(path)
            case "DATA" if not self._recipients:
                return b"554 5.5.1 No valid recipients"
            case "DATA":
                self._text = True
                return b"354 Go ahead"
            case "QUIT":
                return b"221 2.0.0 Bye"
        return b"250 2.0.0 Ok"

    def _recipient(self, path: str) -> bytes:
        name = path.partition("@")[0].partition("+")[0]
        kind, _, times = name.partition("-")
        if kind == "gone":
            self._books.refused.append(path)
            return b"550 5.1.1 No such user here"
        if kind == "never" or (kind == "later" and self._books.deferred.count(path) < int(times)):
            self._books.deferred.append(path)
            return b"450 4.2.1 Come back later"
        self._recipients.append(path)
        return b"250 2.1.5 Ok"


class Client(asyncio.Protocol):
    """Collects what our server says."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed = False

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.closed = True
        return False


def configure(path: Path, settings: Mapping[str, str], aliases: str) -> str:
    """Write the configuration; returns its directory."""
    etc = path / "etc"
    etc.mkdir(parents=True)
    (path / "mail").mkdir()
    (etc / "aliases").write_text(aliases)
    values = {
        "compatibility_level": "3.6", "myhostname": "mx.day.test", "mydomain": "day.test", "myorigin": "day.test",
        "mydestination": "day.test, mx.day.test", "mynetworks": "10.0.0.0/8", "inet_interfaces": OURS,
        "inet_protocols": "ipv4", "queue_directory": f"{path}/spool", "data_directory": f"{path}/data",
        "mail_spool_directory": f"{path}/mail", "alias_maps": f"hash:{etc}/aliases", "maillog_file": "",
        "local_recipient_maps": f"$alias_maps inline:{{{', '.join(f'{u}=x' for u in USERS)}}}",
        "smtp_tls_security_level": "none", "dns_servers": NAME_SERVER, **settings,
    }  # fmt: skip
    (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))
    (etc / "master.cf").write_text(MASTER)
    return str(etc)


@dataclass
class Mta:
    """Ours."""

    core: Core
    server: SMTPServer
    clock: Clock
    log: Path


@contextlib.asynccontextmanager
async def running(etc: str, clock: Clock, net: Net, log_file: Path) -> AsyncIterator[Mta]:
    """Run it until the block ends."""
    config = load(etc)
    assert not any(problem.fatal for problem in config.problems), config.problems
    log = Maillog(MaillogSettings("", "postfix", "mx"), clock, FileSink(str(log_file)))
    fsio = InlineFsio(aio=False)
    create_spool(config.fill(StoreSettings), fsio)
    core = build_core(config, owner=True, clock=clock, fsio=fsio, connector=net, log=log)
    qmgr = build_qmgr(core, None)
    server = build_smtpd(core, config, build_anvil(core), "smtpd")
    await core.store.recover()
    net.listeners[OURS, 25] = server.factory
    task = asyncio.ensure_future(qmgr.run())
    try:
        yield Mta(core, server, clock, log_file)
    finally:
        del net.listeners[OURS, 25]
        await server.drain(5.0)
        server.close()
        await qmgr.drain(5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await core.close()
