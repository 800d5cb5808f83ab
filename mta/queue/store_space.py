"""May the disk be trusted with another message?  Is there room, and did the last flush work?

State: until when there is certainly room, and whether a flush has failed.  After that nothing is accepted until a
fresh file could be made durable, tried every PROBE_INTERVAL seconds while somebody asks.

See also: mta/queue/store_draft.py, which says when a flush fails
"""

import contextlib
from collections.abc import Callable

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.queue.api import QueueError, QueueFullError
from mta.queue.store_spool import QueueLog, Spool, queue_error

ROOMY, ROOMY_TIME = 256 << 20, 0.25  # with so many bytes to spare free space is asked for at most so often (seconds)
PROBE_INTERVAL = 1.0  # seconds between tries after a disk error


class Space:
    """One per store."""

    def __init__(
        self, spool: Spool, fsio: Fsio, clock: Clock, log: QueueLog, create: Callable[[], tuple[int, str]]
    ) -> None:
        """create: a new file in incoming, descriptor and path; QueueError."""
        self._spool, self._fsio, self._clock, self._log, self._create = spool, fsio, clock, log, create
        self._suspect = False
        self.next_probe = 0.0  # monotonic seconds
        self._roomy_until = 0.0

    def check(self) -> None:
        """QueueFullError unless there is room for 1.5 messages of the largest size, and queue_minfree.

        With much more room than that it is not asked for each message.
        """
        now = self._clock.monotonic()
        if now < self._roomy_until:
            return
        try:
            found = self._fsio.statvfs(self._spool.root)
        except OSError as error:
            raise queue_error(error, "free space unknown") from error
        settings = self._spool.settings
        need = max(settings.queue_minfree, settings.message_size_limit * 3 // 2)
        if found.f_bavail * found.f_frsize < need or (found.f_files and not found.f_favail):
            raise QueueFullError("not enough free space in the queue")
        if found.f_bavail * found.f_frsize > need + ROOMY:
            self._roomy_until = now + ROOMY_TIME

    def free_percent(self) -> float:
        """How much of the queue's file system is free; OSError."""
        found = self._fsio.statvfs(self._spool.root)
        return 100.0 * found.f_bavail / max(1, found.f_blocks)

    def failed(self, error: OSError) -> None:
        """A flush failed: accept nothing until a fresh file can be made durable."""
        if not self._suspect:
            self._log.warning("queue", f"{self._spool.root}: flush failed ({error.strerror}), accepting no mail")
        self._suspect = True
        self.next_probe = self._clock.monotonic() + PROBE_INTERVAL

    async def ready(self) -> None:
        """After a failed flush: create, write, flush and remove a file.

        QueueError when that fails, or it is too early to try.
        """
        if not self._suspect:
            return
        now = self._clock.monotonic()
        if now < self.next_probe:
            raise QueueError("disk error, queue closed")
        self.next_probe = now + PROBE_INTERVAL
        fd, path = self._create()
        try:
            self._fsio.flock(fd)
            self._fsio.write(fd, b"probe\n")
            await self._fsio.flush(fd)
            await self._fsio.flush(self._fsio.directory(f"{self._spool.root}/incoming"))
        except OSError as error:
            raise queue_error(error, "disk error, queue closed") from error
        finally:
            with contextlib.suppress(OSError):
                self._fsio.unlink(path)
            with contextlib.suppress(OSError):
                self._fsio.close_fd(fd)
        if self._suspect:
            self._log.warning("queue", f"{self._spool.root}: flush works again, accepting mail")
        self._suspect = False
