"""What is begun next: messages that came, and deferred ones that are due, in turn.

State: ids that came, ids that were due and have room (two deques), and the deferred ones by due time: a heap rebuilt
at each scan.  A list that was made is older than what happened meanwhile: it says nothing of messages that wait to be
begun, are active, or were deferred while it was made; they would be tried again at once.  No I/O and no clock: callers
pass `now`, Unix seconds, and the active messages.  The queue on disk is the truth: all of it can be thrown away at any
moment, and the next scan finds it again.

Due messages are taken only as far as the active queue has room, and some together: in a long queue a message ends all
the time, and for each the queue manager would have to look.  New mail stands behind no flush: every second message
begun is one that came, as long as there are both.

See also: postconf(5) qmgr_message_active_limit, qmgr(8)
"""

import heapq
from collections import deque
from collections.abc import Collection, Iterable

AT_ONCE = 20  # messages begun in one turn of the loop, which has others to serve as well; due ones taken together


class Intake:
    """Ids that wait to be claimed.  An id may be in it twice, or be claimed already: who begins it looks."""

    def __init__(self, limit: int) -> None:
        """limit: qmgr_message_active_limit."""
        self.limit = limit
        self._some = max(1, min(AT_ONCE, limit // 20))
        self._new: deque[str] = deque()
        self._due: deque[str] = deque()
        self._deferred: list[tuple[float, str]] = []
        self._meanwhile: dict[str, float] = {}  # due times of what was deferred while a list is made
        self._listing = False
        self._turn = False  # a due one was begun last

    def __len__(self) -> int:
        """How many may be begun now."""
        return len(self._new) + len(self._due)

    def arrived(self, queue_id: str) -> None:
        """A message can be claimed."""
        self._new.append(queue_id)

    def later(self, queue_id: str, when: float) -> None:
        """A message is to be tried again."""
        heapq.heappush(self._deferred, (when, queue_id))
        if self._listing:
            self._meanwhile[queue_id] = when

    def next(self) -> str:
        """Take the next one; IndexError when none waits."""
        if self._new and (self._turn or not self._due):
            self._turn = False
            return self._new.popleft()
        self._turn = True
        return self._due.popleft()

    # -- lists of the queue -------------------------------------------------------------------------

    def begin_list(self) -> None:
        """The directories are read from now on: what happens until listed() is newer."""
        self._listing = True
        self._meanwhile.clear()

    def end_list(self) -> None:
        """The list is made, or could not be."""
        self._listing = False

    def listed_new(self, queue_ids: Iterable[str], active: Collection[str]) -> None:
        """Those that nobody has announced."""
        known = {*self._new, *self._due, *self._meanwhile}
        self._new += [queue_id for queue_id in queue_ids if queue_id not in active and queue_id not in known]

    def listed_deferred(self, found: Iterable[tuple[float, str]], active: Collection[str]) -> None:
        """All deferred messages: (when due, id)."""
        known = {*self._new, *self._due, *self._meanwhile}
        self._deferred = [item for item in found if item[1] not in active and item[1] not in known]
        self._deferred += [(when, queue_id) for queue_id, when in self._meanwhile.items()]
        heapq.heapify(self._deferred)

    # -- due ones -----------------------------------------------------------------------------------

    def take_due(self, now: float, active: int) -> None:
        """Let those that are due be begun, as many as there is room for beside the active ones."""
        room = self._room(active)
        while self._deferred and self._deferred[0][0] <= now and room > 0:
            self._due.append(heapq.heappop(self._deferred)[1])
            room -= 1

    def ready(self, now: float, active: int) -> bool:
        """Is one due, and is there room for some?"""
        return bool(self._deferred) and self._room(active) >= self._some and self._deferred[0][0] <= now

    def pause(self, now: float, active: int) -> float | None:
        """Seconds until the next one is due, None when there is none, or one is already and waits for room."""
        if not self._deferred:
            return None
        wait = self._deferred[0][0] - now
        if wait <= 0.0 and self._room(active) < self._some:
            return None
        return max(0.0, wait)

    def _room(self, active: int) -> int:
        """For due ones.  New ones do not count: however many there are, every second message begun is a due one."""
        return self.limit - active - len(self._due)
