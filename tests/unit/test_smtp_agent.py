"""The SMTP agent against scripted servers and a real DNS server: where mail goes, what is logged, what is reused."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mta.config.config import load
from mta.deliver.request import CorruptContentError, Result
from mta.deliver.smtp_settings import Destination, LmtpSettings, NexthopError, SmtpSettings, lmtp, parse_nexthop
from mta.dns.resolver import ResolverSettings
from mta.envelope import Envelope, Notify, Recipient
from mta.smtp.folding import LineFolder
from mta.tls import TlsClientSettings, TlsServerSettings
from tests.dns_server import DnsServer
from tests.smtp_lab import BODY, Lab, opportunistic, settings
from tests.smtp_peer import Certificates, Peer, Step
from tests.smtpd_support import until

OK: list[Step] = ["220 mx ESMTP\\r\\n", {"rx": "EHLO"}, "250 mx.dst.test\\r\\n"]
FULL: list[Step] = ["220 mx ESMTP\\r\\n", {"rx": "EHLO"}, "250-mx.dst.test\\r\\n250-DSN\\r\\n250 8BITMIME\\r\\n"]

ACCEPTED: list[Step] = [
    *OK, {"rx": "MAIL"}, "250 2.1.0 Ok\\r\\n", {"rx": "RCPT"}, "250 2.1.5 Ok\\r\\n",
    {"rx": "DATA"}, "354 go\\r\\n", {"rx": "EOD"}, "250 2.0.0 Ok: queued as 42\\r\\n",
]  # fmt: skip


def at_rcpt(reply: str) -> list[Step]:
    return [*OK, {"rx": "MAIL"}, "250 ok\\r\\n", {"rx": "RCPT"}, f"{reply}\\r\\n"]


class World:
    """Peers, a DNS server and labs that are closed at the end."""

    def __init__(self, tmp_path: Path, dns: DnsServer) -> None:
        self.tmp_path, self.dns = tmp_path, dns
        self.closing: list[Callable[[], Awaitable[None]]] = []

    async def peer(self, steps: list[Step] = OK, certificates: Certificates | None = None) -> Peer:
        peer = await Peer.start(steps, certificates)
        self.closing.append(peer.close)
        return peer

    def lab(self, lab: Lab) -> Lab:
        self.closing.insert(0, lab.close)
        return lab

    def plain(self, **options: object) -> Lab:
        return self.lab(Lab(self.tmp_path, dns_server=self.dns.address, options=options))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    dns = await DnsServer.start()
    made = World(tmp_path, dns)
    yield made
    for close in made.closing:
        await close()
    await dns.close()


def brief(result: Result) -> str:
    return f"{result.reply.code} {result.reply.enhanced} {result.text}"


async def test_a_delivery_is_reported_as_postfix_logs_it(world: World) -> None:
    peer = await world.peer(ACCEPTED)
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert result.relay == f"127.0.0.1[127.0.0.1]:{peer.port}"
    assert brief(result) == "250 2.0.0 250 2.0.0 Ok: queued as 42"
    assert result.action == "relayed" and result.conn_use == 1 and result.finished >= result.connected > 0
    assert peer.messages == [BODY.replace(b"\n", b"\r\n")]
    await until(lambda: peer.commands[0][-1] == "QUIT")  # one message alone keeps no connection


async def test_dsn_duties_are_handed_on_where_they_are_understood(world: World) -> None:
    peer = await world.peer(FULL)
    recipient = Recipient("x@dst.test", notify=Notify.SUCCESS, dsn_orig_rcpt="rfc822;o@dst.test")
    envelope = Envelope("a@src.test", [recipient], 0.0, envelope_id="ID1", encoding="8bit")
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", [recipient], envelope=envelope)
    assert result.action == ""
    assert peer.commands[0][1:3] == [
        "MAIL FROM:<a@src.test> BODY=8BITMIME ENVID=ID1", "RCPT TO:<x@dst.test> NOTIFY=SUCCESS ORCPT=rfc822;o@dst.test",
    ]  # fmt: skip


async def test_a_refusal_quotes_the_peer(world: World) -> None:
    peer = await world.peer(at_rcpt("550 5.1.1 <x@dst.test>: unknown"))
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    said = "550 5.1.1 <x@dst.test>: unknown"
    assert brief(result) == f"550 5.1.1 host 127.0.0.1[127.0.0.1] said: {said} (in reply to RCPT TO command)"
    assert result.diagnostic == f"smtp; {said}" and result.remote_mta == "127.0.0.1" and not result.site_failed


async def test_a_refused_connection_is_logged_and_deferred(world: World) -> None:
    peer = await world.peer()
    await peer.close()
    lab = world.plain()
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    text = f"connect to 127.0.0.1[127.0.0.1]:{peer.port}: Connection refused"
    assert brief(result) == f"451 4.4.1 {text}" and result.relay == "none" and result.site_failed
    assert lab.lines() == [f"smtp[{os.getpid()}]: {text}"]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([{"hang": True}], "conversation with PEER timed out while receiving the initial server greeting"),
        ([*OK, {"rx": "MAIL"}, {"close": True}], "lost connection with PEER while sending MAIL FROM"),
        ([*OK, {"rx": "MAIL"}, "250 x\\r\\n", {"rx": "RCPT"}, {"hang": True}],
         "conversation with PEER timed out while sending RCPT TO"),
        ([*OK[:2], {"close": True}], "lost connection with PEER while performing the EHLO handshake"),
        (["554 5.7.1 go\\r\\n"], "host PEER refused to talk to me: 554 5.7.1 go"),
        ([*OK, {"rx": "MAIL"}, "hello\\r\\n"], "protocol error from PEER while sending MAIL FROM: malformed reply"),
    ],
)  # fmt: skip
async def test_how_a_conversation_ends_is_told_in_postfix_words(world: World, steps: list[Step], text: str) -> None:
    peer = await world.peer(steps)
    lab = world.plain(smtp_helo_timeout=0.3, smtp_rcpt_timeout=0.3)
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert result.text == text.replace(" PEER", " 127.0.0.1[127.0.0.1]")
    assert result.reply.is_temporary and result.site_failed


async def test_what_a_server_says_before_the_connection_is_looked_at_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop reads before it wakes whoever made the connection."""
    peer = await world.peer(["600 what?\\r\\n", {"hang": True}])
    lab = world.plain()
    connect = lab.connector.connect

    async def late(*args: Any, **options: Any) -> Any:
        made = await connect(*args, **options)
        await until(made[0].is_closing)
        return made

    monkeypatch.setattr(lab.connector, "connect", late)
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert brief(result).startswith("451 4.5.0 protocol error from 127.0.0.1[127.0.0.1]")


