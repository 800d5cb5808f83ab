"""What the rest of the MTA sees of the queue: jobs and drafts, never a path.

The scheduler, the agents and cleanup talk to a QueueStore.  The embedded one is the spool in store.py; a
second one may keep the queue elsewhere, so nothing in here names a directory or a file.

See also: mta/INTERNALS.md (states and commit points)
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Protocol

from mta.envelope import Envelope, Recipient
from mta.record import dataclass


class Queue(StrEnum):
    """Where a message is; the value is the name mailq and postqueue show."""

    MAILDROP = "maildrop"
    INCOMING = "incoming"
    ACTIVE = "active"
    DEFERRED = "deferred"
    HOLD = "hold"
    CORRUPT = "corrupt"


class QueueError(Exception):
    """The queue could not do it now: full, read-only, damaged device.  Always answered 4xx."""


class QueueFullError(QueueError):
    """No space or quota: 452 4.3.1 instead of 451 4.3.0."""


class FencedError(QueueError):
    """Somebody else moved or removed the message: forget the id, never recreate it."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child was made from; stored in the child, so that a crash between the two commits repeats nothing.

    kind: "bounce", "delay", "success", "double-bounce", "forward", "maildrop".  uid: the parent's 128 random
    bits in hex (for maildrop: "dev.inode.ctime_ns").  queue_id: the parent's (for maildrop the file's name).
    recipients: offsets of the parent's recipients that this child settles.
    """

    kind: str
    uid: str
    queue_id: str
    recipients: tuple[int, ...] = ()


@dataclass(slots=True)
class Job:
    """A message claimed by the queue manager: it is in ACTIVE, locked, and nobody else's.

    size: message size as Postfix counts it (C record field 1).  crashes: attempts that never ended.
    content_8bit: the content has bytes above 127 (False when unknown to be so).
    """

    queue_id: str
    uid: str
    envelope: Envelope
    size: int
    origin_queue: Queue
    crashes: int = 0
    force_expire: bool = False
    content_8bit: bool = False
    handle: object = field(default=None, repr=False)  # the store's own

    @property
    def todo(self) -> list[Recipient]:
        """Recipients nobody has taken responsibility for, in file order."""
        return [r for r in self.envelope.recipients if r.state == "R"]


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of mailq: reasons maps a recipient's address to the text of its last deferral."""

    queue: Queue
    queue_id: str
    arrival: float
    size: int
    force_expire: bool
    sender: str
    recipients: tuple[str, ...]
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a recipient was deferred or failed, as kept in defer/ID: dsn "4.4.1", text as in mailq's parentheses.

    diag_type, diag_text, mta_name: "smtp", the remote's words, its host name; "" when the words are ours.
    """

    dsn: str
    text: str
    action: str = "delayed"
    diag_type: str = ""
    diag_text: str = ""
    mta_name: str = ""


class Draft(Protocol):
    """A message being written.  Not in the queue until commit returns; gone without trace after abort."""

    queue_id: str
    uid: str
    size: int  # bytes of content written so far, as LF lines

    def envelope(self, envelope: Envelope) -> None:
        """Write the envelope, once, before any content."""

    def write(self, content: bytes) -> None:
        """Append message text as LF lines, cut anywhere.  A disk error is kept and raised by commit."""

    async def commit(self, *, parent: Parent | None = None, hold: bool = False,
                     attributes: Mapping[str, str] | None = None) -> None:
        """Make it durable: content and name are on disk when this returns.  QueueError: nothing was queued.

        With a parent the message is born held: settle() releases it.  hold: goes to HOLD (access(5) HOLD).
        """

    def abort(self) -> None:
        """Forget it; never raises."""


class QueueStore(Protocol):
    """The queue as a whole.

    Order for a job's children: commit each child (born held) -> mark the parent's recipients -> flush_marks ->
    release(children) -> finish or defer.  A crash anywhere in between is repaired by recover().
    """

    arrived: Callable[[str, int], None]
    """Called with the id of each message that has become claimable here, and the Clock.moment before it got it."""

    async def recover(self) -> None:
        """At start, once, by the process that owns the queue: settle children of a crash, empty ACTIVE, sweep."""

    async def draft(self, arrival: float) -> Draft:
        """Begin a message received at this Unix time; QueueError when nothing can be accepted now."""

    async def claim(self, queue_id: str) -> Job | None:
        """Take a message from INCOMING or DEFERRED for delivery: -> ACTIVE, locked.

        None: not there, locked by another, born held, or found damaged and just moved to CORRUPT.
        """

    async def scan(self, queue: Queue) -> list[tuple[str, float]]:
        """Ids in INCOMING or DEFERRED with their next-attempt time (Unix seconds), without reading the files."""

    def content(self, job: Job) -> AsyncIterator[bytes]:
        """Message text in chunks <= 64 KiB, as LF lines; CorruptContentError at the end on a wrong checksum."""

    async def header(self, job: Job, limit: int) -> bytes:
        """The first `limit` bytes of content as LF lines (for Delivered-To, bounces, message-id)."""

    def mark(self, job: Job, recipient: Recipient) -> None:
        """Record in place that this recipient is done (R -> D); durable after the next flush_marks()."""

    async def flush_marks(self, job: Job) -> None:
        """Return when every mark made on this job is durable (group commit over all jobs)."""

    async def begin_attempt(self, job: Job) -> None:
        """Count an attempt in the file before it starts, so that a message that kills its handler is found out."""

    async def release(self, children: Sequence[Draft]) -> None:
        """The parents' marks are durable: these children may be claimed now."""

    async def finish(self, job: Job) -> None:
        """All recipients are done, and children released: remove the message and its reasons.

        This is the mark of all recipients at once, durable a moment later; nobody waits for it.
        """

    async def defer(self, job: Job, next_attempt: float, reasons: Mapping[int, Reason]) -> None:
        """Recipients remain: keep reasons[recipient offset] for mailq; -> DEFERRED until next_attempt; let go."""

    async def hold(self, job: Job) -> None:
        """-> HOLD, and let go of it."""

    async def give_back(self, job: Job, *, crashed: bool = False) -> None:
        """Let go of a job (shutdown, over the limit): -> back where it can be claimed again.

        crashed: its attempt ended in a bug, so the count of begin_attempt stands; else it is taken back.
        """

    async def reasons(self, job: Job) -> dict[int, Reason]:
        """Reasons of the last deferral by recipient offset; {} when there are none."""

    async def wake(self, queue_ids: Sequence[str] | None = None) -> int:
        """Make deferred messages (None = all) due now; return how many.  `postqueue -f`, `postqueue -i`.

        One that cannot be made due is logged, and the others are.
        """

    def listing(self, failed: Callable[[str, OSError], None] | None = None) -> AsyncIterator[Listing]:
        """Every message in mailq's order: maildrop, active, incoming, deferred, hold.

        failed: is told what could not be read (its place in the queue), and why.
        """
