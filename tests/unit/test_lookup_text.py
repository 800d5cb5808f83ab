"""Text tables: what postmap(1) and postalias(1) say of the same files, reloading, and failures."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.clock import Clock
from mta.lookup.lines import Warnings, logical_lines, parse_aliases, parse_postmap
from mta.lookup.open import open_table, open_tables
from mta.lookup.table import TableError
from tests.unit.lookup_fixture import World
from tests.virtual_time import run_virtual

MAP = rb"""# c
foo  bar baz
  continued here

"quo ted"  v1
"a;b"@x.test	quoted
key:  al
Bad
UP Per
"unb al
esc\ aped val
foo again
x\"y z w
"""
ALIASES = b"""root: alice, bob@r.test
"Quoted Name": alice
prog: "|/bin/cat -n", :include:/tmp/list
x@y: z
nothing:
: v
a,b: c
plain
multi: a,
 # comment
  b
k2 : v2
"a@b": q
k%: v
x: 1
x: 2
"""


def test_a_map_file_holds_what_postmap_makes_of_it() -> None:
    """Keys, values and warnings as printed by `postmap -s` of Postfix 3.7.11."""
    warnings = Warnings("h")
    assert parse_postmap(MAP, warnings) == {
        "foo": "bar baz  continued here",
        '"quo ted"': "v1",
        '"a;b"@x.test': "quoted",
        "key:": "al",
        "up": "Per",
        "esc\\ aped": "val",
        'x\\"y': "z w",
    }
    assert warnings == [
        'h, line 7: record is in "key: value" format; is this an alias file?',
        "h, line 8: expected format: key whitespace value",
        "h, line 10: unbalanced '\"' in '\"unb al' -- ignoring this line",
        'h, line 12: duplicate entry: "foo"',
    ]


def test_a_map_file_that_begins_with_a_continuation_loses_only_that_line() -> None:
    warnings = Warnings("h2")
    assert parse_postmap(b"   first line\nb c\n", warnings) == {"b": "c"}
    assert warnings == ['h2, line 1: logical line must not start with whitespace: "   first line"']
    assert parse_aliases(b" a: b\nc: d\n", warnings) == {"c": "d"}
    assert warnings[1:] == ['h2, line 1: logical line must not start with whitespace: " a: b"']


def test_an_aliases_file_holds_what_postalias_makes_of_it() -> None:
    warnings = Warnings("al")
    assert parse_aliases(ALIASES, warnings) == {
        "root": "alice, bob@r.test",
        "quoted name": "alice",
        "prog": '"|/bin/cat -n", :include:/tmp/list',
        "multi": "a,  b",
        "k2": "v2",
        "a@b": "q",
        "x": "1",
    }
    assert [w.partition(": ")[2] for w in warnings] == [
        "name must be local",
        *["need name:value pair"] * 4,
        "name must be local",
        'duplicate entry: "x"',
    ]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_entries_or_warnings(data: bytes) -> None:
    for parse in (parse_postmap, parse_aliases):
        index = parse(data, Warnings("f"))
        assert all(key == key.lower() and value for key, value in index.items())
    for number, line in logical_lines(data):
        assert number >= 1 and line


@pytest.mark.parametrize("kind", ["hash", "btree", "texthash", "lmdb", "cdb", "dbm", "proxy:hash"])
async def test_indexed_types_read_the_text_file_and_fold_keys(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m").write_bytes(MAP)
    table = open_table(f"{kind}:{tmp_path}/m", World().context)
    assert await table.get("FOO") == "bar baz  continued here"
    assert await table.get("bar") is None


async def test_a_name_without_a_type_has_the_default_type(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(ALIASES)
    assert await open_tables(f"{tmp_path}/a", World().context, aliases=True).get("Root") == "alice, bob@r.test"


async def test_a_file_that_is_missing_fails_every_lookup_and_warns_once(tmp_path: Path) -> None:
    world = World()
    maps = open_tables(f"hash:{tmp_path}/none", world.context)
    for _ in range(3):
        with pytest.raises(TableError, match="No such file"):
            await maps.get("x")
    assert len(world.log.lines) == 1 and "is unavailable" in world.log.lines[0]


async def test_a_file_that_may_not_be_read_fails_every_lookup(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("a b\n")
    with pytest.raises(TableError, match="Not a directory"):
        await open_table(f"hash:{path}/m", World().context).get("a")
    path.chmod(0)
    if os.geteuid() != 0:  # root may read everything
        with pytest.raises(TableError, match="Permission denied"):
            await open_table(f"hash:{path}", World().context).get("a")


async def test_a_directory_or_fifo_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(TableError):
            await open_table(f"hash:{path}", World().context).get("a")


def test_a_changed_file_is_read_again_and_looked_at_no_more_than_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "m"

    async def main(clock: Clock) -> None:
        world = World(clock=clock)
        path.write_text("a 1\n")
        table = open_table(f"hash:{path}", world.context)
        assert await table.get("a") == "1"
        path.write_text("a 22\n")
        assert await table.get("a") == "1"
        assert world.worker.count == 1
        await clock.sleep(1.1)
        assert await table.get("a") == "22"
        assert world.worker.count == 2
        path.unlink()
        await clock.sleep(1.1)
        with pytest.raises(TableError):
            await table.get("a")
        path.write_text("b 3\n")
        await clock.sleep(1.1)
        assert await table.get("b") == "3"
        assert await table.get("a") is None

    run_virtual(main)


def test_a_file_just_being_written_does_not_replace_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "m"

    async def main(clock: Clock) -> None:
        table = open_table(f"hash:{path}", World(clock=clock).context)
        path.write_text("a 1\n")
        assert await table.get("a") == "1"
        await clock.sleep(1.1)
        write_at(path, clock, "b 2\n")
        assert await table.get("a") == "1"
        await clock.sleep(2)
        assert await table.get("a") is None

    run_virtual(main)


@pytest.mark.parametrize("text", ["", "b 2\nc"])
def test_a_file_that_is_written_slowly_makes_nobody_unknown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m"

    async def main(clock: Clock) -> None:
        table = open_table(f"hash:{path}", World(clock=clock).context)
        write_at(path, clock, "a 1\n")
        assert await table.get("a") == "1"
        await clock.sleep(1.1)
        write_at(path, clock, text)  # the rest comes when a database has answered
        await clock.sleep(8)
        assert await table.get("a") == "1"
        write_at(path, clock, "a 2\n")
        await clock.sleep(2)
        assert await table.get("a") == "2"
        write_at(path, clock, text)  # this one is meant
        await clock.sleep(11)
        assert await table.get("a") is None

    run_virtual(main)


def write_at(path: Path, clock: Clock, text: str) -> None:
    path.write_text(text)
    os.utime(path, (clock.now(), clock.now()))


@pytest.mark.parametrize(("gap", "pieces"), [(0.05, ["a 1\n", "b 2\n", "c 3\n"]), (0.5, ["", "a 1\nb", " 2\nc 3\n"])])
def test_a_file_just_being_written_is_not_believed_at_the_first_look(
    tmp_path: Path, gap: float, pieces: list[str]
) -> None:
    path = tmp_path / "m"

    async def main(clock: Clock) -> None:
        async def edit() -> None:
            for n in range(len(pieces)):
                write_at(path, clock, "".join(pieces[: n + 1]))
                await clock.sleep(gap)

        editor = asyncio.ensure_future(edit())
        await clock.sleep(gap / 2)
        assert await open_table(f"hash:{path}", World(clock=clock).context).get("c") == "3"
        await editor

    run_virtual(main)


def test_a_file_that_never_rests_fails_every_lookup_and_one_at_rest_answers_soon(tmp_path: Path) -> None:
    path = tmp_path / "m"

    async def main(clock: Clock) -> None:
        async def edit() -> None:
            for n in range(80):
                write_at(path, clock, "a 1\n" * n)
                await clock.sleep(0.05)

        editor = asyncio.ensure_future(edit())
        await clock.sleep(0.1)
        table = open_table(f"hash:{path}", World(clock=clock).context)
        with pytest.raises(TableError, match="is being written"):
            await table.get("b")
        await editor
        write_at(path, clock, "a 1\n")
        started = clock.monotonic()
        assert await open_table(f"hash:{path}", World(clock=clock).context).get("a") == "1"
        assert clock.monotonic() - started < 0.2
        os.utime(path, (clock.now() + 900, clock.now() + 900))  # the clock was set back
        started = clock.monotonic()
        assert await open_table(f"hash:{path}", World(clock=clock).context).get("a") == "1"
        assert clock.monotonic() == started

    run_virtual(main)


async def test_tables_of_one_name_are_shared(tmp_path: Path) -> None:
    context = World().context
    assert open_table(f"hash:{tmp_path}/x", context) is open_table(f"hash:{tmp_path}/x", context)
    assert open_table(f"hash:{tmp_path}/x", context) is not open_table(f"hash:{tmp_path}/x", context, aliases=True)


async def test_a_large_file_answers_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_text("".join(f"user{i}@x.test dest{i}@y.test\n" for i in range(20000)))
    world = World()
    table = open_table(f"texthash:{path}", world.context)
    assert await table.get("user19999@x.test") == "dest19999@y.test"
    assert await table.get("User7@X.test") == "dest7@y.test"
    assert world.worker.count <= 2