async def test_a_dead_mx_is_passed_over_for_the_next(world: World) -> None:
    peer = await world.peer()
    world.dns.add("dst.test", "MX", "10 mx1.dst.test.", "20 mx2.dst.test.")
    world.dns.add("mx1.dst.test", "A", "127.0.0.2")
    world.dns.add("mx2.dst.test", "A", "127.0.0.3")
    lab = world.plain()
    lab.ports.update({("127.0.0.2", 2525): peer.port, ("127.0.0.3", 2525): peer.port})
    (result,) = await lab.deliver("dst.test:2525", ["x@dst.test"])
    assert not result.reply.is_positive  # the peer listens on 127.0.0.1 only
    assert [a for a, _ in lab.connector.attempts] == ["127.0.0.2", "127.0.0.3"]
    assert result.text == "connect to mx2.dst.test[127.0.0.3]:2525: Connection refused"


async def test_an_mx_that_is_an_address_is_reached_as_postfix_reaches_it(world: World) -> None:
    peer = await world.peer()
    world.dns.add("dst.test", "MX", "10 127.0.0.2.")
    lab = world.plain()
    lab.ports[("127.0.0.2", 2525)] = peer.port
    (result,) = await lab.deliver("dst.test:2525", ["x@dst.test"])
    assert result.text == "connect to 127.0.0.2[127.0.0.2]:2525: Connection refused"  # the peer listens on 127.0.0.1
    lab.resolver.families = (6,)
    (result,) = await lab.deliver("dst.test:2525", ["x@dst.test"])
    assert brief(result).endswith("for name=127.0.0.2 type=A: Host found but no data record of requested type")


@pytest.mark.parametrize(
    ("options", "families", "tried"),
    [
        ({}, (4, 6), ["IPv4"] * 4 + ["IPv6"]),  # who has no way to IPv4 reaches the domain all the same
        ({"smtp_balance_inet_protocols": False}, (4, 6), ["IPv4"] * 5),
        ({}, (4,), ["IPv4"] * 5),
        ({"smtp_mx_address_limit": 1}, (4, 6), ["IPv4"]),
    ],
)
async def test_the_other_protocol_is_looked_for_at_worse_mx_hosts(
    world: World, options: dict[str, object], families: tuple[int, ...], tried: list[str]
) -> None:
    peer = await world.peer()
    world.dns.add("dst.test", "MX", "10 mx1.dst.test.", "20 mx2.dst.test.")
    world.dns.add("mx1.dst.test", "A", *(f"127.0.0.{n}" for n in range(2, 10)))
    world.dns.add("mx2.dst.test", "AAAA", "::1")
    lab = world.plain(**{"smtp_mx_address_limit": 5, **options})
    lab.resolver.families = families
    lab.ports.update({(f"127.0.0.{n}", 2525): peer.port for n in range(2, 10)} | {("::1", 2525): peer.port})
    await lab.deliver("dst.test:2525", ["x@dst.test"])  # the peer listens on 127.0.0.1 only
    assert ["IPv6" if ":" in address else "IPv4" for address, _ in lab.connector.attempts] == tried


async def test_no_more_than_twenty_mx_hosts_are_asked_for_the_other_protocol(world: World) -> None:
    world.dns.add("dst.test", "MX", *(f"{n} h{n}.test." for n in range(100)))
    for n in range(100):
        world.dns.add(f"h{n}.test", "A", "127.0.0.2")
    lab = world.plain(smtp_mx_address_limit=2)
    lab.resolver.families = (4, 6)
    peer = await world.peer()
    lab.ports["127.0.0.2", 2525] = peer.port
    await lab.deliver("dst.test:2525", ["x@dst.test"])
    assert sum(world.dns.count(f"h{n}.test", "AAAA") for n in range(100)) == 20


