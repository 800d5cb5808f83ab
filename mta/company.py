"""Who may have a message ready within moments: a group commit waits for them (see mta/fsio/fsio.py).

State: who was seen in the middle of handing in a message, and when, oldest first.  A client is seen when it has
connected or sent something, a draft when it was opened or written to; both are gone when they commit or end.
Whoever was last seen GATHER seconds ago or more no longer counts, so a client that stalls or stays connected
for later costs the others nothing.

One per Fsio.  Nothing here can fail, and nothing but the size of groups depends on it.
"""

from collections.abc import Callable, Hashable

from mta.clock import Clock

GATHER = 0.010  # seconds a group waits at most
RECENT = 0.002  # seconds for which it waits for somebody who is not heard of


class Company:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self.on_empty: Callable[[], None] | None = None  # called once when nobody is left
        self._clock = clock
        self._seen: dict[Hashable, float] = {}  # monotonic seconds, in this order

    def here(self, who: Hashable) -> None:
        """Seen now."""
        self._seen.pop(who, None)
        self._seen[who] = self._clock.monotonic()

    def gone(self, who: Hashable) -> None:
        """Has committed, or given up."""
        if self._seen.pop(who, None) is not None and self.on_empty is not None and not self.expected():
            on_empty, self.on_empty = self.on_empty, None
            on_empty()

    def expected(self) -> bool:
        """Is it worth waiting a moment?"""
        seen = self._seen
        if seen:
            stale = self._clock.monotonic() - RECENT
            while seen and seen[who := next(iter(seen))] <= stale:
                del seen[who]
        return bool(seen)
