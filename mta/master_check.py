"""`mta check`: are the directories what the processes rely on?  Looks only, repairs nothing (start does).

See also: architecture of privileges in mta/INTERNALS.md, postfix-script's warnings
"""

import os
import stat
from collections.abc import Iterator

from mta.config.config import Config, Problem

PRIVATE = ("incoming", "active", "deferred", "hold", "corrupt", "defer", "bounce", "trace", "pid", "private")


def check_permissions(config: Config) -> list[Problem]:
    """Problems of the queue and data directories as they are; a missing spool is made at start, so no problem."""
    return list(_problems(config))


def _problems(config: Config) -> Iterator[Problem]:
    spool = config.text("queue_directory")
    where = ("queue_directory", spool)
    top = _stat(spool)
    if top is None:
        yield _warning(*where, f"{spool} does not exist yet; `mta start` creates it")
        return
    if not stat.S_ISDIR(top.st_mode):
        yield _fatal(*where, f"{spool} is not a directory")
        return
    if top.st_mode & 0o022:
        yield _fatal(*where, f"{spool} is writable by others; chmod 755 {spool}")
    owner = top.st_uid
    for name in PRIVATE:
        path = os.path.join(spool, name)
        info = _stat(path)
        if info is None:
            continue
        if info.st_uid != owner:
            yield _fatal(*where, f"{path} is owned by uid {info.st_uid}, not {owner}; chown it")
        if info.st_mode & 0o077:
            yield _warning(*where, f"{path} has mode {stat.S_IMODE(info.st_mode):o}; chmod 700 {path}")
    maildrop = _stat(os.path.join(spool, "maildrop"))
    if maildrop is not None and stat.S_IMODE(maildrop.st_mode) != 0o3733:
        mode = stat.S_IMODE(maildrop.st_mode)
        yield _fatal(*where, f"{spool}/maildrop has mode {mode:o}, not 3733: mail of others could be read or lost")
    data = config.text("data_directory")
    info = _stat(data)
    if info is not None and info.st_mode & 0o022:
        yield _fatal("data_directory", data, f"{data} is writable by others")


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _fatal(name: str, value: str, text: str) -> Problem:
    return Problem(f"{name} = {value}", 0, text, fatal=True)


def _warning(name: str, value: str, text: str) -> Problem:
    return Problem(f"{name} = {value}", 0, text, fatal=False)