async def on_addresses(world: World, steps: dict[str, list[Step]], lab: Lab) -> dict[str, Peer]:
    """A peer on each loopback address, reached at port 25."""
    peers = {}
    for address, script in steps.items():
        peer = await Peer.start(script, host=address)
        world.closing.append(peer.close)
        lab.ports[address, 25] = peer.port
        peers[address] = peer
    return peers


OWN = frozenset({"192.0.2.1", "127.0.0.1", "::1"})


def own_lab(world: World, **options: object) -> Lab:
    return world.lab(Lab(world.tmp_path, dns_server=world.dns.address, own_addresses=OWN, options=options))


def patient(lab: Lab) -> Lab:
    """Its lookups may take as long as they do on a busy machine."""
    lab.resolv.write_text("options timeout:30 attempts:5\n")
    return lab


async def test_a_4xx_for_a_recipient_goes_to_the_next_mx_and_a_5xx_does_not(world: World) -> None:
    world.dns.add("dst.test", "MX", "10 mx1.dst.test.", "20 mx2.dst.test.")
    world.dns.add("mx1.dst.test", "A", "127.0.0.2")
    world.dns.add("mx2.dst.test", "A", "127.0.0.3")
    lab = own_lab(world)
    first = [*at_rcpt("450 4.2.0 grey"), {"rx": "RCPT"}, "550 5.1.1 no\\r\\n", {"rx": "RCPT"}, "250 ok\\r\\n"]
    peers = await on_addresses(world, {"127.0.0.2": first, "127.0.0.3": OK}, lab)
    results = await lab.deliver("dst.test", ["a@dst.test", "b@dst.test", "c@dst.test"])
    assert [r.reply.code for r in results] == [250, 550, 250]
    assert results[0].relay == "mx2.dst.test[127.0.0.3]:25" and results[2].relay == "mx1.dst.test[127.0.0.2]:25"
    assert [c for c in peers["127.0.0.3"].commands[0] if c.startswith("RCPT")] == ["RCPT TO:<a@dst.test>"]
    assert any("said: 450 4.2.0 grey (in reply to RCPT TO command)" in line for line in lab.lines())


async def test_at_most_so_many_sessions_are_tried(world: World) -> None:
    world.dns.add("dst.test", "A", *(f"127.0.0.{n}" for n in range(2, 8)))
    lab = own_lab(world)
    peers = await on_addresses(world, {f"127.0.0.{n}": at_rcpt("450 4.2.0 grey") for n in range(2, 8)}, lab)
    (result,) = await lab.deliver("dst.test", ["a@dst.test"])
    assert result.reply.code == 450 and not result.site_failed
    assert sum(peer.connections for peer in peers.values()) == 2


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("nx.test", "550 5.4.4 Host or domain name not found. "
                    "Name service error for name=nx.test type=MX: Host not found"),
        ("null.test", "556 5.1.10 Domain null.test does not accept mail (nullMX)"),
        ("fail.test", "451 4.4.3 Host or domain name not found. "
                      "Name service error for name=fail.test type=MX: Host not found, try again"),
        ("slow.test", "451 4.4.3 "), ("refused.test", "451 4.4.3 "), ("cnameloop.test", "451 4.4.3 "),
        ("nothing.test", "550 5.4.4 Host or domain name not found. Name service error for name=nothing.test "
                         "type=AAAA: Host found but no data record of requested type"),
        ("danglingmx.test", "550 5.4.4 "), ("sickmx.test", "451 4.4.3 "), ("blank.test", "451 4.4.4 "),
        ("literalself.test", "554 5.4.6 "),
        ("selfip.test", "554 5.4.6 mail for selfip.test loops back to myself"),
        ("loop4.test", "554 5.4.6 "), ("loop6.test", "554 5.4.6 "), ("zero.test", "554 5.4.6 "),
        ("aself.test", "554 5.4.6 "),
        ("backup.test", "451 4.4.6 unable to find primary relay for backup.test"),
        ("x" * 64 + ".test", "550 5.4.4 "), ("danglingcname.test", "550 5.4.4 "),
        ("typo.test", "451 4.4.4 "), ("typoandself.test", "451 4.4.6 "), ("typoandnull.test", "451 4.4.4 "),
    ],
)  # fmt: skip
async def test_what_dns_says_decides_between_later_and_never(world: World, domain: str, expected: str) -> None:
    dns = world.dns
    dns.add("null.test", "MX", "0 .")
    dns.rcode("fail.test", "SERVFAIL", "MX")
    dns.add("fail.test", "A", "127.0.0.1")  # must not be used: SERVFAIL is not "no MX"
    dns.silent("slow.test")
    dns.rcode("refused.test", "REFUSED")
    dns.add("cnameloop.test", "CNAME", "cnameloop.test.")
    dns.add("danglingcname.test", "CNAME", "nx.test.")
    dns.add("nothing.test", "TXT", '"x"')
    dns.add("danglingmx.test", "MX", "10 nx.test.")
    dns.add("sickmx.test", "MX", "10 fail2.test.", "20 nx.test.")
    dns.rcode("fail2.test", "SERVFAIL")
    dns.add("blank.test", "MX", "10 mx\\032one.test.")
    dns.add("literalself.test", "MX", "10 192.0.2.1.")
    dns.add("client.test", "A", "192.0.2.1")
    dns.add("selfip.test", "MX", "10 mx.selfip.test.")
    dns.add("mx.selfip.test", "A", "192.0.2.1")
    for name, kind, address in (("loop4", "A", "127.0.0.1"), ("loop6", "AAAA", "::1"), ("zero", "A", "0.0.0.0")):
        dns.add(f"{name}.test", "MX", f"10 mx.{name}.test.")
        dns.add(f"mx.{name}.test", kind, address)
    dns.add("aself.test", "A", "192.0.2.1")
    dns.add("backup.test", "MX", "10 nx.test.", "20 client.test.")
    dns.add("typo.test", "MX", "10 mx\\032one.test.", "20 nx.test.")  # meant as a host, but nobody can tell
    dns.add("typoandself.test", "MX", "10 mx\\032one.test.", "20 client.test.")
    dns.add("typoandnull.test", "MX", "0 .", "10 mx\\032one.test.")
    lab = own_lab(world)
    (result,) = await lab.deliver(domain, ["x@dst.test"])
    assert brief(result).startswith(expected)
    assert lab.connector.attempts == []


