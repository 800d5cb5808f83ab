"""Which recipients of a message go together: by transport and next hop, at most so many per delivery.

Pure: what a recipient resolves to is an argument.  A transport with one recipient per delivery (local, virtual) has a
window for each mailbox, not for each host.
"""

import re
from collections.abc import Callable

from mta.envelope import Recipient
from mta.qmgr.scheduler import Entry, TransportLimits
from mta.record import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Where a recipient goes: trivial-rewrite's Route as the queue manager needs it.

    recipient: the address to deliver to, "" = as it stands; "user%far@us" is "user@far".
    """

    transport: str
    nexthop: str
    recipient: str = ""


class Grouping:
    """The deliveries of one message."""

    def __init__(self, limits: Callable[[str], TransportLimits], delimiters: str) -> None:
        """limits: by transport.  delimiters: recipient_delimiter."""
        self._limits, self._delimiters = limits, delimiters
        self._groups: dict[tuple[str, str, str], list[Recipient]] = {}

    def add(self, recipient: Recipient, target: Target) -> None:
        """recipient: with the address to deliver to."""
        key = target.nexthop
        if self._limits(target.transport).recipients == 1:
            key += "\0" + _mailbox(recipient.address, self._delimiters)
        self._groups.setdefault((target.transport, target.nexthop, key), []).append(recipient)

    def entries(self, queue_id: str, *, one_by_one: bool) -> list[Entry]:
        """For the scheduler.  one_by_one: each recipient has a sender of its own (VERP)."""
        found = []
        for (transport, nexthop, key), recipients in self._groups.items():
            size = 1 if one_by_one else self._limits(transport).recipients or len(recipients)
            for i in range(0, len(recipients), size):
                found.append(Entry(queue_id, transport, nexthop, tuple(recipients[i : i + size]), key))
        return found


def _mailbox(address: str, delimiters: str) -> str:
    """Whose deliveries take turns: however its mail is addressed, a mailbox that is locked takes no more than its share
    of those who write mailboxes."""
    user = address.rpartition("@")[0].lower() or address.lower()
    return user[0] + re.split(f"[{re.escape(delimiters)}]", user[1:], maxsplit=1)[0] if delimiters and user else user
