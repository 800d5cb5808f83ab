"""Opening deferred messages without stopping the loop, some of them in one visit to a thread.

A thread that opens and reads a file lets go of the interpreter at each system call, as the loop does at each of its
own, and every time one of those that wait is woken.  With a visit for each message eight threads and the loop did
little else while thousands of messages were due.  So one thread opens a batch; others help when the disk is slow.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence

from mta.fsio import WORKERS, Fsio
from mta.queue.queue_reader import QueueFile

BATCH = 20  # messages per visit
SLOW = 0.2  # seconds after which who waits does so for the disk, which can look for several files at once

Opened = tuple[int, QueueFile | str, os.stat_result | None] | None
"""(descriptor, file or what is wrong with it, its attributes); None: not ours."""


class Opener:
    """Answers each caller with what open_one says of his message."""

    def __init__(self, fsio: Fsio, open_one: Callable[[str], Opened], drop: Callable[[int], None]) -> None:
        """open_one: runs in a thread.  drop: closes the descriptor for whom nobody waits any more."""
        self._fsio, self._open_one, self._drop = fsio, open_one, drop
        self._waiting: deque[tuple[str, asyncio.Future[Opened]]] = deque()
        self._visits: set[asyncio.Task[None]] = set()  # so that they are not collected
        self._visiting = 0  # of them those that will look into _waiting once more
        self._timed = False

    async def open(self, queue_id: str) -> Opened:
        """What open_one(queue_id) returns or raises."""
        answer: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._waiting.append((queue_id, answer))
        if not self._visiting:
            self._visit()
        if not self._timed:
            self._timed = True
            self._fsio.clock.call_later(SLOW, self._help)
        return await answer

    def _visit(self) -> None:
        self._visiting += 1
        visit = asyncio.get_running_loop().create_task(self._work())
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    def _help(self) -> None:
        self._timed = bool(self._waiting)
        if self._timed:
            if self._visiting < WORKERS:
                self._visit()
            self._fsio.clock.call_later(SLOW, self._help)

    async def _work(self) -> None:
        try:
            while batch := [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]:
                await self._visit_for(batch)
        finally:
            self._visiting -= 1

    async def _visit_for(self, batch: Sequence[tuple[str, asyncio.Future[Opened]]]) -> None:
        try:
            found = await self._fsio.run(self._open_all, [queue_id for queue_id, _ in batch])
        except Exception as error:  # no thread
            found = [error] * len(batch)
        for (_, answer), each in zip(batch, found, strict=True):
            if isinstance(each, BaseException):
                if not answer.done():
                    answer.set_exception(each)
            elif not answer.done():
                answer.set_result(each)
            elif each is not None:  # the caller was cancelled
                self._drop(each[0])

    def _open_all(self, queue_ids: Sequence[str]) -> list[Opened | BaseException]:
        found: list[Opened | BaseException] = []
        for queue_id in queue_ids:
            try:
                found.append(self._open_one(queue_id))
            except BaseException as error:  # his who asked, and no other's
                found.append(error)
        return found
