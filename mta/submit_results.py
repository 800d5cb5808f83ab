"""`sendmail -v`: what becomes of a message in the seconds after it was queued, as the log tells it.

See also: mta/maillog.py delivery()
"""

import asyncio
import re

from mta.clock import Clock
from mta.maillog import Maillog

PATIENCE = 10.0  # seconds a caller is told results
MAX_LINES = 1000
_RECIPIENT = re.compile(r"to=<(.*?)>, .*?status=(\w+) (\(.*\))\Z", re.DOTALL)


class Results:
    """Lines of the log about one message; made before it is queued, because delivery may be faster than we are."""

    def __init__(self, log: Maillog) -> None:
        self._log = log
        self._seen: list[str] = []
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
            if found:
                return found
            if any(text == "removed" or (text.startswith("from=<") and "status=" in text) for text in mine):
                return None
            try:
                async with clock.timeout(max(0.0, until - clock.monotonic())):
                    await self._more.wait()
            except TimeoutError:
                return None
