"""Who is told what about mail that failed, is late, or arrived: notices as new messages in our own queue.

A notice is a child of the message it speaks of: committed but born held until the parent's marks are durable,
so a crash repeats none.  Its sender is the null sender, so it can never be answered with another notice:

- mail with a sender: a report to the sender, as NOTIFY allows;
- mail from the null sender (a notice that failed): a double bounce to the postmaster, if notify_classes has
  2bounce or bounce, from double-bounce@myhostname, with all of the notice: only there is who was to get what;
- mail from double-bounce@myhostname that failed: dropped, with one warning.

Copies for the postmaster (notify_classes bounce, delay) return the header only.  They are separate messages without
a parent, committed after the sender's report: a crash can repeat or lose such a copy, never the report.

When the original cannot be read (damaged, queue error) the notice goes out without it.

See also: bounce(8), RFC 3461 s5.2 and s6, RFC 5321 s6.1 (null reverse-path), mta/bounce/dsn.py
"""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from mta.bounce.dsn import Kind, Report, ReportRecipient, closing, opening
from mta.clock import Clock, others_run, rfc5322_date
from mta.deliver.request import CorruptContentError, Result
from mta.envelope import Envelope, Notify, Origin, Recipient, Ret, verp_sender, wants_verp
from mta.maillog.maillog import Maillog
from mta.queue.api import Draft, Job, Parent, QueueError, QueueStore
from mta.record import dataclass

HEADER_LIMIT = 60000  # bytes of the original's header that are returned
SLICE = 1000  # recipients between two pauses
SERVICE = "bounce"


@dataclass(frozen=True, slots=True)
class BounceSettings:
    """postconf(5); bytes and seconds."""

    myhostname: str
    mail_name: str
    bounce_size_limit: int
    delay_warning_time: float
    maximal_queue_lifetime: float
    notify_classes: tuple[str, ...]
    bounce_notice_recipient: str
    delay_notice_recipient: str
    double_bounce_sender: str
    _2bounce_notice_recipient: str
    disable_verp_bounces: bool = False


class Injector(Protocol):
    """The part of cleanup used here."""

    async def inject(
        self,
        origin: Origin,
        envelope: Envelope,
        chunks: AsyncIterator[bytes] | Iterable[bytes],
        parent: Parent | None,
    ) -> Draft:
        """Commit a message of our own; with a parent it is born held."""


@dataclass(frozen=True, slots=True)
class _Original:
    """What can be returned: kind as in Report.original; header with its LFs, without the empty line."""

    kind: str
    header: bytes
    eight_bit: bool


