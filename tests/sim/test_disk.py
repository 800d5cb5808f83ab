"""What the simulated disk keeps over a power cut, and that it behaves like a disk before."""

import errno
import random

import pytest

from tests.sim.disk import FILE, PAGE, Disk, Inode


class Bench:
    """A disk, its clock, and many cuts of equal states."""

    def __init__(self, *, ordered: bool, seed: int = 0) -> None:
        self.now = 1000.0
        self.disk = Disk(random.Random(seed), lambda: self.now, lambda: self.now, ordered=ordered)
        self.disk.create("/a", 0o700, 0, 0, directory=True)
        self.disk.create("/b", 0o700, 0, 0, directory=True)
        self.disk.sync()

    def file(self, path: str, data: bytes = b"") -> Inode:
        inode = self.disk.create(path, 0o600, 0, 0)
        if data:
            self.disk.write(inode, data, 0)
        return inode

    def names(self) -> set[str]:
        return {path for path, _ in self.disk.walk("")}

    def content(self, path: str) -> bytes | None:
        try:
            return bytes(self.disk.find(path).data)
        except FileNotFoundError:
            return None


BOTH = pytest.mark.parametrize("ordered", [True, False], ids=["ext4", "any"])
SEEDS = range(60)


@BOTH
def test_what_was_flushed_with_its_directory_is_whole_after_any_cut(ordered: bool) -> None:
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        inode = bench.file("/a/tmp", b"x" * 9000)
        bench.disk.rename("/a/tmp", "/a/final")
        bench.disk.fsync(inode)
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.cut()
        assert bench.names() == {"/a/final"}
        assert bench.content("/a/final") == b"x" * 9000


def test_flushing_a_file_flushes_its_name_on_ext4_only() -> None:
    kept = []
    for seed in SEEDS:
        for ordered in (True, False):
            bench = Bench(ordered=ordered, seed=seed)
            bench.disk.fsync(bench.file("/a/f", b"data"))
            bench.disk.cut()
            kept.append((ordered, bench.content("/a/f")))
    assert {content for ordered, content in kept if ordered} == {b"data"}
    assert {content for ordered, content in kept if not ordered} == {b"data", None}


@BOTH
def test_a_rename_that_was_not_flushed_leaves_one_of_both_names(ordered: bool) -> None:
    seen = set()
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        bench.disk.fsync(bench.file("/a/f", b"data"))
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.rename("/a/f", "/b/f")
        bench.disk.cut()
        seen.add(frozenset(bench.names()))
    assert seen == {frozenset({"/a/f"}), frozenset({"/b/f"})}


@BOTH
def test_an_unlink_that_was_not_flushed_may_undo_itself(ordered: bool) -> None:
    seen = set()
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        bench.disk.fsync(bench.file("/a/f", b"data"))
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.unlink("/a/f")
        bench.disk.cut()
        seen.add(bench.content("/a/f"))
    assert seen == {b"data", None}


@BOTH
def test_a_file_that_comes_back_has_its_content_with_or_without_what_was_written_last(ordered: bool) -> None:
    seen = set()
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        inode = bench.file("/a/f", b"RR")
        bench.disk.fsync(inode)
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.write(inode, b"D", 1)
        bench.disk.unlink("/a/f")
        bench.disk.cut()
        seen.add(bench.content("/a/f"))
    assert seen == {b"RR", b"RD", None}


def test_flushing_a_directory_flushes_the_names_of_new_directories_above_it() -> None:
    for seed in SEEDS:
        bench = Bench(ordered=False, seed=seed)
        bench.disk.create("/a/box", 0o700, 0, 0, directory=True)
        bench.disk.create("/a/box/new", 0o700, 0, 0, directory=True)
        bench.disk.fsync(bench.file("/a/box/new/f", b"data"))
        bench.disk.fsync(bench.disk.find("/a/box/new"))
        bench.disk.cut()
        assert bench.content("/a/box/new/f") == b"data"


def test_names_come_back_in_order_on_ext4_and_in_any_subset_elsewhere() -> None:
    seen: dict[bool, set[frozenset[str]]] = {True: set(), False: set()}
    for seed in range(200):
        for ordered in (True, False):
            bench = Bench(ordered=ordered, seed=seed)
            for name in ("1", "2", "3"):
                bench.file(f"/a/{name}")
            bench.disk.cut()
            seen[ordered].add(frozenset(bench.names()))
    ones = [frozenset(f"/a/{n}" for n in subset) for subset in ("", "1", "12", "123")]
    assert seen[True] == set(ones)
    assert len(seen[False]) == 8


