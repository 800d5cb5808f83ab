"""Gives memory back that was needed for the start and is not needed while the mail system waits.

Two kinds.  What was allocated and freed again goes back to the system before it is shared with other processes
(settle).  And pages of program files (the interpreter, OpenSSL's tables) that were looked at once are taken out of the
process (leave_files): they are clean, stay in the page cache as long as the kernel likes, and come back with the next
access.  A process that forks inherits none of them, so after this `start-fg` costs no more than `start`.

See also: proc(5) smaps, madvise(2), malloc_trim(3)
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterable, Iterator

_MADV_DONTNEED = 4  # linux: asm-generic/mman-common.h
_libc = ctypes.CDLL(None)
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def settle() -> None:
    """Collect garbage and return free memory to the system; for the process that forks, before it does."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it
        _libc.malloc_trim(0)


def leave_files() -> None:
    """Let go of pages of mapped files; nothing where there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/self/smaps", "rb") as smaps:
        for start, end in [*untouched(smaps)]:
            _madvise(start, end - start, _MADV_DONTNEED)


def untouched(smaps: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Start and end of each mapping that shows a file as it is.

    Only what cannot be written and has no page of its own: the tables that the loader has filled in and then protected
    look alike, but would be lost.
    """
    found: tuple[int, int] | None = None
    for line in smaps:
        words = line.split()
        if not words[0].endswith(b":"):
            start, _, end = words[0].partition(b"-")
            is_file = len(words) > 5 and words[5].startswith(b"/") and b"w" not in words[1] and words[1].endswith(b"p")
            found = (int(start, 16), int(end, 16)) if is_file else None
        elif found is not None and words[0] == b"Anonymous:" and words[1] == b"0":
            yield found
