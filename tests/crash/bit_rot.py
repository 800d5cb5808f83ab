"""Bit rot: queue files with one flipped bit, or cut off, under a whole MTA: python -m tests.crash.bit_rot [--files N]

A spool is filled through the real store with messages of every kind (KINDS: every record type, both ways to store
content, parents with children, in incoming, deferred and active), damaged, and served by the real store, queue
manager and agents on virtual time.  Peers, mailboxes and the log are judged here:

- nothing is offered to an address that was not given, and nobody is delivered to who was done or cancelled;
- what arrives is what was given, byte for byte, also inside a report;
- a damaged file is in corrupt/, named by exactly one line of the log, and nobody got it; or the damage was to one
  of the few bytes that change in place (INTERNALS.md "Damage"), and everything arrived as if it were whole;
- whole messages among them arrive at the first attempt.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from mta.clock import Clock
from mta.envelope import Envelope, Recipient
from mta.queue.api import Parent
from mta.queue.queue_file import WARN_DATA
from mta.queue.queue_reader import QueueFile, decode, records
from tests.crash.bit_rot_kinds import KINDS, Message, blocks, content, plain
from tests.crash.bit_rot_sink import Sink
from tests.crash.bit_rot_verdict import Verdict
from tests.inline_fsio import InlineFsio
from tests.memory_net import MemoryNet
from tests.queue_support import Spooled
from tests.unit.test_whole_way import configure, running
from tests.virtual_time import EPOCH, run_virtual

HOURS = 2  # of virtual time: enough for a greylisted recipient and for a suspect's delay
US, SINK = "192.0.2.10", "192.0.2.20"
PLACES = ("incoming", "deferred", "active")
LONG = 400  # places at which a file is cut, all of them: the envelope, and a text of some lines


class Rot:
    """A spool with damaged messages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.messages: list[Message] = []
        self.config = configure(
            directory / "a", "a", US, relayhost=f"[{SINK}]", smtp_line_length_limit="0", recipient_delimiter="+",
            alias_maps=f"texthash:{directory}/aliases", delay_warning_time="1h", export_environment="",
        )  # fmt: skip
        (directory / "aliases").write_text("list: list\n")
        self._spooled = Spooled(directory / "a" / "spool", fsio=InlineFsio())

    async def add(self, make: Callable[[int, str], Message], damage: Callable[[Message, bytes], bytes] | None) -> None:
        """Commit one message, with its child if it is to have one; damage: given the file, its new bytes."""
        n = len(self.messages)
        message = make(n, PLACES[n % len(PLACES)])
        await self._commit(message)
        chosen = message
        if message.kind == "parent":
            chosen = await self._child(message, n) if n % 2 else message
        if damage is None:
            return
        whole = chosen.path.read_bytes()
        with chosen.path.open("r+b") as file:
            broken = damage(chosen, whole)
            file.write(broken)
            file.truncate(len(broken))

    async def _child(self, message: Message, n: int) -> Message:
        number = n + 1
        file = decode_bytes(message.path.read_bytes())
        bounced = file.envelope.recipients[1].offset
        envelope = Envelope("", [Recipient(message.envelope.sender)], EPOCH)
        child = Message(number, "child", "incoming", envelope, content(number), {message.envelope.sender})
        child.parent = Parent("bounce", file.uid, message.queue_id, (bounced,))
        message.child = child
        await self._commit(child)
        return child

    async def _commit(self, message: Message) -> None:
        store = self._spooled.store
        draft = await store.draft(message.envelope.arrival)
        draft.envelope(message.envelope)
        for at in range(0, len(message.content), 50_000):
            draft.write(message.content[at : at + 50_000])
        await draft.commit(parent=message.parent, attributes=message.attributes)
        await store.release([draft] if message.parent else [])
        message.queue_id, message.path = draft.queue_id, self._spooled.path("incoming", draft.queue_id)
        if message.place != "incoming":
            target = self._spooled.path(message.place, draft.queue_id)
            os.utime(message.path, (EPOCH, EPOCH))
            message.path = message.path.rename(target)
        self.messages.append(message)

    async def serve(self, clock: Clock) -> list[str]:
        """Run an MTA on it; return what was wrong."""
        self._spooled.fsio.close()
        (self.directory / "aliases").write_text(
            "".join(f"list+{m.number}: member+{m.number}@sink.test\n" for m in self.messages if m.kind == "local")
        )
        net, sink = MemoryNet(), Sink()
        net.listeners[SINK, 25] = sink.connection
        async with running(self.config, clock, net, US) as mta:
            await clock.sleep(HOURS * 3600)
            log = mta.lines()
        return Verdict(self.messages, self.directory / "a", sink, log).wrong