def test_a_torn_file_has_pages_that_are_old_new_or_zero_and_nothing_else() -> None:
    kinds = set()
    for seed in range(300):
        bench = Bench(ordered=False, seed=seed)
        inode = bench.file("/a/f", b"o" * 2 * PAGE)
        bench.disk.fsync(inode)
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.write(inode, b"n" * 4 * PAGE, 0)
        bench.disk.cut()
        data = bench.content("/a/f") or b""
        assert 2 * PAGE <= len(data) <= 4 * PAGE
        pages = [data[i : i + PAGE] for i in range(0, len(data), PAGE)]
        assert all(page in (b"o" * PAGE, b"n" * PAGE, bytes(PAGE)) for page in pages)
        assert bytes(PAGE) not in pages[:2]
        kinds.add(tuple(page[:1] for page in pages))
    assert len(kinds) > 5


def test_on_ext4_a_file_never_grows_without_its_data() -> None:
    sizes = set()
    for seed in range(200):
        bench = Bench(ordered=True, seed=seed)
        inode = bench.file("/a/f", b"o" * 100)
        bench.disk.fsync(inode)
        bench.disk.write(inode, b"n" * 10000, 100)
        bench.disk.cut()
        data = bench.content("/a/f") or b""
        assert data == (b"o" * 100 + b"n" * 10000)[: len(data)]
        sizes.add(len(data))
    assert {100, 10100} < sizes


@BOTH
def test_a_mark_in_place_is_there_or_not_and_never_without_a_flush_for_sure(ordered: bool) -> None:
    seen = set()
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        inode = bench.file("/a/f", b"RRRR")
        bench.disk.fsync(inode)
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.write(inode, b"D", 1)
        bench.disk.cut()
        seen.add(bench.content("/a/f"))
    assert seen == {b"RRRR", b"RDRR"}


@BOTH
def test_what_is_older_than_the_writeback_is_on_the_device(ordered: bool) -> None:
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        bench.file("/a/f", b"data")
        bench.now += 31.0
        bench.disk.cut()
        assert bench.content("/a/f") == b"data"


@BOTH
def test_a_mode_that_was_not_flushed_may_be_the_old_one(ordered: bool) -> None:
    seen = set()
    for seed in SEEDS:
        bench = Bench(ordered=ordered, seed=seed)
        inode = bench.file("/a/f", b"data")
        bench.disk.fsync(inode)
        bench.disk.fsync(bench.disk.find("/a"))
        bench.disk.set_meta(inode, mode=0o700)
        bench.disk.cut()
        seen.add(bench.disk.find("/a/f").mode)
    assert seen == {FILE | 0o600, FILE | 0o700}


@BOTH
def test_a_failed_flush_loses_the_pages_and_the_next_one_lies(ordered: bool) -> None:
    bench = Bench(ordered=ordered)
    inode = bench.file("/a/f", b"old!")
    bench.disk.fsync(inode)
    bench.disk.fsync(bench.disk.find("/a"))
    bench.disk.write(inode, b"new!", 0)
    bench.disk.fail_flush(inode)
    bench.disk.fsync(inode)
    assert bytes(inode.data) == b"new!"
    bench.disk.cut()
    assert bench.content("/a/f") == b"old!"


@BOTH
def test_written_again_after_a_failed_flush_it_is_durable(ordered: bool) -> None:
    bench = Bench(ordered=ordered)
    inode = bench.file("/a/f", b"old!")
    bench.disk.fsync(inode)
    bench.disk.fsync(bench.disk.find("/a"))
    bench.disk.write(inode, b"new!", 0)
    bench.disk.fail_flush(inode)
    bench.disk.write(inode, b"new!", 0)
    bench.disk.fsync(inode)
    bench.disk.cut()
    assert bench.content("/a/f") == b"new!"


def test_a_full_disk_takes_what_fits_and_then_says_enospc() -> None:
    bench = Bench(ordered=True)
    bench.disk.capacity = 2
    inode = bench.file("/a/f")
    assert bench.disk.write(inode, b"x" * 3 * PAGE, 0) == 2 * PAGE
    with pytest.raises(OSError, match="No space") as caught:
        bench.disk.write(inode, b"x", 2 * PAGE)
    assert caught.value.errno == errno.ENOSPC
    bench.disk.unlink("/a/f")
    assert bench.disk.used == 0


def test_inode_numbers_are_used_again_as_on_ext4() -> None:
    bench = Bench(ordered=True)
    first = bench.file("/a/f").ino
    bench.disk.unlink("/a/f")
    assert bench.file("/a/g").ino == first


def test_a_file_that_lost_its_name_stays_while_it_is_open() -> None:
    bench = Bench(ordered=True)
    inode = bench.file("/a/f", b"data")
    inode.opened = 1
    bench.disk.unlink("/a/f")
    assert bytes(inode.data) == b"data"
    assert bench.file("/a/g").ino != inode.ino


def test_only_a_lenient_directory_keeps_the_name_of_a_flushed_file_elsewhere() -> None:
    for seed in SEEDS:
        bench = Bench(ordered=False, seed=seed)
        bench.disk.lenient.add(bench.disk.find("/a"))
        inode = bench.file("/a/tmp", b"data")
        bench.disk.rename("/a/tmp", "/a/final")
        bench.disk.fsync(inode)
        bench.disk.cut()
        assert bench.names() == {"/a/final"}
