"""What the queue manager asks of a delivery agent, and what it hears back.

The agent owns nothing of the queue: it calls `done` once per recipient the moment that recipient's fate is
known, and may report different fates for recipients of one request.  Whatever it has not reported when
`deliver` returns or raises is recorded as 451 4.3.0, never as a failure.

See also: mta/INTERNALS.md "delivery"
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import field
from typing import Protocol

from mta.envelope import Envelope, Recipient
from mta.record import dataclass
from mta.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Expansion:
    """A recipient that became other recipients (alias, :include:, .forward): becomes one child message.

    recipients: the leaves, fully qualified, unquoted.  sender: envelope sender of the child (owner-LIST or the
    original one).  delivered_to: address for the Delivered-To: header put in front of the child's content.
    """

    recipients: tuple[str, ...]
    sender: str
    delivered_to: str


@dataclass(frozen=True, slots=True)
class Result:
    """The fate of one recipient.

    reply: its class decides (2xx sent, 4xx deferred, 5xx bounced); reply.enhanced is dsn= in the log.
    text: what stands in parentheses in the log and in mailq, e.g. "host mx[1.2.3.4] said: 450 4.2.0 x (in reply
    to RCPT TO command)" or "delivered to mailbox".  relay: "mx.dst.test[10.0.0.1]:25", "local" or "none".
    diagnostic: the remote's own words for Diagnostic-Code ("smtp; 550 5.1.1 ..."), "" when the words are ours.
    remote_mta: host name for Remote-MTA (RFC 3464 s2.3.5), "".  action: for a success DSN: "delivered",
    "relayed" (next hop has no DSN), "expanded", or "" when the next hop took over the DSN duty.
    connected, finished: monotonic seconds when the connection stood and when the reply came (for delays=).
    site_failed: the whole next hop is to blame (no connection, bad greeting, 421), not this recipient; enough of
    these and the queue manager leaves the destination alone for a while.
    """

    reply: Reply
    text: str
    relay: str = "none"
    diagnostic: str = ""
    remote_mta: str = ""
    action: str = "delivered"
    conn_use: int = 1
    connected: float = 0.0
    finished: float = 0.0
    site_failed: bool = False
    expansion: Expansion | None = None


@dataclass(slots=True)
class DeliveryRequest:
    """One attempt: one message, one transport:nexthop, some of its recipients.

    content: call it to get an async iterator of chunks of at most 64 KiB of plain message text, as LF lines (no
    dot-stuffing); it raises CorruptContent after the last chunk when the stored
    checksum does not match, so an agent must not complete a transaction before the iterator is exhausted.
    size: bytes of the message as stored.  started: monotonic seconds when the request was made.
    has_8bit: content or header has bytes above 127.  probe: no delivery, only verify (-bv).
    """

    queue_id: str
    envelope: Envelope
    transport: str
    nexthop: str
    recipients: tuple[Recipient, ...]
    size: int
    content: Callable[[], AsyncIterator[bytes]]
    done: Callable[[Recipient, Result], None]
    started: float = 0.0
    has_8bit: bool = False
    reported: set[int] = field(default_factory=set)  # offsets of recipients, kept by the queue manager


class CorruptContentError(Exception):
    """The stored content does not match its checksum: nothing of it may be completed at a peer or in a mailbox."""


class DeliveryAgent(Protocol):
    """smtp, lmtp, local, virtual, pipe, discard, error, retry."""

    async def deliver(self, request: DeliveryRequest) -> None:
        """Try once; report each recipient through request.done."""

    async def close(self) -> None:
        """Release cached connections and helpers; deliveries in flight have ended or are cancelled before."""
