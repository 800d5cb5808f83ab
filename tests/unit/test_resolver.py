"""The resolver against a real DNS server on loopback: what counts as an answer and what does not."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rdata
import dns.rrset
import pytest

from mta.clock import Clock
from mta.deliver.connector import NetConnector
from mta.dns.answers import MAX_BESIDE, MAX_CNAMES, MAX_RECORDS, judge, read, wire_name
from mta.dns.mx import MX, DnsNoData, DnsNotFound, DnsTemporary, MXAnswer
from mta.dns.resolver import ClientName, Resolver, ResolverSettings
from mta.dns.system import parse_hosts, parse_resolv_conf, parse_server
from mta.maillog.maillog import Maillog, MaillogSettings
from tests.dns_server import SOA, DnsServer


class Lines:
    """A log sink that keeps lines."""

    with_header = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Net:
    """A resolver and the server it asks; lookups give up after one short try."""

    def __init__(self, server: DnsServer, tmp_path: Path, *, servers: tuple[str, ...] = ()) -> None:
        self.server = server
        self.sink = Lines()
        self.hosts = tmp_path / "hosts"
        self.resolv = tmp_path / "resolv.conf"
        self.resolv.write_text("options timeout:1 attempts:1\n")
        clock = Clock()
        self.log = Maillog(MaillogSettings("", "postfix", "mx.test"), clock, self.sink)
        self.resolver = Resolver(
            ResolverSettings(servers or (server.address,), ("all",)),
            NetConnector(clock), clock, self.log, resolv_conf=str(self.resolv), hosts=str(self.hosts),
        )  # fmt: skip


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    server = await DnsServer.start()
    made = Net(server, tmp_path)
    yield made
    await made.resolver.close()
    await server.close()


async def test_mx_records_come_best_first(net: Net) -> None:
    net.server.add("dst.test", "MX", "20 b.dst.test.", "10 A.dst.test.")
    assert (await net.resolver.mx("Dst.Test")).records == (MX(10, "a.dst.test"), MX(20, "b.dst.test"))


async def test_null_mx_is_told_and_ignored_beside_others(net: Net) -> None:
    net.server.add("null.test", "MX", "0 .")
    net.server.add("both.test", "MX", "0 .", "10 mx.both.test.")
    assert (await net.resolver.mx("null.test")).is_null
    assert (await net.resolver.mx("both.test")).records == (MX(10, "mx.both.test"),)
    assert await net.resolver.exists("null.test")


async def test_mx_that_can_be_no_host_is_left_out(net: Net) -> None:
    net.server.add("blank.test", "MX", "10 mx\\032one.blank.test.")
    assert (await net.resolver.mx("blank.test")).records == ()
    net.server.add("lit.test", "MX", "10 192.0.2.1.")
    assert (await net.resolver.mx("lit.test")).records == (MX(10, "192.0.2.1"),)


async def test_text_records_are_made_fit_for_a_reply(net: Net) -> None:
    net.server.add("2.0.0.127.bl.test", "TXT", '"see https://bl.test/" "?ip=127.0.0.2"', r'"a\010b\200\; c"')
    found = await net.resolver.texts("2.0.0.127.bl.test")
    assert sorted(found) == ["a b ; c", "see https://bl.test/?ip=127.0.0.2"]
    net.server.add("3.0.0.127.bl.test", "A", "127.0.0.2")
    with pytest.raises(DnsNoData):
        await net.resolver.texts("3.0.0.127.bl.test")


async def test_nxdomain_and_nodata_are_different_answers(net: Net) -> None:
    net.server.add("a-only.test", "A", "192.0.2.1")
    with pytest.raises(DnsNotFound):
        await net.resolver.mx("nowhere.test")
    with pytest.raises(DnsNoData):
        await net.resolver.mx("a-only.test")
    assert await net.resolver.exists("a-only.test")
    assert not await net.resolver.exists("nowhere.test")


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP"])
async def test_an_error_answer_is_temporary(net: Net, rcode: str) -> None:
    net.server.rcode("sick.test", rcode)
    net.server.add("sick.test", "A", "192.0.2.1")
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("sick.test")
    with pytest.raises(DnsTemporary):
        await net.resolver.exists("sick.test")


async def test_silence_is_temporary(net: Net) -> None:
    net.server.silent("slow.test")
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("slow.test")


async def test_a_dead_server_is_passed_over(tmp_path: Path) -> None:
    server = await DnsServer.start()
    server.add("dst.test", "A", "192.0.2.1")
    net = Net(server, tmp_path, servers=("127.0.0.1:9", server.address))
    assert await net.resolver.addresses("dst.test") == ["192.0.2.1"]
    await net.resolver.close()
    await server.close()


async def test_a_server_without_edns_is_asked_again_without(net: Net) -> None:
    def old(query: dns.message.Message) -> bytes:
        if query.edns >= 0:
            answer = dns.message.make_response(query)
            answer.set_rcode(dns.rcode.FORMERR)
            answer.use_edns(False)
            return answer.to_wire()
        return net.server.respond(query).to_wire()

    net.server.add("old.test", "A", "192.0.2.7")
    net.server.special("old.test", old)
    assert await net.resolver.addresses("old.test", (4,)) == ["192.0.2.7"]


async def test_where_edns_is_dropped_on_the_way_the_second_try_does_without(net: Net) -> None:
    net.resolv.write_text("options timeout:1 attempts:2\n")
    net.server.add("behind.test", "A", "192.0.2.7")
    net.server.special(
        "behind.test", lambda query: None if query.edns >= 0 else net.server.respond(query).to_wire()
    )
    assert await net.resolver.addresses("behind.test", (4,)) == ["192.0.2.7"]


async def test_a_truncated_answer_is_fetched_over_tcp_and_bounded(net: Net) -> None:
    net.server.add("big.test", "MX", *(f"{n} mx{n}.big.test." for n in range(500)))
    answer = await net.resolver.mx("big.test")
    assert len(answer.records) == MAX_RECORDS and answer.cut


async def test_an_answer_that_stays_truncated_is_never_no_data(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = net.server.respond

    def cut(query: dns.message.Message) -> dns.message.Message:
        answer = whole(query)
        answer.flags |= dns.flags.TC
        return answer

    monkeypatch.setattr(net.server, "respond", cut)
    net.server.add("none.test", "TXT", "x")
    net.server.add("some.test", "MX", "10 mx.some.test.")
    for name in ("none.test", "nowhere.test"):
        with pytest.raises(DnsTemporary):
            await net.resolver.mx(name)
    answer = await net.resolver.mx("some.test")
    assert answer.cut and answer.records == (MX(10, "mx.some.test"),)


@pytest.mark.parametrize("section", ["answer", "authority", "additional"])
def test_no_more_records_are_parsed_than_are_kept(monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    parsed: list[object] = []
    parse = dns.rdata.from_wire_parser
    monkeypatch.setattr(dns.rdata, "from_wire_parser", lambda *args: parsed.append(args) or parse(*args))  # type: ignore[func-returns-value]
    query = dns.message.make_query("d.test", "MX")
    answer = dns.message.make_response(query, recursion_available=True)
    getattr(answer, section).append(dns.rrset.from_text("d.test.", 30, "IN", "A", *(f"10.1.2.{n}" for n in range(250))))
    answer.authority.append(dns.rrset.from_text("d.test.", 30, "IN", "SOA", SOA))
    judged = judge(query, answer.to_wire(), tcp=True)
    assert judged is not None and len(parsed) <= MAX_RECORDS + MAX_CNAMES + 2 * MAX_BESIDE
    with pytest.raises(DnsTemporary):
        read(judged, query.question[0].name, "MX")


def test_names_of_many_labels_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    parse = dns.rdata.from_wire_parser
    monkeypatch.setattr(dns.rdata, "from_wire_parser", lambda *args: parsed.append(args) or parse(*args))  # type: ignore[func-returns-value]
    query = dns.message.make_query("d.test", "MX")
    answer = dns.message.make_response(query)
    names = [f"{n}.{'a.' * 100}test." for n in range(120)]
    answer.answer.append(dns.rrset.from_text("d.test.", 30, "IN", "MX", *(f"10 {name}" for name in names)))
    judged = judge(query, answer.to_wire(), tcp=True)
    assert judged is not None and 0 < len(parsed) < 10
    found, _, _ = read(judged, query.question[0].name, "MX")
    assert isinstance(found, MXAnswer) and found.cut


async def test_an_answer_beyond_all_measure_is_temporary(net: Net) -> None:
    net.server.add("huge.test", "MX", *(f"{n} mx{n}.huge.test." for n in range(3000)))
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("huge.test")


async def test_a_long_list_of_long_names_is_whole(net: Net) -> None:
    names = [f"{n}.{'x' * 60}.test" for n in range(130)]
    net.server.add("long.test", "MX", *(f"10 {name}." for name in names))
    answer = await net.resolver.mx("long.test")
    assert len(answer.records) == 130 and not answer.cut


@pytest.mark.parametrize(
    ("kind", "value"), [("TXT", "x"), ("RRSIG", "MX 8 2 300 20300101000000 20200101000000 1 test. AAAA")]
)
async def test_other_records_of_the_name_alone_are_no_data(net: Net, kind: str, value: str) -> None:
    def other(query: dns.message.Message, *, recursive: bool) -> bytes:
        answer = dns.message.make_response(query, recursion_available=recursive)
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", kind, value))
        return answer.to_wire()

    net.server.special("odd.test", lambda query: other(query, recursive=True))
    net.server.special("lame.test", lambda query: other(query, recursive=False))
    with pytest.raises(DnsNoData):
        await net.resolver.mx("odd.test")
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("lame.test")


async def test_a_server_that_neither_knows_nor_asks_is_passed_over_when_its_answer_is_empty(
    net: Net, tmp_path: Path
) -> None:
    def empty(query: dns.message.Message) -> bytes:
        return dns.message.make_response(query).to_wire()

    net.server.special("empty.test", empty)
    for ask in (net.resolver.mx, net.resolver.addresses, net.resolver.exists):
        with pytest.raises(DnsTemporary):
            await ask("empty.test")
    other = await DnsServer.start()
    other.add("empty.test", "MX", "10 mx.empty.test.")
    both = Net(net.server, tmp_path, servers=(net.server.address, other.address))
    assert (await both.resolver.mx("empty.test")).records == (MX(10, "mx.empty.test"),)
    await both.resolver.close()
    await other.close()


async def test_truncated_without_tcp_is_temporary(net: Net) -> None:
    net.server.add("big.test", "MX", *(f"{n} mx{n}.big.test." for n in range(500)))
    net.server.tcp = False
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("big.test")


async def test_datagrams_that_are_not_the_answer_are_passed_over(net: Net) -> None:
    def noisy(query: dns.message.Message) -> list[bytes]:
        good = net.server.respond(query).to_wire()
        wrong_id = bytes([good[0] ^ 1]) + good[1:]
        other = dns.message.make_query("other.test", "A", id=query.id)
        return [wrong_id, dns.message.make_response(other).to_wire(), good[:-3], b"", b"\xff" * 40, good]

    net.server.add("noisy.test", "A", "192.0.2.9")
    net.server.special("noisy.test", noisy)
    assert await net.resolver.addresses("noisy.test", (4,)) == ["192.0.2.9"]


@pytest.mark.parametrize("what", ["id", "question", "name", "referral", "class"])
async def test_an_answer_to_something_else_is_temporary(net: Net, what: str) -> None:
    def odd(query: dns.message.Message) -> bytes:
        answer = dns.message.make_response(query)
        if what == "id":
            answer.id ^= 1
        elif what == "question":
            answer = dns.message.make_response(dns.message.make_query("other.test", "MX", id=query.id))
        elif what == "name":
            answer.answer.append(dns.rrset.from_text("other.test.", 60, "IN", "MX", "1 evil.test."))
        elif what == "class":
            answer.answer.append(dns.rrset.from_text("odd.test.", 60, "HS", "A", "\\# 4 0a000001"))
        else:
            answer.authority.append(dns.rrset.from_text(".", 60, "IN", "NS", "a.root-servers.net."))
        return answer.to_wire()

    net.server.special("odd.test", odd)
    with pytest.raises(DnsTemporary):
        await net.resolver.mx("odd.test")
    with pytest.raises(DnsTemporary):
        await net.resolver.addresses("odd.test", (4,))


async def test_cname_is_followed_by_us_or_by_the_server(net: Net) -> None:
    net.server.add("alias.test", "CNAME", "real.test.")
    net.server.add("real.test", "MX", "5 mx.real.test.")
    assert (await net.resolver.mx("alias.test")).records == (MX(5, "mx.real.test"),)
    net.server.chase = False
    net.server.add("alias2.test", "CNAME", "alias.test.")
    assert (await net.resolver.mx("alias2.test")).records == (MX(5, "mx.real.test"),)


@pytest.mark.parametrize("chase", [True, False])
async def test_cname_loops_and_long_chains_are_temporary(net: Net, chase: bool) -> None:
    net.server.chase = chase
    net.server.add("loop1.test", "CNAME", "loop2.test.")
    net.server.add("loop2.test", "CNAME", "loop1.test.")
    for n in range(20):
        net.server.add(f"c{n}.test", "CNAME", f"c{n + 1}.test.")
    net.server.add("c20.test", "A", "192.0.2.1")
    for name in ("loop1.test", "c0.test"):
        with pytest.raises(DnsTemporary):
            await net.resolver.mx(name)


@pytest.mark.parametrize("chase", [True, False])
async def test_cname_to_nowhere_does_not_exist(net: Net, chase: bool) -> None:
    net.server.chase = chase
    net.server.add("dangling.test", "CNAME", "gone.test.")
    with pytest.raises(DnsNotFound):
        await net.resolver.mx("dangling.test")


async def test_names_that_cannot_exist_are_not_asked(net: Net) -> None:
    for name in ("x" * 64 + ".test", "a..test", "x." * 130 + "test", ""):
        with pytest.raises(DnsNotFound):
            await net.resolver.mx(name)


async def test_unicode_domains_are_asked_as_a_labels(net: Net) -> None:
    net.server.add("xn--bcher-kva.test", "MX", "1 mx.xn--bcher-kva.test.")
    assert (await net.resolver.mx("bücher.test")).records == (MX(1, "mx.xn--bcher-kva.test"),)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("stra\u00dfe.test", "xn--strae-oqa.test"),
        ("Fa\u00df\u3002test", "xn--fa-hia.test"),
        ("\u03b2\u03cc\u03bb\u03bf\u03c2.test", "xn--nxasmm1c.test"),
        ("a\u200cb.test", "xn--ab-j1t.test"),
        ("\u078b\u07a8\u0788\u07ac\u0780\u07a8.test", "xn--hqbpi0jcw.test"),  # not in IDNA2003
        ("\u05d0\u05d1\u05d21.test", "xn--1-zhcde.test"),
    ],
)
def test_a_name_never_becomes_that_of_somebody_else(name: str, asked: str) -> None:
    assert wire_name(name).to_text() == f"{asked}."


async def test_both_families_are_asked_and_one_is_enough(net: Net) -> None:
    net.server.add("dual.test", "A", "192.0.2.1")
    net.server.add("dual.test", "AAAA", "2001:db8::1")
    net.server.add("four.test", "A", "192.0.2.4")
    net.server.rcode("four.test", "SERVFAIL", "AAAA")
    assert await net.resolver.addresses("dual.test") == ["192.0.2.1", "2001:db8::1"]
    assert await net.resolver.addresses("four.test") == ["192.0.2.4"]
    net.server.add("half.test", "A")
    net.server.rcode("half.test", "SERVFAIL", "AAAA")
    with pytest.raises(DnsTemporary):
        await net.resolver.addresses("half.test")


async def test_equal_questions_in_flight_are_asked_once_and_then_cached(net: Net) -> None:
    net.server.add("dst.test", "MX", "10 a.dst.test.")
    await asyncio.gather(*(net.resolver.mx("dst.test") for _ in range(50)))
    await net.resolver.mx("dst.test")
    assert net.server.count("dst.test", "MX") == 1


async def test_ttl_zero_is_not_cached_and_negative_answers_are(net: Net) -> None:
    net.server.add("fresh.test", "A", "192.0.2.1", ttl=0)
    for _ in range(2):
        await net.resolver.addresses("fresh.test", (4,))
        with contextlib.suppress(DnsNotFound):
            await net.resolver.mx("gone.test")
    assert net.server.count("fresh.test", "A") == 2
    assert net.server.count("gone.test", "MX") == 1


async def test_a_cancelled_asker_does_not_take_the_others_along(net: Net) -> None:
    net.server.add("dst.test", "MX", "10 a.dst.test.")
    first = asyncio.ensure_future(net.resolver.mx("dst.test"))
    second = asyncio.ensure_future(net.resolver.mx("dst.test"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).records
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_client_name_is_confirmed_forward(net: Net) -> None:
    net.server.add("1.2.0.192.in-addr.arpa", "PTR", "good.test.")
    net.server.add("good.test", "A", "192.0.2.1")
    net.server.add("2.2.0.192.in-addr.arpa", "PTR", "liar.test.")
    net.server.add("liar.test", "A", "192.0.2.99")
    net.server.add("3.2.0.192.in-addr.arpa", "PTR", "gone.test.")
    net.server.rcode("4.2.0.192.in-addr.arpa", "SERVFAIL")
    net.server.add("5.2.0.192.in-addr.arpa", "PTR", "192.0.2.5.")
    net.server.add("6.2.0.192.in-addr.arpa", "PTR", "sick.test.")
    net.server.rcode("sick.test", "SERVFAIL")
    ask = net.resolver.client_name
    assert await ask("192.0.2.1") == ClientName("good.test", "good.test", 2, 2)
    assert await ask("192.0.2.2") == ClientName("unknown", "liar.test", 5, 2)
    assert await ask("192.0.2.3") == ClientName("unknown", "gone.test", 5, 2)
    assert await ask("192.0.2.4") == ClientName("unknown", "unknown", 4, 4)
    assert await ask("192.0.2.5") == ClientName("unknown", "unknown", 5, 5)
    assert await ask("192.0.2.6") == ClientName("unknown", "sick.test", 4, 2)
    assert await ask("192.0.2.250") == ClientName("unknown", "unknown", 5, 5)
    net.log.flush()
    warning = "]: warning: hostname liar.test does not resolve to address 192.0.2.2"
    assert any("postfix/smtpd[" in line and line.endswith(warning) for line in net.sink.lines)


async def test_hosts_file_comes_first_and_is_read_again(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.hosts.write_text("127.0.0.1 localhost\n192.0.2.77 Printer.test printer # lab\n::1 localhost ip6-localhost\n")
    assert await net.resolver.client_name("192.0.2.77") == ClientName("Printer.test", "Printer.test", 2, 2)
    assert await net.resolver.client_name("127.0.0.1") == ClientName("localhost", "localhost", 2, 2)
    assert await net.resolver.addresses("printer.test") == ["192.0.2.77"]
    assert await net.resolver.addresses("localhost") == ["127.0.0.1", "::1"]
    net.hosts.write_text("192.0.2.78 printer.test\n")
    monkeypatch.setattr("mta.dns.system.CHECK_EVERY", 0.0)
    net.resolver._hosts._next = 0.0
    assert await net.resolver.addresses("printer.test") == ["192.0.2.78"]


async def test_a_hosts_file_that_cannot_be_read_does_not_say_that_a_host_is_not_there(net: Net) -> None:
    net.hosts.mkdir()
    with pytest.raises(DnsTemporary):
        await net.resolver.addresses("hub.test", hosts="last")
    assert await net.resolver.client_name("192.0.2.77") == ClientName("unknown", "unknown", 4, 4)
    with pytest.raises(DnsNotFound):
        await net.resolver.addresses("hub.test", hosts="never")
    net.hosts.rmdir()
    net.hosts.write_text("192.0.2.77 hub.test\n")
    net.resolver._hosts._next = 0.0
    assert await net.resolver.addresses("hub.test", hosts="last") == ["192.0.2.77"]
    net.hosts.unlink()
    net.hosts.mkdir()
    net.resolver._hosts._next = 0.0
    assert await net.resolver.addresses("hub.test", hosts="last") == ["192.0.2.77"]
    net.hosts.rmdir()
    net.resolver._hosts._next = 0.0
    with pytest.raises(DnsNotFound):
        await net.resolver.addresses("hub.test", hosts="last")


async def test_a_resolv_conf_that_cannot_be_read_is_what_it_was(net: Net) -> None:
    net.resolv.write_text("nameserver 192.0.2.53\n")
    before = net.resolver._resolv.get()
    net.resolv.unlink()
    net.resolv.mkdir()
    net.resolver._resolv._next = 0.0
    assert net.resolver._resolv.get() == before != parse_resolv_conf("")


async def test_hosts_file_comes_last_or_never_where_dns_decides(net: Net) -> None:
    net.hosts.write_text("127.0.1.1 both.test only.test bare.test sick.test\n")
    net.server.add("both.test", "A", "192.0.2.1")
    net.server.add("bare.test", "TXT", "x")
    net.server.rcode("sick.test", "SERVFAIL")
    ask = net.resolver.addresses
    assert await ask("both.test", hosts="last") == await ask("both.test", hosts="never") == ["192.0.2.1"]
    for name, error in (("only.test", DnsNotFound), ("bare.test", DnsNoData)):
        assert await ask(name, hosts="last") == ["127.0.1.1"]
        with pytest.raises(error):
            await ask(name, hosts="never")
        assert not await net.resolver.host_exists(name)
    with pytest.raises(DnsTemporary):
        await ask("sick.test", hosts="last")
    with pytest.raises(DnsTemporary):
        await net.resolver.host_exists("sick.test")


async def test_resolv_conf_is_used_and_read_again(tmp_path: Path) -> None:
    server = await DnsServer.start()
    net = Net(server, tmp_path)
    assert net.resolver._servers().addresses == (parse_server(server.address),)
    clock = Clock()
    other = Resolver(ResolverSettings((), ("ipv4",)), NetConnector(clock), clock, net.log, resolv_conf=str(net.resolv))
    net.resolv.write_text("nameserver 192.0.2.53\nnameserver ::1\noptions timeout:3 attempts:4 rotate\n")
    found = other._servers()
    assert found.addresses == (("192.0.2.53", 53), ("::1", 53)) and (found.seconds, found.attempts) == (3.0, 4)
    assert other.families == (4,)
    await net.resolver.close()
    await server.close()


def test_files_with_junk_are_read_as_far_as_they_go() -> None:
    assert parse_resolv_conf("nameserver x\noptions timeout:abc\n").addresses == (("127.0.0.1", 53),)
    assert parse_hosts("junk\n1.2.3 a\n192.0.2.1\n192.0.2.1 a a # b\n").addresses == {"a": ("192.0.2.1",)}


@pytest.mark.parametrize("text", ["", "name.test", "192.0.2.1:x", "192.0.2.1:0", "[::1", "::1]:53x"])
def test_dns_servers_are_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_server(text)


def test_dns_server_ports() -> None:
    assert parse_server("192.0.2.1") == ("192.0.2.1", 53)
    assert parse_server("192.0.2.1:5353") == ("192.0.2.1", 5353)
    assert parse_server("::1") == ("::1", 53)
    assert parse_server("[::1]:54") == ("::1", 54)


async def test_close_leaves_nothing_in_flight(net: Net) -> None:
    net.server.silent("slow.test")
    asking = asyncio.ensure_future(net.resolver.mx("slow.test"))
    await asyncio.sleep(0.01)
    await net.resolver.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_cache_hit_is_cheap(net: Net) -> None:
    net.server.add("dst.test", "MX", "10 a.dst.test.")
    await net.resolver.mx("dst.test")
    start = time.process_time()
    for _ in range(2000):
        await net.resolver.mx("dst.test")
    assert (time.process_time() - start) / 2000 < 20e-6  # ten times what it takes, for slow machines
