"""The end of an attempt: children and notices made, recipients marked, the message removed or deferred.

The order and its reason are in attempt.py.  When the queue cannot be written (disk full, read-only) the attempt stays
in memory and is settled again, in the end each minute; nothing is delivered twice meanwhile because the message is
still ours.

State: the wall clock beside the loop's, so that a clock that was wrong gives no mail back.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from mta.clock import Clock
from mta.maillog.maillog import Maillog
from mta.qmgr.attempt import Attempt, Bounces, Injector
from mta.qmgr.backoff import BackoffSettings, expired, next_attempt
from mta.queue.api import FencedError, Job, QueueError, QueueStore

T = TypeVar("T")

SETTLE_RETRY = 60.0  # seconds at most between tries to write the end of an attempt to a failing disk ...
FIRST_SETTLE_RETRY = 1.0  # ... and before the second try, doubled each time: descriptors come back soon
CLOCK_JUMP = 3600.0  # seconds that the wall clock gains on the loop's: it was wrong before, or is now


class Settler:
    """See the module."""

    def __init__(
        self,
        backoff: BackoffSettings,
        store: QueueStore,
        bounces: Bounces,
        injector: Injector,
        clock: Clock,
        log: Maillog,
    ) -> None:
        self._backoff, self._store = backoff, store
        self._bounces, self._injector = bounces, injector
        self._clock, self._log = clock, log
        self._ahead: float | None = None  # wall clock minus the loop's, at the last look
        self._no_expiry = 0.0  # time of the loop until which nothing is too old

    async def settle(self, attempt: Attempt) -> float | None:
        """Children, marks, then finish or defer.  Returns when to try again, Unix seconds, or None: it is gone."""
        return await self.written(attempt.job.queue_id, partial(self._end, attempt))

    async def written(self, queue_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat work on a message that is ours until the queue can be written."""
        pause = FIRST_SETTLE_RETRY
        while True:
            try:
                return await work()
            except FencedError:
                raise
            except QueueError as error:
                self._log.warning("qmgr", f"{queue_id}: cannot write the queue, will try again: {error}")
                await self._clock.sleep(pause)
                pause = min(SETTLE_RETRY, pause * 2)

    async def _end(self, attempt: Attempt) -> float | None:
        job = attempt.job
        if not attempt.ordinary:
            await attempt.release_children()  # of the try before, which may have wanted a descriptor
            await attempt.forward(self._injector, self._clock)
            await self._notices(attempt)
            await attempt.release_children()
        if job.todo:
            return await self._defer(attempt)
        await self._store.finish(job)
        self._log.write("qmgr", f"{job.queue_id}: removed")
        return None

    async def crashed(self, job: Job, attempt: Attempt | None) -> None:
        """Its handling had a bug: let go of it.  What its children answer for is marked: nobody makes them again."""
        if attempt is not None:
            await attempt.release_children()
        await self._store.give_back(job, crashed=True)

    async def _notices(self, attempt: Attempt) -> None:
        job, now = attempt.job, self._clock.now()
        null = not job.envelope.sender
        old = expired(job.envelope.arrival, now, null_sender=null, settings=self._backoff)
        old = job.force_expire or (old and not self.clock_jumped())
        late = bool(job.envelope.warn_time) and now >= job.envelope.warn_time
        await attempt.notify(self._bounces, expired=old, delayed=late)
        if late:
            job.envelope.warn_time = 0.0

    async def _defer(self, attempt: Attempt) -> float:
        job = attempt.job
        when = next_attempt(job.envelope.arrival, self._clock.now(), self._backoff)
        await self._store.defer(job, when, attempt.reasons())
        return when

    async def interrupted(self, attempt: Attempt) -> None:
        """Shutdown in the middle: keep and report what is known, give the rest back untouched."""
        await attempt.forward(self._injector, self._clock)
        await attempt.notify(self._bounces, expired=False, delayed=False)
        await attempt.release_children()
        if attempt.job.todo:
            await self._store.give_back(attempt.job)
        else:
            await self._store.finish(attempt.job)
            self._log.write("qmgr", f"{attempt.job.queue_id}: removed")

    def clock_jumped(self) -> bool:
        """True for one round of retries after the wall clock went forward: a wrong clock gives no mail back."""
        now = self._clock.monotonic()
        before, self._ahead = self._ahead, self._clock.now() - now
        if before is not None and self._ahead - before > CLOCK_JUMP:
            self._no_expiry = now + self._backoff.maximal_backoff_time
            text = f"the clock went forward by {self._ahead - before:.0f} s: no mail is given back as too old for now"
            self._log.warning("qmgr", text)
        return now < self._no_expiry
