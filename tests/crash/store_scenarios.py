"""A run of the real store that dies at its n-th disk operation; then recovery, a run to the end, a judgement.

    python -m tests.crash.store_scenarios SCENARIO DIRECTORY

forks a child per n = 1, 2, 3 ... until one ends unharmed, and prints how many died.  After each death a second
child recovers, finishes everything and checks the invariants.  With a third argument `recovery` one more child in
between recovers, and dies at each of its own operations.  What happened outside the MTA (a 250 sent, a recipient
delivered) is written to a ledger that the store does not know.

A kill keeps the page cache, so marks written before it count; power cuts are another test's business.
"""

import asyncio
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from mta.clock import Clock
from mta.envelope import Envelope, Recipient
from mta.fsio.fsio import Fsio
from mta.queue.api import Job, Parent, Queue, Reason
from mta.queue.store import SpoolStore, create_spool
from mta.queue.store_draft import SpoolDraft
from tests.inline_fsio import InlineFsio
from tests.queue_support import NOW, ListLog, settings

Disk = type[Fsio]
KILLED = 9
SMALL = b"Subject: small\n\nhello\n"
LARGE = b"Subject: large\n\n" + b"0123456789abcdef" * 4 * 6000 + b"\n"
MAILDROP = (Path(__file__).parents[1] / "golden/queue/maildrop.bin").read_bytes()
DROPPED = b"Subject: dropped\n\nhi there\n.x\nlast\n"
RECIPIENTS = ("ok@dst.test", "bad@dst.test", "slow@dst.test", "worse@dst.test")


