"""`sendmail -v`: what becomes of a message in the seconds after it was queued, as the log tells it.

See also: mta/maillog/maillog.py delivery()
"""

import asyncio
import re

from mta.clock import Clock
from mta.maillog.maillog import Maillog

PATIENCE = 10.0  # seconds a caller is told results
MAX_LINES = 1000
_RECIPIENT = re.compile(r"to=<(.*?)>, .*?status=(\w+) (\(.*\))\Z", re.DOTALL)
_ACTIVE = re.compile(r", nrcpt=(\d+) \(queue active\)\Z")


class Results:
    """Lines of the log about one message; made before it is queued, because delivery may be faster than we are."""

    def __init__(self, log: Maillog) -> None:
        self._log = log
        self._seen: list[str] = []
        self._missing: int | None = None  # recipients of the attempt not yet heard of
        self._ended = False
        self._more = asyncio.Event()
        log.watchers.append(self)

    def line(self, text: str) -> None:
        """A line was logged."""
        if len(self._seen) < MAX_LINES:
            self._seen.append(text)
            self._more.set()

    def close(self) -> None:
        """Watch no longer."""
        if self in self._log.watchers:
            self._log.watchers.remove(self)

    async def next(self, queue_id: str, clock: Clock, until: float) -> list[str] | None:
        """More lines for the caller; None when the attempt has ended or the time (loop time) is over."""
        while True:
            self._more.clear()
            seen, self._seen = self._seen, []
            mine = [text.removeprefix(f"{queue_id}: ") for text in seen if text.startswith(f"{queue_id}: ")]
            found = [f"{m[1]}... {m[2]} {m[3]}" for text in mine if (m := _RECIPIENT.match(text))]
            for text in mine:
                if active := _ACTIVE.search(text):
                    self._missing = int(active[1])
                elif text == "removed" or (text.startswith("from=<") and "status=" in text):
                    self._ended = True
            if self._missing is not None:
                self._missing -= len(found)
            if found:
                return found
            if self._missing == 0 or self._ended:
                return None
            try:
                async with clock.timeout(max(0.0, until - clock.monotonic())):
                    await self._more.wait()
            except TimeoutError:
                return None
