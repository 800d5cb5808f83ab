"""What a waiting process gives back."""

import mmap
from pathlib import Path

from mta.memory import leave_files, settle, untouched

SMAPS = b"""\
7f0000001000-7f0000003000 r-xp 00000000 fe:00 77 /usr/lib/libx.so.1
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000003000-7f0000004000 r--p 00002000 fe:00 77 /usr/lib/libx.so.1
Anonymous:             4 kB
7f0000004000-7f0000005000 rw-p 00003000 fe:00 77 /usr/lib/libx.so.1
Anonymous:             0 kB
7f0000005000-7f0000006000 r--s 00003000 fe:00 78 /var/shared
Anonymous:             0 kB
7f0000006000-7f0000007000 r--p 00000000 00:00 0
Anonymous:             0 kB
7f0000007000-7f0000008000 r--p 00000000 00:00 0 [vvar]
Anonymous:             0 kB
7f0000008000-7f0000009000 r--p 00000000 fe:00 79 /a name with blanks (deleted)
Anonymous:             0 kB
"""


def test_only_what_shows_a_file_unchanged_is_let_go() -> None:
    assert list(untouched(SMAPS.splitlines())) == [(0x7F0000001000, 0x7F0000003000), (0x7F0000008000, 0x7F0000009000)]


def test_nothing_in_memory_changes(tmp_path: Path) -> None:
    """Tables that the loader has filled in look like a file, and are not."""
    path = tmp_path / "file"
    path.write_bytes(b"on disk " * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
        before = bytes(mapped)
        settle()
        leave_files()
        assert bytes(mapped) == before
    import ctypes
    import ssl

    assert ssl.create_default_context().minimum_version  # a library with such tables still works
    assert ctypes.CDLL(None).getpid()


def test_pages_of_program_files_are_let_go() -> None:
    def resident() -> int:
        words = Path("/proc/self/statm").read_text().split()
        return int(words[2])  # pages of files

    before = resident()
    leave_files()
    assert resident() < before