async def test_only_better_mx_than_ourselves_are_used(world: World) -> None:
    world.dns.add("dst.test", "MX", "10 a.test.", "20 us.test.", "20 b.test.", "30 c.test.")
    world.dns.add("us.test", "A", "192.0.2.1")
    for n, name in enumerate(("a", "b", "c"), start=2):
        world.dns.add(f"{name}.test", "A", f"127.0.0.{n}")
    lab = own_lab(world)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert [address for address, _ in lab.connector.attempts] == ["127.0.0.2"] and result.reply.code == 451


async def test_missing_mx_addresses_can_be_made_temporary(world: World) -> None:
    world.dns.add("danglingmx.test", "MX", "10 nx.test.")
    lab = own_lab(world, smtp_defer_if_no_mx_address_found=True)
    (result,) = await lab.deliver("danglingmx.test", ["x@dst.test"])
    assert result.reply.enhanced == "4.4.4"
    assert any("warning: no MX host for danglingmx.test has a valid address record" in line for line in lab.lines())


@pytest.mark.parametrize(
    "records",
    [
        ("10 bad.test.", "20 good.test."),
        ("10 bad.test.", "10 good.test."),
        ("10 localhost.", "20 good.test."),  # that DNS does not know
        ("10 client.test.",),  # our name, another's address
    ],
)
async def test_a_host_is_not_ourselves_by_name_or_by_loopback(world: World, records: tuple[str, ...]) -> None:
    (world.tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    world.dns.add("dst.test", "MX", *records)
    world.dns.add("bad.test", "A", "127.9.9.9")
    for name in ("good.test", "client.test"):
        world.dns.add(name, "A", "127.0.0.2")
    lab = own_lab(world)
    await on_addresses(world, {"127.0.0.2": OK}, lab)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert result.reply.code == 250


async def test_loopback_is_another_host_where_we_do_not_listen_on_it(world: World) -> None:
    world.dns.add("dst.test", "MX", "10 mx.dst.test.")
    world.dns.add("mx.dst.test", "A", "127.0.0.1")
    lab = world.lab(Lab(world.tmp_path, dns_server=world.dns.address, own_addresses=frozenset({"192.0.2.1"})))
    await on_addresses(world, {"127.0.0.1": OK}, lab)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert result.reply.code == 250


@pytest.mark.parametrize("lookup", [("dns",), ("dns", "native"), ("native", "dns")])
async def test_dns_decides_where_hosts_are_and_not_the_hosts_file(world: World, lookup: tuple[str, ...]) -> None:
    (world.tmp_path / "hosts").write_text("127.0.0.1 dst.test mx.dst.test\n127.0.1.1 a.test\n")
    world.dns.add("dst.test", "MX", "10 mx.dst.test.")
    for name in ("mx.dst.test", "a.test"):
        world.dns.add(name, "A", "127.0.0.2")
    lab = own_lab(world, smtp_host_lookup=lookup)
    await on_addresses(world, {"127.0.0.2": OK}, lab)
    for nexthop in ("dst.test", "a.test", "[mx.dst.test]"):
        (result,) = await lab.deliver(nexthop, ["x@dst.test"])
        assert result.reply.code == 250


@pytest.mark.parametrize(
    ("options", "nexthop", "reached"),
    [
        ({}, "[only.test]", True),
        ({}, "[localhost]", True),  # whose server does not answer
        ({}, "[sick.test]", False),
        ({}, "mx.test", False),
        ({"smtp_host_lookup": ("dns", "native")}, "mx.test", True),
        ({"smtp_host_lookup": ("native",)}, "mx.test", True),
        ({"smtp_host_lookup": ("native",)}, "[sick.test]", True),
        ({"disable_dns_lookups": True}, "sick.test", True),
    ],
)
async def test_where_the_hosts_file_is_asked(
    world: World, options: dict[str, object], nexthop: str, *, reached: bool
) -> None:
    (world.tmp_path / "hosts").write_text("127.0.0.2 only.test localhost sick.test\n")
    world.dns.add("mx.test", "MX", "10 only.test.")
    world.dns.rcode("localhost", "SERVFAIL")
    world.dns.rcode("sick.test", "SERVFAIL")
    lab = own_lab(world, **options)
    await on_addresses(world, {"127.0.0.2": OK}, lab)
    (result,) = await lab.deliver(nexthop, ["x@dst.test"])
    assert (result.reply.code == 250) == reached


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("count", "good", "equal"), [(60, 55, False), (130, 120, False), (30, 25, True), (130, 99, True)]
)
async def test_every_mx_host_is_asked_for_before_mail_is_returned(
    world: World, count: int, good: int, *, equal: bool, known: bool
) -> None:
    world.dns.add("dst.test", "MX", *(f"{10 if equal else n + 1} h{n}.test." for n in range(count)))
    for n in range(count if known else 0):
        world.dns.add(f"h{n}.test", "TXT", "x")
    world.dns.add(f"h{good}.test", "A", "127.0.0.2")
    lab = patient(own_lab(world))
    await on_addresses(world, {"127.0.0.2": OK}, lab)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert result.reply.code == 250


