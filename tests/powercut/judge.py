"""The ledger of one cut: what clients were promised, what arrived, and which duplicates the cut excuses.

It never asks the MTA.  W2 and W3 are judged by the trace of its system calls: a copy that was delivered twice is
excused only when both are the same queue file, one of them came before the cut, and no flush of that file, or of
the directory it was removed from, that was begun after this delivery had ended when the power failed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.powercut.message import Copy
from tests.powercut.steps import Record

Key = tuple[str, str]  # message, recipient
_FAILS = ("perm", "late")  # what tests/powercut/sink.py refuses for good


@dataclass
class Promises:
    """Of one run.  given: recipients (leaves, for an alias) of each message that was sent at all."""

    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)  # messages whose client read 250, or whose sendmail ended with 0


@dataclass
class Verdict:
    """Of one run: wrong, in sentences; and what is permitted, counted."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Cutoff:
    """When the power failed, when the MTA ran again (monotonic clock; infinite: never), and what had happened."""

    when: float
    restarted: float
    trace: Sequence[Record]

    def flushed(self, queue_id: str, since: float) -> bool:
        """Was the queue file, or its removal, flushed, all of it after `since`, before the cut?"""
        file = f"/active/{queue_id}"
        removed = [r.begun for r in self.trace if r.name == "unlink" and r.detail.endswith(file) and r.begun > since]
        return self._synced(file, since) or any(self._synced("/active", when) for when in removed)

    def _synced(self, end: str, since: float) -> bool:
        flushes = (r for r in self.trace if r.name == "synced" and r.detail.endswith(end))
        return any(since < r.begun and r.ended < self.when for r in flushes)

    def mailbox_written(self, mailbox: str) -> float:
        """When a mailbox was last flushed before the cut; infinite: not at all."""
        times = [r.ended for r in self.trace if r.name == "synced" and mailbox in r.detail and r.ended < self.when]
        return max(times, default=float("inf"))


def judge(promises: Promises, copies: Iterable[Copy], cut: Cutoff) -> Verdict:
    """All copies of the messages of one run, from peers and mailboxes, when the queue is empty again."""
    verdict = Verdict()
    delivered: dict[Key, list[Copy]] = defaultdict(list)
    bounced: dict[Key, list[Copy]] = defaultdict(list)
    for copy in copies:
        for key in copy.reports or ((copy.name, copy.recipient),):
            (bounced if copy.reports else delivered)[key].append(copy)
        if not copy.whole:
            verdict.wrong.append(f"altered: {copy}")
    for name, recipients in promises.given.items():
        keys = [(name, recipient) for recipient in recipients]
        ends = [key for key in keys if key in delivered or key in bounced]
        if name in promises.kept:
            verdict.counts["promised"] += len(keys)
        elif ends:
            verdict.counts["W1"] += len(keys)
        if name in promises.kept or ends:
            verdict.wrong += [f"lost: {key}" for key in keys if key not in ends]
    _fates(verdict, promises, delivered, bounced)
    for kind, found in (("delivered", delivered), ("bounced", bounced)):
        for key, several in found.items():
            verdict.counts[kind] += 1
            if len(several) > 1:
                _duplicate(verdict, kind, key, several, cut)
    return verdict


def _fates(verdict: Verdict, promises: Promises, delivered: Iterable[Key], bounced: Iterable[Key]) -> None:
    """I2, I4, I8: nobody gets what was not for them, and only what was refused for good comes back."""
    there = set(delivered)
    for key in (*there, *bounced):
        if key[1] not in promises.given.get(key[0], ()):
            verdict.wrong.append(f"never sent: {key}")
    for key in bounced:
        if key in there:
            verdict.wrong.append(f"delivered and bounced: {key}")
        if not key[1].startswith(_FAILS):
            verdict.wrong.append(f"falsely bounced: {key}")


def _duplicate(verdict: Verdict, kind: str, key: Key, copies: Sequence[Copy], cut: Cutoff) -> None:
    first = copies[0]
    when = first.when or cut.mailbox_written(first.recipient.partition("@")[0])
    if len({copy.queue_id for copy in copies}) > 1:
        verdict.wrong.append(f"{kind} twice, as two messages: {key} {[c.queue_id for c in copies]}")
    elif len(copies) > 2 or first.when > cut.restarted:
        verdict.wrong.append(f"{kind} {len(copies)} times: {key}")
    elif cut.flushed(first.queue_id, when):
        verdict.wrong.append(f"{kind} again although its mark was durable: {key}")
    else:
        verdict.counts["W2" if first.when else "W3"] += 1
