"""The queue manager with a real spool, on virtual time; delivery agents are the outside world here."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mta.cleanup.intake import RefusedError
from mta.clock import Clock
from mta.deliver.request import DeliveryRequest, Expansion, Result
from mta.envelope import Envelope, Notify, Origin, Recipient, Ret, wants_verp
from mta.maillog.maillog import FileSink, Maillog, MaillogSettings
from mta.qmgr.backoff import BackoffSettings
from mta.qmgr.grouping import Target
from mta.qmgr.qmgr import QmgrSettings, QueueManager
from mta.qmgr.scheduler import Scheduler, SchedulerSettings, TransportLimits
from mta.queue.api import Draft, Job, Parent, Queue
from mta.queue.store import SpoolStore, StoreSettings, create_spool
from mta.queue.store_admin import Administrator, Verb
from mta.queue.store_job import Claimed
from mta.smtp.reply import Reply
from tests.inline_fsio import InlineFsio
from tests.virtual_time import run_virtual

OK = Result(Reply(250, "2.0.0", "Ok"), "250 2.0.0 Ok", "sink[127.0.0.1]:25")
LATER = Result(Reply(450, "4.2.0", "later"), "host sink said: 450 4.2.0 later", "sink[127.0.0.1]:25")
NEVER = Result(Reply(550, "5.1.1", "no"), "host sink said: 550 5.1.1 no", "sink[127.0.0.1]:25")
DOWN = Result(Reply(451, "4.4.1", "Connection refused"), "connect to sink: Connection refused", site_failed=True)

Fate = Callable[[Recipient, int], Result]


class Agent:
    """A peer whose answers a test chooses per recipient and attempt (1, 2, ...)."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.tries: list[tuple[str, float]] = []
        self.contents: list[bytes] = []

    async def deliver(self, request: DeliveryRequest) -> None:
        content = b"".join([chunk async for chunk in request.content()])
        for recipient in request.recipients:
            self.tries.append((recipient.address, asyncio.get_running_loop().time()))
            count = sum(1 for address, _ in self.tries if address == recipient.address)
            result = self.fate(recipient, count)
            if result.reply.is_positive:
                self.contents.append(content)
            request.done(recipient, result)

    async def close(self) -> None:
        return


