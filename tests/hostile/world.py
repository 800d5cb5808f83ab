"""The real rooms behind the listener: restrictions, rewriting, cleanup and the spool, on a temporary directory.

Outside is only what hostile.jsonl assumes: server mx.test.example, local domain test.example with user,
postmaster and abuse; the client is trusted by nothing; DNS knows no domain.
"""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mta.cleanup.cleanup import Cleanup
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock
from mta.config.config import load
from mta.dns.mx import DnsNotFound, MXAnswer
from mta.fsio.fsio import Fsio
from mta.lookup.context import LookupContext
from mta.lookup.open import open_tables
from mta.lookup.unix import UserDb
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.queue.api import Queue
from mta.queue.store import SpoolStore, StoreSettings
from mta.queue.store_spool import create_spool
from mta.smtpd.anvil import Anvil, AnvilSettings
from mta.smtpd.restrict_core import RestrictionSettings
from mta.smtpd.restrictions import Restrictions
from mta.smtpd.server import SMTPServer
from mta.smtpd.server_settings import ServerSettings
from mta.trivial_rewrite import Rewriter, RewriterSettings
from tests.hostile.runner import Message
from tests.smtpd_support import FixedNames

MAIN_CF = """\
compatibility_level = 3.6
myhostname = mx.test.example
mydomain = test.example
myorigin = test.example
mydestination = test.example, mx.test.example, localhost
inet_interfaces = 127.0.0.1
mynetworks = 192.0.2.0/24
queue_directory = {root}/spool
data_directory = {root}/data
alias_maps =
local_recipient_maps = inline:{{ user=x, postmaster=x, abuse=x }}
message_size_limit = 1048576
mailbox_size_limit = 0
queue_minfree = 0
smtpd_helo_required = yes
smtpd_timeout = 6s
smtpd_error_sleep_time = 0s
smtpd_client_connection_count_limit = 0
"""
MASTER_CF = "smtp inet n - n - - smtpd\n"


class LinesSink:
    """Keeps the log's lines."""

    with_header = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None:
        return

    def close(self) -> None:
        return


class NoDns:
    """No name exists."""

    async def mx(self, domain: str) -> MXAnswer:
        raise DnsNotFound(domain, "MX")

    async def addresses(self, host: str, wanted: Sequence[int] = ()) -> list[str]:
        raise DnsNotFound(host, "A")

    async def texts(self, name: str) -> list[str]:
        raise DnsNotFound(name, "TXT")

    async def exists(self, domain: str) -> bool:
        return False


@dataclass
class World:
    """A listener on the real rooms."""

    server: SMTPServer
    port: int
    log: "LinesSink"
    store: SpoolStore
    root: Path

    async def messages(self) -> list[Message]:
        """What is in the queue, as the queue manager reads it."""
        found = []
        for queue_id, _ in await self.store.scan(Queue.INCOMING):
            job = await self.store.claim(queue_id)
            assert job is not None, f"{queue_id} cannot be claimed"
            content = b"".join([chunk async for chunk in self.store.content(job)])
            envelope = job.envelope
            dsn = [envelope.envelope_id, *(recipient.dsn_orig_rcpt for recipient in envelope.recipients)]
            addresses = [recipient.address for recipient in envelope.recipients]
            found.append(Message(envelope.sender, addresses, content, dsn))
            await self.store.give_back(job)
        return found

    def left_open(self, committed: int) -> int:
        """Files in incoming/ that are not messages."""
        return sum(1 for path in (self.root / "spool/incoming").rglob("*") if path.is_file()) - committed


@asynccontextmanager
async def world(root: Path, tls: ssl.SSLContext, more: str = "") -> AsyncIterator[World]:
    """Everything from the socket to the disk, in this process; more: lines of main.cf that win over MAIN_CF's."""
    directory = root / "etc"
    directory.mkdir(parents=True)
    (root / "data").mkdir()
    (directory / "main.cf").write_text(MAIN_CF.format(root=root) + more)
    (directory / "master.cf").write_text(MASTER_CF)
    config = load(str(directory))
    clock, fsio, lines = Clock(), Fsio(), LinesSink()
    log = Maillog(config.fill(MaillogSettings), clock, lines)
    context = LookupContext(fsio, clock, log, UserDb(fsio, clock))
    rewriter = Rewriter(config.fill(RewriterSettings), context, ("127.0.0.1",))
    settings = config.fill(StoreSettings)
    create_spool(settings, fsio)
    store = SpoolStore(settings, fsio, clock, log)
    await store.recover()
    cleanup = Cleanup(
        config.fill(CleanupSettings), store, rewriter, lambda spec: open_tables(spec, context), log, clock
    )
    policy = Restrictions(
        config.fill(RestrictionSettings), rewriter, context, NoDns(),
        classes=config.restriction_classes(), own_addresses=("127.0.0.1",),
    )  # fmt: skip
    anvil = Anvil(config.fill(AnvilSettings), clock)
    server = SMTPServer(config.fill(ServerSettings), policy, cleanup, anvil, FixedNames(), log, clock, tls)
    listener = await server.loop.create_server(server.factory, "127.0.0.1", 0)
    try:
        yield World(server, listener.sockets[0].getsockname()[1], lines, store, root)
    finally:
        listener.close()
        server.close()
        await server.drain(5)
        await listener.wait_closed()
        store.close()
        fsio.close()
