"""Reading files that decide where mail goes: only if nobody else can have written them.

See also: local(8) (":include: file is world writable"), reliability of set-uid programs everywhere
"""

import os
import stat

from mta.record import dataclass

SIZE_LIMIT = 16 << 20  # bytes


class UntrustedFileError(Exception):
    """The file cannot be read or must not be believed.  str() names it and says why."""


@dataclass(frozen=True, slots=True)
class Distrust:
    """An account whose files are not believed (mail_owner, when we are root)."""

    uid: int
    gid: int


def check_trusted(path: str, found: os.stat_result, distrust: Distrust | None = None) -> None:
    """UntrustedFileError when others could have written this file."""
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedFileError(f"{path} is not a regular file")
    if found.st_mode & stat.S_IWOTH:
        raise UntrustedFileError(f"{path} is world writable")
    if distrust is None:
        return
    if found.st_uid == distrust.uid:
        raise UntrustedFileError(f"{path} is owned by mail_owner")
    if found.st_mode & stat.S_IWGRP and found.st_gid == distrust.gid:
        raise UntrustedFileError(f"{path} is writable by the group of mail_owner")


def read_trusted(path: str, distrust: Distrust | None = None) -> bytes:
    """The whole file, checked on the descriptor that is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            check_trusted(path, os.fstat(fd), distrust)
            return _read(path, fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise UntrustedFileError(f"unable to read {path}: {os.strerror(error.errno or 0)}") from error


def _read(path: str, fd: int) -> bytes:
    pieces, size = [], 0
    while piece := os.read(fd, 65536):
        pieces.append(piece)
        size += len(piece)
        if size > SIZE_LIMIT:
            raise UntrustedFileError(f"{path} is too large")
    return b"".join(pieces)


def check_path(path: str, distrust: Distrust | None) -> None:
    """A file that somebody else reads (a lookup table), and the directory in which it could be replaced."""
    try:
        check_trusted(path, os.stat(path), distrust)
        directory = os.stat(os.path.dirname(path) or "/")
    except OSError as error:
        raise UntrustedFileError(f"unable to read {path}: {os.strerror(error.errno or 0)}") from error
    sticky = directory.st_mode & stat.S_ISVTX
    if directory.st_mode & stat.S_IWOTH and not sticky:
        raise UntrustedFileError(f"the directory of {path} is world writable")
    if distrust is None:
        return
    group = directory.st_mode & stat.S_IWGRP and directory.st_gid == distrust.gid
    if directory.st_uid == distrust.uid or (group and not sticky):
        raise UntrustedFileError(f"the directory of {path} is writable by mail_owner")
