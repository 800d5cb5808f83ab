"""One day of a mail server, and the ledger of what its clients and peers saw of it.

Every event is a function (World, n): a client that connects, a user who calls sendmail.  It returns what it heard
to the ledger; nothing in the ledger comes from our log or our queue.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mta.clock import Clock
from mta.submit.intake import Delivery
from mta.submit.options import parse_command
from mta.submit.prepare import Caller, Submission
from tests.logs.world import MIDNIGHT, USERS, Books, Client, Mta, Names, Net, Peer, configure, running
from tests.virtual_time import VirtualLoop

DAY = 86400.0
PEERS = {f"remote{n}.test": f"198.51.100.{n}" for n in range(1, 9)}
STRANGERS = {f"mail{n}.src{n}.test": f"203.0.113.{n}" for n in range(1, 41)}
LISTED, NAMELESS, DENIED = "203.0.113.200", "203.0.113.201", "203.0.113.202"
GREEDY = "203.0.113.210"
RATE = 20  # connections per minute and client
ALIASES = "team: games, man, lp\naway: far@remote3.test\npostmaster: games\nabuse: games\n"
SETTINGS = {
    "virtual_alias_maps": "inline:{sales@day.test=news@day.test}",
    "maximal_queue_lifetime": "6h", "bounce_queue_lifetime": "6h", "delay_warning_time": "2h",
    "smtpd_helo_required": "yes", "smtpd_client_connection_rate_limit": str(RATE),
    "smtpd_client_restrictions": f"check_client_access inline:{{{DENIED}=REJECT}}",
    "smtpd_helo_restrictions": "permit_mynetworks, reject_non_fqdn_helo_hostname",
    "smtpd_sender_restrictions": "check_sender_access inline:{spam@src1.test=REJECT}, permit_mynetworks, "
                                 "reject_unknown_sender_domain",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "smtpd_recipient_restrictions": "permit_mynetworks, reject_rbl_client bl.test, "
                                    "warn_if_reject check_sender_access inline:{odd@src2.test=REJECT}, "
                                    "check_recipient_access inline:{irc@day.test=HOLD, list@day.test=DISCARD, "
                                    "{backup@day.test = 450 4.2.0 Greylisted}}",
    "message_size_limit": "200000",
}  # fmt: skip


@dataclass
class Ledger:
    """What clients saw.  refused: kind of refusal -> replies heard.  deferred: recipients that had to wait.

    received: messages answered "250 ... queued"; senders: of these.  events: what else happened, by name.
    """

    received: int = 0
    connections: int = 0
    discarded: int = 0
    held: int = 0
    warned: int = 0
    forwarded: int = 0
    unknown_domains: int = 0
    unknown_users: int = 0
    expired: int = 0
    senders: set[str] = field(default_factory=set)
    deferred: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)


@dataclass
class Day:
    """All that was seen of a day from outside.  refused_connections: those our client tried.  log: what we judge."""

    ledger: Ledger
    books: Books
    refused_connections: int
    mailboxes: dict[str, bytes]
    log: Path

    def postmarks(self, sender: str = "") -> int:
        """Messages in mailboxes, or those of a sender."""
        start = f"From {sender}".encode()
        return sum(line.startswith(start) for box in self.mailboxes.values() for line in box.split(b"\n"))

    @property
    def delivered_to(self) -> set[str]:
        """Addresses that got mail."""
        return {recipient for _, recipient in self.books.accepted} | {f"{u}@day.test" for u in self.mailboxes}


@dataclass
class World:
    """All there is."""

    mta: Mta
    net: Net
    books: Books
    clock: Clock
    ledger: Ledger

    async def talk(self, source: str, *steps: bytes, end: str = "quit") -> list[str]:
        """Send each step when the one before was answered; the replies.  end: quit, drop, or wait for the server."""
        self.ledger.connections += 1
        transport, client = self.net.enter(Client, source)
        replies = [await self._reply(client)]
        for step in steps:
            if client.closed:
                break
            transport.write(step + b"\r\n")
            replies.append(await self._reply(client))
            if step == b"DATA" and not replies[-1].startswith("354"):
                break
        if client.closed and client.heard:
            replies.append(client.heard.decode())
        if end == "quit" and not client.closed:
            transport.write(b"QUIT\r\n")
            await self._reply(client)
        while end == "wait" and not client.closed:
            await self.clock.sleep(10)
        if end == "wait":
            replies.append(client.heard.decode())
        transport.close()
        await self.clock.sleep(0.01)
        return replies

    async def _reply(self, client: Client) -> str:
        for _ in range(4000):
            *whole, rest = client.heard.split(b"\r\n")
            if whole and whole[-1][3:4] == b" " and not rest:
                break
            if client.closed:
                break
            await self.clock.sleep(0.02)
        heard, client.heard = client.heard.decode(), b""
        return heard

    async def mail(self, source: str, sender: str, recipients: list[str], *, helo: str = "c.src1.test") -> list[str]:
        """One message by SMTP; the replies to RCPT and to the end of the message."""
        body = f"From: {sender}\r\nTo: {recipients[0]}\r\nSubject: day\r\n\r\n{'text ' * 20}\r\n.".encode()
        rcpt = [f"RCPT TO:<{each}>".encode() for each in recipients]
        hello = [f"EHLO {helo}".encode(), f"MAIL FROM:<{sender}>".encode()]
        replies = await self.talk(source, *hello, *rcpt, b"DATA", body)
        answers = replies[3 : 3 + len(rcpt)]
        if replies[-1].startswith("250 2.0.0 Ok: queued as "):
            self._received(sender)
        return [*answers, replies[-1]]

    def _received(self, sender: str) -> None:
        self.ledger.received += 1
        self.ledger.senders.add(sender)

    async def sendmail(self, user: str, sender: str, recipients: list[str]) -> None:
        """A local user's sendmail."""
        invocation = parse_command(["sendmail", "-i", "-f", sender, "--", *recipients], uid=1000)
        submission = Submission(invocation, Caller(1000, user, "", {}))
        core = self.mta.core
        delivery = Delivery(core.cleanup, submission, core.log, self.clock, hop_limit=50, key="0" * 32)
        await delivery.feed(b"Subject: by program\n\nhello\n")
        reply = await delivery.finish()
        assert reply.is_positive, reply
        self._received(sender)


