"""Stay awake for the answer of a client that answers at once.

A process that has nothing to do sleeps, and to wake it costs some 30 µs on a virtual machine: with one client on the
same machine that is a tenth of a session, in which we wait for him seven times.  So after a reply the loop looks LOOKS
times whether there is an answer before it sleeps, for about a tenth of a millisecond.  Only for FEW clients at a time
(one that goes and one that comes): with more there is always something to do.  Only where the client has another
processor to answer on.  And only while it is worth it: whenever nobody has answered, the next replies go without, twice
as many as the last time and at most MOST.  So a client across a network costs next to nothing.

State: how many looks are left, and how many replies will go without.  Nothing here can fail, and nothing but the time
to an answer depends on it.

See also: mta/outbox.py, mta/smtpd/server_wire.py
"""

import asyncio
import os

LOOKS = 80
FEW = 2  # connections
MOST = 64  # replies without, at most


class Awake:
    """One per server, of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, processors: int = 0) -> None:
        """processors: that this process may use; 0 = ask the system."""
        self._loop = loop
        self._possible = (processors or len(os.sched_getaffinity(0))) > 1
        self._left = 0
        self._looking = False
        self._without = 0  # replies from now on
        self._next = 1  # so many when nobody answers again

    @property
    def looking(self) -> bool:
        """The loop does not sleep now."""
        return self._looking

    def said(self, connections: int) -> None:
        """Replies have gone out; connections: how many there are."""
        if connections > FEW or not self._possible:
            return
        if self._without:
            self._without -= 1
            return
        self._left = LOOKS
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def heard(self) -> None:
        """Somebody has answered, or come."""
        if self._left:
            self._left = 0
            self._next = 1

    def _look(self) -> None:
        """The loop has just looked, as it does in every turn."""
        if self._left > 1:
            self._left -= 1
            self._loop.call_soon(self._look)
            return
        if self._left:
            self._left = 0
            self._without = self._next
            self._next = min(2 * self._next, MOST)
        self._looking = False
