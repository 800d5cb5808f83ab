"""The ledger: what clients were promised against what peers and mailboxes got.  It never asks the MTA itself.

A promise is a 250 after end of data for (message, recipient).  Judgement (I1, I3): every promise is delivered,
bounced or still queued; a second delivery is permitted only when a kill lies within WINDOW seconds after the
first (W2: the peer's 250 was on its way), once per kill.
"""

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

WINDOW = 2.0  # seconds between a peer's 250 and the mark in the queue file, as a test may see it under load


@dataclass
class Ledger:
    """All times are Unix seconds.  Thread-safe."""

    promised: dict[tuple[str, str], float] = field(default_factory=dict)
    attempted: set[str] = field(default_factory=set)
    delivered: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    bounced: Counter[tuple[str, str]] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    kills_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, message: str) -> None:
        """A client is about to send this message."""
        with self.lock:
            self.attempted.add(message)

    def promise(self, message: str, recipient: str) -> None:
        """A client has read the 250."""
        with self.lock:
            self.promised[message, recipient] = time.time()

    def deliver(self, message: str, recipient: str, when: float | None = None) -> None:
        """A peer has sent its 250 (now), or a mailbox holds the message since `when`."""
        with self.lock:
            self.delivered[message, recipient].append(time.time() if when is None else when)

    def bounce(self, message: str, recipient: str) -> None:
        """A non-delivery notice names it."""
        with self.lock:
            self.bounced[message, recipient] += 1

    def kill(self, *, in_flight: bool) -> None:
        """The MTA is being killed now."""
        with self.lock:
            self.kills.append(time.time())
            self.kills_in_flight += in_flight

    def verdict(self, queued: set[tuple[str, str]], expect_bounce: frozenset[str] = frozenset()) -> list[str]:
        """Return every broken promise as a sentence; [] = all kept.  queued: what is still in the queue."""
        wrong = []
        for key in self.promised:
            if key not in self.delivered and key not in self.bounced and key not in queued:
                wrong.append(f"lost: {key}")
        for key, count in self.bounced.items():
            if key in self.delivered:
                wrong.append(f"delivered and bounced: {key}")
            if key[1] not in expect_bounce:
                wrong.append(f"falsely bounced: {key}")
            if count > 1:
                wrong.append(f"bounced {count} times: {key}")
        for key, times in self.delivered.items():
            if key[0] not in self.attempted:
                wrong.append(f"never sent: {key}")
            wrong += self._duplicates(key, times)
        return wrong

    def _duplicates(self, key: tuple[str, str], times: list[float]) -> list[str]:
        """Each delivery but the last must have been followed by a kill within the window."""
        return [
            f"duplicate outside W2: {key} at {first:.3f}"
            for first in sorted(times)[:-1]
            if not any(first - 1.0 <= kill <= first + WINDOW for kill in self.kills)
        ]
