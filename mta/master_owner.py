"""mail_owner: who it is, becoming it for good, and opening files as it for a moment."""

import contextlib
import os
from collections.abc import Iterator

from mta.config.config import Config, Problem
from mta.lookup.unix import User, UserLookup
from mta.maillog import FileSink, MaillogSettings, Sink, sink_for


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
