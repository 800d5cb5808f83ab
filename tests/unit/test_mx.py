"""Decisions about MX records, and the words that follow."""

from typing import TypeVar

import pytest

from mta.dns.mx import (
    MX,
    DnsNoData,
    DnsNotFound,
    DnsTemporary,
    MXAnswer,
    Target,
    groups,
    is_own,
    lookup_failure,
    null_mx,
    order,
)

T = TypeVar("T")


def reverse(items: list[T], /) -> None:
    items.reverse()


def test_only_a_lone_dot_is_a_null_mx() -> None:
    assert MXAnswer((MX(0, ""),)).is_null
    assert not MXAnswer((MX(0, ""), MX(5, "a"))).is_null
    assert not MXAnswer(()).is_null
    assert null_mx("x.test").enhanced == "5.1.10" and null_mx("x.test").is_permanent


def test_records_are_grouped_by_preference_and_shuffled_within() -> None:
    answer = MXAnswer((MX(20, "c"), MX(10, "a"), MX(10, "b"), MX(0, "")))
    assert groups(answer, None) == [[MX(10, "a"), MX(10, "b")], [MX(20, "c")]]
    assert groups(answer, reverse)[0] == [MX(10, "b"), MX(10, "a")]


LISTENING = frozenset({"192.0.2.1", "127.0.0.1", "::1"})


@pytest.mark.parametrize("address", ["192.0.2.1", "127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_own_addresses_are_recognised(address: str) -> None:
    assert is_own(["198.51.100.1", address], LISTENING)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_loopback_is_ours_only_where_we_listen_on_it(address: str) -> None:
    assert not is_own([address], frozenset({"192.0.2.1"}))
    assert not is_own(["127.0.0.2", "127.9.9.9"], LISTENING)


FOUR = [Target("a", f"192.0.2.{n}", 10) for n in range(4)]
SIX = [Target("b", f"2001:db8::{n}", 10) for n in range(4)]


def test_the_limit_keeps_some_of_each_protocol() -> None:
    kept = order(FOUR + SIX, prefer="any", balance=True, limit=4, shuffle=None)
    assert sum(t.is_ipv6 for t in kept) == 2
    assert order(FOUR + SIX, prefer="any", balance=False, limit=4, shuffle=None) == FOUR
    kept = order(FOUR + SIX[:1], prefer="any", balance=True, limit=3, shuffle=None)
    assert sum(t.is_ipv6 for t in kept) == 1 and len(kept) == 3
    assert len(order(FOUR[:1] + SIX, prefer="any", balance=True, limit=4, shuffle=None)) == 4
    assert len(order(FOUR + SIX, prefer="any", balance=True, limit=0, shuffle=None)) == 8


def test_preference_of_a_protocol_never_beats_mx_preference() -> None:
    mixed = [Target("a", "192.0.2.1", 20), Target("b", "2001:db8::1", 20), Target("c", "192.0.2.2", 10)]
    assert [t.host for t in order(mixed, prefer="ipv6", balance=False, limit=0, shuffle=None)] == ["c", "b", "a"]
    assert [t.host for t in order(mixed, prefer="ipv4", balance=False, limit=0, shuffle=None)] == ["c", "a", "b"]
    assert [t.host for t in order(mixed, prefer="any", balance=False, limit=0, shuffle=reverse)] == ["c", "b", "a"]


def test_failures_have_postfix_words() -> None:
    found = lookup_failure(DnsNotFound("x.test", "MX"))
    assert str(found) == (
        "550 5.4.4 Host or domain name not found. Name service error for name=x.test type=MX: Host not found"
    )
    assert lookup_failure(DnsNoData("x.test", "AAAA")).enhanced == "5.4.4"
    later = lookup_failure(DnsTemporary("x.test", "MX"))
    assert later.code == 451 and later.enhanced == "4.4.3" and later.text.endswith("Host not found, try again")
