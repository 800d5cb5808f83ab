"""One submitted message on its way from stdin (or maildrop) through cleanup: shared by submit and pickup.

The queue file is begun when the recipients are known, that is when the header is complete.

See also: pickup(8)
"""

from typing import Protocol

from mta.clock import Clock, in_slices, others_run
from mta.envelope import Envelope, Origin
from mta.maillog.maillog import Maillog
from mta.queue.api import Draft, Parent
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply
from mta.submit.prepare import Submission

PIECE = 65536  # bytes of content between two pauses
HOPS_FILTER = "error:5.4.6 Too many hops"  # delivery to error(8) returns the message to its sender


class Intake(Protocol):
    """mta/cleanup/intake.py."""

    queue_id: str

    def write(self, content: bytes) -> None: ...

    async def commit(self) -> Reply: ...

    async def store(self, parent: Parent | None) -> Draft: ...

    def abort(self) -> None: ...


class Opener(Protocol):
    """mta/cleanup/cleanup.py."""

    async def open(self, origin: Origin, envelope: Envelope, *, attributes: dict[str, str] | None = None) -> Intake: ...


async def open_local(
    cleanup: Opener,
    envelope: Envelope,
    uid: int,
    log: Maillog,
    *,
    hops: int,
    hop_limit: int,
    attributes: dict[str, str] | None = None,
    via: tuple[str, str] = ("", ""),
    requeued: bool = False,
) -> Intake:
    """Begin a message of a local user and log it; one that went round too often is to be returned, not refused.

    via: protocol and host by which it came to the user's program, for Received.  requeued: see Origin.
    """
    local = envelope.attributes.get("rewrite_context") != "remote"
    if hop_limit and hops + 1 > hop_limit:
        envelope.attributes["content_filter"] = HOPS_FILTER
    sender = envelope.sender
    origin = Origin("pickup", uid=uid, rewrite_local=local, protocol=via[0], helo=via[1], requeued=requeued)
    intake = await cleanup.open(origin, envelope, attributes=attributes)
    log.write("pickup", f"{intake.queue_id}: uid={uid} from=<{quote_address(sender)}>")
    return intake


class Delivery:
    """Feeds a Submission into the queue."""

    def __init__(
        self, cleanup: Opener, submission: Submission, log: Maillog, clock: Clock, *, hop_limit: int, key: str
    ) -> None:
        """key: hex of the caller's key, kept in the queue file."""
        self._cleanup, self._submission, self._log, self._clock = cleanup, submission, log, clock
        self._hop_limit, self._key = hop_limit, key
        self._intake: Intake | None = None

    @property
    def queue_id(self) -> str:
        """ "" before the header was complete."""
        return self._intake.queue_id if self._intake is not None else ""

    async def feed(self, chunk: bytes) -> None:
        """Take a piece of stdin; raises UsageError or QueueError."""
        if not self._submission.ended:
            await self._pass(await in_slices(self._submission.feeding(chunk)))

    async def finish(self) -> Reply:
        """stdin has ended: commit."""
        await self._pass(await in_slices(self._submission.ending()))
        if self._intake is None:
            raise RuntimeError("a submission is ready when it has ended")
        return await self._intake.commit()

    def close(self) -> None:
        """Whatever happened: nothing half-written stays.  Does nothing after a commit."""
        if self._intake is not None:
            self._intake.abort()

    async def _pass(self, text: bytes) -> None:
        if not self._submission.ready:
            return
        if self._intake is None:
            self._intake = await open_local(
                self._cleanup,
                await in_slices(self._submission.enveloping(self._clock.now())),
                self._submission.caller.uid,
                self._log,
                hops=self._submission.hops,
                hop_limit=self._hop_limit,
                attributes={"submit_key": self._key},
                via=self._submission.invocation.via,
            )
        for at in range(0, len(text), PIECE):  # one, except for a long header
            if at:
                await others_run()
            self._intake.write(text[at : at + PIECE])
