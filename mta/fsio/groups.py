"""Group commit: whoever is ready while a group is being flushed joins the next one, so groups grow with the load.

While clients are about to hand in more, a group waits for them, a few milliseconds at most (mta/company.py): a flush
costs the machine more than a message does.  Writing a file begins before its group is flushed: so all of a group have
their place on the disk before the first of them makes the journal commit, and one commit does for all.  It begins for
TOGETHER of them at a time: each by itself wakes the device's driver, which costs a tenth of a message, and all of them
at the end of the group would be two commits.  A large one begins at once.

The files of a group are flushed together, then their directories together: one submission is not ordered within itself.

State: who waits for the next group, whose writing has not begun, and whether a group is in flight or waits for company.

See also: mta/fsio/fsio.py, to which each belongs; mta/INTERNALS.md "commit points"
"""

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from mta.company import GATHER, RECENT
from mta.fsio.linux_aio import FSYNC
from mta.fsio.soon import Finished

if TYPE_CHECKING:
    from mta.fsio.fsio import Fsio

TOGETHER = 4  # files that begin to be written together
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Groups:
    """One group in flight, everybody else waits for the next."""

    def __init__(self, fsio: "Fsio", op: int) -> None:
        """op: FSYNC or FDSYNC, for all of them."""
        self._fsio, self._op = fsio, op
        self._waiting: list[tuple[int, int, Finished]] = []
        self._unwritten: list[int] = []  # descriptors of those that wait
        self._busy = False
        self._gathering = False  # a group waits for company, until
        self._latest = 0.0  # this time of the loop, and looks who is left when
        self._timer: asyncio.TimerHandle  # is due
        self._loop: asyncio.AbstractEventLoop  # of whoever adds

    def add(self, fd: int, directory: int, done: Finished) -> None:
        """directory: -1 for none."""
        self._waiting.append((fd, directory, done))
        if not self._busy:
            self._busy = True
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._gather)
        elif self._gathering and not self._fsio.company.expected():
            self._alone()

    def write(self, fd: int, *, now: bool) -> None:
        """Begin to write one that was added: with others, at the latest when its group is flushed."""
        self._unwritten.append(fd)
        if now or len(self._unwritten) == TOGETHER:
            self._begin()

    def _begin(self) -> None:
        flusher = self._fsio.flusher(self._loop)
        for fd in self._unwritten:
            flusher.begin(fd)
        self._unwritten.clear()

    def _gather(self) -> None:
        if self._op == FSYNC and self._fsio.company.expected():
            self._gathering = True
            self._latest = self._fsio.clock.monotonic() + GATHER
            self._timer = self._fsio.clock.call_later(RECENT, self._look_again)
            self._fsio.company.on_empty = self._alone
        else:
            self._start()

    def _look_again(self) -> None:
        """Has everybody gone silent, or was it long enough?"""
        if self._fsio.clock.monotonic() < self._latest and self._fsio.company.expected():
            self._timer = self._fsio.clock.call_later(RECENT, self._look_again)
        else:
            self._gathered()
            self._start()

    def _alone(self) -> None:
        """Nobody is left to wait for."""
        self._gathered()
        self._timer.cancel()
        self._loop.call_soon(self._start)

    def _gathered(self) -> None:
        self._gathering = False
        self._fsio.company.on_empty = None

    def _start(self) -> None:
        group, self._waiting = self._waiting, []
        fds = list({fd for fd, _, _ in group})
        if len(fds) > 1:  # alone it gains nothing
            self._begin()
        self._unwritten.clear()
        self._submit("flush", fds, self._op, lambda errors: self._files_done(group, errors))

    def _files_done(self, group: list[tuple[int, int, Finished]], errors: dict[int, OSError]) -> None:
        directories = list({d for fd, d, _ in group if d >= 0 and fd not in errors})
        if directories:
            self._submit("flush_directory", directories, FSYNC, lambda more: self._finish(group, errors, more))
        else:
            self._finish(group, errors, {})

    def _finish(
        self, group: list[tuple[int, int, Finished]], errors: dict[int, OSError], more: dict[int, OSError]
    ) -> None:
        for fd, directory, done in group:
            try:
                done(errors.get(fd) or more.get(directory))
            except Exception as bug:  # of one waiter; the others must hear
                self._loop.call_exception_handler({"message": "after flush", "exception": bug})
        if self._waiting:
            self._gather()
        else:
            self._busy = False

    def _submit(self, name: str, fds: list[int], op: int, done: Callable[[dict[int, OSError]], None]) -> None:
        errors: dict[int, OSError] = {}
        if self._fsio.hook:
            for fd in fds:
                try:
                    self._fsio.hook(name, fd)
                except OSError as error:
                    errors[fd] = error
            fds = [fd for fd in fds if fd not in errors]

        def finished(results: list[OSError | None]) -> None:
            failed = [error.errno for error in results if error is not None]
            refused = failed and all(number in NOT_SUPPORTED for number in failed)
            if refused and self._fsio.without_aio():  # not tried at all, so trying again is no lie
                self._submit(name, fds, op, done)
                return
            for fd, error in zip(fds, results, strict=True):
                named = name == "flush_directory" or self._fsio.is_directory(fd)
                if error is not None and not (named and error.errno == errno.EINVAL):
                    errors[fd] = error  # EINVAL: a file system without fsync of directories
            done(errors)

        if fds:
            self._fsio.flusher(self._loop).submit(fds, op, finished)
        else:
            done(errors)