async def test_a_list_of_mx_hosts_that_was_cut_returns_no_mail(world: World) -> None:
    world.dns.add("many.test", "MX", *(f"10 h{n}.test." for n in range(400)))
    world.dns.add("ours.test", "MX", *(f"10 h{n}.test." for n in range(400)))
    lab = patient(own_lab(world))
    (result,) = await lab.deliver("many.test", ["x@many.test"])
    assert result.reply.enhanced == "4.4.4"
    for n in range(400):
        world.dns.add(f"h{n}.test", "A", "192.0.2.1")
    lab = patient(own_lab(world))
    (result,) = await lab.deliver("ours.test", ["x@ours.test"])
    assert result.reply.enhanced == "4.4.6"


async def test_a_server_with_our_name_is_ourselves_on_port_25_only(world: World) -> None:
    mirror: list[Step] = ["220 x\\r\\n", {"rx": "EHLO"}, "250 CLIENT.test\\r\\n"]
    world.dns.add("dst.test", "A", "127.0.0.2")
    lab = own_lab(world)
    peers = await on_addresses(world, {"127.0.0.2": mirror}, lab)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert brief(result) == "554 5.4.6 mail for dst.test loops back to myself"
    (result,) = await lab.deliver(f"[127.0.0.2]:{peers['127.0.0.2'].port}", ["x@dst.test"])
    assert result.reply.code == 250


@pytest.mark.parametrize("better", ["sick.test", "nx.test", "good.test"])
async def test_reaching_ourselves_returns_no_mail_while_there_is_a_better_mx(world: World, better: str) -> None:
    mirror: list[Step] = ["220 x\\r\\n", {"rx": "EHLO"}, "250 client.test\\r\\n"]
    world.dns.rcode("sick.test", "SERVFAIL")
    world.dns.add("good.test", "A", "127.0.0.3")
    world.dns.add("dst.test", "MX", f"10 {better}.", "20 us.test.")
    world.dns.add("us.test", "A", "127.0.0.2")
    lab = own_lab(world)
    peers = await on_addresses(world, {"127.0.0.2": mirror, "127.0.0.3": at_rcpt("450 4.2.0 later")}, lab)
    (result,) = await lab.deliver("dst.test", ["x@dst.test"])
    assert result.reply.is_temporary and peers["127.0.0.2"].connections == 1 and not peers["127.0.0.2"].messages


async def test_connections_are_reused_while_there_is_demand(world: World) -> None:
    peer = await world.peer()
    lab = world.plain()
    nexthop = f"[127.0.0.1]:{peer.port}"
    uses = [(await lab.deliver(nexthop, ["x@dst.test"]))[0].conn_use for _ in range(4)]
    assert uses == [1, 1, 2, 3] and peer.connections == 2
    await asyncio.gather(*(lab.deliver(nexthop, ["x@dst.test"]) for _ in range(5)))
    assert peer.connections < 8 and len(peer.messages) == 9


async def test_reuse_has_limits(world: World) -> None:
    peer = await world.peer()
    lab = world.plain(smtp_connection_reuse_count_limit=2)
    for _ in range(5):
        await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert peer.connections == 3
    lab = world.plain(smtp_connection_cache_on_demand=False)
    for _ in range(3):
        await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert peer.connections == 6


async def test_idle_connections_end_after_their_time(world: World) -> None:
    peer = await world.peer()
    lab = world.plain(smtp_connection_cache_time_limit=0.5)
    for _ in range(2):
        await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert peer.commands[1][-1] != "QUIT"
    await until(lambda: peer.commands[1][-1] == "QUIT" and not lab.agent.pool._open)


