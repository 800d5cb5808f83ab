"""The ledger of one cut: what clients were promised, what arrived, and which duplicates the cut excuses.

It never asks the MTA.  W2 and W3 are judged by the trace of its system calls: a copy that was delivered twice is
excused only when both are the same queue file, one of them came before the cut, and no flush of that file, or of
the directory it was removed from, that was begun after this delivery and had ended when the power failed, had its
mark.  A mailbox is delivered by another process, whose answer may be on its way while the marks of others are flushed:
a flush had the marks of all when there were as many marks as deliveries.
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


A_CALL = 0.002  # seconds from the step before a call to its end; it may be another process's


@dataclass(frozen=True, slots=True)
class Cutoff:
    """When the power failed, when the MTA ran again (monotonic clock; infinite: never), and what had happened."""

    when: float
    restarted: float
    trace: Sequence[Record]

    def flushed(self, queue_id: str, since: float, done: Iterable[float]) -> bool:
        """Was the mark of what was delivered at `since` flushed, or the file's removal, before the cut?

        done: when the recipients of this file that were delivered were delivered.
        """
        file = f"/active/{queue_id}"
        times = list(done)
        for flush in self._synced(file, since):
            marks = sum(r.name == "mark" and r.detail.endswith(file) and r.begun < flush.begun for r in self.trace)
            if marks >= sum(when < flush.begun for when in times):
                return True
        removed = [r.begun for r in self.trace if r.name == "unlink" and r.detail.endswith(file) and r.begun > since]
        return any(self._synced("/active", when) or self._followed(when) for when in removed)

    def _followed(self, removal: float) -> bool:
        """Is a message durable that got its name after this removal?  (mta/fsio/soon.py)"""
        named = (r for r in self.trace if r.name == "rename" and "/incoming/" in r.detail)
        return any(self._synced(r.detail, r.begun) for r in named if r.begun > removal + A_CALL)

    def _synced(self, end: str, since: float) -> list[Record]:
        flushes = (r for r in self.trace if r.name == "synced" and r.detail.endswith(end))
        return [r for r in flushes if since < r.begun and r.ended < self.when]

    def delivered(self, copy: Copy) -> float:
        """When: as a peer said, or when its mailbox was flushed."""
        return copy.when or self.mailbox_written(copy.recipient.partition("@")[0])

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
                file = [c for all_of_one in found.values() for c in all_of_one[:1] if c.queue_id == several[0].queue_id]
                _duplicate(verdict, kind, key, several, cut, [cut.delivered(c) for c in file])
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


def _duplicate(
    verdict: Verdict, kind: str, key: Key, copies: Sequence[Copy], cut: Cutoff, done: Sequence[float]
) -> None:
    first = copies[0]
    if len({copy.queue_id for copy in copies}) > 1:
        verdict.wrong.append(f"{kind} twice, as two messages: {key} {[c.queue_id for c in copies]}")
    elif len(copies) > 2 or first.when > cut.restarted:
        verdict.wrong.append(f"{kind} {len(copies)} times: {key}")
    elif cut.flushed(first.queue_id, cut.delivered(first), done):
        verdict.wrong.append(f"{kind} again although its mark was durable: {key}")
    else:
        verdict.counts["W2" if first.when else "W3"] += 1
