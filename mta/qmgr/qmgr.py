"""The queue manager: takes messages from the queue, has them delivered, settles what became of them.

State: ids waiting to be claimed (intake.py), attempts in progress by queue id, their deliveries (deliveries.py) and the
scheduler's windows.  All of it can be thrown away at any moment: the queue on disk is the truth, and a restart finds
everything again.  One task per message, one per delivery; a bug in one ends that one.

When a step fails:
- claim finds nothing, or somebody else was first: the id is forgotten;
- the recipient cannot be resolved (a table fails): deferred 4.3.0;
- the process dies: the attempt stays counted in each message it was trying.  A power cut counts too, so a few
  are no proof; a suspect is then tried alone, and only one that goes on killing its handler is put on hold;
- an agent raises: what it had not reported is deferred 4.3.0, the traceback is logged under the queue id;
- the queue cannot be written at the end: see settling.py.

See also: mta/INTERNALS.md "settle", qmgr(8)
"""

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial

from mta.clock import Clock, others_run
from mta.deliver.request import CorruptContentError, DeliveryAgent
from mta.envelope import Recipient, wants_verp
from mta.maillog.maillog import Maillog
from mta.qmgr.attempt import SLICE, Attempt, Bounces, Injector
from mta.qmgr.backoff import BackoffSettings, due
from mta.qmgr.deliveries import Agents, Deliveries
from mta.qmgr.grouping import Grouping, Target
from mta.qmgr.intake import AT_ONCE, Intake
from mta.qmgr.scheduler import Entry, Scheduler
from mta.qmgr.settling import Settler
from mta.queue.api import FencedError, Job, Queue, QueueError, QueueStore
from mta.record import dataclass
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply

SUSPECT = 3  # attempts that never ended; from then on a message is tried alone among its like
SUSPECT_DELAY = 10.0  # seconds after the start before suspects are tried: a process that is killed again and again
# for other reasons must not add to their count
MAX_CRASHES = 6  # and after so many it is put on hold: the last ones can hardly be another message's fault
CRASH_PAUSE = 60.0  # seconds before a message is tried again whose handling had a bug
CUT_OFF = 5.0  # seconds after the time of a shutdown to report what is known where a delivery was cut off
CLAIM_RETRY = 5.0  # seconds before a message that could not be opened (no descriptors) is claimed again
UNRESOLVED = Reply(451, "4.3.0", "address resolver failure")
DEFERRED_TRANSPORT = Reply(451, "4.3.2", "deferred transport")


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
        self._resolve = resolve
        self._clock, self._log = clock, log
        self._intake = Intake(settings.qmgr_message_active_limit)
        self._scanning = asyncio.Lock()
        self._active: dict[str, Attempt | None] = {}  # None: being claimed
        self._tasks: dict[asyncio.Task[None], str] = {}  # to the queue id
        self._wake = asyncio.Event()
        self._serving = False  # run() has looked at what a predecessor left
        self._suspects = asyncio.Lock()
        self._started = 0.0
        self._draining = False
        self._cutting = False  # deliveries that did not end in time are cancelled
        self._called = False  # _begin() is on its way
        self._deliveries = Deliveries(scheduler, agents, store, clock, self._active, self._guarded, self._spawn)
        self._settler = Settler(backoff, store, bounces, injector, clock, log)

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
        self._settler.clock_jumped()
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
            self._log.warning("qmgr", f"{queue_id}: taken over by another process, forgotten")
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
                await self._settler.written(queue_id, partial(self._store.hold, job))
                return
            try:
                if job.crashes >= SUSPECT:
                    async with self._suspects:
                        await self._clock.sleep(self._started + SUSPECT_DELAY - self._clock.monotonic())
                        await self._attempt(job)
                else:
                    await self._attempt(job)
            except FencedError:
                self._intake.arrived(queue_id)  # put on hold, and perhaps released again, while it was delivered
                raise
            except asyncio.CancelledError:
                await self._cut_off(job)
                raise
            except Exception:
                self._log_traceback(queue_id)
                await self._clock.sleep(CRASH_PAUSE)  # its crash is counted: in the end that puts it on hold
                crashed = partial(self._settler.crashed, job, self._active.get(queue_id))
                await self._settler.written(queue_id, crashed)
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
                await self._deliveries.ended(job.queue_id)  # until then there may be more to know
                await self._settler.interrupted(attempt)
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
        await self._deliveries.run(attempt, entries)
        if self._draining and len(attempt.results) < len(todo):
            await self._settler.interrupted(attempt)
            return
        when = await self._settler.settle(attempt)
        if when is not None:
            self._later(job.queue_id, when)

    async def _entries(self, attempt: Attempt, todo: Sequence[Recipient]) -> list[Entry]:
        """Resolve recipients and group them by destination, at most so many per delivery."""
        groups = Grouping(self._scheduler.limits, self._settings.recipient_delimiter)
        sender, verp = attempt.job.envelope.sender, wants_verp(attempt.job.envelope)
        transport, colon, nexthop = attempt.job.envelope.attributes.get(FILTER, "").partition(":")
        filtered = Target(transport, nexthop) if colon else None
        for n, recipient in enumerate(todo):
            if n % SLICE == SLICE - 1:
                await others_run()
            try:
                target = filtered or await self._resolve(recipient, sender)
            except Exception as error:
                self._log.warning("qmgr", f"{attempt.job.queue_id}: <{recipient.address}> not resolved: {error}")
                attempt.refuse(recipient, UNRESOLVED, "qmgr", self._clock.monotonic())
                continue
            if target.transport in self._settings.defer_transports:
                attempt.refuse(recipient, DEFERRED_TRANSPORT, "qmgr", self._clock.monotonic())
                continue
            if target.recipient and target.recipient != recipient.address:
                recipient = attempt.resolved(recipient, target.recipient)
            groups.add(recipient, target)
        return groups.entries(attempt.job.queue_id, one_by_one=verp)

    def _later(self, queue_id: str, when: float) -> None:
        self._intake.later(queue_id, when)
        self._wake.set()

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
        self._deliveries.stop()
        await self._ended(limit)
        self._cutting = True
        for task in [task for task, queue_id in self._tasks.items() if self._deliveries.under_way(queue_id)]:
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