class World:
    """One process: a store, and the ledger it shares with the processes before and after it."""

    def __init__(self, root: Path, die_at: int, disk: Disk) -> None:
        self.root = root
        self.fsio = disk()
        chosen = settings(root / "spool")
        create_spool(chosen, self.fsio)
        self.store = SpoolStore(chosen, self.fsio, Clock(wall=lambda: NOW), ListLog())
        self.count, self.die_at = 0, die_at

    def arm(self) -> None:
        self.fsio.hook = self._step

    def _step(self, _: str, __: str | int) -> None:
        self.count += 1
        if self.count == self.die_at:
            os._exit(KILLED)

    def note(self, text: str) -> None:
        """A fact outside the MTA."""
        fd = os.open(self.root / "ledger", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(fd, text.encode() + b"\n")
        os.close(fd)

    def ledger(self) -> list[str]:
        path = self.root / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    async def draft(self, *recipients: str, content: bytes = SMALL, sender: str = "a@src.test",
                    warn_time: float = 0.0) -> SpoolDraft:  # fmt: skip
        draft = await self.store.draft(NOW)
        draft.envelope(Envelope(sender, [Recipient(r) for r in recipients], NOW, warn_time=warn_time))
        for i in range(0, len(content), 65536):
            draft.write(content[i : i + 65536])
        return draft

    async def content(self, job: Job) -> bytes:
        return b"".join([chunk async for chunk in self.store.content(job)])

    async def drop(self) -> None:
        path = self.root / "spool" / "maildrop" / "0123456789abcdef"
        path.write_bytes(MAILDROP)
        path.chmod(0o750)


# -- what runs and dies ---------------------------------------------------------------------------


async def accept(world: World) -> None:
    """Two messages come in; a 250 is sent after each commit."""
    for name, content in (("small", SMALL), ("large", LARGE)):
        draft = await world.draft("ok@dst.test", content=content, sender=f"{name}@src.test")
        await draft.commit()
        world.note(f"250 {name}")


async def deliver(world: World) -> None:
    """A message with marks, a deferral, and a second attempt."""
    await run_queue(world)


async def bounce(world: World) -> None:
    """Two recipients fail in one attempt, a third one later: two bounces."""
    await run_queue(world)


async def delay(world: World) -> None:
    """A delay notice, once."""
    await run_queue(world)


async def maildrop(world: World) -> None:
    """Pickup copies what lies in the maildrop."""
    await pick_up(world)
    await run_queue(world)


async def pick_up(world: World) -> None:
    for name in await world.store.scan_maildrop():
        file = await world.store.open_maildrop(name)
        assert file is not None
        message = await file.read()
        draft = await world.store.draft(NOW)
        draft.envelope(message.envelope)
        async for chunk in file.content(message):
            draft.write(chunk)
        await draft.commit(parent=Parent("maildrop", file.uid, file.name))
        await world.store.remove_maildrop(file)
        await world.store.release([draft])


async def run_queue(world: World) -> None:
    """A small queue manager: attempts on everything that is there until nothing is left."""
    for _ in range(10):
        ids = [i for q in (Queue.INCOMING, Queue.DEFERRED) for i, _ in await world.store.scan(q)]
        for queue_id in ids:
            job = await world.store.claim(queue_id)
            if job is not None:
                await attempt(world, job)
        if not ids:
            return
    raise AssertionError("the queue never gets empty")


async def attempt(world: World, job: Job) -> None:
    store = world.store
    await store.begin_attempt(job)
    if job.todo:
        await world.content(job)  # CorruptContentError would end the run
    later = job.origin_queue is Queue.DEFERRED
    failed, children, reasons = [], [], {}
    for recipient in job.todo:
        if recipient.address.startswith("bad@") or (recipient.address.startswith("worse@") and later):
            failed.append(recipient)
        elif recipient.address.startswith(("slow@", "worse@")) and not later:
            reasons[recipient.offset] = Reason("4.2.0", "come back later")
        else:
            world.note(f"delivered {job.envelope.sender or '<>'} {recipient.address}")
            store.mark(job, recipient)
    if failed:
        names = " ".join(r.address for r in failed)
        children.append(await child(world, job, "bounce", f"bounce:{names}", [r.offset for r in failed]))
        for recipient in failed:
            store.mark(job, recipient)
    if reasons and job.envelope.warn_time:
        children.append(await child(world, job, "delay", "delay:", list(reasons)))
        job.envelope.warn_time = 0.0
    await store.flush_marks(job)
    await store.release(children)
    if job.todo:
        await store.defer(job, NOW, reasons)
    else:
        await store.finish(job)


async def child(world: World, job: Job, kind: str, to: str, offsets: list[int]) -> SpoolDraft:
    draft = await world.draft(to, sender="")
    await draft.commit(parent=Parent(kind, job.uid, job.queue_id, tuple(offsets)))
    return draft


# -- before and after -----------------------------------------------------------------------------


async def prepare(world: World, scenario: str) -> None:
    if scenario == "maildrop":
        await world.drop()
    elif scenario != "accept":
        people = {"deliver": ("ok@dst.test", "slow@dst.test", "slow@two.test"), "delay": ("slow@dst.test",),
                  "bounce": RECIPIENTS}[scenario]  # fmt: skip
        draft = await world.draft(*people, warn_time=NOW if scenario == "delay" else 0.0)
        await draft.commit()


async def finish_and_judge(world: World, scenario: str) -> None:
    """What the next start of the MTA does, and what must be true then."""
    await world.store.recover()
    world.fsio.hook = None
    if scenario == "accept":
        await judge_accepted(world)
    before = world.ledger()
    await pick_up(world)
    await run_queue(world)
    judge(world, scenario, before)


async def judge_accepted(world: World) -> None:
    found = {}
    for queue_id, _ in await world.store.scan(Queue.INCOMING):
        job = await world.store.claim(queue_id)
        assert job is not None, f"{queue_id} is in incoming and not whole"
        found[job.envelope.sender] = await world.content(job)
        await world.store.give_back(job)
    expected = {"small@src.test": SMALL, "large@src.test": LARGE}
    for line in world.ledger():
        assert f"{line.split()[1]}@src.test" in found, f"lost: {line}"
    assert all(found[name] == expected[name] for name in found), "altered"


def judge(world: World, scenario: str, before: list[str]) -> None:
    """I1 to I3 of the fault plan: each recipient ends once; twice only if it was in flight when the process died."""
    ends = Counter(line for line in world.ledger() if line.startswith("delivered"))
    expected = {
        "accept": [],
        "deliver": ["a@src.test ok@dst.test", "a@src.test slow@dst.test", "a@src.test slow@two.test"],
        "bounce": ["a@src.test ok@dst.test", "a@src.test slow@dst.test", "<> bounce:bad@dst.test",
                   "<> bounce:worse@dst.test"],
        "delay": ["a@src.test slow@dst.test", "<> delay:"],
        "maildrop": ["root@mx.test carol@dst.test", "root@mx.test dave@dst.test"],
    }[scenario]  # fmt: skip
    if scenario != "accept":
        assert set(ends) == {f"delivered {e}" for e in expected}, ends
    in_flight = before[-1] if before else ""  # W2: its mark was the next thing
    for line, times in ends.items():
        assert times == 1 or (times == 2 and line == in_flight and scenario != "accept"), (line, times)
    left = [str(p) for q in ("incoming", "active", "deferred", "hold", "corrupt", "maildrop", "defer")
            for p in (world.root / "spool" / q).rglob("*") if p.is_file()]  # fmt: skip
    assert left == [], left


SCENARIOS: dict[str, Callable[[World], Awaitable[None]]] = {
    "accept": accept, "deliver": deliver, "bounce": bounce, "delay": delay, "maildrop": maildrop,
}  # fmt: skip


# -- processes ------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def live(root: Path, die_at: int, main: Callable[[World], Awaitable[None]], disk: Disk) -> None:
    async def run() -> None:
        world = World(root, die_at, disk)
        world.arm()
        await main(world)

    asyncio.run(run())


def set_up(root: Path, scenario: str, disk: Disk) -> None:
    async def run() -> None:
        world = World(root, 0, disk)
        await prepare(world, scenario)
        world.fsio.close()

    assert in_child(lambda: asyncio.run(run())) == 0


def killed_at(root: Path, scenario: str, n: int, disk: Disk) -> int:
    """Set up afresh and run a scenario that dies at operation n; return how it ended."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    set_up(root, scenario, disk)
    status = in_child(lambda: live(root, n, SCENARIOS[scenario], disk))
    assert status in (0, KILLED), f"{scenario}: died of itself at {n}"
    return status


def kill_everywhere(scenario: str, root: Path) -> int:
    """Return after how many deaths a run ended unharmed."""
    n, status = 0, KILLED
    while status == KILLED:
        n += 1
        status = killed_at(root, scenario, n, Fsio)
        judged = in_child(lambda: live(root, 0, lambda w: finish_and_judge(w, scenario), Fsio))
        assert judged == 0, f"{scenario}: wrong after a death at operation {n}"
    return n - 1


def kill_recovery_everywhere(scenario: str, root: Path) -> int:
    """Die at each operation, and then again at each operation of the recovery; return how many pairs there were."""
    n, status, pairs = 0, KILLED, 0
    while status == KILLED:
        n += 1
        m, again = 0, KILLED
        while again == KILLED:
            m += 1
            status = killed_at(root, scenario, n, InlineFsio)
            again = in_child(partial(live, root, m, recover, InlineFsio))
            assert again in (0, KILLED), f"{scenario}: recovery after {n} died of itself at {m}"
            judged = in_child(lambda: live(root, 0, lambda w: finish_and_judge(w, scenario), InlineFsio))
            assert judged == 0, f"{scenario}: wrong after deaths at {n} and at {m} of recovery"
            pairs += 1
    return pairs


async def recover(world: World) -> None:
    await world.store.recover()


if __name__ == "__main__":
    kill = kill_recovery_everywhere if sys.argv[3:] == ["recovery"] else kill_everywhere
    print(kill(sys.argv[1], Path(sys.argv[2]) / "world"))
