"""queue_directory and data_directory as a step of the installation; a queue with mail in it is never removed."""

import contextlib
import os
import shutil
import signal
from datetime import UTC, datetime

from mta.clock import Clock
from mta.install.steps import StepError, call
from mta.master.lock import running, wait_until_stopped
from mta.record import dataclass

MAIL = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "saved")
LIVE = ("public", "private", "pid")  # sockets and locks: nothing to keep
STOP_LIMIT = 60.0  # seconds a daemon may take to end


def messages(queue: str) -> int:
    """How many messages lie in a queue directory."""
    return sum(len(files) for name in MAIL for _, _, files in os.walk(os.path.join(queue, name)))


def stop(queue: str) -> None:
    """Nobody uses a queue that goes: systemd has stopped what it started, not what `mta start` did; StepError."""
    pid = running(queue)
    if not pid:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not wait_until_stopped(queue, Clock(), STOP_LIMIT):
        raise StepError(f"process {pid} still uses {queue}")


@dataclass(frozen=True)
class Spool:
    """The directories of systemd/aiomta.tmpfiles: (path, octal mode, user, group).

    made: those of them that were not there and lie in no other one; only they are removed again.
    """

    queue: str
    directories: list[list[str]]
    made: list[str]

    def describe(self) -> str:
        return f"make the directories of {', '.join(path for path, *_ in self.directories if self._is_top(path))}"

    def _is_top(self, path: str) -> bool:
        return all(os.path.dirname(path) != other for other, *_ in self.directories)

    def do(self) -> None:
        for path, mode, user, group in self.directories:
            os.makedirs(path, exist_ok=True)
            # those above belong to mail_owner, who must not lead root to some other place
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                shutil.chown(fd, user, group)
                os.fchmod(fd, int(mode, 8))
            finally:
                os.close(fd)

    def undo(self) -> str:
        said = ""
        if self.queue in self.made:
            stop(self.queue)
        count = messages(self.queue) if self.queue in self.made else 0
        if count:
            said = f"the mail queue is not empty: {count} message{'s' * (count != 1)} kept in {self._save()}"
        for path in self.made:
            if path != self.queue or not count:
                self._remove(path)
        return said

    def _remove(self, path: str) -> None:
        """data and queue go with all that is in them; a directory of root's only when it is empty."""
        users = {where: user for where, _, user, _ in self.directories}
        with contextlib.suppress(FileNotFoundError):
            if users[path] != "root":
                shutil.rmtree(path)
                return
            with contextlib.suppress(OSError):  # the administrator's own files are in it
                os.rmdir(path)

    def _save(self) -> str:
        """Move the queue aside, under a name that nothing has, out of reach for everybody but root."""
        day = f"{self.queue}.saved-{datetime.fromtimestamp(Clock().now(), UTC):%Y%m%d}"
        name, number = day, 1
        while os.path.lexists(name):
            number += 1
            name = f"{day}.{number}"
        try:
            os.rename(self.queue, name)
        except OSError:  # a file system of its own
            return self.queue
        os.chown(name, 0, 0)
        os.chmod(name, 0o700)
        for each in LIVE:
            shutil.rmtree(os.path.join(name, each), ignore_errors=True)
        return name


def plan_spool(queue: str, tmpfiles: str) -> Spool:
    """The step that makes what a tmpfiles.d(5) file names."""
    lines = [line.split() for line in tmpfiles.splitlines() if line.startswith("d ")]
    spool = Spool(queue, [[path, mode, user, group] for _, path, mode, user, group, *_ in lines], [])
    spool.made.extend(path for path, *_ in spool.directories if spool._is_top(path) and not os.path.lexists(path))
    return spool


def user_exists(name: str) -> bool:
    """Is there such an account?  StepError when nobody can say."""
    return bool(call("getent", "passwd", name, status=(0, 2)))
