"""A ledger that forgets: for runs of days.  Messages whose every promise has been kept are judged and put away."""

import threading
from dataclasses import dataclass, field

from tests.crash.ledger import Ledger

AGE = 300.0  # seconds after which a message that has ended is judged; later deliveries are wrong whatever happened


@dataclass
class SoakLedger(Ledger):
    """Names of messages are "SENDER-COUNT".  wrong: broken promises found so far."""

    wrong: list[str] = field(default_factory=list)
    started: dict[str, float] = field(default_factory=dict)
    recipients: dict[str, set[str]] = field(default_factory=dict)
    settled: int = 0
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("promised", "delivered", "bounced"), 0))
    latencies: list[float] = field(default_factory=list)  # seconds from the 250 to the next hop's 250, to be taken
    waits: list[float] = field(default_factory=list)  # seconds a client waited for its 250, to be taken
    _done: dict[str, bytearray] = field(default_factory=dict)  # one byte per message, by sender
    _clock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, message: str, now: float) -> None:
        """A client is about to send it."""
        self.attempt(message)
        with self.lock:
            self.started[message] = now

    def deliver(self, message: str, recipient: str, when: float | None = None) -> None:
        if self._is_settled(message):
            self.wrong.append(f"delivered again, long after it had ended: {message} to {recipient}")
            return
        super().deliver(message, recipient, when)
        with self.lock:
            self.recipients.setdefault(message, set()).add(recipient)
            promised = self.promised.get((message, recipient))
            if promised is not None and recipient.startswith("ok"):
                self.latencies.append(max(0.0, self.delivered[message, recipient][-1] - promised))

    def bounce(self, message: str, recipient: str) -> None:
        if self._is_settled(message):
            self.wrong.append(f"bounced long after it had ended: {message} to {recipient}")
            return
        super().bounce(message, recipient)
        with self.lock:
            self.recipients.setdefault(message, set()).add(recipient)

    def promise(self, message: str, recipient: str) -> None:
        super().promise(message, recipient)
        with self.lock:
            self.recipients.setdefault(message, set()).add(recipient)

    def settle(self, now: float) -> None:
        """Judge and forget what began more than AGE seconds ago and has ended."""
        with self.lock:
            part = Ledger(kills=list(self.kills))
            for message in self._ended(now - AGE):
                self._move(message, part)
            refused = frozenset(r for _, r in part.bounced if r.startswith("perm"))
            self.wrong += part.verdict(set(), refused)

    def _ended(self, before: float) -> list[str]:
        found = []
        for message, began in self.started.items():  # in order of time
            if began > before:
                break
            keys = [(message, r) for r in self.recipients.get(message, ())]
            if all(key in self.delivered or key in self.bounced for key in keys if key in self.promised):
                found.append(message)
        return found

    def _move(self, message: str, part: Ledger) -> None:
        sender, _, count = message.partition("-")
        done = self._done.setdefault(sender, bytearray())
        done.extend(bytes(max(0, int(count) + 1 - len(done))))
        done[int(count)] = 1
        self.settled += 1
        del self.started[message]
        self.attempted.discard(message)
        part.attempted.add(message)
        for recipient in self.recipients.pop(message, ()):
            key = (message, recipient)
            if key in self.promised:
                part.promised[key] = self.promised.pop(key)
                self.totals["promised"] += 1
            if key in self.delivered:
                part.delivered[key] = self.delivered.pop(key)
                self.totals["delivered"] += 1
            if key in self.bounced:
                part.bounced[key] = self.bounced.pop(key)
                self.totals["bounced"] += 1

    def _is_settled(self, message: str) -> bool:
        sender, _, count = message.partition("-")
        done = self._done.get(sender, b"")
        return count.isdigit() and int(count) < len(done) and bool(done[int(count)])

    def take(self, times: list[float]) -> list[float]:
        """The times noted since the last call, sorted."""
        with self.lock:
            taken = sorted(times)
            times.clear()
        return taken
