"""`sendmail -oQ/other/queue -q`: takes over what lies in a queue that was moved here, or that a Postfix left.

Each message goes into our maildrop with its envelope, as a requeued one, and out of the other queue.  On the same file
system that is one rename.  Across file systems it is a copy, made durable before the original is unlinked: a crash
between the two repeats the message.  hold and corrupt are left where they are.  A queue that somebody is using (its
lock is held), or a file that is locked, is left alone.

See also: mta/INTERNALS.md (D2), postsuper(1) -r
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator

from mta.queue.queue_id import is_queue_id
from mta.queue.queue_reader import DamagedError, decode
from sendmail_compat import maildrop
from sendmail_compat.config import Config
from sendmail_compat.queue_direct import become_owner
from sendmail_compat.tool import plural

EX_OK, EX_NOINPUT, EX_TEMPFAIL, EX_NOPERM = 0, 66, 75, 77
QUEUES = ("maildrop", "incoming", "active", "deferred")
_LOGS = ("defer", "bounce", "trace")
CHUNK = 1 << 20


def adopt(config: Config, other: str, program: str) -> int:
    """Take the messages of `other`; return the exit status."""

    def fail(status: int, text: str) -> int:
        sys.stderr.write(f"{program}: fatal: {text}\n")
        return status

    try:
        mine = os.stat(f"{config.queue}/incoming").st_uid
        if os.geteuid() not in (0, mine):
            return fail(EX_NOPERM, "-oQ can be used only by the superuser and the owner of the queue")
        theirs = os.stat(f"{other}/incoming").st_uid
    except OSError as error:
        return fail(EX_NOINPUT, f"{error.filename}: {os.strerror(error.errno or 0)}")
    if os.geteuid() == 0 and theirs not in (mine, 0):
        # As root, because two owners are concerned; every file is opened without following links.
        pass
    elif not become_owner(config):
        return fail(EX_NOPERM, "-oQ can be used only by the superuser and the owner of the queue")
    try:
        with _locked(other):
            moved, left = 0, 0
            for name, path in list(_messages(other)):
                done = _take(config, path, mine, theirs)
                moved, left = moved + done, left + (not done)
                if done:
                    _forget(other, name)
    except BlockingIOError:
        return fail(EX_TEMPFAIL, f"{other} is in use by a running mail system")
    except (OSError, maildrop.MaildropError) as error:
        text = f"{error.filename}: {os.strerror(error.errno or 0)}" if isinstance(error, OSError) else str(error)
        return fail(EX_TEMPFAIL, text)
    maildrop.poke(config.queue)
    print(f"{program}: {plural(moved)} taken over from {other}" + f", {left} left there" * bool(left))
    return EX_OK


@contextlib.contextmanager
def _locked(other: str) -> Iterator[None]:
    """Hold the lock that a Postfix, or we, would hold while running; BlockingIOError when somebody does."""
    try:
        fd = os.open(f"{other}/pid/master.pid", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _messages(other: str) -> Iterator[tuple[str, str]]:
    """(id, path) of every file, hash directories looked through."""
    for queue in QUEUES:
        for folder, _, names in os.walk(f"{other}/{queue}"):
            yield from ((name, f"{folder}/{name}") for name in sorted(names) if is_queue_id(name))


def _take(config: Config, path: str, owner: int, theirs: int) -> bool:
    """Move one message into our maildrop; False when it stays: damaged, locked, not complete.

    What a user left in the other maildrop stays that user's: as the owner's, all that it says would be believed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o700 != 0o700 or found.st_nlink != 1:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file = decode(lambda offset, size: os.pread(fd, size, offset))
        if not any(r.todo for r in file.envelope.recipients):
            os.unlink(path)  # everything was delivered
            return True
        users = found.st_uid not in (owner, theirs)
        if found.st_uid != owner and (os.geteuid() == 0 or not users):
            raise OSError(errno.EXDEV, "owner")  # a rename would keep it, and pickup would take it for a user's
        target = f"{config.queue}/maildrop/{maildrop.new_name()}"
        os.rename(path, target)
        _flush(os.path.dirname(target))
    except (BlockingIOError, DamagedError):
        return False
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if users and os.geteuid() != 0:
            return False
        maildrop.store(config.queue, maildrop.new_name(), lambda out: _copy(fd, out, found.st_uid if users else owner))
        os.unlink(path)
    finally:
        os.close(fd)
    _flush(os.path.dirname(path))
    return True


def _copy(fd: int, out: int, owner: int) -> None:
    at = 0
    while piece := os.pread(fd, CHUNK, at):
        maildrop.write_all(out, piece)
        at += len(piece)
    if os.geteuid() != owner:
        os.fchown(out, owner, -1)


def _flush(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _forget(other: str, name: str) -> None:
    """Remove the reasons of a message that is gone, at any hash depth."""
    for log in _LOGS:
        for folder, _, names in os.walk(f"{other}/{log}"):
            if name in names:
                with contextlib.suppress(OSError):
                    os.unlink(f"{folder}/{name}")
