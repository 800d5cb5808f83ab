"""What the steps of a recovery have in common: the store, and how the trouble with one file is dealt with.

See also: mta/queue/store_recover.py
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from mta.queue.api import FencedError
from mta.queue.queue_reader import DamagedError, QueueFile, decode

if TYPE_CHECKING:
    from mta.queue.store import SpoolStore


class Step:
    """One step of the recovery of a store."""

    def __init__(self, store: "SpoolStore") -> None:
        self._store, self._fsio, self._spool, self._log = store, store.fsio, store.spool, store.log

    @contextlib.contextmanager
    def _logged(self, queue_id: str, again: Callable[[], Awaitable[bool]] | None = None) -> Iterator[None]:
        """again: what scans are to try until it is True, when this failed; nobody claims the message before."""
        try:
            yield
        except (FileNotFoundError, FencedError):
            pass
        except OSError as error:
            self._log.warning("qmgr", f"{queue_id}: recover: {error.strerror}")
            if again is not None:
                self._store.wait_locked(queue_id, -1, again)

    def _decoded(self, path: str) -> QueueFile | None:
        """The envelope in a file, None when it is damaged."""
        fd = self._fsio.open(path)
        try:
            return decode(lambda offset, size: self._fsio.pread(fd, size, offset))
        except DamagedError:
            return None
        finally:
            self._fsio.close_fd(fd)
