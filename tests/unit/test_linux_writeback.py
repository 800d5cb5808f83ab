"""Which file systems keep a name behind its text."""

import os
from pathlib import Path

import pytest

from mta.fsio.linux_writeback import Journals, names_follow_files, start_writing


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


def test_a_hint_to_write_changes_nothing_and_never_fails(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        start_writing(file.fileno())
        assert os.pread(file.fileno(), 200_000, 0) == b"x" * 100_000
    end, other = os.pipe()
    start_writing(end)
    os.close(end)
    os.close(other)
    start_writing(end)


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
