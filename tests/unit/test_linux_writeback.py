"""Which file systems keep a name behind its text."""

import os
from pathlib import Path

import pytest

from mta.fsio import names_follow_files
from mta.linux_writeback import Journals


def test_memory_promises_nothing() -> None:
    fd = os.memfd_create("text")
    try:
        assert not Journals().written_out(fd)
    finally:
        os.close(fd)


def test_a_file_is_written_out_where_names_follow_files(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        journals = Journals()
        assert journals.written_out(file.fileno()) is names_follow_files(file.fileno())
        assert journals.written_out(file.fileno()) is names_follow_files(file.fileno()), "remembered"
        assert os.pread(file.fileno(), 200_000, 0) == b"x" * 100_000


def test_an_error_of_the_call_is_an_error() -> None:
    end, other = os.pipe()
    try:
        journals = Journals()
        journals._known[os.fstat(end).st_dev] = True
        with pytest.raises(OSError, match="Illegal seek"):
            journals.written_out(end)
    finally:
        os.close(end)
        os.close(other)
