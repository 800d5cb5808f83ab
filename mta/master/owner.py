"""mail_owner: who it is, becoming it for good, opening files as it for a moment, giving it the queue of another."""

import contextlib
import os
import stat
from collections.abc import Iterator

from mta.config.config import Config, Problem
from mta.lookup.unix import User, UserLookup
from mta.maillog.maillog import FileSink, MaillogSettings, Sink, sink_for
from mta.queue.store_spool import DIRECTORIES

QUEUE_LOCK = "unix.qmgr"  # in pid/: its owner is who ran the queue last
OURS = [name for name in DIRECTORIES if name not in ("maildrop", "pid", "private", "public")]
"""Directories in which every file is mail_owner's."""
LEVELS = 16  # of hash directories, hash_queue_depth at most
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OwnerProblemError(Exception):
    """mail_owner cannot be used; args[0] is the Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def problem_at(config: Config, name: str, text: str, *, fatal: bool = True) -> Problem:
    """A Problem at the place where a parameter is set."""
    file, colon, line = config.origin(name).rpartition(":")
    if not colon or not line.isdigit():
        return Problem(config.origin(name), 0, text, fatal)
    return Problem(file, int(line), text, fatal)


def find_owner(config: Config, users: UserLookup) -> User | None:
    """mail_owner's account when we are root; None when we are not.  OwnerProblemError."""
    if os.geteuid() != 0:
        return None
    name = config.text("mail_owner")
    owner = users.by_name_now(name)
    if owner is None:
        raise OwnerProblemError(problem_at(config, "mail_owner", f"mail_owner = {name}: no such user"))
    if owner.uid == 0:
        raise OwnerProblemError(problem_at(config, "mail_owner", f"mail_owner = {name}: must not be root"))
    return owner


def drop_privileges(owner: User) -> None:
    """Become mail_owner for good; RuntimeError when any way back is left."""
    os.initgroups(owner.name, owner.gid)
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise RuntimeError("privileges were not dropped")


@contextlib.contextmanager
def acting_as(owner: User | None) -> Iterator[None]:
    """Have mail_owner's rights on files in the block.  Only in a process without threads; None changes nothing."""
    if owner is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.initgroups(owner.name, owner.gid)
    os.setegid(owner.gid)
    os.seteuid(owner.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class OwnersFileSink(FileSink):
    """A log file that root opens with mail_owner's rights: mail_owner may put a link to any file in its place."""

    def __init__(self, path: str, owner: User) -> None:
        self._owner = owner
        super().__init__(path)

    def reopen(self) -> None:
        """See Sink."""
        with acting_as(self._owner):
            super().reopen()


def log_sink(settings: MaillogSettings, owner: User | None) -> Sink:
    """Where a process that may be root writes its log."""
    if owner is None or settings.maillog_file in ("", "/dev/stdout"):
        return sink_for(settings)
    return OwnersFileSink(settings.maillog_file, owner)


# -- the queue of another mail_owner --------------------------------------------------------------------


def take_over(queue_directory: str, owner: User | None) -> None:
    """Give mail_owner the files of who was it when the queue was last run.  owner: when root calls.

    Nobody else may run the queue meanwhile.  It is given when its lock file is another user's, and the lock file comes
    last, so that a start that was interrupted is repeated.  Those who can write there may be hostile: no link is
    followed, and a file is given only when it has one name and was that user's, never root's.  In maildrop files stay
    their users', and get the group that may read them.  OSError: what names the lock file cannot be opened.
    """
    path = os.path.join(queue_directory, "pid", QUEUE_LOCK)
    if owner is None:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        return
    top = os.open(queue_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _opened(top, "pid") as pid, _opened(pid, QUEUE_LOCK) as lock:
            found = os.fstat(lock)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid != owner.uid:
                _give_queue(top, found, owner)
                os.fchown(lock, owner.uid, owner.gid)
    except FileNotFoundError:  # nobody has run it
        return
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(top)


def _give_queue(top: int, before: os.stat_result, owner: User) -> None:
    for name in OURS if before.st_uid else ():
        with _opened(top, name) as directory:
            _give(directory, before.st_uid, owner, LEVELS)
    with _opened(top, "maildrop") as directory:
        _let_read(directory, before.st_gid, owner)


@contextlib.contextmanager
def _opened(directory: int, name: str) -> Iterator[int]:
    """What has a name in a directory, links not followed.  OSError."""
    fd = os.open(name, _LOOK, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _give(directory: int, before: int, owner: User, levels: int) -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError), _opened(directory, name) as fd:  # links, sockets, what is gone
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode) and levels:
                _give(fd, before, owner, levels - 1)
            elif not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                continue
            if found.st_uid == before:
                os.fchown(fd, owner.uid, owner.gid)


def _let_read(maildrop: int, before: int, owner: User) -> None:
    for name in os.listdir(maildrop):
        with contextlib.suppress(OSError), _opened(maildrop, name) as fd:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_gid == before:
                os.fchown(fd, -1, owner.gid)
