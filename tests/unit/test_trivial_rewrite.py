"""Addresses completed, stripped, and sent where transport(5) and the address classes say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.lookup.table import TableError
from mta.trivial_rewrite import AddressClass
from tests.unit.policy_fixture import Site


@pytest.mark.parametrize(
    ("address", "local", "remote"),
    [
        ("user@dst.example", "user@dst.example", "user@dst.example"),
        ("user", "user@test.example", "user"),
        ("user@host", "user@host", "user@host"),
        ("user@dst.example.", "user@dst.example", "user@dst.example"),
        ("user@dst.example..", "user@dst.example..", "user@dst.example.."),
        ("site!user", "user@site", "user@site"),
        ("a!b!user", "b!user@a", "b!user@a"),
        ("user%dst.example", "user@dst.example", "user@dst.example"),
        ("a%b%c", "a%b@c", "a%b@c"),
        ("a b%c", "a b%c@test.example", "a b%c"),
        ("@mx:user@dst.example", "user@dst.example", "user@dst.example"),
        ("@a,@b:user@dst.example", "user@dst.example", "user@dst.example"),
        ("@a@[IPv6:2001:db8::1]", "@a@[IPv6:2001:db8::1]", "@a@[IPv6:2001:db8::1]"),  # no route: "@a" was quoted
        ("@@[IPv6:2001:db8::1]", "@@[IPv6:2001:db8::1]", "@@[IPv6:2001:db8::1]"),
        ("@", "", ""),
        ("", "", ""),
        ("x@y@dst.example", "x@y@dst.example", "x@y@dst.example"),
        ("user@[192.0.2.1]", "user@[192.0.2.1]", "user@[192.0.2.1]"),
    ],
)
def test_rewriting(address: str, local: str, remote: str) -> None:
    rewriter = Site().rewriter
    assert rewriter.rewrite(address, local=True) == local
    assert rewriter.rewrite(address, local=False) == remote


def test_rewriting_follows_its_parameters() -> None:
    dotted = Site(append_dot_mydomain=True, remote_header_rewrite_domain="invalid.example").rewriter
    assert dotted.rewrite("user@host", local=True) == "user@host.test.example"
    assert dotted.rewrite("user@[1.2.3.4]", local=True) == "user@[1.2.3.4]"
    assert dotted.rewrite("user", local=False) == "user@invalid.example"
    plain = Site(swap_bangpath=False, allow_percent_hack=False, append_at_myorigin=False).rewriter
    assert plain.rewrite("a!b", local=True) == "a!b"
    assert plain.rewrite("a%b", local=True) == "a%b"


@pytest.mark.parametrize(
    ("address", "recipient", "kind", "target"),
    [
        ("user@test.example", "user@test.example", "local", "local:mx.test.example"),
        ("user@TEST.example.", "user@TEST.example", "local", "local:mx.test.example"),
        ("user@[127.0.0.1]", "user@[127.0.0.1]", "local", "local:mx.test.example"),
        ("user@[IPv6:::ffff:127.0.0.1]", "user@[IPv6:::ffff:127.0.0.1]", "local", "local:mx.test.example"),
        ("user@[IPv6:::ffff:1.2.3.4]", "user@[IPv6:::ffff:1.2.3.4]", "default", "smtp:[ipv6:::ffff:1.2.3.4]"),
        ("user", "user@mx.test.example", "local", "local:mx.test.example"),
        ("", "MAILER-DAEMON@mx.test.example", "local", "local:mx.test.example"),
        ("@test.example", "MAILER-DAEMON@test.example", "local", "local:mx.test.example"),
        ("x@Dst.Example", "x@Dst.Example", "default", "smtp:dst.example"),
        ("x%dst.example@test.example", "x@dst.example", "default", "smtp:dst.example"),
        ("x@dst.example@test.example", "x@dst.example", "default", "smtp:dst.example"),
        ("dst.example!x@[127.0.0.1]", "x@dst.example", "default", "smtp:dst.example"),
        ("user%test.example@localhost", "user@test.example", "local", "local:mx.test.example"),
        ("x@sub.relay.example", "x@sub.relay.example", "relay", "relay:sub.relay.example"),
        ("x@vm.example", "x@vm.example", "virtual_mailbox", "virtual:vm.example"),
        ("x@va.example", "x@va.example", "virtual_alias", "error:5.1.1 User unknown in virtual alias table"),
        ("x@sub.va.example", "x@sub.va.example", "default", "smtp:sub.va.example"),
    ],
)
async def test_resolving(address: str, recipient: str, kind: str, target: str) -> None:
    site = Site(
        relay_domains=("relay.example",), virtual_mailbox_domains=("vm.example",), virtual_alias_domains=("va.example",)
    )
    route = await site.rewriter.resolve(address)
    assert (route.recipient, route.address_class.value, f"{route.transport}:{route.nexthop}") == (
        recipient,
        kind,
        target,
    )
    assert not route.error


@pytest.mark.parametrize(
    "domain",
    ["paral\u00b7lel.example", "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.example", "\u30c9\u30fb\u30b3.example"],
)
async def test_a_domain_may_have_the_marks_that_some_scripts_need(domain: str) -> None:
    route = await Site().rewriter.resolve(f"x@{domain}")
    assert not route.error and (route.transport, route.nexthop) == ("smtp", domain)


@pytest.mark.parametrize(
    "address",
    [
        "x@",
        "x@a..b",
        "x@2130706433",
        "x@1.2.3.4",
        "x@[::1]",
        "x@[1.2.3]",
        "x@-a.b",
        "x@a b.c",
        "-x@dst.example",
        "x@a\0b.c",
        "x@.a",
        "x@a\u2028b.c",
        "x@a\uff20b.c",
    ],
)
async def test_what_is_no_address_goes_to_the_error_transport(address: str) -> None:
    route = await Site().rewriter.resolve(address)
    assert route.error and (route.transport, route.nexthop) == ("error", "5.1.3 bad address syntax")


async def test_relayhost_and_its_exceptions() -> None:
    site = Site(
        relayhost="[gw.example]:587",
        relay_domains=("relay.example",),
        transport_maps=(
            "inline:{ {direct.example=smtp:} {.sub.example=:[other]} {bad.example=error:5.0.0 no} "
            "{x+e@m.example=slow:y} {x@n.example=slow:} {noop.example=:} {fail.example=retry:} }",
        ),
        sender_dependent_relayhost_maps=(
            "inline:{ {a@s.example=[agw]} {@t.example=[tgw]} {b@s.example=DUNNO} {<>=[ngw]} }",
        ),
    )

    async def target(recipient: str, sender: str = "q@q.example") -> str:
        route = await site.rewriter.resolve(recipient, sender)
        return f"{route.transport}:{route.nexthop}"

    assert await target("x@d.example") == "smtp:[gw.example]:587"
    assert await target("x@relay.example") == "relay:[gw.example]:587"
    assert await target("user@test.example") == "local:mx.test.example"
    assert await target("x@d.example", "a@s.example") == "smtp:[agw]"
    assert await target("x@d.example", "any@T.example") == "smtp:[tgw]"
    assert await target("x@d.example", "b@s.example") == "smtp:[gw.example]:587"  # DUNNO: as for anybody
    assert await target("x@d.example", "") == "smtp:[ngw]"
    assert await target("x@direct.example") == "smtp:direct.example"
    assert await target("x@a.sub.example") == "smtp:[other]"
    assert await target("x@sub.example") == "smtp:[gw.example]:587"
    assert await target("x@bad.example") == "error:5.0.0 no"
    assert await target("x+e@m.example") == "slow:y"
    assert await target("x+other@n.example") == "slow:n.example"
    assert await target("x@noop.example") == "smtp:[gw.example]:587"
    assert await target("x@fail.example") == "retry:Address is undeliverable"


async def test_parents_in_transport_maps_when_they_stand_for_subdomains_and_the_wildcard() -> None:
    site = Site(
        parent_domain_matches_subdomains=("transport_maps",), transport_maps=("inline:{ {up.example=a:} {*=w:h} }",)
    )
    assert (await site.rewriter.resolve("x@b.up.example")).transport == "a"
    assert (await site.rewriter.resolve("x@else.example")).nexthop == "h"


async def test_transport_maps_do_not_find_a_way_for_an_unknown_address_of_a_virtual_alias_domain() -> None:
    maps = ("inline:{ {va.example=smtp:[x]} {*=smtp:[y]} }",)
    site = Site(virtual_alias_domains=("va.example",), transport_maps=maps)
    assert (await site.rewriter.resolve("x@va.example")).transport == "error"
    assert (await site.rewriter.resolve("x@else.example")).nexthop == "[y]"


async def test_default_transport_with_a_next_hop_and_sender_dependent_ones() -> None:
    site = Site(
        default_transport="smtp:[hop]",
        sender_dependent_default_transport_maps=("inline:{ {a@s.example=slow} {b@s.example=dunno} {<>=null:n} }",),
    )
    assert (await site.rewriter.resolve("x@d.example", "z@z.example")).nexthop == "[hop]"
    route = await site.rewriter.resolve("x@d.example", "a@s.example")
    assert (route.transport, route.nexthop) == ("slow", "d.example")
    route = await site.rewriter.resolve("x@d.example", "b@s.example")
    assert (route.transport, route.nexthop) == ("smtp", "[hop]")
    assert (await site.rewriter.resolve("x@d.example", "")).transport == "null"


async def test_relocated_users() -> None:
    site = Site(relocated_maps=("inline:{ {gone@test.example=new@else.example} }",))
    assert (await site.rewriter.resolve("gone+x@test.example")).nexthop == "5.1.6 User has moved to new@else.example"


@pytest.mark.parametrize("setting", ["mydestination", "relay_domains", "virtual_alias_domains", "transport_maps"])
async def test_a_table_that_fails_is_an_error_and_no_route(setting: str) -> None:
    with pytest.raises(TableError):
        await Site(**{setting: ("fail:x",)}).rewriter.resolve("x@dst.example")  # type: ignore[arg-type]  # by name


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(alphabet='ab.@%!:"\\[] ,<>+-1', max_size=30), st.sampled_from(["", "@test.example", "@victim.example"]))
def test_every_address_resolves_to_a_domain_that_is_remote_or_ours_and_stays_so(local: str, end: str) -> None:
    """A route is a fixed point: resolving its recipient again says the same, so no later stage sees another domain."""
    rewriter = Site().rewriter

    def now(address: str) -> tuple[str, str, bool]:
        question = rewriter.resolve(rewriter.rewrite(address, local=True))
        try:
            question.send(None)
        except StopIteration as done:
            return done.value.recipient, done.value.address_class.value, done.value.error
        raise AssertionError("waited")

    recipient, kind, error = now(local + end)
    assert "@" in recipient
    if not error:
        assert now(recipient)[1:] == (kind, False)
        assert kind in list(AddressClass)
    assert not (rewriter.is_faultless(local + end) and error)


@pytest.mark.parametrize("address", ["a@test.example", "a+b@x-y.dst.example", "a:b@dst.example"])
def test_most_addresses_are_seen_to_be_faultless(address: str) -> None:
    assert Site().rewriter.is_faultless(address)


@pytest.mark.parametrize(
    "address", ["", "a", "a@b", "-a@dst.example", "a@-b.example", "a@1.2.3.4", "a@[1.2.3.4]", "a%b@c.example", "a@b..c"]
)
def test_others_must_be_resolved(address: str) -> None:
    assert not Site().rewriter.is_faultless(address)
