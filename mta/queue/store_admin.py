"""What an administrator does to queued messages: hold, release, requeue, expire, delete; postsuper(1)'s work.

Safe beside a running queue manager, in its process or in another one, because it keeps to the same two rules: a
file is changed by whoever holds its lock, and a message that has gone from active is forgotten (FencedError).
An active message is locked for as long as its delivery lasts, also when it was held meanwhile; it can be deleted,
put on hold, released or marked as expired all the same, what is being sent at that moment is sent.  It cannot be
requeued: the copy would be sent again.
What is locked in incoming has not been accepted yet, and is not there.

See also: mta/INTERNALS.md (states), postsuper(1)
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from enum import StrEnum

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.queue import queue_id as ids
from mta.queue.api import FencedError, Queue
from mta.queue.store_listing import NO_MESSAGE, SLICE, Failed, queue_files
from mta.queue.store_spool import FORCE_EXPIRE, Spool, is_ready

ALL_QUEUES = (Queue.INCOMING, Queue.ACTIVE, Queue.DEFERRED, Queue.HOLD, Queue.MAILDROP)
"""maildrop comes last: anybody may leave a file under the id of a message that is to be deleted."""
EVERYTHING = "*"
"""Stands for every id, and is none: a user may leave a file in maildrop under any id, "ALL" too."""
_LOGS = ("defer", "bounce", "trace")


class Verb(StrEnum):
    """What is to be done."""

    HOLD = "hold"
    RELEASE = "release"
    REQUEUE = "requeue"
    EXPIRE = "expire"
    DELETE = "delete"


class Outcome(StrEnum):
    """What became of it for one id."""

    DONE = "done"
    ABSENT = "absent"  # no such message in these queues, or it is in that state already
    BUSY = "busy"  # being delivered, and that cannot be done now
    FAILED = "failed"  # the system did not let us


DEFAULT_QUEUES = {  # Postfix's
    Verb.HOLD: (Queue.INCOMING, Queue.ACTIVE, Queue.DEFERRED),
    Verb.RELEASE: (Queue.HOLD,),
    Verb.REQUEUE: (Queue.HOLD, Queue.INCOMING, Queue.ACTIVE, Queue.DEFERRED),
    Verb.EXPIRE: (Queue.HOLD, Queue.INCOMING, Queue.ACTIVE, Queue.DEFERRED),
    Verb.DELETE: ALL_QUEUES,
}


class Administrator:
    """Acts on messages of one spool by id."""

    def __init__(self, spool: Spool, fsio: Fsio, clock: Clock) -> None:
        self._spool, self._fsio, self._clock = spool, fsio, clock
        self._changed: set[str] = set()  # directories with an entry that came or went, of one act()

    async def act(
        self, verb: Verb, queue_ids: Sequence[str], queues: Sequence[Queue] = (), failed: Failed | None = None
    ) -> dict[str, Outcome]:
        """Do it to each id, in these queues only (none: the verb's own); OSError when the disk does not let us.

        What was done is durable when this returns: mail that was deleted or held does not come back by a power cut.
        failed: is told of each id it could not be done to, and the others are done; none: the first ends it.
        """
        alone = Administrator(self._spool, self._fsio, self._clock)  # what others change at the same time is theirs
        return await alone._act(verb, queue_ids, queues, failed)

    async def _act(
        self, verb: Verb, queue_ids: Sequence[str], queues: Sequence[Queue], failed: Failed | None
    ) -> dict[str, Outcome]:
        places = tuple(
            q for q in (*ALL_QUEUES, Queue.CORRUPT) if q in (queues or DEFAULT_QUEUES[verb]) and _possible(verb, q)
        )
        found: dict[str, Outcome] = {}
        for at in range(0, len(queue_ids), SLICE):
            found |= await self._fsio.run(self._slice, verb, queue_ids[at : at + SLICE], places, failed)
        for path in sorted(self._changed):
            fd = self._fsio.open(path)
            try:
                await self._fsio.flush(fd)
            finally:
                self._fsio.close_fd(fd)
        return found

    async def everything(self, verb: Verb, queues: Sequence[Queue] = (), failed: Failed | None = None) -> list[str]:
        """Ids of all that the verb could be done to; failed: is told of directories that cannot be read."""
        found: list[str] = []
        for queue in queues or DEFAULT_QUEUES[verb]:
            found += await self._fsio.run(self._names, queue, failed)
        return found

    def _names(self, queue: Queue, failed: Failed | None) -> list[str]:
        walk = queue_files(self._fsio, self._spool.root, queue, failed)
        return [entry.name for entry in walk if ids.is_queue_id(entry.name)]

    def _slice(
        self, verb: Verb, queue_ids: Iterable[str], queues: Sequence[Queue], failed: Failed | None
    ) -> dict[str, Outcome]:
        found = {}
        for queue_id in queue_ids:
            outcome = Outcome.ABSENT
            if ids.is_queue_id(queue_id):
                try:
                    outcome = self._twice(verb, queue_id, queues)
                except OSError as error:
                    if failed is None:
                        raise
                    failed(queue_id, error)
                    outcome = Outcome.FAILED
            found[queue_id] = outcome
        return found

    def _twice(self, verb: Verb, queue_id: str, queues: Sequence[Queue]) -> Outcome:
        """It may have moved from one queue to the next while we looked."""
        outcome = self._anywhere(verb, queue_id, queues)
        return outcome if outcome is not Outcome.ABSENT else self._anywhere(verb, queue_id, queues)

    def _anywhere(self, verb: Verb, queue_id: str, queues: Sequence[Queue]) -> Outcome:
        for queue in queues:
            try:
                outcome = self._one(verb, queue_id, queue)
            except (FileNotFoundError, FencedError):
                continue
            except OSError as error:
                if error.errno not in NO_MESSAGE:
                    raise
                continue
            if outcome is not Outcome.ABSENT:
                return outcome
        return Outcome.ABSENT

    def _one(self, verb: Verb, queue_id: str, queue: Queue) -> Outcome:
        """One message in one place; FileNotFoundError or FencedError when it is not there."""
        path = self._spool.path(queue, queue_id)
        if verb is Verb.DELETE and queue in (Queue.MAILDROP, Queue.CORRUPT):
            self._fsio.unlink(path)  # a user's file, whatever it is
            self._changed.add(os.path.dirname(path))
            return Outcome.DONE
        fd = self._fsio.open(path)
        try:
            found = self._fsio.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or not is_ready(found.st_mode):
                return Outcome.ABSENT
            if not self._fsio.flock(fd):  # by its delivery, wherever it was moved meanwhile
                if queue is Queue.INCOMING:
                    return Outcome.ABSENT
                if verb is Verb.REQUEUE:
                    return Outcome.BUSY
            return self._do(verb, queue_id, path, fd, found)
        finally:
            self._fsio.close_fd(fd)

    def _do(self, verb: Verb, queue_id: str, path: str, fd: int, found: os.stat_result) -> Outcome:
        match verb:
            case Verb.HOLD:
                self._move(path, Queue.HOLD, queue_id)
            case Verb.RELEASE:
                self._fsio.utime(fd, self._clock.now())
                self._move(path, Queue.DEFERRED, queue_id)
            case Verb.REQUEUE:
                self._move(path, Queue.MAILDROP, queue_id)
                self._remove_logs(queue_id)
            case Verb.EXPIRE:
                if found.st_mode & FORCE_EXPIRE:
                    return Outcome.ABSENT
                self._fsio.fchmod(fd, stat.S_IMODE(found.st_mode) | FORCE_EXPIRE)
            case _:  # DELETE
                self._fsio.unlink(path)
                self._changed.add(os.path.dirname(path))
                self._remove_logs(queue_id)
        return Outcome.DONE

    def _move(self, path: str, queue: Queue, queue_id: str) -> None:
        target = self._spool.move(path, queue, queue_id)
        self._changed |= {os.path.dirname(path), os.path.dirname(target)}

    def _remove_logs(self, queue_id: str) -> None:
        for name in _LOGS:
            with contextlib.suppress(FileNotFoundError):
                self._fsio.unlink(self._spool.path(name, queue_id))


def _possible(verb: Verb, queue: Queue) -> bool:
    """False where a verb makes no sense: what is on hold cannot be held again."""
    match verb:
        case Verb.HOLD:
            return queue not in (Queue.HOLD, Queue.MAILDROP)
        case Verb.RELEASE:
            return queue is Queue.HOLD
        case Verb.REQUEUE | Verb.EXPIRE:
            return queue is not Queue.MAILDROP
        case _:
            return True
