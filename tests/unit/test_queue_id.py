"""Queue ids of both kinds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.queue import queue_id

REAL = "4jWWvJ5ZxxzKHlF"  # made by Postfix 3.7 at 1795217804.786757 for inode 2296084


def test_a_long_id_is_what_postfix_makes() -> None:
    assert queue_id.make(1795217804, 786757, 2296084, long=True) == REAL
    assert queue_id.inode_of(REAL) == 2296084


def test_a_short_id_is_microseconds_and_inode_in_hex() -> None:
    assert queue_id.make(1795217804, 786757, 2296084, long=False) == "C0145230914"
    assert queue_id.inode_of("C0145230914") == 2296084


@pytest.mark.parametrize(("name", "depth", "directories"), [
    ("C0145230914", 1, "C/"),
    ("C0145230914", 2, "C/0/"),
    (REAL, 1, "C/"),  # a long id is hashed by its microseconds too
    (REAL, 3, "C/0/1/"),
    ("AB", 4, "A/B/_/_/"),
    (REAL, 0, ""),
])  # fmt: skip
def test_hash_directories_are_the_first_digits_of_the_microseconds(name: str, depth: int, directories: str) -> None:
    assert queue_id.hash_directories(name, depth) == directories


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**33), st.integers(0, 999_999), st.integers(1, 2**64), st.booleans())
def test_the_inode_can_be_read_back_and_replaced(seconds: int, usec: int, inode: int, long: bool) -> None:
    name = queue_id.make(seconds, usec, inode, long=long)
    assert queue_id.is_queue_id(name)
    assert not queue_id.is_temporary(name)
    assert queue_id.inode_of(name) == inode
    assert queue_id.with_inode(name, 7) == queue_id.make(seconds, usec, 7, long=long)


@pytest.mark.parametrize("name", ["", "../x", "a.b", "x/y", "a" * 256, "é", "A\n"])
def test_what_is_no_queue_id_is_refused(name: str) -> None:
    assert not queue_id.is_queue_id(name)


def test_temporary_names_are_microseconds_and_pid() -> None:
    assert queue_id.is_temporary("786757.4711")
    assert not queue_id.is_temporary("786757")
    assert not queue_id.is_temporary("x.1")


def test_an_id_of_another_kind_has_no_inode_but_can_get_one() -> None:
    assert queue_id.inode_of("name_of_something") is None
    assert queue_id.inode_of("0000000000zaeiou") is None
    assert queue_id.with_inode("name_of_something", 255) == "00000FF"
