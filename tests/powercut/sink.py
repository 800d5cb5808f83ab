"""The next hop: keeps a record of everything it said 250 to.

By the local part of the recipient: temp.. gets 450 at its first try, perm.. 550, late.. 450 and then 550, slow.. 450 at
its first two tries; any other is accepted.  Tries are counted per sender and recipient.
"""

import time
from collections import Counter

from tests.powercut.message import Copy, read
from tests.smtp_sink import OK, SmtpSink

_ANSWERS = {"temp": (450,), "perm": (550, 550), "late": (450, 550), "slow": (450, 450)}
_TEXT = {250: OK, 450: b"450 4.2.0 come back later", 550: b"550 5.1.1 no such user"}


class Sink(SmtpSink):
    """Listens on 127.0.0.1."""

    def __init__(self, port: int = 0) -> None:
        self._copies: list[Copy] = []
        self._tries: Counter[tuple[str, str]] = Counter()
        super().__init__(port=port)

    def copies(self) -> list[Copy]:
        """Everything accepted so far."""
        with self.lock:
            return list(self._copies)

    def answer(self, sender: str, recipient: str) -> bytes:
        """See SmtpSink."""
        codes = _ANSWERS.get(recipient[:4], ())
        number = self._tries[sender, recipient]
        self._tries[sender, recipient] += 1
        return _TEXT[codes[min(number, len(codes) - 1)] if number < len(codes) or 550 in codes else 250]

    def take(self, sender: str, recipients: tuple[str, ...], content: bytes) -> None:
        """See SmtpSink."""
        self._copies += [read(content, r, time.monotonic()) for r in recipients]
