"""The queue manager: takes messages from the queue, has them delivered, settles what became of them.

State: ids waiting to be claimed (intake.py), attempts in progress by queue id, and the scheduler's windows.  All of it
can be thrown away at any moment: the queue on disk is the truth, and a restart finds everything again.  One task per
message, one per delivery; a bug in one ends that one.

When a step fails:
- claim finds nothing, or somebody else was first: the id is forgotten;
- the recipient cannot be resolved (a table fails): deferred 4.3.0;
- the process dies: the attempt stays counted in each message it was trying.  A power cut counts too, so a few
  are no proof; a suspect is then tried alone, and only one that goes on killing its handler is put on hold;
- an agent raises: what it had not reported is deferred 4.3.0, the traceback is logged under the queue id;
- the queue cannot be written at the end (disk full, read-only): the attempt stays in memory and settling is
  tried again, in the end each minute; nothing is delivered twice meanwhile because the message is still ours.

See also: mta/INTERNALS.md "settle", qmgr(8)
"""

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from mta.clock import Clock
from mta.deliver.request import CorruptContentError, DeliveryAgent, Result
from mta.envelope import Recipient, wants_verp
from mta.maillog import Maillog
from mta.qmgr.attempt import Attempt, Bounces, Injector, request_for
from mta.qmgr.backoff import BackoffSettings, due, expired, next_attempt
from mta.qmgr.grouping import Grouping, Target
from mta.qmgr.intake import AT_ONCE, Intake
from mta.qmgr.scheduler import Entry, Scheduler
from mta.queue.api import FencedError, Job, Queue, QueueError, QueueStore
from mta.record import dataclass
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply

SUSPECT = 3  # attempts that never ended; from then on a message is tried alone among its like
SUSPECT_DELAY = 10.0  # seconds after the start before suspects are tried: a process that is killed again and again
# for other reasons must not add to their count
MAX_CRASHES = 6  # and after so many it is put on hold: the last ones can hardly be another message's fault
SETTLE_RETRY = 60.0  # seconds at most between tries to write the end of an attempt to a failing disk ...
FIRST_SETTLE_RETRY = 1.0  # ... and before the second try, doubled each time: descriptors come back soon
CUT_OFF = 5.0  # seconds after the time of a shutdown to report what is known where a delivery was cut off
CLAIM_RETRY = 5.0  # seconds before a message that could not be opened (no descriptors) is claimed again
CLOCK_JUMP = 3600.0  # seconds that the wall clock gains on the loop's: it was wrong before, or is now
UNAVAILABLE = Reply(451, "4.3.5", "mail transport unavailable")
UNRESOLVED = Reply(451, "4.3.0", "address resolver failure")


@dataclass(frozen=True, slots=True)
class QmgrSettings:
    """postconf(5); seconds and counts."""

    queue_run_delay: float
    qmgr_message_active_limit: int
    soft_bounce: bool
    defer_transports: tuple[str, ...]
    recipient_delimiter: str


Resolve = Callable[[Recipient, str], Awaitable[Target]]  # (recipient, sender); TableError and friends = temporary
FILTER = "content_filter"  # attribute of a message that all goes to one transport:nexthop (access(5) FILTER)


class Agents(Protocol):
    """Delivery agents by transport name."""

    def get(self, transport: str) -> DeliveryAgent | None:
        """The agent, None when master.cf has no such transport."""