class Notices:
    """Stands for the bounce service; writes real children."""

    def __init__(self, store: SpoolStore, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.bounced: list[tuple[str, ...]] = []
        self.delayed: list[tuple[str, ...]] = []
        self.succeeded: list[tuple[str, ...]] = []

    async def _child(self, kind: str, job: Job, rows: Sequence[tuple[Recipient, Result]]) -> Draft:
        draft = await self.store.draft(self.clock.now())
        draft.envelope(Envelope("", [Recipient(job.envelope.sender)], self.clock.now()))
        draft.write(b"Subject: " + kind.encode() + b"\n\n")
        offsets = tuple(r.offset for r, _ in rows)
        await draft.commit(parent=Parent(kind, job.uid, job.queue_id, offsets))
        return draft

    def one_by_one(self, job: Job) -> bool:
        return wants_verp(job.envelope)

    async def bounce(self, job: Job, failed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        self.bounced.append(tuple(r.address for r, _ in failed))
        return await self._child("bounce", job, failed) if job.envelope.sender else None

    async def delay_notice(self, job: Job, delayed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        self.delayed.append(tuple(r.address for r, _ in delayed))
        return await self._child("delay", job, []) if job.envelope.sender else None

    async def success_notice(self, job: Job, done: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        self.succeeded.append(tuple(r.address for r, _ in done))
        return None


class World:
    """A queue manager with everything it needs."""

    def __init__(self, path: Path, clock: Clock, fate: Fate, limit: int = 100, recipients: int = 50) -> None:
        settings = StoreSettings(str(path / "spool"), True, ("deferred", "defer"), 1, 10240000, 0, 4000.0, True)
        self.clock = clock
        self.fsio = InlineFsio(aio=False)
        create_spool(settings, self.fsio)
        self.log = Maillog(MaillogSettings("", "postfix", "host"), clock, FileSink(str(path / "log")))
        self.path = path
        self.store = SpoolStore(settings, self.fsio, clock, self.log)
        self.agent = Agent(fate)
        self.notices = Notices(self.store, clock)
        backoff = BackoffSettings(300.0, 4000.0, 432000.0, 432000.0)
        self.qmgr = QueueManager(
            QmgrSettings(300.0, limit, False, (), "+"), backoff, self.store,
            Scheduler(SchedulerSettings(300.0), {}, TransportLimits(100, 20, recipients, 5, 1)),
            self.resolve, {"smtp": self.agent}, self.notices, self, clock, self.log,
        )  # fmt: skip
        self.store.arrived = lambda queue_id, _: self.qmgr.arrived(queue_id)
        self.unresolvable: set[str] = set()
        self.children: list[Envelope] = []
        self.refuse_child: Exception | None = None

    async def resolve(self, recipient: Recipient, sender: str) -> Target:
        if recipient.address in self.unresolvable:
            raise OSError("table broken")
        address = recipient.address.replace("%c.test@b.test", "@c.test")
        return Target("smtp", address.partition("@")[2], address)

    async def inject(
        self, origin: Origin, envelope: Envelope, chunks: AsyncIterator[bytes], parent: Parent | None
    ) -> Draft:
        if self.refuse_child is not None:
            raise self.refuse_child
        draft = await self.store.draft(self.clock.now())
        draft.envelope(envelope)
        self.children.append(envelope)
        async for chunk in chunks:
            draft.write(chunk)
        await draft.commit(parent=parent)
        return draft

    async def submit(self, *addresses: str, sender: str = "s@a.test", **more: float) -> str:
        draft = await self.store.draft(self.clock.now())
        draft.envelope(Envelope(sender, [Recipient(a) for a in addresses], self.clock.now(), **more))  # type: ignore[arg-type]  # keyword is warn_time
        draft.write(b"Subject: t\n\nbody\n")
        await draft.commit()
        return draft.queue_id

    def lines(self) -> str:
        self.log.flush()
        return (self.path / "log").read_text()

    async def count(self, queue: Queue) -> int:
        return len(await self.store.scan(queue))


def simulate(
    path: Path, fate: Fate, story: Callable[[World], Awaitable[None]], limit: int = 100, recipients: int = 50
) -> None:
    """Run a story beside a serving queue manager."""

    async def main(clock: Clock) -> None:
        world = World(path, clock, fate, limit, recipients)
        await world.store.recover()
        task = asyncio.ensure_future(world.qmgr.run())
        try:
            await story(world)
        finally:
            await world.qmgr.drain(10.0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            world.fsio.close()
            world.log.close()

    run_virtual(main, patience=0.0)


def test_a_message_is_delivered_once_and_removed(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        queue_id = await w.submit("x@b.test", "y@b.test", "z@c.test")
        await w.clock.sleep(1)
        assert sorted(a for a, _ in w.agent.tries) == ["x@b.test", "y@b.test", "z@c.test"]
        assert w.agent.contents == [b"Subject: t\n\nbody\n"] * 3
        assert f"{queue_id}: removed" in w.lines()
        assert await w.count(Queue.INCOMING) == await w.count(Queue.DEFERRED) == 0

    simulate(tmp_path, lambda r, n: OK, story)


def test_marks_of_a_delivery_that_has_ended_do_not_wait_for_a_slow_one_to_be_durable(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        deliver, release = w.agent.deliver, asyncio.Event()

        async def one_is_slow(request: DeliveryRequest) -> None:
            if request.nexthop == "slow.test":
                await release.wait()
            await deliver(request)

        w.agent.deliver = one_is_slow  # type: ignore[method-assign]  # a peer that takes its time
        steps: list[str] = []
        queue_id = await w.submit("x@fast.test", "y@slow.test")
        w.fsio.hook = lambda operation, _: steps.append(operation)
        await w.clock.sleep(100)
        assert [a for a, _ in w.agent.tries] == ["x@fast.test"]
        assert steps[steps.index("flush") - 1] == "pwrite" and "unlink" not in steps, "flushed after its mark"
        release.set()
        await w.clock.sleep(1)
        assert steps.count("flush") == 2, "the other one's mark is the unlink, and its flush"
        assert f"{queue_id}: removed" in w.lines()

    simulate(tmp_path, lambda r, n: OK, story)


def test_retries_come_at_the_ages_of_the_backoff_and_the_tried_ones_are_not_repeated(tmp_path: Path) -> None:
    def fate(r: Recipient, n: int) -> Result:
        return OK if r.address == "x@b.test" or n > 4 else LATER

    async def story(w: World) -> None:
        await w.submit("x@b.test", "y@b.test")
        await w.clock.sleep(10000)
        assert [a for a, _ in w.agent.tries].count("x@b.test") == 1
        times = [round(t) for a, t in w.agent.tries if a == "y@b.test"]
        assert times[:5] == [0, 300, 600, 1200, 2400]
        assert await w.count(Queue.DEFERRED) == 0

    simulate(tmp_path, fate, story)


def test_refused_recipients_are_bounced_once_and_the_others_go_on(tmp_path: Path) -> None:
    def fate(r: Recipient, n: int) -> Result:
        return NEVER if r.address == "x@b.test" else LATER if r.address == "y@b.test" and n == 1 else OK

    async def story(w: World) -> None:
        await w.submit("x@b.test", "y@b.test")
        await w.clock.sleep(1000)
        assert w.notices.bounced == [("x@b.test",)]
        assert [a for a, _ in w.agent.tries] == ["x@b.test", "y@b.test", "s@a.test", "y@b.test"]
        assert await w.count(Queue.DEFERRED) == 0

    simulate(tmp_path, fate, story)


def test_mail_that_stays_undeliverable_is_returned_after_its_lifetime_and_never_before(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.submit("x@b.test", sender="s@good.test")
        await w.clock.sleep(431000)
        assert w.notices.bounced == []
        await w.clock.sleep(10000)
        assert w.notices.bounced == [("x@b.test",)]
        assert "status=expired, returned to sender" in w.lines()
        assert await w.count(Queue.DEFERRED) == 0

    simulate(tmp_path, lambda r, n: OK if r.address == "s@good.test" else LATER, story)


def test_a_dead_site_is_left_alone_and_its_waiting_mail_deferred_at_once(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        for _ in range(30):
            await w.submit("x@down.test")
        await w.clock.sleep(5)
        assert len(w.agent.tries) < 15
        assert await w.count(Queue.DEFERRED) == 30
        assert "delivery temporarily suspended: connect to sink: Connection refused" in w.lines()

    simulate(tmp_path, lambda r, n: DOWN, story)


@pytest.mark.parametrize("result", [NEVER, DOWN])
def test_others_have_their_turns_beside_a_message_to_thousands(tmp_path: Path, result: Result) -> None:
    async def story(w: World) -> None:
        resolved, lines, marks, most = 0, 0, 0, 0

        class Resolved(set[str]):
            def __contains__(self, address: object) -> bool:
                nonlocal resolved
                resolved += 1
                return False

        class Watcher:
            def line(self, text: str) -> None:
                nonlocal lines
                lines += "status=" in text

        def hook(operation: str, _: str | int) -> None:
            nonlocal marks
            marks += operation == "pwrite"

        w.unresolvable, w.fsio.hook = Resolved(), hook
        w.log.watchers.append(Watcher())
        queue_id = await w.submit(*(f"{n}@b.test" for n in range(5000)))
        for _ in range(10_000):  # without a timer: virtual time waits until nobody has anything to do
            before = resolved, lines, marks
            await asyncio.sleep(0)
            most = max(most, resolved - before[0], lines - before[1], marks - before[2])
        assert resolved >= 5000 and (lines if result is DOWN else marks) >= 5000
        assert most < 1500
        await w.clock.sleep(10)
        if result is NEVER:
            assert len(w.notices.bounced[0]) == 5000 and f"{queue_id}: removed" in w.lines()
        else:
            assert await w.count(Queue.DEFERRED) == 1

    simulate(tmp_path, lambda r, n: result, story)


def test_an_agent_that_raises_or_stays_silent_defers_and_never_bounces(tmp_path: Path) -> None:
    def fate(r: Recipient, n: int) -> Result:
        if n == 1:
            raise RuntimeError("/var/spool secret")
        return OK

    async def story(w: World) -> None:
        await w.submit("x@b.test")
        await w.clock.sleep(1)
        assert await w.count(Queue.DEFERRED) == 1
        assert "dsn=4.3.0, status=deferred (internal error, will try again)" in w.lines()
        await w.clock.sleep(400)
        assert w.notices.bounced == []
        assert len(w.agent.contents) == 1

    simulate(tmp_path, fate, story)


def test_a_table_that_fails_defers_the_recipient(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.unresolvable.add("x@b.test")
        await w.submit("x@b.test", "y@b.test")
        await w.clock.sleep(1)
        assert [a for a, _ in w.agent.tries] == ["y@b.test"]
        w.unresolvable.clear()
        await w.clock.sleep(400)
        assert [a for a, _ in w.agent.tries] == ["y@b.test", "x@b.test"]

    simulate(tmp_path, lambda r, n: OK, story)


def test_deliveries_to_one_mailbox_share_its_window_however_it_is_addressed(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        waiting, at_once = 0, []

        async def deliver(request: DeliveryRequest) -> None:
            nonlocal waiting
            waiting += 1
            at_once.append(waiting)
            await w.clock.sleep(10)
            waiting -= 1
            request.done(request.recipients[0], OK)

        w.agent.deliver = deliver  # type: ignore[method-assign]
        for n in range(30):
            await w.submit(f"{'d' if n % 2 else 'D'}ave+{n}@b.test")
        await w.clock.sleep(5)
        assert max(at_once) == 5
        await w.clock.sleep(100)
        assert len(at_once) == 30

    simulate(tmp_path, lambda r, n: OK, story, recipients=1)


def test_an_expansion_becomes_one_child_with_a_recipient_per_leaf(tmp_path: Path) -> None:
    def fate(r: Recipient, n: int) -> Result:
        if r.address == "list@b.test":
            leaves = Expansion(("p@c.test", "q@d.test"), "owner-list@b.test", "list@b.test")
            return Result(Reply(250, "2.0.0", ""), "", "local", expansion=leaves)
        return LATER if r.address == "p@c.test" and n == 1 else OK

    async def story(w: World) -> None:
        await w.submit("list@b.test")
        await w.clock.sleep(1000)
        assert [a for a, _ in w.agent.tries] == ["list@b.test", "p@c.test", "q@d.test", "p@c.test"]
        assert w.agent.contents[1:] == [b"Delivered-To: list@b.test\nSubject: t\n\nbody\n"] * 2
        assert "status=sent (forwarded as " in w.lines()

    simulate(tmp_path, fate, story)


def test_a_recipient_is_delivered_under_the_address_it_resolves_to_and_known_under_its_own(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        queue_id = await w.submit("x%c.test@b.test", "y@b.test")
        await w.clock.sleep(1)
        assert sorted(a for a, _ in w.agent.tries) == ["x@c.test", "y@b.test"]
        assert "to=<x@c.test>, orig_to=<x%c.test@b.test>, relay=" in w.lines()
        (row,) = [row async for row in w.store.listing()]
        assert (row.queue_id, row.recipients) == (queue_id, ("x%c.test@b.test",))
        assert list(row.reasons) == ["x%c.test@b.test"]
        await w.clock.sleep(1000)
        assert [a for a, _ in w.agent.tries].count("x@c.test") == 2
        assert [row async for row in w.store.listing()] == []

    simulate(tmp_path, lambda r, n: LATER if r.address == "x@c.test" and n == 1 else OK, story)


def expanding(address: str, leaf: str) -> Fate:
    leaves = Expansion((leaf,), "s@a.test", address)
    expanded = Result(Reply(250, "2.0.0", ""), "", "local", expansion=leaves)
    return lambda r, n: expanded if r.address == address else OK


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (Notify(0), Notify(0)),
        (Notify.NEVER, Notify.NEVER),
        (Notify.SUCCESS, Notify.NEVER),
        (Notify.SUCCESS | Notify.FAILURE, Notify.FAILURE),
    ],
)
def test_an_expansion_that_was_reported_as_success_is_not_reported_again(
    tmp_path: Path, given: Notify, passed_on: Notify
) -> None:
    async def story(w: World) -> None:
        draft = await w.store.draft(w.clock.now())
        draft.envelope(Envelope("s@a.test", [Recipient("list@b.test", notify=given)], w.clock.now()))
        await draft.commit()
        await w.clock.sleep(1)
        assert [r.notify for e in w.children for r in e.recipients] == [passed_on]

    simulate(tmp_path, expanding("list@b.test", "p@c.test"), story)


@pytest.mark.parametrize("owned", [False, True])
def test_what_a_sender_asked_of_an_alias_goes_on_to_its_members_and_ends_at_a_list(
    tmp_path: Path, *, owned: bool
) -> None:
    def fate(r: Recipient, n: int) -> Result:
        leaves = Expansion(("p@c.test",), "owner-list@b.test" if owned else "s@a.test", "list@b.test")
        return Result(Reply(250, "2.0.0", ""), "", "local", expansion=leaves) if r.address == "list@b.test" else OK

    async def story(w: World) -> None:
        actions: list[str] = []

        async def success(job: Job, done: Sequence[tuple[Recipient, Result]]) -> None:
            actions.extend(result.action for _, result in done)

        w.notices.success_notice = success  # type: ignore[method-assign]  # what the report is to say
        draft = await w.store.draft(w.clock.now())
        both = Notify.SUCCESS | Notify.FAILURE
        person = Recipient("list@b.test", "given@b.test", both, "rfc822;given@b.test")
        draft.envelope(Envelope("s@a.test", [person], w.clock.now(), envelope_id="QQ", ret=Ret.HDRS))
        await draft.commit()
        await w.clock.sleep(1)
        (child,), ((member,), *_) = w.children, [e.recipients for e in w.children]
        assert member.notify == Notify.FAILURE
        passed_on = (child.envelope_id, child.ret, member.dsn_orig_rcpt, member.original)
        if owned:  # RFC 3461 s5.2.7.3
            assert (passed_on, actions) == (("", Ret(0), "", ""), ["delivered"])
        else:
            assert (passed_on, actions) == (("QQ", Ret.HDRS, "rfc822;given@b.test", "given@b.test"), ["expanded"])

    simulate(tmp_path, fate, story)


def test_a_child_that_went_round_too_often_is_returned_and_not_tried_again(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.refuse_child = RefusedError(Reply(554, "5.4.6", "Error: too many hops"))
        await w.submit("list@b.test", sender="s@good.test")
        await w.clock.sleep(1)
        assert w.notices.bounced == [("list@b.test",)]
        assert "dsn=5.4.6, status=bounced (Error: too many hops)" in w.lines()

    simulate(tmp_path, expanding("list@b.test", "p@c.test"), story)


def test_children_of_an_attempt_that_ends_in_a_bug_are_let_go(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        inject = w.inject
        first = True

        async def once(
            origin: Origin, envelope: Envelope, chunks: AsyncIterator[bytes], parent: Parent | None
        ) -> Draft:
            nonlocal first
            if not first:
                w.refuse_child = RuntimeError("a bug")
            first = False
            return await inject(origin, envelope, chunks, parent)

        w.inject = once  # type: ignore[method-assign]  # the door breaks at the second child
        await w.submit("list@b.test", "list@b.test")
        await w.clock.sleep(100)
        assert [a for a, _ in w.agent.tries].count("p@c.test") == 1

    simulate(tmp_path, expanding("list@b.test", "p@c.test"), story)


def test_a_flush_tries_deferred_mail_now(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.submit("x@b.test")
        await w.clock.sleep(1)
        assert await w.qmgr.flush() == 1
        await w.clock.sleep(1)
        assert len(w.agent.contents) == 1

    simulate(tmp_path, lambda r, n: OK if n > 1 else DOWN, story)


@pytest.mark.parametrize("released", [True, False])
def test_what_was_held_and_released_while_it_is_delivered_is_gone_on_with_at_once(
    tmp_path: Path, released: bool
) -> None:
    async def story(w: World) -> None:
        deliver = w.agent.deliver

        async def slow(request: DeliveryRequest) -> None:
            await w.clock.sleep(10)
            await deliver(request)

        w.agent.deliver = slow  # type: ignore[method-assign]
        queue_id = await w.submit("x@b.test", "y@c.test")
        await w.clock.sleep(1)
        administrator = Administrator(w.store.spool, w.fsio, w.clock)
        for verb in (Verb.HOLD, *[Verb.RELEASE] * released):
            assert await administrator.act(verb, [queue_id]) == {queue_id: "done"}
        await w.qmgr.flush([])
        await w.clock.sleep(25)
        assert sorted(address for address, _ in w.agent.tries) == ["x@b.test", "y@c.test"] + ["y@c.test"] * released
        assert await w.count(Queue.DEFERRED) == 0 and await w.count(Queue.HOLD) == (not released)

    simulate(tmp_path, lambda r, n: OK if n > 1 or r.address == "x@b.test" else LATER, story)


def slowly_listed(w: World) -> None:
    """The next listing of deferred mail is taken at once, and there half a minute later."""
    scan = w.store.scan

    async def slow(queue: Queue) -> list[tuple[str, float]]:
        found = await scan(queue)
        if queue is Queue.DEFERRED:
            w.store.scan = scan  # type: ignore[method-assign]
            await w.clock.sleep(30)
        return found

    w.store.scan = slow  # type: ignore[method-assign]


def test_what_was_tried_while_the_queue_was_looked_through_is_not_tried_again_at_once(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.submit("x@b.test")
        await w.clock.sleep(1)
        slowly_listed(w)
        slow = asyncio.ensure_future(w.qmgr.flush())
        await w.clock.sleep(1)
        await w.qmgr.flush()
        await slow
        await w.clock.sleep(60)
        assert [round(when) for _, when in w.agent.tries][1:] in ([2], [31]), "once, for both"

    simulate(tmp_path, lambda r, n: LATER, story)


def test_what_becomes_due_after_the_active_queue_was_full_does_not_wait_for_the_next_scan(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        deliver = w.agent.deliver

        async def some_are_slow(request: DeliveryRequest) -> None:
            if request.nexthop == "slow.test":
                await w.clock.sleep(20)
            await deliver(request)

        w.agent.deliver = some_are_slow  # type: ignore[method-assign]  # a peer that takes its time
        await w.clock.sleep(100)
        await w.submit("x@b.test")
        await w.clock.sleep(190)
        await w.submit("y@slow.test")
        await w.clock.sleep(300)
        assert [round(when) for address, when in w.agent.tries if address == "x@b.test"] == [100, 400]

    simulate(tmp_path, lambda r, n: LATER if r.address == "x@b.test" and n == 1 else OK, story, limit=1)


def test_what_is_due_has_its_turn_while_new_mail_fills_the_active_queue(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        deliver = w.agent.deliver

        async def slow(request: DeliveryRequest) -> None:
            await w.clock.sleep(10)
            await deliver(request)

        await w.submit("x@b.test")
        await w.clock.sleep(1)
        w.agent.deliver = slow  # type: ignore[method-assign]  # peers that take their time
        for n in range(80):
            await w.submit(f"{n}@new.test")
        await w.clock.sleep(350)
        again = [when for address, when in w.agent.tries if address == "x@b.test"]
        assert len(again) == 2 and again[1] < 340
        assert len([address for address, _ in w.agent.tries]) < 80, "there was new mail all the time"

    simulate(tmp_path, lambda r, n: LATER if r.address == "x@b.test" and n == 1 else OK, story, limit=2)


def test_what_was_tried_while_new_mail_was_looked_for_is_not_tried_again_at_once(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        scan = w.store.scan

        async def slow(queue: Queue) -> list[tuple[str, float]]:
            found = await scan(queue)
            if queue is Queue.INCOMING:
                await w.clock.sleep(30)
            return found

        await w.clock.sleep(1)
        w.store.scan = slow  # type: ignore[method-assign]
        arrived, w.store.arrived = w.store.arrived, lambda queue_id, _: None
        queue_id = await w.submit("x@b.test")
        listed = asyncio.ensure_future(w.qmgr.flush())
        await w.clock.sleep(1)
        arrived(queue_id, 0)
        await listed
        await w.clock.sleep(60)
        assert [round(when) for _, when in w.agent.tries] == [2]

    simulate(tmp_path, lambda r, n: LATER, story)


def test_one_delay_notice_is_sent_when_the_time_has_come(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        await w.submit("x@b.test", sender="s@good.test", warn_time=w.clock.now() + 1000)
        await w.clock.sleep(900)
        assert w.notices.delayed == []
        await w.clock.sleep(20000)
        assert w.notices.delayed == [("x@b.test",)]

    simulate(tmp_path, lambda r, n: OK if r.address == "s@good.test" else LATER, story)


@pytest.mark.parametrize(("crashes", "held"), [(2, False), (5, False), (6, True)])
def test_a_message_that_goes_on_killing_its_handler_is_held_and_a_suspect_waits(
    tmp_path: Path, crashes: int, held: bool
) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: OK)
        queue_id = await world.submit("x@b.test")
        for _ in range(crashes):
            job = await world.store.claim(queue_id)
            assert job is not None
            await world.store.begin_attempt(job)
            await world.store.give_back(job, crashed=True)
        task = asyncio.ensure_future(world.qmgr.run())
        await clock.sleep(1)
        assert len(world.agent.contents) == (crashes < 3)
        await clock.sleep(60)
        assert len(world.agent.contents) == (not held)
        assert ("placed on hold" in world.lines()) == held
        await world.qmgr.drain(5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.fsio.close()

    run_virtual(main, patience=0.0)


@pytest.mark.parametrize("crashes", [0, 6])
def test_what_cannot_be_let_go_of_because_of_the_disk_is_let_go_of_when_the_disk_is_back(
    tmp_path: Path, crashes: int
) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: NEVER)
        queue_id = await world.submit("x@b.test")
        for _ in range(crashes):
            job = await world.store.claim(queue_id)
            assert job is not None
            await world.store.begin_attempt(job)
            await world.store.give_back(job, crashed=True)
        broken = True

        def hook(op: str, path: str | int) -> None:
            if broken and op == "rename" and "/active/" in str(path):
                raise OSError(errno.EROFS, "Read-only file system")

        async def buggy(job: Job, failed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
            raise RuntimeError("a bug")

        world.fsio.hook, world.notices.bounce = hook, buggy  # type: ignore[method-assign]
        task = asyncio.ensure_future(world.qmgr.run())
        await clock.sleep(200)
        assert await world.count(Queue.ACTIVE) == 1
        broken = False
        await clock.sleep(60)
        if crashes:
            assert await world.count(Queue.HOLD) == 1
        else:
            assert len(world.agent.tries) > 1, "it is tried again"
        await world.qmgr.drain(5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.fsio.close()

    run_virtual(main, patience=0.0)


def test_a_message_with_a_filter_goes_there_whatever_its_recipients(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        draft = await w.store.draft(w.clock.now())
        attributes = {"content_filter": "smtp:filter.test"}
        draft.envelope(Envelope("s@a.test", [Recipient("x@b.test")], w.clock.now(), attributes=attributes))
        await draft.commit()
        w.unresolvable.add("x@b.test")
        await w.clock.sleep(1)
        assert [a for a, _ in w.agent.tries] == ["x@b.test"]

    simulate(tmp_path, lambda r, n: OK, story)


@pytest.mark.parametrize("count", [1, 40])
def test_drain_gives_back_what_was_not_delivered(tmp_path: Path, count: int) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: OK)
        blocker = asyncio.Event()

        async def never(request: DeliveryRequest) -> None:
            await blocker.wait()

        world.agent.deliver = never  # type: ignore[method-assign]  # a peer that hangs
        task = asyncio.ensure_future(world.qmgr.run())
        for _ in range(count):
            await world.submit("x@b.test")
        await clock.sleep(1)
        await world.qmgr.drain(5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.store.recover()
        assert await world.count(Queue.INCOMING) == count
        world.fsio.close()

    run_virtual(main, patience=0.0)


def test_stops_in_the_middle_of_a_slow_delivery_are_no_crashes_of_the_message(tmp_path: Path) -> None:
    async def main(clock: Clock) -> None:
        for number in range(8):
            world = World(tmp_path, clock, lambda r, n: OK)
            if number == 0:
                queue_id = await world.submit("x@b.test")
            await world.store.recover()
            slow = asyncio.Event()

            async def never(request: DeliveryRequest, slow: asyncio.Event = slow) -> None:
                slow.set()
                await asyncio.Event().wait()

            world.agent.deliver = never  # type: ignore[method-assign]  # a peer that takes its time
            task = asyncio.ensure_future(world.qmgr.run())
            async with clock.timeout(60):
                await slow.wait()
            await world.qmgr.drain(5.0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [name for name, _ in await world.store.scan(Queue.INCOMING)] == [queue_id]
            world.store.close()
            world.fsio.close()
            world.log.close()

    run_virtual(main, patience=0.0)


def test_drain_reports_what_is_known_of_a_message_that_is_given_back(tmp_path: Path) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: NEVER if r.address == "no@b.test" else OK)
        at_peer, goes_on = asyncio.Event(), asyncio.Event()
        deliver = world.agent.deliver

        async def slow(request: DeliveryRequest) -> None:
            if request.nexthop == "slow.test":
                at_peer.set()
                await goes_on.wait()
                return
            await deliver(request)

        world.agent.deliver = slow  # type: ignore[method-assign]  # a peer that takes its time
        task = asyncio.ensure_future(world.qmgr.run())
        draft = await world.store.draft(clock.now())
        both = Notify.SUCCESS | Notify.FAILURE
        people = [Recipient(a, notify=both) for a in ("yes@b.test", "no@b.test", "x@slow.test")]
        draft.envelope(Envelope("s@a.test", people, clock.now()))
        await draft.commit()
        await at_peer.wait()
        await clock.sleep(1)
        drained = asyncio.ensure_future(world.qmgr.drain(50.0))
        await clock.sleep(1)
        goes_on.set()
        await drained
        assert (world.notices.succeeded, world.notices.bounced) == ([("yes@b.test",)], [("no@b.test",)])
        job = await world.store.claim(draft.queue_id)
        assert job is not None and [r.address for r in job.todo] == ["x@slow.test"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.fsio.close()

    run_virtual(main, patience=0.0)


@pytest.mark.parametrize("hangs", ["x@slow.test", "x@b.test"])
def test_what_is_known_of_a_delivery_that_is_cut_off_is_reported(tmp_path: Path, hangs: str) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: OK)

        async def never_ends(request: DeliveryRequest) -> None:
            for recipient in request.recipients:
                if recipient.address == "no@b.test":
                    request.done(recipient, NEVER)
                elif recipient.address == "list@b.test":
                    expansion = Expansion(("m@c.test",), "owner@b.test", "")
                    request.done(recipient, replace(OK, expansion=expansion, action="expanded"))
                elif recipient.address != hangs:
                    request.done(recipient, replace(OK, action="relayed"))
            if any(recipient.address == hangs for recipient in request.recipients):
                try:
                    await asyncio.Event().wait()
                finally:  # as an agent that closes its connection
                    await clock.sleep(0.5)

        world.agent.deliver = never_ends  # type: ignore[method-assign]  # a peer that hangs
        task = asyncio.ensure_future(world.qmgr.run())
        draft = await world.store.draft(clock.now())
        both = Notify.SUCCESS | Notify.FAILURE
        people = [Recipient(a, notify=both) for a in ("yes@b.test", "no@b.test", "list@b.test", hangs)]
        draft.envelope(Envelope("s@a.test", people, clock.now()))
        await draft.commit()
        await clock.sleep(1)
        before = clock.monotonic()
        await world.qmgr.drain(20.0)
        assert clock.monotonic() - before < 21
        reported = ("yes@b.test", "list@b.test")
        assert (world.notices.succeeded, world.notices.bounced) == ([reported], [("no@b.test",)])
        await world.store.recover()
        waiting = [name for name, _ in await world.store.scan(Queue.INCOMING)]
        assert len(waiting) == 3, "the message, its bounce and its copy for the list"
        job = await world.store.claim(draft.queue_id)
        assert job is not None and [r.address for r in job.todo] == [hangs] and job.crashes == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.fsio.close()

    run_virtual(main, patience=0.0)


def test_a_disk_that_hangs_does_not_keep_a_shutdown_from_ending(tmp_path: Path) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: OK)
        hanging, held = asyncio.Event(), list[Job]()

        async def never_ends(request: DeliveryRequest) -> None:
            request.done(request.recipients[0], NEVER)
            await hanging.wait()

        async def no_disk(job: Job, failed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
            held.append(job)
            await hanging.wait()
            return None

        world.agent.deliver = never_ends  # type: ignore[method-assign]  # a peer that hangs
        world.notices.bounce = no_disk  # type: ignore[method-assign]  # a commit that does
        task = asyncio.ensure_future(world.qmgr.run())
        queue_id = await world.submit("x@b.test", "y@b.test")
        await clock.sleep(1)
        before = clock.monotonic()
        await world.qmgr.drain(20.0)
        assert clock.monotonic() - before < 30
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert isinstance(held[0].handle, Claimed)
        os.close(held[0].handle.fd)  # as the end of the process does
        world.fsio.close()
        again = World(tmp_path, clock, lambda r, n: OK)
        await again.store.recover()
        job = await again.store.claim(queue_id)
        assert job is not None and len(job.todo) == 2
        again.fsio.close()

    run_virtual(main, patience=0.0)


def test_drain_does_not_wait_for_a_message_that_was_about_to_be_delivered(tmp_path: Path) -> None:
    async def main(clock: Clock) -> None:
        world = World(tmp_path, clock, lambda r, n: OK)
        asked, resolve = asyncio.Event(), world.resolve

        async def slow(recipient: Recipient, sender: str) -> Target:
            asked.set()
            await clock.sleep(3)
            return await resolve(recipient, sender)

        world.qmgr._resolve = slow
        task = asyncio.ensure_future(world.qmgr.run())
        queue_id = await world.submit("x@b.test")
        await asked.wait()
        before = clock.monotonic()
        await world.qmgr.drain(50.0)
        assert clock.monotonic() - before < 5
        assert [name for name, _ in await world.store.scan(Queue.INCOMING)] == [queue_id]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.fsio.close()

    run_virtual(main, patience=0.0)
