"""Calls for an smtpd worker when a client knocks and none is there.

A worker leaves after smtpd_processes_max_idle seconds without a client: it costs several megabytes of memory that
nobody needs on a machine where mail comes now and then, and is forked again in some 10 ms.  The listening sockets
stay open in the first process and here, so a client that knocks meanwhile waits in the kernel's queue, and nothing
is refused.

State: how many workers that listen hold a link to the scheduler.  With none, the sockets are watched; a client makes
one call to the first process, which forks one; then the sockets are left alone until the last of them has
gone or leaves, or until PATIENCE seconds have passed without one (the fork failed, the worker died at once).

See also: mta/worker_link.py, mta/master/process.py, docs/parameters.md smtpd_processes_max_idle
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

from mta.clock import Clock

PATIENCE = 2.0  # seconds for a called worker to show itself


class Demand:
    """Lives in the scheduler process.  call: asks the first process for a worker; must not block."""

    def __init__(self, sockets: Sequence[socket.socket], call: Callable[[], None], clock: Clock) -> None:
        self._sockets = [sock.dup() for sock in sockets]
        self._call, self._clock = call, clock
        self._links = 0
        self._watching = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch, on the running loop."""
        self._watch()

    def linked(self, change: int) -> None:
        """A worker has come (1), or gone or begun to leave (-1)."""
        self._links += change
        if self._links:
            self._rest()
        else:
            self._watch()

    def stop(self) -> None:
        """Watch no more."""
        self._rest()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _watch(self) -> None:
        self._rest()
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._knock)
        self._watching = True

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watching:
            loop = asyncio.get_running_loop()
            for sock in self._sockets:
                loop.remove_reader(sock)
            self._watching = False

    def _knock(self) -> None:
        self._rest()
        self._timer = self._clock.call_later(PATIENCE, self._watch)
        self._call()
