"""One attempt at one message: what each recipient's fate was, and what follows from all of them.

State lives in the queue file; this object lasts from claim to settle.  Order of the end of an attempt
(mta/INTERNALS.md "settle"): children (bounce, notices, forwarded copies) are committed, born held -> the
recipients they answer for are marked -> marks are flushed -> children are released -> the message is
removed, or deferred with its reasons.  A crash at any point repeats at most what was not yet marked.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Protocol

from mta.cleanup.intake import RefusedError
from mta.clock import Clock, others_run
from mta.deliver.request import DeliveryRequest, Expansion, Result
from mta.envelope import RET_DEFAULT, Envelope, Notify, Origin, Recipient, verp_sender, wants_verp
from mta.maillog.maillog import Delays, Maillog, delivery
from mta.queue.api import Draft, Job, Parent, QueueError, QueueStore, Reason
from mta.record import dataclass
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply

SLICE = 500  # recipients between two pauses
HELD = 10  # children that wait for the marks of their parent; each has a descriptor
INTERNAL_ERROR = Reply(451, "4.3.0", "internal error, will try again")


class Bounces(Protocol):
    """The bounce service; each method returns a child that is committed but born held, or None: nobody to tell."""

    def one_by_one(self, job: Job) -> bool:
        """Is there to be a bounce for each recipient (VERP)?"""

    async def bounce(self, job: Job, failed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender that these recipients will not get the message."""

    async def delay_notice(self, job: Job, delayed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender that it takes longer."""

    async def success_notice(self, job: Job, done: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender who asked for it (NOTIFY=SUCCESS) that it arrived."""


class Injector(Protocol):
    """The one door into the queue, as forwarding uses it."""

    async def inject(
        self, origin: Origin, envelope: Envelope, chunks: AsyncIterator[bytes], parent: Parent | None
    ) -> Draft:
        """Commit a child, born held."""


@dataclass(slots=True)
class Attempt:
    """The round in progress for one job.  claimed: monotonic; before: seconds from arrival to claim."""

    job: Job
    claimed: float
    before: float
    store: QueueStore
    log: Maillog
    soft_bounce: bool
    results: dict[int, Result] = field(default_factory=dict)
    services: dict[int, tuple[str, Delays]] = field(default_factory=dict)
    children: list[Draft] = field(default_factory=list)
    begun: bool = False  # the attempt is counted in the file
    stored: dict[int, Recipient] = field(default_factory=dict)  # of those that are delivered under another address
    ordinary: bool = True  # so far each was delivered, to somebody of whom nobody wants to hear
    told: set[str] = field(default_factory=set)  # notices already committed: settling may be repeated

    def resolved(self, recipient: Recipient, address: str) -> Recipient:
        """The recipient as an agent is to see it; queue, mailq and bounces know it by the address it came with."""
        self.stored[recipient.offset] = recipient
        return replace(recipient, address=address, original=recipient.original or recipient.address)

    def recorder(self, service: str, started: float) -> Callable[[Recipient, Result], None]:
        """The `done` of one DeliveryRequest of this attempt."""

        def done(recipient: Recipient, result: Result) -> None:
            self.record(recipient, result, service, started)

        return done

    def record(self, recipient: Recipient, result: Result, service: str, started: float) -> None:
        """Take note of a recipient's fate; a second word on the same recipient is ignored.

        A positive result is marked in the queue file here, with no await since the peer's 250 was read: that is
        what keeps window W2 at microseconds.  Expansions are marked when their child is committed.
        """
        if recipient.offset in self.results:
            return
        result = self._softened(result)
        self.results[recipient.offset] = result
        if result.expansion is not None or not result.reply.is_positive or (result.action and _reports(recipient)):
            self.ordinary = False
        delays = Delays(
            self.before,
            started - self.claimed,
            max(0.0, result.connected - started) if result.connected else 0.0,
            max(0.0, result.finished - (result.connected or started)) if result.finished else 0.0,
        )
        self.services[recipient.offset] = (service, delays)
        if result.expansion is not None:
            return
        if result.reply.is_positive:
            self.store.mark(self.job, self.stored.get(recipient.offset, recipient))
        delivery(self.log.write, service, self.job.queue_id, recipient, result, delays)

    def refuse(self, recipient: Recipient, reply: Reply, service: str, now: float) -> None:
        """It is not tried.  now: monotonic seconds."""
        self.record(recipient, Result(reply, reply.text), service, now)

    def _softened(self, result: Result) -> Result:
        """A refusal is temporary under soft_bounce."""
        if not (result.reply.is_permanent and self.soft_bounce):
            return result
        reply = Reply(400 + result.reply.code % 100, "4" + result.reply.enhanced[1:], result.reply.text)
        return Result(reply, result.text, result.relay, result.diagnostic, result.remote_mta)

    def unreported(self, recipients: Sequence[Recipient], service: str, started: float) -> None:
        """An agent has ended without a word on these: temporary, whatever the cause."""
        for recipient in recipients:
            if recipient.offset not in self.results:
                self.record(recipient, Result(INTERNAL_ERROR, INTERNAL_ERROR.text), service, started)

    def site_failure(self, recipients: Sequence[Recipient]) -> Reply | None:
        """The reason when the next hop as a whole is to blame, None when it dealt with at least one recipient."""
        if self.ordinary:
            return None
        results = [self.results.get(r.offset) for r in recipients]
        known = [r for r in results if r is not None]
        if known and all(r.site_failed and r.reply.is_temporary for r in known):
            return Reply(known[0].reply.code, known[0].reply.enhanced, known[0].text)
        return None

    def select(self, wanted: Callable[[Result], bool]) -> list[tuple[Recipient, Result]]:
        """Recipients whose result is of a kind, in file order."""
        pairs = ((r, self.results.get(r.offset)) for r in self.job.envelope.recipients)
        return [(r, result) for r, result in pairs if result is not None and wanted(result)]

    async def forward(self, injector: Injector, clock: Clock) -> None:
        """Make the children that expansions ask for.

        A child that cannot be stored leaves its recipient deferred, one that is refused (a loop) bounces it.
        """
        for recipient, result in self.select(lambda r: r.expansion is not None):
            expansion = result.expansion
            if expansion is None:  # for the type checker: select() asked for it
                continue
            service, delays = self.services[recipient.offset]
            try:
                child = await injector.inject(
                    Origin(door="forward"),
                    self._child_envelope(recipient, expansion, clock.now()),
                    self._child_content(expansion),
                    Parent("forward", self.job.uid, self.job.queue_id, (recipient.offset,)),
                )
            except RefusedError as error:  # as the client of an SMTP server hears it: too many hops
                result = self._softened(Result(error.reply, error.reply.text))
            except QueueError:
                refused = Reply(451, "4.3.0", "queue file write error")
                result = Result(refused, refused.text)
            else:
                self.children.append(child)
                action = "delivered" if self._is_list(expansion) else "expanded"
                result = Result(result.reply, f"forwarded as {child.queue_id}", result.relay, action=action)
                self.store.mark(self.job, recipient)
            self.results[recipient.offset] = result
            delivery(self.log.write, service, self.job.queue_id, recipient, result, delays)
            if len(self.children) >= HELD:
                await self.release_children()

    async def release_children(self) -> None:
        """Make the marks durable, and let go of the children that answer for those recipients."""
        if self.children:
            await self.store.flush_marks(self.job)
            await self.store.release(self.children)
            self.children.clear()

    def _is_list(self, expansion: Expansion) -> bool:
        """Has it a sender of its own?  RFC 3461 s5.2.7.3: delivered to the list, its mail to the members is another."""
        return expansion.sender != self.job.envelope.sender

    def _child_envelope(self, recipient: Recipient, expansion: Expansion, now: float) -> Envelope:
        parent = self.job.envelope
        keep = {k: v for k, v in parent.attributes.items() if k == "rewrite_context" or k.startswith("log_")}
        # "Expanded" is the report of success; who asked for nothing else hears nothing else (0 would mean default).
        notify = recipient.notify & ~Notify.SUCCESS if recipient.notify != Notify.SUCCESS else Notify.NEVER
        original, orcpt = recipient.original or recipient.address, recipient.dsn_orig_rcpt
        envelope_id, ret = parent.envelope_id, parent.ret
        if self._is_list(expansion):
            original, orcpt, envelope_id, ret = "", "", "", RET_DEFAULT
        leaves = [Recipient(a, original, notify, orcpt) for a in expansion.recipients]
        return Envelope(
            expansion.sender, leaves, now, parent.full_name, envelope_id, ret, parent.encoding, parent.smtputf8,
            attributes=keep,
        )  # fmt: skip

    async def _child_content(self, expansion: Expansion) -> AsyncIterator[bytes]:
        if expansion.delivered_to:
            yield f"Delivered-To: {expansion.delivered_to}\n".encode("utf-8", "surrogateescape")
        async for chunk in self.store.content(self.job):
            yield chunk

    async def notify(self, bounces: Bounces, *, expired: bool, delayed: bool) -> None:
        """Bounce what failed (and, expired, what is still deferred), send notices, mark what is answered for."""
        if expired and self.select(lambda r: r.reply.is_temporary):
            status = "force-expired" if self.job.force_expire else "expired"
            sender = quote_address(self.job.envelope.sender)
            self.log.write("qmgr", f"{self.job.queue_id}: from=<{sender}>, status={status}, returned to sender")
        failed = self.select(lambda r: r.reply.is_permanent or (expired and r.reply.is_temporary))
        parts = {"bounce": failed} if failed else {}
        if bounces.one_by_one(self.job):
            parts = {f"bounce of {recipient.offset}": [(recipient, x)] for recipient, x in failed}
        for kind, part in parts.items():
            if kind not in self.told:
                self._adopt(kind, await bounces.bounce(self.job, part))
                for n, (recipient, _) in enumerate(part):
                    if n % SLICE == SLICE - 1:
                        await others_run()
                    self.store.mark(self.job, recipient)
                if len(self.children) >= HELD:
                    await self.release_children()
        done = [(r, x) for r, x in self.select(lambda x: x.reply.is_positive) if _reports(r) and x.action]
        if done and "success" not in self.told:
            self._adopt("success", await bounces.success_notice(self.job, done))
        if delayed and not expired:
            late = self.select(lambda r: r.reply.is_temporary)
            if late and "delay" not in self.told:
                self._adopt("delay", await bounces.delay_notice(self.job, late))

    def _adopt(self, kind: str, child: Draft | None) -> None:
        self.told.add(kind)
        if child is not None:
            self.children.append(child)

    def reasons(self) -> dict[int, Reason]:
        """What defer/ID is to say about recipients that stay."""
        found = {}
        for recipient, result in self.select(lambda r: r.reply.is_temporary):
            if not recipient.todo:
                continue
            kind, _, text = result.diagnostic.partition("; ")
            found[recipient.offset] = Reason(
                result.reply.enhanced, result.text, diag_type=kind, diag_text=text, mta_name=result.remote_mta
            )
        return found


def _reports(recipient: Recipient) -> bool:
    """Does the sender want to hear of success?  (A set of flags takes long to ask.)"""
    return int(recipient.notify) & int(Notify.SUCCESS) != 0


def request_for(attempt: Attempt, entry_recipients: tuple[Recipient, ...], transport: str, nexthop: str,
                started: float) -> DeliveryRequest:  # fmt: skip
    """Build what the agent gets."""
    job = attempt.job
    envelope = job.envelope
    if wants_verp(envelope):
        (recipient,) = entry_recipients
        envelope = replace(envelope, sender=verp_sender(envelope, recipient))
    return DeliveryRequest(
        job.queue_id, envelope, transport, nexthop, entry_recipients, job.size, partial(attempt.store.content, job),
        attempt.recorder(transport, started), started, job.content_8bit,
    )  # fmt: skip