Event = Callable[[World, int], Awaitable[None]]


def stranger(n: int) -> tuple[str, str, str]:
    """(address, name, sender) of a well-behaved client outside."""
    name, address = list(STRANGERS.items())[n % len(STRANGERS)]
    return address, name, f"person{n % 7}@{name.partition('.')[2]}"


def user(n: int) -> str:
    """A local address nothing special is said about."""
    return f"{USERS[n % 6]}@day.test"


def remote(n: int, name: str = "") -> str:
    """A remote address."""
    return f"{name or f'box{n % 5}'}@{list(PEERS)[n % len(PEERS)]}"


def names() -> Names:
    """The zone."""
    found = Names()
    for domain, address in PEERS.items():
        found.add(domain, "MX", f"10 mx.{domain}.")
        found.host(f"mx.{domain}", address)
    for name, address in STRANGERS.items():
        found.host(name, address)
        found.add(name.partition(".")[2], "MX", f"10 {name}.")
    found.host("mail.listed.test", LISTED)
    found.add("200.113.0.203.bl.test", "A", "127.0.0.2")
    found.add("200.113.0.203.bl.test", "TXT", '"https://bl.test/?q=203.0.113.200"')
    found.host("mail.denied.test", DENIED)
    found.host("greedy.test", GREEDY)
    found.host("mx.day.test", "192.0.2.10")
    found.add("day.test", "MX", "10 mx.day.test.")
    for n in range(400):
        found.host(f"down{n}.test", f"198.18.{n // 200}.{n % 200 + 1}")
    return found


def simulate(path: Path, plan: Sequence[tuple[Event, int]], seed: int = 1) -> Day:
    """Play the day; plan: how many of each event."""
    loop = VirtualLoop(patience=0.0)
    clock = Clock(wall=lambda: MIDNIGHT + loop.time())
    etc = configure(path, SETTINGS, ALIASES)
    log = path / "log" / "mail.log"
    log.parent.mkdir()

    async def story() -> Day:
        net, books, ledger = Net(names()), Books(), Ledger()
        for address in [*PEERS.values(), *STRANGERS.values()]:
            net.listeners[address, 25] = lambda: Peer(books)
        async with running(etc, clock, net, log) as mta:
            world = World(mta, net, books, clock, ledger)
            chance = random.Random(seed)
            tasks = [asyncio.create_task(_at(chance.uniform(60, DAY - 8 * 3600), world, event, n))
                     for event, count in plan for n in range(count)]  # fmt: skip
            await asyncio.gather(*tasks)
            await clock.sleep(max(0.0, DAY - 300 - loop.time()))
        boxes = {each.name: each.read_bytes() for each in (path / "mail").iterdir()}
        return Day(ledger, books, net.refused.total(), boxes, log)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(story())


async def _at(when: float, world: World, event: Event, n: int) -> None:
    await world.clock.sleep(when)
    await event(world, n)