def decode_bytes(data: bytes) -> QueueFile:
    return decode(lambda offset, size: data[offset : offset + size])


def in_place(data: bytes) -> set[int]:
    """Offsets of the bytes that no checksum covers: the digits of W and of crashes."""
    file = decode_bytes(data)
    found = {file.crashes_offset}
    if file.warn_offset:
        found |= set(range(file.warn_offset + WARN_DATA, file.warn_offset + WARN_DATA + 15))
    return found


def without_effect(data: bytes) -> set[tuple[int, int]]:
    """(offset, bit): the last text record may also say "a line without end": it is the same text."""
    file = decode_bytes(data)
    last = -1
    for kind, _, offset in records(lambda at, size: data[at : at + size], file.content_offset):
        if kind == ord("X"):
            break
        last = offset
    return {(last, 1)} if last >= 0 else set()


def boundaries(data: bytes) -> list[int]:
    """Offsets at which a record begins."""
    found = []
    for kind, _, offset in records(lambda at, size: data[at : at + size], 0):
        found.append(offset)
        if kind == ord("E"):
            return found
    raise AssertionError("no end")


def flipper(where: float, bit: int, *, framing: bool) -> Callable[[Message, bytes], bytes]:
    """Flip one bit.  where: 0 to 1 of the file; framing: of all but the content."""

    def damage(message: Message, data: bytes) -> bytes:
        file = decode_bytes(data)
        offset = int(where * len(data))
        if framing:
            outside = len(data) - file.size
            offset = int(where * outside)
            offset += file.size if offset >= file.content_offset else 0
        message.harmless = offset in in_place(data) or (offset, bit) in without_effect(data)
        message.damage = f"bit {bit} at {offset}" + (" of W" if offset in in_place(data) else "")
        broken = bytearray(data)
        broken[offset] ^= 1 << bit
        return bytes(broken)

    return damage


def cutter(length: int) -> Callable[[Message, bytes], bytes]:
    """Cut a file off."""

    def damage(message: Message, data: bytes) -> bytes:
        message.damage = f"cut at {length} of {len(data)}"
        return data[:length]

    return damage


async def flipped(rot: Rot, count: int, seed: int) -> None:
    """count files with a flipped bit, spread over all bytes of all kinds, and a whole one after each five."""
    rng = random.Random(seed)
    small = KINDS[:-1]
    each = -(-count // (len(small) + 0.25))
    jobs = []
    for make in KINDS:
        share = int(each if make is not blocks else each // 4)
        for i in range(share):
            where = (i // 2 + rng.random()) / ((share + 1) // 2)
            jobs.append((make, flipper(min(where, 1 - 1e-9), rng.randrange(8), framing=i % 2 == 0)))
    rng.shuffle(jobs)
    for i, (make, damage) in enumerate(jobs[:count]):
        await rot.add(make, damage)
        if i % 5 == 0:
            await rot.add(rng.choice(small), None)


async def cut(rot: Rot, kinds: Sequence[Callable[[int, str], Message]], each: int) -> None:
    """Each kind cut at every 512 bytes, and where a record begins; in a long text at each so many of these places."""
    probe = Rot(rot.directory / "probe")
    for make in kinds:
        await probe.add(make, None)
        data = probe.messages[-1].path.read_bytes()
        at = set(range(0, len(data), 512)) | set(boundaries(data)) | {len(data) - 1}
        places = sorted(at)
        if len(places) > LONG:
            places = [*places[: LONG // 2], *places[LONG // 2 : -LONG // 2 : each], *places[-LONG // 2 :]]
        for length in places:
            await rot.add(make, cutter(length))
        await rot.add(plain, None)


def run(directory: Path, fill: Callable[[Rot], Awaitable[None]]) -> tuple[list[str], Rot]:
    """Fill a spool, serve it, judge."""
    rot = Rot(directory)

    async def story(clock: Clock) -> list[str]:
        await fill(rot)
        return await rot.serve(clock)

    return run_virtual(story, patience=0.0), rot


def main() -> int:
    """Command line; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bit-rot-") as directory:
        wrong, rot = run(Path(directory), lambda rot: flipped(rot, options.files, options.seed))
    print(f"{sum(bool(m.damage) for m in rot.messages)} damaged of {len(rot.messages)}, {len(wrong)} violations")
    print("\n".join(wrong[:50]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
