"""What was promised against what arrived.  It hears of promises from clients, of deliveries from peers and from the
bytes in mailboxes; it never asks the MTA.

A promise is a 250 after end of data, or exit status 0 of sendmail, for each recipient; an alias stands for its leaves.
Rules (I1 to I8) are those of docs/testing.md.  A second delivery is explained by the first one being forgettable:

- the peer's 250 never reached the MTA, or the process died in the instant in which it did (W2, W3: the next
  statement writes the mark);
- the power failed before the mark can have been on the device (WINDOW seconds), or while the disk reported errors.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.sim.disk import Inode
from tests.sim.net import End
from tests.sim.plan import DOMAIN, LEAVES, Message, Plan

WINDOW = 36.0  # seconds from a delivery to the flush of its mark, at most: the kernel writes by itself after 30
INSTANT = 1e-6
WORKER = 0.0011  # seconds until the loop hears what its worker has done
_NAME = re.compile(rb"^X-Sim-Id: (\S+)$", re.M)
_FINAL = re.compile(r"^Final-Recipient: rfc822; ?(\S+)$", re.M)
_ACTION = re.compile(r"^Action: (\S+)", re.M)
_BOUNDARY = re.compile(rb'boundary="([^"]+)"')


@dataclass(eq=False, slots=True)
class Attempt:
    """One try of a client to hand a message over.  state: "", unknown, promised, refused, or what it was told."""

    name: str
    message: Message
    text: bytes
    recipients: list[str] = field(default_factory=list)
    state: str = ""
    at: float = 0.0
    wall: float = 0.0


@dataclass(eq=False, slots=True)
class Delivery:
    """One arrival at one recipient.  heard: has the MTA read the answer?  instant: seconds until it has written it."""

    at: float
    heard: Callable[[], bool]
    what: str
    instant: float = INSTANT


@dataclass(eq=False, slots=True)
class Report:
    """A delivery status notification about one recipient, as it was read; several copies are one report."""

    wall: float
    copies: list[Delivery]


class Ledger:
    """One run."""

    def __init__(
        self, plan: Plan, now: Callable[[], float], wall: Callable[[], float], blocked: list[tuple[float, float]]
    ) -> None:
        """blocked: when nobody could do anything, and for how many seconds (tests/sim/loop.py)."""
        self.plan, self.now, self.wall, self.blocked = plan, now, wall, blocked
        self.attempts: dict[str, Attempt] = {}
        self.deliveries: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
        self.reports: dict[tuple[str, str, str], dict[str, Report]] = defaultdict(dict)  # (attempt, recipient, action)
        self.refusals: dict[str, list[int]] = defaultdict(list)  # recipient -> codes that peers gave
        self.crashes: list[tuple[float, str]] = []
        self.disk_errors: list[tuple[float, float]] = []
        self.flushes: dict[int, list[tuple[float, int]]] = defaultdict(list)  # mailbox inode -> (when, size)
        self.wrong: list[str] = []
        self.torn = 0
        self.aside: set[str] = set()  # attempts in files that were put aside because the disk could not read them
        self.lifetime = 0.0

    def complain(self, text: str) -> None:
        """A rule is broken."""
        self.wrong.append(text)

    # -- what is entered ----------------------------------------------------------------------------

    def attempt(self, message: Message, name: str) -> Attempt:
        """A client begins."""
        from tests.sim.people import text_of

        made = Attempt(name, message, text_of(message, name), at=self.now(), wall=self.wall())
        self.attempts[name] = made
        return made

    def promise(self, attempt: Attempt) -> None:
        """The client has its answer."""
        attempt.state = "promised"

    def asked(self, address: str, sender: str, code: int) -> None:
        """A peer was asked for a recipient, and answered."""
        self.refusals[address].append(code)

    def arrived(self, sender: str, recipients: Iterable[str], text: bytes, end: End, *, heard: bool) -> None:
        """A peer has taken a message; its answer is on the way, or lost (heard: False)."""
        there, count, at = end.peer, end.sent, max(end.due, self.now())

        def known() -> bool:
            return heard and there is not None and there.received >= count

        for recipient in recipients:
            self._enter(text, recipient, Delivery(at, known, f"peer of {recipient}"))

    def _enter(self, text: bytes, recipient: str, delivery: Delivery) -> None:
        head = text[: text.find(b"\n\n") + 1]
        if b"multipart/report" in head:
            self._report(text, recipient, delivery)
            return
        found = _NAME.search(head)
        attempt = self.attempts.get(found[1].decode()) if found else None
        if attempt is None or found is None:
            self.complain(f"nobody sent this to {recipient}: {head[:200]!r}")
            return
        if not text.endswith(attempt.text):
            self.complain(f"I5 altered: {attempt.name} at {recipient}")
        if recipient not in self._leaves(attempt.message.recipients):
            self.complain(f"I4 {attempt.name} was not sent to {recipient}")
        self.deliveries[attempt.name, recipient].append(delivery)

    def _leaves(self, recipients: Iterable[str]) -> list[str]:
        out: list[str] = []
        for recipient in recipients:
            local, _, domain = recipient.partition("@")
            out += LEAVES[local] if domain == DOMAIN and local in LEAVES else (recipient,)
        return out

    def _report(self, text: bytes, recipient: str, delivery: Delivery) -> None:
        boundary, names = _BOUNDARY.search(text), _NAME.findall(text)
        attempt = self.attempts.get(names[-1].decode()) if names else self._about(text)
        if boundary is None or attempt is None:
            if not self.plan_has_double_bounce(text):
                self.complain(f"a report about nothing: {text[:300]!r}")
            return
        if recipient not in (attempt.message.sender, f"postmaster@{DOMAIN}", f"dora@{DOMAIN}"):
            self.complain(f"I4 report about {attempt.name} to {recipient}")
        for block in text.decode("utf-8", "replace").split("\n\n"):
            final, action = _FINAL.search(block), _ACTION.search(block)
            for leaf in self._leaves([final[1]]) if final and action else ():
                found = self.reports[attempt.name, leaf, action[1] if action else ""]
                report = found.setdefault(boundary[1].decode(), Report(self.wall(), []))
                if delivery not in report.copies:  # two addresses of one report may lead to one leaf
                    report.copies.append(delivery)

    def _about(self, text: bytes) -> Attempt | None:
        """The message of a report that could not quote it: one of those that had such a recipient."""
        finals = _FINAL.findall(text.decode("utf-8", "replace"))
        for attempt in self.attempts.values():
            leaves = self._leaves(attempt.recipients)
            if all(final in leaves and (attempt.name, final, "failed") not in self.reports for final in finals):
                return attempt
        return None

    def plan_has_double_bounce(self, text: bytes) -> bool:
        """A report about a report that could not be delivered: what it quotes is our own."""
        return b"Postmaster Copy" in text or b"MAILER-DAEMON" in text

    def crash(self, kind: str) -> None:
        """Power or a process is gone now."""
        self.crashes.append((self.now(), kind))

    def stopped(self) -> None:
        """The process has ended as it was told; while the disk fails it takes with it what it could not write."""
        if any(start <= self.now() <= end for start, end in self.disk_errors):
            self.crash("stop")

    def flushed(self, inode: Inode) -> None:
        """A file among the mailboxes was made durable."""
        self.flushes[inode.ino].append((self.now(), len(inode.data)))

    # -- mailboxes ----------------------------------------------------------------------------------

    def read_mbox(self, user: str, inode: Inode) -> None:
        """Every message of an mbox; what is torn needs a crash to explain it."""
        data, at = bytes(inode.data), 0
        while at < len(data):
            stop = data.find(b"\n\nFrom ", at)
            stop = len(data) if stop < 0 else stop + 2
            times = [when for when, size in self.flushes[inode.ino] if size == stop]
            self._mailbox_text(user, data[at:stop], times[-1] if times else None, quoted=True)
            at = stop

    def read_maildir(self, user: str, files: Iterable[Inode]) -> None:
        """Every message in new/."""
        for inode in files:
            times = [when for when, size in self.flushes[inode.ino] if size == len(inode.data)]
            self._mailbox_text(user, bytes(inode.data), times[-1] if times else None, quoted=False)

    def _mailbox_text(self, user: str, data: bytes, when: float | None, *, quoted: bool) -> None:
        recipient = f"{user}@{DOMAIN}"
        head, _, _ = data.partition(b"\n\n")
        name = _NAME.search(head + b"\n")
        attempt = self.attempts.get(name[1].decode()) if name else None
        report = b"multipart/report" in head
        if quoted:
            whole = data.rstrip(b"\n") + b"\n"
            data = whole.replace(b"\n>From ", b"\nFrom ")
            if attempt is not None:
                data = whole
                start = whole.find(b"X-Sim-Id: ")
                if whole[start:] == _quoted(attempt.text):
                    data = attempt.text
        complete = (report and data.rstrip().endswith(b"--")) or (
            attempt is not None and not report and data.endswith(attempt.text)
        )
        if not complete or when is None:
            self.torn += 1
            if not quoted or (not self.crashes and not self.disk_errors):
                self.complain(f"I5 torn message in the mailbox of {user}: {data[:100]!r}")
            if not complete:
                return
        flushed = when is not None  # else the process died between writing and flushing
        self._enter(data, recipient, Delivery(when or 0.0, lambda: flushed, f"mailbox of {user}", WORKER))

    # -- judgement ----------------------------------------------------------------------------------

    def forgettable(self, delivery: Delivery) -> bool:
        """May the MTA not know of this delivery?"""
        if not delivery.heard():
            return True
        for when, kind in self.crashes:
            later = when - delivery.at
            later -= sum(seconds for start, seconds in self.blocked if delivery.at <= start < when)
            if later < -delivery.instant:
                continue
            if later <= (WINDOW if kind == "cut" else delivery.instant):
                return True
            if any(start <= when and delivery.at <= end for start, end in self.disk_errors):
                return True
        return False

    def verdict(self, *, settled: bool) -> list[str]:
        """Every broken rule as a sentence.  settled: the queue is empty, so nothing may be missing."""
        for attempt in self.attempts.values():
            leaves = self._leaves(attempt.recipients)
            for leaf in dict.fromkeys(leaves):
                self._judge(attempt, leaf, leaves.count(leaf), settled=settled)
        for (name, recipient, action), reports in self.reports.items():
            self._judge_reports(name, recipient, action, reports)
        return self.wrong

    def _judge(self, attempt: Attempt, leaf: str, times: int, *, settled: bool) -> None:
        what = f"{attempt.name} ({attempt.state}) to {leaf}"
        got = self.deliveries.get((attempt.name, leaf), [])
        failed = self.reports.get((attempt.name, leaf, "failed"), {})
        known = [d for d in got if not self.forgettable(d)]
        asked = times  # as often as the address was given, by itself and through an alias
        if attempt.message.door != "smtp" and self.disk_errors and any(kind == "cut" for _, kind in self.crashes):
            times *= 2  # INTERNALS: the unlink of a maildrop file whose flush fails may undo itself in a power cut
        if len(known) > times:
            self.complain(f"I3 {len(known)} deliveries of {what} that nothing explains: "
                          f"{[round(d.at, 6) for d in known]}, crashes {self.crashes}")  # fmt: skip
        if len(got) > times * (1 + len(self.crashes)) + sum(not d.heard() for d in got):
            self.complain(f"I3 {len(got)} deliveries of {what}, {len(self.crashes)} crashes")
        if failed and len(known) >= asked:
            self.complain(f"I2 delivered and bounced: {what}")
        if failed:
            self._judge_bounce(attempt, leaf, what, failed)
        if attempt.state == "promised" and settled and not got and not failed and not self._may_vanish(attempt, leaf):
            self.complain(f"I1 lost: {what}")
        if got and attempt.state not in ("promised", "unknown") and not self.crashes and not self.disk_errors:
            self.complain(f"I3 delivered although refused: {what}")

    def _may_vanish(self, attempt: Attempt, leaf: str) -> bool:
        """Failed, and nobody wanted to know."""
        if attempt.name in self.aside and any(fault.what.startswith("EIO") for fault in self.plan.faults):
            return True  # INTERNALS: unreadable files go to corrupt/, for the administrator; they are not deleted
        silent = attempt.message.notify == "NEVER" or not attempt.message.sender
        return silent and self._hopeless(attempt, leaf, self.wall())

    def _hopeless(self, attempt: Attempt, leaf: str, wall: float) -> bool:
        """A 5xx by a peer, a user who does not exist, or the lifetime has passed."""
        refused = any(500 <= code < 600 for code in self.refusals[leaf]) or leaf.startswith("nobody")
        return refused or wall - attempt.wall >= self.lifetime

    def _judge_bounce(self, attempt: Attempt, leaf: str, what: str, failed: dict[str, Report]) -> None:
        last = max(report.wall for report in failed.values())
        if not self._hopeless(attempt, leaf, last):
            self.complain(f"I8 bounced for a temporary reason: {what}")
        if attempt.message.notify == "NEVER":
            self.complain(f"I2 bounced against NOTIFY=NEVER: {what}")

    def _judge_reports(self, name: str, recipient: str, action: str, reports: dict[str, Report]) -> None:
        explained = bool(self.disk_errors) and bool(self.crashes)  # a flush that failed, and came back after all
        if action == "failed" and len(reports) > 1 and not explained:
            self.complain(f"I3 {len(reports)} reports ({action}) about {name} to {recipient}")
        for report in reports.values():
            known = [d for d in report.copies if not self.forgettable(d)]
            if len(known) > 1:
                self.complain(f"I3 {len(known)} copies of the report ({action}) about {name} to {recipient}")


def _quoted(text: bytes) -> bytes:
    return text.replace(b"\nFrom ", b"\n>From ")
