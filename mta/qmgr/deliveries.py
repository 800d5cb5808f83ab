"""The deliveries of messages in progress: handed to the scheduler, started when it says so, counted until they end.

State: how many deliveries of each message are outstanding.  An agent that raises ends its delivery: what it has not
reported is deferred 4.3.0.

See also: mta/qmgr/scheduler.py (which is next), mta/qmgr/attempt.py (what becomes known)
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Protocol

from mta.clock import Clock, others_run
from mta.deliver.request import DeliveryAgent
from mta.qmgr.attempt import SLICE, Attempt, request_for
from mta.qmgr.scheduler import Entry, Scheduler
from mta.queue.api import QueueError, QueueStore
from mta.smtp.reply import Reply

FEW = 10  # deliveries that are given up between two pauses
UNAVAILABLE = Reply(451, "4.3.5", "mail transport unavailable")

Guarded = Callable[[Coroutine[None, None, None], str], Awaitable[None]]
Spawn = Callable[[Coroutine[None, None, None], str], None]


class Agents(Protocol):
    """Delivery agents by transport name."""

    def get(self, transport: str) -> DeliveryAgent | None:
        """The agent, None when master.cf has no such transport."""


class Deliveries:
    """See the module."""

    def __init__(
        self,
        scheduler: Scheduler,
        agents: Agents | Mapping[str, DeliveryAgent],
        store: QueueStore,
        clock: Clock,
        attempts: Mapping[str, Attempt | None],
        guarded: Guarded,
        spawn: Spawn,
    ) -> None:
        """attempts: in progress, by queue id.  guarded, spawn: run a delivery of this queue id, its bugs logged."""
        self._scheduler, self._agents = scheduler, agents
        self._store, self._clock, self._attempts = store, clock, attempts
        self._guarded, self._spawn = guarded, spawn
        self._open: dict[str, tuple[int, asyncio.Future[None]]] = {}  # entries outstanding per job
        self._stopped = False

    def stop(self) -> None:
        """Start nothing any more; what waited for its turn has ended."""
        self._stopped = True
        for entry in self._scheduler.withdraw():
            self._entry_done(entry.job_id)

    def _has_stopped(self) -> bool:
        return self._stopped

    def under_way(self, job_id: str) -> bool:
        """Is one of its deliveries outstanding?"""
        return job_id in self._open

    async def ended(self, job_id: str) -> None:
        """Wait for the last of them, for whom run() was cancelled."""
        if left := self._open.get(job_id):
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._open[job_id] = (left[0], ended)
            await ended

    async def run(self, attempt: Attempt, entries: list[Entry]) -> None:
        """Hand the entries to the scheduler and wait until the last one has ended; during shutdown, none."""
        if not entries or self._stopped:
            return
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[attempt.job.queue_id] = (len(entries), finished)
        now = self._clock.monotonic()
        suspended = []
        for n, entry in enumerate(entries):
            if n % SLICE == SLICE - 1:
                await others_run()
            if self._has_stopped():  # meanwhile
                self._entry_done(entry.job_id)
            elif reason := self._scheduler.enqueue(entry, now):
                suspended.append((entry, reason))
        if suspended:
            await self._drop_all(suspended)
        own = self._pump(attempt.job.queue_id if len(entries) == 1 else "")
        if own is not None:  # most messages have one delivery, which needs no task besides the message's
            await self._guarded(self._deliver(own), own.job_id)
        await finished

    def _pump(self, job_id: str = "") -> Entry | None:
        """Start whatever the scheduler allows now; the entry of job_id, if it is among them, is the caller's."""
        own = None
        while not self._stopped:
            entry = self._scheduler.next(self._clock.monotonic())
            if entry is None:
                break
            if entry.job_id == job_id:
                own = entry
            else:
                self._spawn(self._deliver(entry), entry.job_id)
        return own

    async def _deliver(self, entry: Entry) -> None:
        attempt = self._attempts[entry.job_id]
        if attempt is None:
            raise RuntimeError(f"{entry.job_id}: delivery without an attempt")
        started = self._clock.monotonic()
        try:
            if not attempt.begun:
                await self._store.begin_attempt(attempt.job)  # who cannot be written down is not delivered to
                attempt.begun = True
            agent = self._agents.get(entry.transport)
            if agent is None:
                for recipient in entry.recipients:
                    attempt.refuse(recipient, UNAVAILABLE, entry.transport, started)
            else:
                await agent.deliver(request_for(attempt, entry.recipients, entry.transport, entry.nexthop, started))
                if self._open[entry.job_id][0] > 1:  # others may take minutes: what is done here is made durable now
                    with contextlib.suppress(QueueError):  # settling writes and flushes again
                        await self._store.flush_marks(attempt.job)
        finally:
            if not self._stopped:
                attempt.unreported(entry.recipients, entry.transport, started)
            failure = attempt.site_failure(entry.recipients)
            now = self._clock.monotonic()
            if dropped := self._scheduler.finished(entry, now, failure=failure):
                self._spawn(self._drop_all(dropped), entry.job_id)
            self._entry_done(entry.job_id)
            self._pump()

    async def _drop_all(self, dropped: list[tuple[Entry, Reply]]) -> None:
        """A few at a time, each with up to fifty lines in the log; all of them, also when it is cancelled."""
        left = iter(dropped)
        try:
            for n, (entry, reason) in enumerate(left, 1):
                self._drop(entry, reason)
                if n % FEW == 0:
                    await others_run()
        finally:
            for entry, reason in left:
                self._drop(entry, reason)

    def _drop(self, entry: Entry, reason: Reply) -> None:
        """The destination is dead: defer without trying."""
        attempt = self._attempts.get(entry.job_id)
        if attempt is not None:
            now = self._clock.monotonic()
            for recipient in entry.recipients:
                attempt.refuse(recipient, reason, entry.transport, now)
        self._entry_done(entry.job_id)

    def _entry_done(self, job_id: str) -> None:
        count, finished = self._open[job_id]
        if count > 1:
            self._open[job_id] = (count - 1, finished)
            return
        del self._open[job_id]
        if not finished.done():
            finished.set_result(None)
