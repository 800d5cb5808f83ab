"""Names that went away: nobody waits for their flush, so it comes within SOON seconds, or not at all.

Each flush of a directory is a journal commit, and who accepts mail meanwhile waits for it.  Where names follow files
(linux_writeback.py) it is mostly not needed: changes become durable in the order in which they were made.  When a
message is durable that got its name after another one's went away, so is the other one's end.  So every accepted
message makes durable what was removed before it, and a flush is due only when no message came for SOON seconds.

State: what went away and is not known to be durable, oldest first.  Two times of each: `since` is of the loop, for the
delay; `moment` is the system's (Clock.moment), because names are given by other processes too.

See also: mta/fsio/fsio.py, mta/worker_link.py (the moment comes with each announcement)
"""

from collections import deque
from collections.abc import Callable, Iterable

from mta.clock import Clock
from mta.record import dataclass

SOON = 0.02  # seconds until a directory that lost a name is flushed

Finished = Callable[[OSError | None], None]


@dataclass(slots=True)
class Gone:
    """A name that went away.  ordered: names follow files there."""

    since: float
    moment: int
    directory: int
    done: Finished
    ordered: bool


class Soon:
    """The names that went away, of one process; flush(directory, done) makes a directory durable."""

    def __init__(self, clock: Clock, flush: Callable[[int, Finished], None]) -> None:
        self._clock, self._flush = clock, flush
        self._gone: deque[Gone] = deque()
        self._timed = False

    def add(self, directory: int, done: Finished, *, ordered: bool) -> None:
        """A name has just gone from the directory; done(error) when that is durable, or was not to be had."""
        self._gone.append(Gone(self._clock.monotonic(), self._clock.moment(), directory, done, ordered))
        if not self._timed:
            self._look_in(SOON)

    def durable(self, moment: int) -> None:
        """What was done before this moment is durable, where names follow files."""
        while self._gone and self._gone[0].ordered and self._gone[0].moment < moment:
            self._gone.popleft().done(None)

    def _look_in(self, seconds: float) -> None:
        self._timed = True
        self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        """Flush all, once for each directory, when the oldest has waited SOON."""
        self._timed = False
        if not self._gone:
            return
        left = self._gone[0].since + SOON - self._clock.monotonic()
        if left > SOON / 20:
            self._look_in(left)
            return
        gone, self._gone = self._gone, deque()
        for directory in {each.directory for each in gone}:
            self._flush(directory, _all(each.done for each in gone if each.directory == directory))

    def take(self) -> set[int]:
        """The directories that are still to be flushed; they are the caller's now."""
        gone, self._gone = self._gone, deque()
        return {each.directory for each in gone}


def _all(done: Iterable[Finished]) -> Finished:
    waiting = list(done)

    def finished(error: OSError | None) -> None:
        for each in waiting:
            each(error)

    return finished
