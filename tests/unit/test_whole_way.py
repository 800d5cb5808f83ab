"""One message from EHLO to settle on deterministic twins, and two MTAs in one process: A delivers to B.

Virtual time, an inline disk worker, a network in memory: nothing here waits for anything real.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from mta.clock import Clock
from mta.config.config import Config, load
from mta.maillog.maillog import FileSink, Maillog, MaillogSettings
from mta.master.build import Core, build_anvil, build_core, build_qmgr, build_smtpd
from mta.qmgr.qmgr import QueueManager
from mta.queue.api import Queue
from mta.queue.store import StoreSettings, create_spool
from mta.smtpd.server import SMTPServer
from tests.inline_fsio import InlineFsio
from tests.memory_net import MemoryNet
from tests.virtual_time import run_virtual

MASTER = "smtp inet n - n - - smtpd\n" + "".join(
    f"{name} unix - - n - - {command}\n"
    for name, command in [("smtp", "smtp"), ("relay", "smtp"), ("local", "local"), ("error", "error"),
                          ("retry", "error"), ("discard", "discard")]
)  # fmt: skip


def configure(path: Path, name: str, address: str, **settings: str) -> Config:
    etc = path / "etc"
    etc.mkdir(parents=True)
    (path / "mail").mkdir()
    values = {
        "compatibility_level": "3.6", "myhostname": f"mx.{name}.example", "mydestination": f"{name}.example",
        "inet_interfaces": address, "mynetworks": "192.0.2.0/24", "queue_directory": f"{path}/spool",
        "data_directory": str(path), "mail_spool_directory": f"{path}/mail", "alias_maps": "", "maillog_file": "",
        "local_recipient_maps": "", "disable_dns_lookups": "yes", "smtp_tls_security_level": "none",
        "smtpd_peername_lookup": "no", "inet_protocols": "ipv4", **settings,
    }  # fmt: skip
    (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))
    (etc / "master.cf").write_text(MASTER)
    return load(str(etc))


@dataclass
class Mta:
    core: Core
    qmgr: QueueManager
    server: SMTPServer
    log: Path

    def lines(self) -> str:
        self.core.log.flush()
        return self.log.read_text()


@contextlib.asynccontextmanager
async def running(config: Config, clock: Clock, net: MemoryNet, address: str) -> AsyncIterator[Mta]:
    log_file = Path(config.directory).parent / "log"
    log = Maillog(MaillogSettings("", "postfix", config.text("myhostname")), clock, FileSink(str(log_file)))
    fsio = InlineFsio(aio=False)
    create_spool(config.fill(StoreSettings), fsio)
    core = build_core(config, owner=True, clock=clock, fsio=fsio, connector=net, log=log)
    qmgr = build_qmgr(core, None)
    server = build_smtpd(core, config, build_anvil(core), "smtpd")
    await core.store.recover()
    net.listeners[address, 25] = server.factory
    task = asyncio.ensure_future(qmgr.run())
    try:
        yield Mta(core, qmgr, server, log_file)
    finally:
        net.listeners.pop((address, 25), None)
        await server.drain(5.0)
        server.close()
        await qmgr.drain(5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await core.close()


class Client(asyncio.Protocol):
    """Collects what a server says."""

    def __init__(self) -> None:
        self.heard = b""

    def data_received(self, data: bytes) -> None:
        self.heard += data


async def send(net: MemoryNet, clock: Clock, address: str, script: list[bytes]) -> str:
    transport, client = net.join(Client, address, 25)
    await clock.sleep(1)
    for line in script:
        transport.write(line)
        await clock.sleep(1)
    transport.close()
    return client.heard.decode()


def message(sender: str, recipient: str) -> list[bytes]:
    return [
        b"EHLO client.example\r\n", f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode(),
        b"Subject: t\r\n\r\n..dot\r\nFrom here\r\n.\r\n", b"QUIT\r\n",
    ]  # fmt: skip


def play(story: Callable[[Clock], Coroutine[None, None, None]]) -> None:
    run_virtual(story, patience=0.0)


def test_a_message_goes_from_ehlo_to_settle_through_two_mtas(tmp_path: Path) -> None:
    a = configure(tmp_path / "a", "a", "192.0.2.10", relayhost="[192.0.2.20]")
    b = configure(tmp_path / "b", "b", "192.0.2.20")

    async def story(clock: Clock) -> None:
        net = MemoryNet()
        async with running(a, clock, net, "192.0.2.10") as one, running(b, clock, net, "192.0.2.20") as two:
            heard = await send(net, clock, "192.0.2.10", message("s@a.example", "games@b.example"))
            assert "250 2.0.0 Ok: queued as " in heard
            await clock.sleep(30)
            assert "relay=192.0.2.20[192.0.2.20]:25" in one.lines()
            assert "status=sent (250 2.0.0 Ok: queued as " in one.lines()
            assert "status=sent (delivered to mailbox)" in two.lines()
            for mta in (one, two):
                assert await mta.core.store.scan(Queue.INCOMING) == await mta.core.store.scan(Queue.DEFERRED) == []
        box = (tmp_path / "b" / "mail" / "games").read_text()
        assert box.startswith("From s@a.example  ")
        assert "\n.dot\n>From here\n\n" in box
        assert box.count("\nReceived: ") == 2

    play(story)


def test_a_percent_in_a_local_part_is_an_address_to_the_end_of_the_way(tmp_path: Path) -> None:
    a = configure(tmp_path / "a", "a", "192.0.2.10", relayhost="[192.0.2.20]")
    b = configure(tmp_path / "b", "b", "192.0.2.20", local_recipient_maps="unix:passwd.byname")

    async def story(clock: Clock) -> None:
        net = MemoryNet()
        async with running(a, clock, net, "192.0.2.10") as one, running(b, clock, net, "192.0.2.20") as two:
            await send(net, clock, "192.0.2.10", message("s@a.example", "games%b.example%b.example@a.example"))
            await clock.sleep(30)
            assert "to=<games%b.example@b.example>, orig_to=<games%b.example%b.example@a.example>" in one.lines()
            assert "to=<games@b.example>, orig_to=<games%b.example@b.example>, relay=local" in two.lines()
            assert "status=sent (delivered to mailbox)" in two.lines()

    play(story)


def test_a_site_that_is_down_for_an_hour_costs_only_retries(tmp_path: Path) -> None:
    a = configure(tmp_path / "a", "a", "192.0.2.10", relayhost="[192.0.2.20]")
    b = configure(tmp_path / "b", "b", "192.0.2.20")

    async def story(clock: Clock) -> None:
        net = MemoryNet()
        async with running(a, clock, net, "192.0.2.10") as one:
            await send(net, clock, "192.0.2.10", message("s@a.example", "games@b.example"))
            await clock.sleep(3600)
            assert one.lines().count("connect to 192.0.2.20[192.0.2.20]:25: Connection refused)") >= 3
            async with running(b, clock, net, "192.0.2.20") as two:
                await clock.sleep(3600)
                assert two.lines().count("status=sent (delivered to mailbox)") == 1
            assert await one.core.store.scan(Queue.DEFERRED) == []

    play(story)


def test_a_refusal_comes_back_as_one_report_to_the_sender(tmp_path: Path) -> None:
    a = configure(tmp_path / "a", "a", "192.0.2.10", relayhost="[192.0.2.20]")
    strict = {"mynetworks": "127.0.0.0/8", "smtpd_relay_restrictions": "reject_unauth_destination"}
    b = configure(tmp_path / "b", "b", "192.0.2.20", **strict)

    async def story(clock: Clock) -> None:
        net = MemoryNet()
        async with running(a, clock, net, "192.0.2.10") as one, running(b, clock, net, "192.0.2.20"):
            await send(net, clock, "192.0.2.10", message("games@a.example", "nobody@c.example"))
            await clock.sleep(600)
            assert one.lines().count("status=bounced") == 1
            assert one.lines().count("sender non-delivery notification: ") == 1
        box = (tmp_path / "a" / "mail" / "games").read_text()
        assert "Undelivered Mail Returned to Sender" in box
        assert "Relay access denied" in box

    play(story)
