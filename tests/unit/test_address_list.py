"""Match lists (mydestination, mynetworks ...) and the keys an address is looked up by."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mta.lookup.address import ExtensionRules, find_address, split_extension
from mta.lookup.match_list import SLICE, DomainList, NetworkList
from mta.lookup.names import literal_address, valid_hostname
from mta.lookup.open import open_tables
from mta.lookup.table import Maps, TableError
from tests.unit.lookup_fixture import World

RULES = ExtensionRules("+", True, "double-bounce")


@pytest.mark.parametrize(
    ("spec", "parents", "yes", "no"),
    [
        ("a.example, B.example", None, ["a.example", "A.Example", "b.example"], ["x.a.example", "example", ""]),
        ("a.example .b.example", True, ["a.example", "x.a.example", "y.x.a.example"], ["b.example", "xa.example"]),
        ("a.example .b.example", False, ["a.example", "x.b.example", "y.x.b.example"], ["b.example", "x.a.example"]),
        ("!x.a.example a.example", True, ["a.example", "y.a.example"], ["x.a.example", "z.x.a.example"]),
        ("inline:{a.example=x} b.example", True, ["a.example", "x.a.example", "b.example"], ["c.example"]),
        ("inline:{.a.example=x}", False, ["x.a.example"], ["a.example"]),
        ("regexp:{{/^a/ yes}}", True, ["abc", "a.b"], ["b.a"]),
        ("a.example # b.example c.example", None, ["a.example"], ["b.example", "c.example", "#"]),
        ("#a.example b.example", None, [], ["a.example", "b.example"]),
        ("", None, [], ["a.example"]),
    ],
)
async def test_domain_lists(spec: str, parents: bool | None, yes: Sequence[str], no: Sequence[str]) -> None:
    domains = DomainList("list", spec, World().context, parents=parents)
    assert [d for d in yes if not await domains.match(d)] == []
    assert [d for d in no if await domains.match(d)] == []


async def test_others_have_their_turns_while_a_long_file_is_taken_in(tmp_path: Path) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    words = [f"{'!' if n % 5 == 4 else ''}d{n}.example" for n in range(20 * SLICE)]
    file = tmp_path / "domains"
    for more in ([], ["new.example"]):
        file.write_text("\n".join([*words, *more, ""]))
        os.utime(file, (1, 1))
        domains = DomainList("list", str(file), World().context, parents=None)
        beside, turns = asyncio.ensure_future(other()), 0
        asked = ["d0.example", f"D{20 * SLICE - 2}.example", "d4.example", "x.example", "new.example"]
        found = await asyncio.gather(*map(domains.match, asked))
        beside.cancel()
        assert found == [True, True, False, False, bool(more)]
        assert 20 <= turns < 2 * 20 + 10, "once for all who ask"


@pytest.mark.parametrize(
    ("spec", "yes", "no"),
    [
        (
            "127.0.0.0/8 [::1]/128 [::ffff:127.0.0.0]/104",
            ["127.0.0.1", "::1", "::ffff:127.9.9.9"],
            ["128.0.0.1", "::2"],
        ),
        ("!10.1.2.3, 10.0.0.0/8", ["10.1.2.4"], ["10.1.2.3", "::ffff:10.1.2.3"]),
        (
            "192.0.2.1 [2001:db8::]/32 2001:db9::/32",
            ["192.0.2.1", "2001:db8::5", "2001:db9:1::"],
            ["192.0.2.2", "x", ""],
        ),
        ("cidr:{{10.0.0.0/8 in}} 1.2.3.4", ["10.1.1.1", "1.2.3.4"], ["1.2.3.5"]),
        ("inline:{1.2.3.4=x}", ["1.2.3.4", "::ffff:1.2.3.4"], ["1.2.3.5"]),
        ("0.0.0.0/0", ["1.2.3.4", "::ffff:1.2.3.4"], ["::1"]),
        ("127.0.0.0/8 # 10.0.0.0/8, [::1]", ["127.0.0.1"], ["10.0.0.1", "::1"]),
    ],
)
async def test_network_lists(spec: str, yes: Sequence[str], no: Sequence[str]) -> None:
    networks = NetworkList("mynetworks", spec, World().context)
    for _ in range(2):  # the second time from memory
        assert [a for a in yes if not await networks.match(a)] == []
        assert [a for a in no if await networks.match(a)] == []


@pytest.mark.parametrize(
    ("spec", "yes", "no", "unknown"),
    [
        ("10.0.0.1/8 192.0.2.0/24", [], ["::1", ""], ["10.0.0.1", "192.0.2.9", "::ffff:10.0.0.1"]),
        ("192.0.2.0/24 10.0.0.0/33", ["192.0.2.9"], [], ["10.0.0.1"]),  # what stands before it counts
        ("!10.0.0.5/33 10.0.0.0/8", [], [], ["10.0.0.5", "10.1.1.1"]),
        ("[2001:db8::1]/32 10.0.0.0/8", ["10.1.1.1"], ["192.0.2.1"], ["2001:db8::5"]),
    ],
)
async def test_a_bad_network_makes_a_list_fail_where_it_is_come_to(
    spec: str, yes: Sequence[str], no: Sequence[str], unknown: Sequence[str]
) -> None:
    """Left out, an exclusion would let through whom it is there to stop."""
    world = World()
    networks = NetworkList("mynetworks", spec, world.context)
    for _ in range(2):
        assert [a for a in yes if not await networks.match(a)] == []
        assert [a for a in no if await networks.match(a)] == []
        for address in unknown:
            with pytest.raises(TableError, match="mynetworks"):
                await networks.match(address)
    assert [line.partition(":")[0] for line in world.log.lines] == ["mynetworks"]


async def test_a_host_name_may_begin_with_a_digit() -> None:
    networks = NetworkList("mynetworks", "3com.example 10.0.0", World().context)
    assert await networks.match("192.0.2.1", "3com.example")
    assert not await networks.match("10.0.0.1", "unknown")


async def test_a_file_in_a_list_is_part_of_it(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.write_text("# ours\na.example # f.example\n#g.example\n!c.example b.example\n e.example\n")
    world = World()
    domains = DomainList("mydestination", f"{inner} c.example d.example", world.context, parents=None)
    found = {letter: await domains.match(f"{letter}.example") for letter in "abcdefg"}
    assert found == {"a": True, "b": True, "c": False, "d": True, "e": True, "f": False, "g": False}
    assert world.log.lines == ["mydestination: comment at end of line is not supported: # f.example"]
    with pytest.raises(TableError):
        await DomainList("mydestination", f"{tmp_path}/none", World().context, parents=None).match("a.example")


@pytest.mark.parametrize(
    ("local", "parts"),
    [
        ("user+ext", ("user", "+ext")),
        ("user+a+b", ("user", "+a+b")),
        ("user+", ("user", "+")),
        ("+ext", ("+ext", "")),
        ("user", ("user", "")),
        ("postmaster", ("postmaster", "")),
        ("double-bounce", ("double-bounce", "")),
    ],
)
def test_extensions_are_split_at_the_first_delimiter(local: str, parts: tuple[str, str]) -> None:
    assert split_extension(local, RULES) == parts


def test_owner_and_request_are_no_extensions() -> None:
    rules = ExtensionRules("-+", True, "double-bounce")
    assert split_extension("owner-list", rules) == ("owner-list", "")
    assert split_extension("list-request", rules) == ("list-request", "")
    assert split_extension("list-other", rules) == ("list", "-other")
    assert split_extension("owner-list", ExtensionRules("-", False, "double-bounce")) == ("owner", "-list")


class Spy:
    """A table that answers nothing and remembers the keys."""

    name = "spy:"

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def get(self, key: str) -> str | None:
        self.keys.append(key)
        return None


async def _local(domain: str) -> bool:
    return domain == "here.example"


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("u+e@here.example", ["u+e@here.example", "u@here.example", "u+e", "u", "@here.example"]),
        ("u+e@far.example", ["u+e@far.example", "u@far.example", "@far.example"]),
        ("a b@far.example", ['"a b"@far.example', "a b@far.example", "@far.example"]),
        ("u+e", ["u+e", "u"]),
    ],
)
async def test_the_keys_of_an_address_in_their_order(address: str, keys: Sequence[str]) -> None:
    spy = Spy()
    assert await find_address(Maps((spy,)), address, RULES, _local) is None
    assert spy.keys == keys


@pytest.mark.parametrize(
    ("key", "extension"),
    [("u+e@here.example", ""), ("u@here.example", "+e"), ("u+e", ""), ("u", "+e"), ("@here.example", "")],
)
async def test_an_extension_is_left_over_when_the_user_without_it_was_found(key: str, extension: str) -> None:
    maps = open_tables(f"inline:{{{key}=x}}", World().context)
    assert await find_address(maps, "u+e@here.example", RULES, _local) == ("x", extension)


@pytest.mark.parametrize("name", ["a", "a.b", "a-b.c_d.e1", "1a.2b", "x" * 63 + ".y", "m\u00fcnchen.example"])
def test_host_names(name: str) -> None:
    assert valid_hostname(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a.-b",
        "1.2.3.4",
        "123",
        "x" * 64,
        "a b",
        "a\0",
        "a/b",
        "a." * 128 + "b",
        "\u202ea",
    ],
)
def test_what_is_no_host_name(name: str) -> None:
    assert not valid_hostname(name)


@pytest.mark.parametrize("text", ["[::1]", "[1.2.3]", "[IPv6:1.2.3.4]", "1.2.3.4", "[]", "[[1.2.3.4]]"])
def test_what_is_no_literal(text: str) -> None:
    assert literal_address(text) is None
