"""cdb files: our writer and reader, the table, and makemap."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.lookup.cdb import HEADER, Cdb, CdbError, build, cdb_hash
from mta.lookup.context import LookupContext
from mta.lookup.open import open_table
from mta.lookup.table import TableError
from mta.lookup.unix import UserDb
from sendmail_compat.install import install
from tests.queue_support import ListLog

RECORDS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=300)


def test_the_hash_and_the_layout_are_those_of_the_format() -> None:
    assert cdb_hash(b"") == 5381 and cdb_hash(b"a") == (5381 * 33) ^ 97
    data = build([(b"one", b"Hello")])
    table = cdb_hash(b"one") & 255
    assert data[HEADER : HEADER + 16] == b"\3\0\0\0\5\0\0\0oneHello"
    assert data[8 * table : 8 * table + 8] == (HEADER + 16).to_bytes(4, "little") + b"\2\0\0\0"
    assert len(data) == HEADER + 16 + 16


@given(RECORDS, st.binary(max_size=20))
def test_what_was_written_is_found_and_nothing_else(records: list[tuple[bytes, bytes]], other: bytes) -> None:
    file = Cdb(build(records))
    first: dict[bytes, bytes] = {}
    for key, value in records:
        first.setdefault(key, value)
    assert all(file.get(key) == value for key, value in first.items())
    assert file.get(other) == first.get(other)
    assert list(file.items()) == records


@given(st.binary(max_size=4000), st.binary(max_size=5))
def test_rubbish_is_an_error_or_no_answer(data: bytes, key: bytes) -> None:
    for rubbish in (data, build([(key, data)])[: 2048 + len(data)], build([(key, b"x")])[:-3] + data[:3]):
        with contextlib.suppress(CdbError):
            assert Cdb(rubbish).get(key) in (None, data, b"x") or len(rubbish) > HEADER


def table(path: Path, log: ListLog) -> tuple[Fsio, LookupContext]:
    fsio = Fsio()
    return fsio, LookupContext(fsio, Clock(), log, UserDb(fsio, Clock()))


async def test_the_table_reads_the_cdb_file_and_without_one_the_text(tmp_path: Path) -> None:
    log = ListLog()
    fsio, context = table(tmp_path, log)
    (tmp_path / "access").write_text("a@b\tfrom the text\n")
    os.utime(tmp_path / "access", (1, 1))
    text = open_table(f"cdb:{tmp_path}/access", context)
    assert await text.get("A@B") == "from the text"
    (tmp_path / "map.cdb").write_bytes(build([(b"a@b", b"REJECT no"), (b"nul\0", b"v\0")]))
    (tmp_path / "map").write_text("a@b\tnewer\n")
    os.utime(tmp_path / "map.cdb", (1, 1))
    binary = open_table(f"cdb:{tmp_path}/map", context)
    assert await binary.get("A@B") == "REJECT no"
    assert await binary.get("nul") == "v"
    assert await binary.get("nobody") is None
    assert any("is older than source file" in line for line in log.lines)
    (tmp_path / "bad.cdb").write_bytes(b"short")
    with pytest.raises(TableError):
        await open_table(f"cdb:{tmp_path}/bad", context).get("x")
    fsio.close()


def makemap(stub: Path, *argv: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [str(stub.parent / "makemap"), *argv], input=stdin.encode(), capture_output=True, check=False, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_makemap_says_what_sendmail_says_and_leaves_the_source_alone(tmp_path: Path) -> None:
    stub, name = install(tmp_path / "i"), str(tmp_path / "mm")
    source = tmp_path / "mm"
    source.write_text("Foo\tx y\n# c\n\na@b REJECT\n")
    source.chmod(0o644)
    before = (source.read_bytes(), source.stat().st_mtime_ns)
    assert makemap(stub, "hash", name, stdin=source.read_text()) == (0, "", "")
    assert makemap(stub, "-u", "hash", name) == (0, "foo\tx y\na@b\tREJECT\n", "")
    assert (tmp_path / "mm.cdb").stat().st_mode & 0o777 == 0o644
    assert makemap(stub, "hash", name, stdin="a 1\nbar\n b 2\na 2\n") == (
        65, "", f"makemap: {name}: line 2: no RHS for LHS bar\nmakemap: {name}: line 3: syntax error (leading space)\n"
        f"makemap: {name}: line 4: key a: duplicate key\n",
    )  # fmt: skip
    assert makemap(stub, "-o", "-r", "-e", "hash", name, stdin="a 3\nempty\n") == (0, "", "")
    assert makemap(stub, "-u", "hash", name)[1] == "a\t3\nempty\t\n"
    assert makemap(stub, "-f", "-d", "-t", ":", "-D", ";", "hash", name, stdin="; c\nA b: 1\nA b: 2\n")[0] == 0
    assert makemap(stub, "-u", "hash", name)[1] == "A b\t1\nA b\t2\n"
    assert makemap(stub, "bogus", name) == (
        73, "", f"makemap: error opening type bogus map {name}: Unknown database type\n"
    )  # fmt: skip
    status, _, text = makemap(stub, "hash")
    assert status == 64 and text.startswith("Usage: makemap [-C cffile] [-N]")
    status, _, text = makemap(stub, "hash", "/nonexistent/x", stdin="a b\n")
    assert status == 73 and text.startswith("makemap: error opening type hash map /nonexistent/x: ")
    assert "hash\n" in makemap(stub, "-l")[1]
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i", "mm", "mm.cdb"]
