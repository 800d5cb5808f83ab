"""What a message in maildrop may be: one rule for those who write it (sendmail, postdrop) and for pickup.

They have said 0 for it when pickup looks at it, so whatever pickup refuses for good is refused by them first.
Decisions only, no I/O.

See also: sendmail_compat/maildrop.py, mta/queue/store_maildrop.py, mta/pickup.py
"""

from mta.envelope import Envelope
from mta.queue.queue_reader import DamagedError, QueueFile, ReadAt, decode
from mta.submit.options import CONTROL

MAX_RECIPIENTS = 250_000  # a memory of tens of megabytes while they are read
MAX_RECORDS = 3 * MAX_RECIPIENTS + 1000  # of an envelope; a recipient may have notify_flags and dsn_orig_rcpt
MAX_ENVELOPE = 32 << 20  # bytes of its records; the longest command line and header that can be make half of it
TOO_MANY = f"too many recipients, or too long ones, for one message in maildrop; at most {MAX_RECIPIENTS}"


def file_limit(message_size_limit: int) -> int:
    """Most bytes of a file, 0 = no limit.  message_size_limit: of the text alone, bytes, 0 = none."""
    return 2 * message_size_limit + MAX_ENVELOPE if message_size_limit else 0  # empty lines take two bytes each


def envelope_of(read_at: ReadAt, *, requeued: bool = False) -> QueueFile:
    """Decode a file and check what is checked of anybody's; DamagedError when it can never be queued.

    requeued: it was in the queue before, so it was not too much to take in, and may have been delivered since.
    """
    found = decode(read_at, 0 if requeued else MAX_RECORDS)
    if not (requeued and is_done(found.envelope)):
        check(found.envelope, 0 if requeued else MAX_RECIPIENTS)
    return found


def is_done(envelope: Envelope) -> bool:
    """Had it recipients, and is nothing left to do for any of them?"""
    return bool(envelope.recipients) and not any(r.todo for r in envelope.recipients)


def check(envelope: Envelope, limit: int = MAX_RECIPIENTS) -> None:
    """DamagedError when nobody may be sent this: no recipients, too many, a control character in an address."""
    todo = [r for r in envelope.recipients if r.todo]
    if not todo:
        raise DamagedError("no recipients")
    if limit and len(todo) > limit:
        raise DamagedError("too many recipients")
    for address in (envelope.sender, *(r.address for r in todo)):
        if CONTROL.search(address):
            raise DamagedError("control character in an address")