async def test_a_server_that_never_answers_quit_holds_few_connections(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.deliver.smtp_pool.MAX_LEAVING", 3)
    peer = await world.peer([*ACCEPTED, {"rx": "QUIT"}, {"hang": True}])
    lab = world.plain(smtp_connection_cache_on_demand=False, smtp_quit_timeout=3600.0)
    for _ in range(12):
        (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
        assert result.reply.code == 250
    await until(lambda: len(lab.agent.pool._open) == 3)
    assert peer.connections == 12


async def test_a_connection_that_died_while_waiting_costs_nothing(world: World) -> None:
    mortal: list[Step] = [*ACCEPTED, {"rx": "MAIL"}, {"rst": True}]
    peer = await world.peer(mortal)
    lab = world.plain()
    for _ in range(4):
        (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
        assert result.reply.code == 250


async def test_several_connections_that_died_while_waiting_cost_nothing(world: World) -> None:
    peer = await world.peer([*ACCEPTED, {"rx": "MAIL"}, {"rst": True}])
    lab = world.plain()
    nexthop = f"[127.0.0.1]:{peer.port}"
    await asyncio.gather(*(lab.deliver(nexthop, ["x@dst.test"]) for _ in range(4)))
    assert len(lab.agent.pool._until) > 1
    (result,) = await lab.deliver(nexthop, ["x@dst.test"])
    assert result.reply.code == 250 and result.conn_use == 1


async def test_a_message_that_a_waiting_connection_cannot_take_costs_no_other(world: World) -> None:
    peer = await world.peer([*OK[:2], "250-mx.dst.test\\r\\n250 SIZE 10000\\r\\n"])
    lab = world.plain()
    nexthop = f"[127.0.0.1]:{peer.port}"
    for _ in range(3):
        await lab.deliver(nexthop, ["x@dst.test"])
    before = peer.connections
    (result,) = await lab.deliver(nexthop, ["x@dst.test"], repeat=4)
    assert result.reply.enhanced == "5.3.4" and peer.connections == before
    assert (await lab.deliver(nexthop, ["x@dst.test"]))[0].conn_use == 3
    assert lab.agent.pool._open == set(lab.agent.pool._until)


async def test_after_refused_recipients_the_connection_is_reset(world: World) -> None:
    peer = await world.peer(at_rcpt("550 5.1.1 no"))
    lab = world.plain()
    nexthop = f"[127.0.0.1]:{peer.port}"
    await asyncio.gather(*(lab.deliver(nexthop, ["x@dst.test"]) for _ in range(3)))
    (result,) = await lab.deliver(nexthop, ["x@dst.test"])
    assert result.reply.code == 250 and result.conn_use == 2
    assert any("RSET" in commands for commands in peer.commands)


@pytest.mark.parametrize("repeat", [1, 60])
async def test_damaged_content_is_never_completed(world: World, repeat: int) -> None:
    peer = await world.peer()
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"], corrupt=True, repeat=repeat)
    assert brief(result) == "451 4.3.0 unreadable mail queue entry" and not result.site_failed
    await asyncio.sleep(0.05)
    assert peer.messages == []


async def test_a_header_that_cannot_be_read_leaves_no_connection(world: World) -> None:
    peer = await world.peer()
    lab = world.plain()
    envelope = Envelope("a@src.test", [Recipient("x@dst.test")], 0.0, smtputf8=True)
    with pytest.raises(CorruptContentError):
        await lab.deliver(
            f"[127.0.0.1]:{peer.port}", ["x@dst.test"], envelope=envelope, body="é".encode(), repeat=0, corrupt=True
        )
    await until(lambda: not lab.agent.pool._open)


@pytest.mark.parametrize("pause", [False, True])
async def test_a_server_that_refuses_a_large_message_before_its_end_is_believed(world: World, *, pause: bool) -> None:
    """Also when it reads no more of it."""
    go: list[Step] = ["354 go\\r\\n", {"stop_reading": True}, {"sleep": 100}] if pause else []
    said = "552 5.3.4 too big\\r\\n" if pause else "354 go\\r\\n552 5.3.4 too big\\r\\n"
    peer = await world.peer([*ACCEPTED[:8], *go, said, {"hang": True}])
    lab = world.plain(smtp_quit_timeout=0.5)
    text = (b"x" * 76 + b"\n") * 851
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"], body=text, repeat=300)
    assert brief(result) == (
        "552 5.3.4 host 127.0.0.1[127.0.0.1] said: 552 5.3.4 too big (in reply to end of DATA command)"
    )
    await until(lambda: not lab.agent.pool._open)


async def test_large_messages_arrive_whole(world: World) -> None:
    peer = await world.peer()
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"], repeat=300)
    assert result.reply.code == 250
    assert peer.messages == [BODY.replace(b"\n", b"\r\n") * 300]


async def test_large_messages_arrive_whole_inside_tls(world: World, tmp_path: Path) -> None:
    steps: list[Step] = ["220 x\\r\\n", {"rx": "EHLO"}, "250-x\\r\\n250 STARTTLS\\r\\n", {"rx": "STARTTLS"},
                         "220 go\\r\\n", {"tls": "ok"}]  # fmt: skip
    peer = await world.peer(steps, Certificates(tmp_path))
    lab = world.lab(Lab(tmp_path, tls=opportunistic()))
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"], repeat=300)
    assert result.reply.code == 250 and peer.messages == [BODY.replace(b"\n", b"\r\n") * 300]
    (line,) = lab.lines()
    where = f"Untrusted TLS connection established to 127.0.0.1[127.0.0.1]:{peer.port}: TLSv1.3 with cipher TLS_"
    assert where in line and line.endswith(" bits)")


@pytest.mark.parametrize("features", ["250 x", "250-x\\r\\n250 PIPELINING"])
@pytest.mark.parametrize("bad", ["b\0@dst.test", "b\r@dst.test", "b\n@dst.test"])
async def test_a_recipient_that_can_be_no_command_costs_the_others_nothing(
    world: World, bad: str, features: str
) -> None:
    peer = await world.peer(["220 x ESMTP\\r\\n", {"rx": "EHLO"}, f"{features}\\r\\n"])
    results = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", ["a@dst.test", bad, "c@dst.test"])
    assert [r.reply.enhanced for r in results] == ["2.0.0", "5.1.3", "2.0.0"]
    assert len(peer.messages) == 1
    (result,) = await world.plain().deliver(f"[127.0.0.1]:{peer.port}", [bad])
    assert result.reply.enhanced == "5.1.3" and len(peer.commands) == 1


async def test_next_hops_are_tried_in_order_and_the_fallback_last(world: World) -> None:
    dead, good = await world.peer(), await world.peer()
    await dead.close()
    lab = world.plain(smtp_fallback_relay=(f"[127.0.0.1]:{good.port}",))
    (result,) = await lab.deliver(f"[127.0.0.1]:{dead.port}", ["x@dst.test"])
    assert result.reply.code == 250


@pytest.mark.parametrize("others", [["[nx.test]"], ["nx.test", "[nx.test]"], ["null.test"]])
@pytest.mark.parametrize("first", ["[sick.test]", "[127.0.0.1]:PORT"])
async def test_no_mail_is_given_back_because_one_next_hop_of_several_does_not_exist(
    world: World, first: str, others: list[str]
) -> None:
    """The other may take it as soon as it can be found, or reached."""
    world.dns.rcode("sick.test", "SERVFAIL")
    world.dns.add("null.test", "MX", "0 .")
    dead = await world.peer()
    await dead.close()
    first = first.replace("PORT", str(dead.port))
    for nexthop in ([first, *others], [*others, first]):
        (result,) = await world.plain().deliver(",".join(nexthop), ["x@dst.test"])
        assert result.reply.is_temporary
    (result,) = await world.plain().deliver(",".join(others), ["x@dst.test"])
    assert result.reply.is_permanent
    said: list[Step] = ["220 x\\r\\n", {"rx": "EHLO"}, "502 no\\r\\n", {"rx": "HELO"}, "550 5.7.1 go away\\r\\n"]
    peer = await world.peer(said)
    (result,) = await world.plain().deliver(",".join([first, *others, f"[127.0.0.1]:{peer.port}"]), ["x@dst.test"])
    assert result.reply.code == 550


@pytest.mark.parametrize("relay", ["nx.test", "loop.test", "[127.0.0.1]:PORT"])
@pytest.mark.parametrize("parameter", ["relayhost", "smtp_fallback_relay"])
async def test_no_mail_is_given_back_because_the_relay_of_all_mail_is_wrong(
    world: World, relay: str, parameter: str
) -> None:
    world.dns.add("loop.test", "MX", "10 client.test.")
    peer = await world.peer(["220 x\\r\\n", {"rx": "EHLO"}, "502 no\\r\\n", {"rx": "HELO"}, "550 5.7.1 go away\\r\\n"])
    relay = relay.replace("PORT", str(peer.port))
    lab = own_lab(world, **{parameter: relay if parameter == "relayhost" else (relay,)})
    (result,) = await lab.deliver(relay if parameter == "relayhost" else "other.test", ["x@dst.test"])
    assert (result.reply.code, result.reply.enhanced, result.site_failed) == (451, "4.3.5", True)
    assert f"smtp[{os.getpid()}]: warning: {parameter} configuration problem" in lab.lines()
    (result,) = await world.plain(relayhost="else.test").deliver("nx.test", ["x@dst.test"])
    assert result.reply.enhanced == "5.4.4", "that is the recipient's domain"


async def test_what_a_relayhost_says_about_a_recipient_stands(world: World) -> None:
    peer = await world.peer(at_rcpt("550 5.1.1 unknown"))
    lab = world.plain(relayhost=f"[127.0.0.1]:{peer.port}")
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert result.reply.enhanced == "5.1.1"


async def test_lmtp_over_a_unix_socket_reports_each_recipient(world: World, tmp_path: Path) -> None:
    path = str(tmp_path / "lmtp")
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x LMTP\r\n")
        while line := (await reader.readline()).decode().strip():
            seen.append(line)
            verb = line.split()[0]
            if verb == "DATA":
                writer.write(b"354 go\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 2.1.5 saved\r\n452 4.2.2 full\r\n")
            elif "no@" in line:
                writer.write(b"550 5.1.1 no\r\n")
            else:
                writer.write(b"250-x\r\n250 PIPELINING\r\n" if verb == "LHLO" else b"250 ok\r\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    lab = world.lab(Lab(tmp_path, lmtp=True))
    results = await lab.deliver(f"unix:{path}", ["a@x.test", "no@x.test", "b@x.test"])
    assert [r.reply.code for r in results] == [250, 550, 452] and results[0].action == "delivered"
    assert results[0].relay == f"client.test[{path}]"
    await until(lambda: seen[-1] == "QUIT")
    server.close()
    assert seen[0] == "LHLO client.test"
    (result,) = await lab.deliver(f"unix:{path}.gone", ["a@x.test"])
    assert result.text == f"connect to client.test[{path}.gone]: No such file or directory"


async def test_mail_does_not_wait_for_a_source_address_that_this_host_has_not(world: World) -> None:
    peer = await world.peer()
    lab = world.plain(smtp_bind_address="192.0.2.77")
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"])
    assert result.reply.code == 250
    assert any("warning: smtp_connect_addr: bind 192.0.2.77: Cannot assign" in line for line in lab.lines())


async def test_trouble_of_our_own_is_not_the_servers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = world.plain()

    async def no_descriptor(*args: object, **rest: object) -> None:
        raise OSError(errno.EMFILE, "x")

    monkeypatch.setattr(lab.connector, "connect", no_descriptor)
    (result,) = await lab.deliver("[127.0.0.1]:25", ["x@dst.test"])
    assert result.reply.is_temporary and not result.site_failed


async def test_a_cancelled_delivery_leaves_no_connection(world: World) -> None:
    peer = await world.peer([*OK, {"rx": "MAIL"}, {"hang": True}])
    lab = world.plain()
    task = asyncio.ensure_future(lab.deliver(f"[127.0.0.1]:{peer.port}", ["x@dst.test"]))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not lab.agent.pool._open)


def test_next_hops_are_read_as_in_transport_5() -> None:
    options = settings()
    parse = parse_nexthop
    assert parse("dst.test", options, lmtp=False) == [Destination("dst.test", "dst.test", 25, True)]
    assert parse("[mx.test]:587", options, lmtp=False) == [Destination("[mx.test]:587", "mx.test", 587, False)]
    assert parse("[ipv6:::1]:smtp", options, lmtp=False)[0].host == "::1"
    assert parse("[2001:db8::1]", options, lmtp=False)[0].port == 25
    both = parse("a.test:submission, [b.test]", options, lmtp=False)
    assert [(d.host, d.port, d.lookup_mx) for d in both] == [("a.test", 587, True), ("b.test", 25, False)]
    assert not parse("192.0.2.1", options, lmtp=False)[0].lookup_mx
    assert parse("unix:private/lmtp", options, lmtp=True)[0].path == "/nowhere/private/lmtp"
    assert parse("inet:mail.test:24", options, lmtp=True)[0] == Destination("inet:mail.test:24", "mail.test", 24, False)
    assert not parse("a.test", settings(disable_dns_lookups=True), lmtp=False)[0].lookup_mx
    for bad in ("", " , ", "[a", "[a]b", "a:0", "a:x", "a:99999", "[]", ":25"):
        with pytest.raises(NexthopError):
            parse(bad, options, lmtp=False)


async def test_a_next_hop_nobody_can_read_waits_for_the_administrator(world: World) -> None:
    lab = world.plain()
    (result,) = await lab.deliver("[oops", ["x@dst.test"])
    assert brief(result) == "451 4.3.5 Server configuration error" and not result.site_failed
    assert any("bad next hop [oops" in line for line in lab.lines())


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(2, 12))
@hypothesis_settings(deadline=None, derandomize=True, max_examples=300)
def test_no_line_is_longer_than_the_limit_however_text_is_cut(parts: list[bytes], limit: int) -> None:
    text = b"".join(parts).replace(b"\r", b"")
    whole = LineFolder(limit).feed(text)
    folder = LineFolder(limit)
    cut = b"".join(folder.feed(text[n : n + 3]) for n in range(0, len(text), 3))
    assert cut == whole
    assert all(len(line) <= limit for line in whole.split(b"\n"))
    assert whole.replace(b"\n ", b"").replace(b"\n", b"") == text.replace(b"\n ", b"").replace(b"\n", b"")


def test_every_setting_is_a_parameter_and_lmtp_has_its_own_values(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\nmyhostname = a.test\nlmtp_mail_timeout = 7s\n")
    (tmp_path / "master.cf").write_text("")
    config = load(str(tmp_path))
    smtp = config.fill(SmtpSettings)
    both = lmtp(smtp, config.fill(LmtpSettings))
    assert (smtp.smtp_mail_timeout, both.smtp_mail_timeout) == (300.0, 7.0)
    assert (smtp.smtp_tcp_port, both.smtp_tcp_port) == ("smtp", "24") and both.smtp_helo_name == "a.test"
    assert config.fill(TlsClientSettings).smtp_tls_security_level == "may"
    assert config.fill(ResolverSettings).dns_servers == ()
    assert not hasattr(config.fill(TlsServerSettings), "__dict__")
