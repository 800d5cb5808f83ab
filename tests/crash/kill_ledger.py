"""The strict ledger of the kill matrix: what was promised against every copy that is anywhere, by the ids it bears.

A copy's Received: headers name the queue ids it had here, so it is known which acceptance a copy comes from and
which way it went.  Two copies in one place:

- from two acceptances: the client never heard of one of them, and sent again (W1);
- from one acceptance by one way: delivered, and killed before the mark (W2 at a peer, W3 in a mailbox).  Permitted
  only when the first was there at the kill, and once per kill;
- from one acceptance by two ways: somebody made a child twice.  Never permitted.

Reports are known by the message they speak of, and by their Message-ID: two reports on one recipient of one
acceptance are a violation, two copies of one report are W2 or W3 of that report.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_ID = re.compile(rb"\bid ([0-9A-Za-z]+)")


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a message.  place: "sink:ADDRESS", "mbox:USER", "maildir:USER" or, of a report, with
    " about ADDRESS".  way: queue ids from the acceptance on; of a report (id it speaks of, its Message-ID)."""

    name: str
    place: str
    way: tuple[str, ...]


class Underway(Counter[Copy]):
    """What is where, and a mailbox that has nothing yet may be about to get it."""

    def __missing__(self, copy: Copy) -> int:
        return 0 if copy.place.startswith("sink:") else 1


@dataclass
class Account:
    """One run.  places: where each message must end, by message name.  at_kills, todo_at_kills: what was where at each
    kill, and which recipients each queue file still had.  wrong: seen on the way; altered: by the last look."""

    places: dict[str, set[str]]
    bodies: dict[str, bytes]
    attempts: Counter[str] = field(default_factory=Counter)
    promised: Counter[str] = field(default_factory=Counter)
    at_kills: list[Counter[Copy]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    todo_at_kills: list[dict[str, set[str]]] = field(default_factory=list)
    windows: Counter[str] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        """How often it was killed."""
        return len(self.at_kills)

    def verdict(self, copies: Counter[Copy]) -> list[str]:
        """Every broken promise as a sentence; counts the permitted duplicates in `windows`."""
        wrong = self.wrong + self.altered
        by_place: dict[tuple[str, str], dict[tuple[str, ...], int]] = {}
        for copy, count in copies.items():
            if copy.place not in self.places.get(copy.name, ()):
                wrong.append(f"never asked for: {copy.name} in {copy.place}")
            by_place.setdefault((copy.name, copy.place), {})[copy.way] = count
        for name, places in self.places.items():
            for place in places:
                ways = by_place.get((name, place), {})
                if self.promised[name] and not ways:
                    wrong.append(f"lost: {name} in {place}")
                wrong += self._repeated(name, place, ways)
        return wrong

    def _repeated(self, name: str, place: str, ways: dict[tuple[str, ...], int]) -> Iterable[str]:
        by_acceptance: dict[str, list[tuple[str, ...]]] = {}
        for way in ways:
            by_acceptance.setdefault(way[0], []).append(way)
        for found in by_acceptance.values():
            if len(found) > 1:
                yield f"made twice: {name} in {place} by {found}"
        extra = len(by_acceptance) - 1
        if extra >= max(1, self.attempts[name]):
            yield f"{extra + 1} acceptances of {name} in {place}, given {self.attempts[name]} times"
        self.windows["W1"] += max(0, extra)
        for way, count in ways.items():
            seen = [at_kill[Copy(name, place, way)] for at_kill in self.at_kills]
            if not _each_after_a_kill(seen, count):
                yield f"duplicate outside the windows: {name} in {place}: {count}, at the kills {seen}"
            if count > 1 and " about " not in place and self._again_after_mark(place, way[-1], count, seen):
                yield f"delivered again after its mark: {name} in {place} by {way}"
            if count > 1:
                self.windows["W2" if place.startswith("sink:") else "W3"] += count - 1


    def _again_after_mark(self, place: str, queue_id: str, count: int, seen: list[int]) -> bool:
        """Are there more copies than at some kill at which the queue file said that it was done?"""
        address = place.partition(":")[2]
        for now, todo in zip(seen, self.todo_at_kills, strict=False):
            left = todo.get(queue_id)
            if left is None or any(r in (address, f"{address}@{r.partition('@')[2]}") for r in left):
                continue
            if count > now:
                return True
        return False


def _each_after_a_kill(seen: list[int], count: int) -> bool:
    """Is each copy but the first one more than there was at some kill, and only one more?  seen: at each kill."""
    most = 1
    for now in seen:
        if now > most:
            return False
        most = now + 1 if now else most
    return count <= most


def ids_of(header: bytes) -> tuple[str, ...]:
    """The queue ids in Received: headers, the first acceptance first."""
    lines = re.sub(rb"\n[ \t]+", b" ", header).split(b"\n")
    found = [_ID.search(line) for line in lines if line.lower().startswith(b"received:")]
    return tuple(m.group(1).decode() for m in found if m)[::-1]


def field_of(header: bytes, name: bytes) -> str:
    """Value of the first header of this name (a pattern), "" = none."""
    found = re.search(rb"^" + name + rb": *(.*)$", header, re.M | re.I)
    return found.group(1).decode().strip() if found else ""


def identify(where: str, content: bytes, account: Account) -> list[Copy] | None:
    """What a message in a place is: one copy, or one per recipient that a report speaks of; content with LF.

    An altered message is entered as wrong.  None: the beginning of one, torn by a kill.
    """
    header, _, body = content.partition(b"\n\n")
    header += b"\n"
    name = field_of(header, b"X-Test-Id")
    if name:
        expected = account.bodies.get(name, b"")
        if body == expected:
            return [Copy(name, where, ids_of(header))]
        if not expected.startswith(body.rstrip(b"\n")):
            account.altered.append(f"altered: {name} in {where}: {len(body)} bytes, {len(expected)} sent")
        return None
    name = field_of(body, b"X-Test-Id")
    parent = field_of(body, rb"X-[A-Za-z]+-Queue-ID")
    failed = re.findall(rb"^Final-Recipient: rfc822; (\S+)", body, re.M)
    if not name and failed:  # the original could not be read, so it goes without
        place = f"{where} about {failed[0].decode()}"
        name = next((name for name, places in account.places.items() if place in places), "")
    if name and parent and failed and body.rstrip().endswith(b"--"):
        way = (parent, field_of(header, b"Message-ID"))
        return [Copy(name, f"{where} about {address.decode()}", way) for address in failed]
    return None


def recipients_todo(file: Path) -> set[str]:
    """Addresses in the R records of a queue file: those that are not done; reads the records itself."""
    try:
        data = file.read_bytes()
    except OSError:  # just renamed
        return set()
    at, found = 0, set()
    while at + 1 < len(data):
        kind, size, shift, at = data[at : at + 1], 0, 0, at + 1
        while at < len(data):
            size |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        if kind == b"R":
            found.add(data[at : at + size].decode())
        at += size
    return found


def mbox_messages(data: bytes) -> list[bytes]:
    """Messages of an mbox, From_ lines off and quoting undone; the blank line at the end belongs to none."""
    parts = (data[:-1] if data.endswith(b"\n\n") else data).split(b"\n\nFrom ")
    whole = [part + b"\n" for part in parts[:-1]] + parts[-1:]
    return [part.partition(b"\n")[2].replace(b"\n>From ", b"\nFrom ") for part in whole if part]