class QueueManager:
    """Owns every message from claim to settle."""

    def __init__(
        self,
        settings: QmgrSettings,
        backoff: BackoffSettings,
        store: QueueStore,
        scheduler: Scheduler,
        resolve: Resolve,
        agents: Agents | Mapping[str, DeliveryAgent],
        bounces: Bounces,
        injector: Injector,
        clock: Clock,
        log: Maillog,
    ) -> None:
        self._settings, self._backoff = settings, backoff
        self._store, self._scheduler = store, scheduler
        self._resolve, self._agents = resolve, agents
        self._bounces, self._injector = bounces, injector
        self._clock, self._log = clock, log
        self._intake = Intake(settings.qmgr_message_active_limit)
        self._scanning = asyncio.Lock()
        self._active: dict[str, Attempt | None] = {}  # None: being claimed
        self._open: dict[str, tuple[int, asyncio.Future[None]]] = {}  # entries outstanding per job
        self._tasks: dict[asyncio.Task[None], str] = {}  # to the queue id
        self._wake = asyncio.Event()
        self._serving = False  # run() has looked at what a predecessor left
        self._suspects = asyncio.Lock()
        self._started = 0.0
        self._ahead: float | None = None  # wall clock minus the loop's, at the last look
        self._no_expiry = 0.0  # time of the loop until which nothing is too old
        self._draining = False
        self._cutting = False  # deliveries that did not end in time are cancelled
        self._called = False  # _begin() is on its way

    # -- intake -----------------------------------------------------------------------------------

    def arrived(self, queue_id: str) -> None:
        """A message has become claimable; begun two turns of the loop later, when its sender has been answered."""
        self._intake.arrived(queue_id)
        if self._serving and not self._called:
            self._called = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._begin)

    async def run(self) -> None:
        """Serve until cancelled: claim what arrives or is due, rescan each queue_run_delay."""
        self._started = self._clock.monotonic()
        next_scan = self._started
        while True:
            now = self._clock.monotonic()
            if now >= next_scan:
                await self._scan()
                next_scan = self._clock.monotonic() + self._settings.queue_run_delay
            self._serving = True
            self._wake.clear()
            self._intake.take_due(self._clock.now(), len(self._active))
            self._fill()
            pause = self._intake.pause(self._clock.now(), len(self._active))
            wait = max(0.0, next_scan - self._clock.monotonic())
            try:
                async with self._clock.timeout(0.001 + (wait if pause is None else min(wait, pause))):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _fill(self) -> None:
        """Start an attempt for each waiting id while the active queue has room, a few in each turn of the loop."""
        intake, active = self._intake, self._active
        most = min(intake.limit, len(active) + AT_ONCE)
        while intake and len(active) < most and not self._draining:
            queue_id = intake.next()
            if queue_id not in active:
                active[queue_id] = None
                self._spawn(self._serve(queue_id), queue_id)
        if intake and len(active) < intake.limit and not self._draining:
            self._go_on()

    def _go_on(self) -> None:
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._called = False
        self._intake.take_due(self._clock.now(), len(self._active))
        self._fill()

    async def rescan(self) -> None:
        """Look at the queue directories now (flush, requeue, another process's work)."""
        self._scheduler.forget_dead(self._clock.monotonic(), even_if_not_due=True)
        await self._scan()
        self._wake.set()

    async def _scan(self) -> None:
        """One list at a time."""
        async with self._scanning:
            self._intake.begin_list()
            try:
                await self._take_list()
            finally:
                self._intake.end_list()

    async def _take_list(self) -> None:
        self._clock_jumped()
        self._scheduler.forget_dead(self._clock.monotonic())
        now = self._clock.now()
        try:
            self._intake.listed_new([name for name, _ in await self._store.scan(Queue.INCOMING)], self._active)
            deferred = await self._store.scan(Queue.DEFERRED)
        except (QueueError, OSError) as error:
            self._log.warning("qmgr", f"scan of the queue failed: {error}")
            return
        found = ((due(when, now, self._backoff), name) for name, when in deferred)
        self._intake.listed_deferred(found, self._active)

    def _clock_jumped(self) -> bool:
        """True for one round of retries after the wall clock went forward: a wrong clock gives no mail back."""
        now = self._clock.monotonic()
        before, self._ahead = self._ahead, self._clock.now() - now
        if before is not None and self._ahead - before > CLOCK_JUMP:
            self._no_expiry = now + self._backoff.maximal_backoff_time
            text = f"the clock went forward by {self._ahead - before:.0f} s: no mail is given back as too old for now"
            self._log.warning("qmgr", text)
        return now < self._no_expiry

    # -- one message ------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None], queue_id: str) -> None:
        """Run a task of its own."""
        task = asyncio.get_running_loop().create_task(self._guarded(work, queue_id))
        self._tasks[task] = queue_id
        task.add_done_callback(self._tasks.pop)

    async def _guarded(self, work: Coroutine[None, None, None], queue_id: str) -> None:
        """Run something that ends alone: its bug is logged under the queue id and touches nothing else."""
        try:
            await work
        except FencedError:
            self._log.write("qmgr", f"{queue_id}: taken over by another process, forgotten")
        except QueueError as trouble:  # what the delivery had not reported is deferred
            self._log.warning("qmgr", f"{queue_id}: {trouble}")
        except CorruptContentError as damage:
            self._log.warning("qmgr", f"{damage}: not delivered")
        except Exception:
            self._log_traceback(queue_id)

    def _log_traceback(self, queue_id: str) -> None:
        for line in traceback.format_exc().splitlines():
            self._log.warning("qmgr", f"{queue_id}: {line}")

    async def _serve(self, queue_id: str) -> None:
        try:
            try:
                job = await self._store.claim(queue_id)
            except QueueError as error:
                self._log.warning("qmgr", f"{error}, will try again")
                self._later(queue_id, self._clock.now() + CLAIM_RETRY)
                return
            if job is None:
                return
            if job.crashes >= MAX_CRASHES:
                self._log.warning("qmgr", f"{queue_id}: its handler crashed again and again, placed on hold")
                await self._store.hold(job)
                return
            try:
                if job.crashes >= SUSPECT:
                    async with self._suspects:
                        await self._clock.sleep(self._started + SUSPECT_DELAY - self._clock.monotonic())
                        await self._attempt(job)
                else:
                    await self._attempt(job)
            except FencedError:
                raise
            except asyncio.CancelledError:
                await self._cut_off(job)
                raise
            except Exception:
                self._log_traceback(queue_id)
                await self._clock.sleep(SETTLE_RETRY)  # its crash is counted: in the end that puts it on hold
                attempt = self._active.get(queue_id)
                if attempt is not None and attempt.children:  # their recipients are marked: nobody makes them again
                    await self._store.flush_marks(job)
                    await self._store.release(attempt.children)
                await self._store.give_back(job, crashed=True)
                self._intake.arrived(queue_id)
        finally:
            self._active.pop(queue_id, None)
            if self._intake or self._intake.ready(self._clock.now(), len(self._active)):  # there is room again
                self._go_on()

    async def _cut_off(self, job: Job) -> None:
        """The time of a shutdown is over: no fault of the message.  Others with children are left to recover()."""
        attempt = self._active.get(job.queue_id)
        with contextlib.suppress(QueueError):
            if attempt is not None and self._cutting:
                if left := self._open.get(job.queue_id):  # until they have ended there may be more to know
                    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._open[job.queue_id] = (left[0], ended)
                    await ended
                await self._interrupted(attempt)
            elif attempt is None or not attempt.children:
                await self._store.give_back(job)

    async def _attempt(self, job: Job) -> None:
        envelope = job.envelope
        claimed = self._clock.monotonic()
        attempt = Attempt(
            job, claimed, max(0.0, self._clock.now() - envelope.arrival), self._store, self._log,
            self._settings.soft_bounce,
        )  # fmt: skip
        self._active[job.queue_id] = attempt
        todo = job.todo
        size = f"size={job.size}, nrcpt={len(todo)} (queue active)"
        self._log.write("qmgr", f"{job.queue_id}: from=<{quote_address(envelope.sender)}>, {size}")
        entries = await self._entries(attempt, todo)
        await self._run_entries(attempt, entries)
        if self._draining and len(attempt.results) < len(todo):
            await self._interrupted(attempt)
            return
        await self._settle(attempt)

    async def _entries(self, attempt: Attempt, todo: Sequence[Recipient]) -> list[Entry]:
        """Resolve recipients and group them by destination, at most so many per delivery."""
        groups = Grouping(self._scheduler.limits, self._settings.recipient_delimiter)
        sender, verp = attempt.job.envelope.sender, wants_verp(attempt.job.envelope)
        transport, colon, nexthop = attempt.job.envelope.attributes.get(FILTER, "").partition(":")
        filtered = Target(transport, nexthop) if colon else None
        for recipient in todo:
            try:
                target = filtered or await self._resolve(recipient, sender)
            except Exception as error:
                self._log.warning("qmgr", f"{attempt.job.queue_id}: <{recipient.address}> not resolved: {error}")
                self._refuse(attempt, recipient, UNRESOLVED)
                continue
            if target.transport in self._settings.defer_transports:
                self._refuse(attempt, recipient, Reply(451, "4.3.2", "deferred transport"))
                continue
            if target.recipient and target.recipient != recipient.address:
                recipient = attempt.resolved(recipient, target.recipient)
            groups.add(recipient, target)
        return groups.entries(attempt.job.queue_id, one_by_one=verp)

    def _refuse(self, attempt: Attempt, recipient: Recipient, reply: Reply, service: str = "qmgr") -> None:
        attempt.record(recipient, Result(reply, reply.text), service, self._clock.monotonic())

    async def _run_entries(self, attempt: Attempt, entries: list[Entry]) -> None:
        """Hand the entries to the scheduler and wait until the last one has ended; during shutdown, none."""
        if not entries or self._draining:
            return
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[attempt.job.queue_id] = (len(entries), finished)
        now = self._clock.monotonic()
        for entry in entries:
            suspended = self._scheduler.enqueue(entry, now)
            if suspended is not None:
                self._drop(entry, suspended)
        own = self._pump(attempt.job.queue_id if len(entries) == 1 else "")
        if own is not None:  # most messages have one delivery, which needs no task besides the message's
            await self._guarded(self._deliver(own), own.job_id)
        await finished

    def _pump(self, job_id: str = "") -> Entry | None:
        """Start whatever the scheduler allows now; the entry of job_id, if it is among them, is the caller's."""
        own = None
        while not self._draining:
            entry = self._scheduler.next(self._clock.monotonic())
            if entry is None:
                break
            if entry.job_id == job_id:
                own = entry
            else:
                self._spawn(self._deliver(entry), entry.job_id)
        return own

    async def _deliver(self, entry: Entry) -> None:
        attempt = self._active[entry.job_id]
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
                    self._refuse(attempt, recipient, UNAVAILABLE, entry.transport)
            else:
                await agent.deliver(request_for(attempt, entry.recipients, entry.transport, entry.nexthop, started))
                if self._open[entry.job_id][0] > 1:  # others may take minutes: what is done here is made durable now
                    with contextlib.suppress(QueueError):  # settling writes and flushes again
                        await self._store.flush_marks(attempt.job)
        finally:
            if not self._draining:
                attempt.unreported(entry.recipients, entry.transport, started)
            failure = attempt.site_failure(entry.recipients)
            now = self._clock.monotonic()
            for dropped, reason in self._scheduler.finished(entry, now, failure=failure):
                self._drop(dropped, reason)
            self._entry_done(entry.job_id)
            self._pump()

    def _drop(self, entry: Entry, reason: Reply) -> None:
        """The destination is dead: defer without trying."""
        attempt = self._active.get(entry.job_id)
        if attempt is not None:
            for recipient in entry.recipients:
                self._refuse(attempt, recipient, reason, entry.transport)
        self._entry_done(entry.job_id)

    def _entry_done(self, job_id: str) -> None:
        count, finished = self._open[job_id]
        if count > 1:
            self._open[job_id] = (count - 1, finished)
            return
        del self._open[job_id]
        if not finished.done():
            finished.set_result(None)

    # -- the end of an attempt --------------------------------------------------------------------

    async def _settle(self, attempt: Attempt) -> None:
        """Children, marks, then finish or defer; see attempt.py for the order and why."""
        job, pause = attempt.job, FIRST_SETTLE_RETRY
        while True:
            try:
                if not attempt.ordinary:
                    await attempt.forward(self._injector, self._clock)
                    await self._notices(attempt)
                if attempt.children:
                    await self._store.flush_marks(job)
                    await self._store.release(attempt.children)
                if job.todo:
                    await self._defer(attempt)
                else:
                    await self._store.finish(job)
                    self._log.write("qmgr", f"{job.queue_id}: removed")
                return
            except FencedError:
                raise
            except QueueError as error:
                self._log.warning("qmgr", f"{job.queue_id}: cannot write the queue, will try again: {error}")
                await self._clock.sleep(pause)
                pause = min(SETTLE_RETRY, pause * 2)

    async def _notices(self, attempt: Attempt) -> None:
        job, now = attempt.job, self._clock.now()
        null = not job.envelope.sender
        old = expired(job.envelope.arrival, now, null_sender=null, settings=self._backoff)
        old = job.force_expire or (old and not self._clock_jumped())
        late = bool(job.envelope.warn_time) and now >= job.envelope.warn_time
        await attempt.notify(self._bounces, expired=old, delayed=late)
        if late:
            job.envelope.warn_time = 0.0

    async def _defer(self, attempt: Attempt) -> None:
        job = attempt.job
        when = next_attempt(job.envelope.arrival, self._clock.now(), self._backoff)
        await self._store.defer(job, when, attempt.reasons())
        self._later(job.queue_id, when)

    def _later(self, queue_id: str, when: float) -> None:
        self._intake.later(queue_id, when)
        self._wake.set()

    async def _interrupted(self, attempt: Attempt) -> None:
        """Shutdown in the middle: keep and report what is known, give the rest back untouched."""
        await attempt.forward(self._injector, self._clock)
        await attempt.notify(self._bounces, expired=False, delayed=False)
        if attempt.children:
            await self._store.flush_marks(attempt.job)
            await self._store.release(attempt.children)
        if attempt.job.todo:
            await self._store.give_back(attempt.job)
        else:
            await self._store.finish(attempt.job)
            self._log.write("qmgr", f"{attempt.job.queue_id}: removed")

    # -- admin and shutdown -----------------------------------------------------------------------

    async def flush(self, queue_ids: Sequence[str] | None = None) -> int:
        """Try deferred messages now (None = all); return how many were woken."""
        count = await self._store.wake(queue_ids)
        await self.rescan()
        return count

    async def drain(self, limit: float) -> None:
        """Start nothing new, let deliveries in flight end within `limit` seconds, report and give back the rest.

        CUT_OFF seconds more at most, when the disk hangs: what is not settled then is found at the next start.
        """
        self._draining = True
        for entry in self._scheduler.withdraw():
            self._entry_done(entry.job_id)
        await self._ended(limit)
        self._cutting = True
        for task in [task for task, queue_id in self._tasks.items() if queue_id in self._open]:
            task.cancel()
        await self._ended(CUT_OFF)
        self._cutting = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ended(self, limit: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(limit):
                while self._tasks:
                    await asyncio.wait(self._tasks)