class BounceWriter:
    """Makes notices.  QueueError: nothing was made, the caller tries again."""

    def __init__(
        self,
        settings: BounceSettings,
        cleanup: Injector,
        store: QueueStore,
        log: Maillog,
        clock: Clock,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """entropy: random bytes, for MIME boundaries that no message can contain by design."""
        self._settings, self._cleanup, self._store = settings, cleanup, store
        self._log, self._clock, self._entropy = log, clock, entropy

    def one_by_one(self, job: Job) -> bool:
        """VERP: each failed recipient has a report of its own, to the sender that names it."""
        return wants_verp(job.envelope) and not self._settings.disable_verp_bounces

    async def bounce(self, job: Job, failed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender, or for the null sender the postmaster, that these recipients will not get it."""
        sender = job.envelope.sender
        if self._is_double_bounce(sender):
            self._log.warning(SERVICE, f"{job.queue_id}: undeliverable postmaster notification discarded")
            return None
        if not sender:
            if not {"2bounce", "bounce"}.intersection(self._settings.notify_classes):
                return None
            to, parent = self._settings._2bounce_notice_recipient, _parent("double-bounce", job, failed)
            return await self._postmaster(job, Kind.FAILURE, failed, to, parent, headers_only=False)
        wanted = [(r, x) for r, x in failed if not r.notify or r.notify & Notify.FAILURE]
        child = None
        if wanted:
            headers_only = bool(job.envelope.ret & Ret.HDRS)
            child = await self._tell(job, Kind.FAILURE, wanted, "bounce", headers_only=headers_only)
            self._note(job, "sender non-delivery notification", child)
        await self._copy(job, Kind.FAILURE, failed, "bounce", self._settings.bounce_notice_recipient, child)
        return child

    async def delay_notice(self, job: Job, delayed: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender that it takes longer; of the null sender's mail nobody is told."""
        sender = job.envelope.sender
        if not sender or self._is_double_bounce(sender):
            return None
        wanted = [(r, x) for r, x in delayed if not r.notify or r.notify & Notify.DELAY]
        child = None
        if wanted:
            child = await self._tell(job, Kind.DELAY, wanted, "delay", headers_only=True)
            self._note(job, "sender delay notification", child)
        await self._copy(job, Kind.DELAY, delayed, "delay", self._settings.delay_notice_recipient, child)
        return child

    async def success_notice(self, job: Job, done: Sequence[tuple[Recipient, Result]]) -> Draft | None:
        """Tell the sender who asked for it that the message arrived."""
        sender = job.envelope.sender
        wanted = [(r, x) for r, x in done if r.notify & Notify.SUCCESS]
        if not wanted or not sender or self._is_double_bounce(sender):
            return None
        child = await self._tell(job, Kind.SUCCESS, wanted, "success", headers_only=True)
        self._note(job, "sender delivery status notification", child)
        return child

    # -- one message ------------------------------------------------------------------------------

    async def _tell(
        self, job: Job, kind: Kind, about: Sequence[tuple[Recipient, Result]], parent: str, *, headers_only: bool
    ) -> Draft:
        original = await self._original(job, headers_only=headers_only)
        to = job.envelope.sender
        if kind is Kind.FAILURE and self.one_by_one(job):
            to = verp_sender(job.envelope, about[0][0])
        report = await self._report(job, kind, about, to, original, postmaster=False)
        envelope = Envelope("", [Recipient(to)], self._clock.now(), smtputf8=report.utf8)
        return await self._inject(job, report, original, envelope, _parent(parent, job, about))

    async def _copy(
        self, job: Job, kind: Kind, about: Sequence[tuple[Recipient, Result]], error_class: str, to: str,
        child: Draft | None,
    ) -> None:  # fmt: skip
        """The postmaster's copy; without it the sender's report is taken back, because the caller repeats both."""
        if error_class not in self._settings.notify_classes:
            return
        try:
            await self._postmaster(job, kind, about, to, None, headers_only=True)
        except BaseException:
            if child is not None:
                child.abort()
            raise

    async def _postmaster(
        self, job: Job, kind: Kind, about: Sequence[tuple[Recipient, Result]], to: str, parent: Parent | None, *,
        headers_only: bool,
    ) -> Draft:  # fmt: skip
        original = await self._original(job, headers_only=headers_only)
        report = await self._report(job, kind, about, to, original, postmaster=True)
        envelope = Envelope(self._double_bounce(), [Recipient(to)], self._clock.now(), smtputf8=report.utf8)
        child = await self._inject(job, report, original, envelope, parent)
        what = "delay" if kind is Kind.DELAY else "non-delivery"
        self._note(job, f"postmaster {what} notification", child)
        return child

    async def _inject(
        self, job: Job, report: Report, original: _Original, envelope: Envelope, parent: Parent | None
    ) -> Draft:
        origin = Origin(door="bounce", rewrite_local=True)
        return await self._cleanup.inject(origin, envelope, self._content(job, report, original), parent)

    async def _content(self, job: Job, report: Report, original: _Original) -> AsyncIterator[bytes]:
        for number, piece in enumerate(opening(report)):
            if number:
                await others_run()
            yield piece
        if report.original == "headers":
            yield original.header
        elif report.original == "message":
            last = b"\n"
            async for chunk in self._store.content(job):
                yield chunk
                last = chunk[-1:] or last
            if last != b"\n":
                yield b"\n"
        yield closing(report)

    def _note(self, job: Job, what: str, child: Draft) -> None:
        self._log.write(SERVICE, f"{job.queue_id}: {what}: {child.queue_id}")

    # -- what it says -----------------------------------------------------------------------------

    async def _report(
        self,
        job: Job,
        kind: Kind,
        about: Sequence[tuple[Recipient, Result]],
        to: str,
        original: _Original,
        *,
        postmaster: bool,
    ) -> Report:
        settings, envelope, now = self._settings, job.envelope, self._clock.now()
        addresses = [to, envelope.sender, *(r.address for r, _ in about), *(r.dsn_orig_rcpt for r, _ in about)]
        recipients = []
        for n, (recipient, result) in enumerate(about):
            if n % SLICE == SLICE - 1:
                await others_run()
            recipients.append(_report_recipient(kind, recipient, result))
        foreign = not all(a.isascii() for a in addresses) or not original.header.isascii()
        return Report(
            kind=kind,
            to=to,
            myhostname=settings.myhostname,
            mail_name=settings.mail_name,
            queue_id=job.queue_id,
            sender=envelope.sender,
            date=rfc5322_date(int(now)),
            arrival=rfc5322_date(int(envelope.arrival)),
            boundary=self._boundary(job.queue_id),
            recipients=tuple(recipients),
            envelope_id=envelope.envelope_id,
            retry_until=rfc5322_date(int(envelope.arrival + settings.maximal_queue_lifetime)),
            original=original.kind,
            eight_bit=original.eight_bit,
            utf8=envelope.smtputf8 and foreign,
            postmaster=postmaster,
            warned_after=settings.delay_warning_time,
            retried_for=settings.maximal_queue_lifetime,
        )

    async def _original(self, job: Job, *, headers_only: bool) -> _Original:
        """Look at what is to be returned before the first byte is written: can it be read, how much, 8-bit?

        All of it is read, also when only the header goes back: its checksum is known at the end.
        """
        try:
            header = _header_of(await self._store.header(job, HEADER_LIMIT))
            ascii_only = True
            async for chunk in self._store.content(job):
                ascii_only = ascii_only and chunk.isascii()
            if headers_only or job.size > self._settings.bounce_size_limit:
                return _Original("headers", header, not header.isascii())
            return _Original("message", header, not ascii_only)
        except (CorruptContentError, QueueError, OSError) as error:
            self._log.warning(SERVICE, f"{job.queue_id}: notice without the original, which cannot be read: {error}")
            return _Original("", b"", eight_bit=False)

    def _boundary(self, queue_id: str) -> str:
        return f"{queue_id[:24]}.{self._entropy(16).hex()}"

    def _double_bounce(self) -> str:
        return f"{self._settings.double_bounce_sender}@{self._settings.myhostname}"

    def _is_double_bounce(self, sender: str) -> bool:
        return sender.lower() == self._double_bounce().lower()


def _parent(kind: str, job: Job, about: Sequence[tuple[Recipient, Result]]) -> Parent:
    return Parent(kind, job.uid, job.queue_id, tuple(r.offset for r, _ in about))


def _header_of(data: bytes) -> bytes:
    """The header of a message of which this is the beginning: whole lines, without the empty one."""
    if data.startswith(b"\n"):
        return b""
    end = data.find(b"\n\n")
    return data[: end + 1] if end >= 0 else data[: data.rfind(b"\n") + 1]


def _report_recipient(kind: Kind, recipient: Recipient, result: Result) -> ReportRecipient:
    text = f"delivery via {result.relay}: {result.text}" if kind is Kind.SUCCESS else result.text
    return ReportRecipient(
        address=recipient.address,
        original=recipient.original,
        orcpt=recipient.dsn_orig_rcpt,
        status=result.reply.enhanced,
        text=text,
        action=result.action if kind is Kind.SUCCESS else "",
        diagnostic=result.diagnostic,
        remote_mta=result.remote_mta,
    )
