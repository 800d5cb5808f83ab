"""Start-up: what a crash left is settled, swept, merged or put aside; nothing is lost or sent twice."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.queue.api import Job, Parent, Queue, Reason
from mta.queue.store_listing import SLICE
from mta.queue.store_maildrop import Maildrop
from mta.queue.store_recover_children import Children
from mta.queue.store_spool import WRITING
from tests.queue_support import NOW, Spooled, spooled
from tests.unit.test_queue_file import decoded
from tests.unit.test_store import fail_at


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool") as made:
        yield made


def die(spool: Spooled, *handles: object) -> None:
    """What the kernel does when a process ends: its locks are gone."""
    for handle in handles:
        fd = getattr(handle, "_fd", None) or getattr(getattr(handle, "handle", None), "fd", None)
        assert isinstance(fd, int)
        fcntl.flock(fd, fcntl.LOCK_UN)  # the kernel may still hold the file for an fsync that has just ended
        os.close(fd)


async def claimed(spool: Spooled, *recipients: str, warn_time: float = 0.0) -> Job:
    job = await spool.store.claim(await spool.accept(*recipients, warn_time=warn_time))
    assert job is not None
    return job


def states(path: Path) -> list[str]:
    return [r.state for r in decoded(path.read_bytes()).envelope.recipients]


async def test_unfinished_files_are_removed_and_locked_ones_stay(spool: Spooled) -> None:
    writing = await spool.draft()
    (spool.root / "incoming" / "123.99").write_bytes(b"torn")
    unfinished = spool.root / "incoming" / "ABC1"
    unfinished.write_bytes(b"torn")
    unfinished.chmod(0o600)
    (spool.root / "incoming" / "README.txt").write_bytes(b"not ours")
    await spool.store.recover()
    assert len(spool.names("incoming")) == 2
    await writing.commit()
    assert spool.names("incoming") == sorted([writing.queue_id, "README.txt"])
    assert spool.names("corrupt") == []


async def test_active_becomes_claimable_again_and_keeps_its_crash_count(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.begin_attempt(job)
    die(spool, job)
    await spool.store.recover()
    assert spool.names("active") == []
    again = await spool.store.claim(job.queue_id)
    assert again is not None
    assert again.crashes == 1


async def test_an_active_message_with_reasons_is_deferred_and_due(spool: Spooled) -> None:
    job = await claimed(spool)
    offset = job.todo[0].offset
    await spool.store.defer(job, NOW + 500, {offset: Reason("4.0.0", "not today")})
    again = await spool.store.claim(job.queue_id)
    assert again is not None
    die(spool, again)
    await spool.store.recover()
    assert await spool.store.scan(Queue.DEFERRED) == [(job.queue_id, NOW)]
    again = await spool.store.claim(job.queue_id)
    assert again is not None
    await spool.store.finish(again)
    assert spool.names("defer") == []


@pytest.mark.parametrize("kind", ["bounce", "forward", "success", "double-bounce"])
@pytest.mark.parametrize("place", ["active", "incoming", "deferred", "hold"])
async def test_a_child_marks_just_its_recipients_wherever_the_parent_is(spool: Spooled, kind: str, place: str) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test", "d@dst.test")
    b, _, d = (r.offset for r in job.todo)
    child = await spool.draft("a@src.test", sender="")
    await child.commit(parent=Parent(kind, job.uid, job.queue_id, (b, d)))
    match place:
        case "deferred":
            await spool.store.defer(job, NOW + 99, {})
        case "hold":
            await spool.store.hold(job)
        case "incoming":
            await spool.store.give_back(job)
        case _:
            die(spool, job)
    die(spool, child)
    await spool.store.recover()
    (path,) = [p for q in ("incoming", "deferred", "hold") for p in (spool.root / q).rglob(job.queue_id)]
    assert states(path) == ["D", "R", "D"]
    if place == "deferred":
        assert await spool.store.scan(Queue.DEFERRED) == [(job.queue_id, NOW + 99)]
    assert (await spool.store.claim(child.queue_id)) is not None


async def test_a_child_whose_lock_outlives_its_process_waits_for_its_parents_marks(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    child = await spool.draft("a@src.test", sender="")
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    lock = os.open(spool.path("incoming", child.queue_id), os.O_RDONLY)
    die(spool, job, child)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await spool.store.recover()
    await spool.store.scan(Queue.INCOMING)
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)
    assert await spool.store.claim(child.queue_id) is None
    assert states(spool.path("incoming", job.queue_id)) == ["R", "R"]
    await spool.store.scan(Queue.INCOMING)
    assert states(spool.path("incoming", job.queue_id)) == ["D", "R"]
    assert (await spool.store.claim(child.queue_id)) is not None


@pytest.mark.parametrize("state", ["whole", "damaged", "given up"])
async def test_a_message_that_somebody_else_commits_just_now_is_left_to_him(spool: Spooled, state: str) -> None:
    queue_id = await spool.accept()
    path = spool.path("incoming", queue_id)
    if state == "damaged":
        path.write_bytes(path.read_bytes()[:200])
    elif state == "given up":
        path.chmod(WRITING)
    lock = os.open(path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await spool.store.recover()
    os.close(lock)
    assert spool.log.lines == []
    assert spool.names("incoming") == [queue_id]


async def test_the_marks_are_durable_before_the_child_can_be_claimed(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.store.recover()
    assert steps.index("flush") < steps.index("pwrite")  # the child itself comes first
    last_flush = len(steps) - 1 - steps[::-1].index("flush")
    assert steps.index("pwrite") < last_flush < steps.index("rename")


async def test_a_child_that_answers_for_many_is_applied_in_linear_time(spool: Spooled) -> None:
    class Counted(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    job = await claimed(spool, *(f"{n}@dst.test" for n in range(3000)))
    parent = Parent("bounce", job.uid, job.queue_id, tuple(Counted(r.offset) for r in reversed(job.todo)))
    die(spool, job)
    children = Children(spool.store, Maildrop(spool.store.spool, spool.store.fsio, spool.store.clock, spool.store.log))
    assert await children._apply(parent, Queue.ACTIVE, str(spool.path("active", job.queue_id)))
    assert states(spool.only("active")) == ["D"] * 3000
    assert Counted.compared < 20 * 3000


async def test_a_child_of_another_message_with_the_same_id_marks_nothing(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", "00" * 16, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    await spool.store.recover()
    assert states(spool.path("incoming", job.queue_id)) == ["R"]


@pytest.mark.parametrize("parent", ["../../etc/passwd", "ABC123", ""])
async def test_a_child_without_parent_is_just_released(spool: Spooled, parent: str) -> None:
    for kind in ("bounce", "maildrop", "something new"):
        child = await spool.draft()
        await child.commit(parent=Parent(kind, "1.2.3", parent, (7,)))
        die(spool, child)
        await spool.store.recover()
        assert await spool.store.claim(child.queue_id) is not None


async def test_a_delay_notice_is_not_repeated(spool: Spooled) -> None:
    job = await claimed(spool, warn_time=NOW)
    child = await spool.draft()
    await child.commit(parent=Parent("delay", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    await spool.store.recover()
    again = await spool.store.claim(job.queue_id)
    assert again is not None
    assert again.envelope.warn_time == 0.0
    assert len(again.todo) == 1


async def test_a_copied_maildrop_file_is_removed_and_an_altered_one_is_not(spool: Spooled) -> None:
    for touched in (False, True):
        dropped = spool.root / "maildrop" / "ABC0"
        dropped.write_bytes(b"x")
        found = dropped.stat()
        uid = f"{found.st_dev + 1}.{found.st_ino}.{found.st_ctime_ns}"  # devices are renumbered at boot
        if touched:
            dropped.chmod(0o755)
            os.utime(dropped, (1, 1))
        child = await spool.draft()
        await child.commit(parent=Parent("maildrop", uid, "ABC0"))
        die(spool, child)
        await spool.store.recover()
        assert dropped.exists() is touched
        assert await spool.store.claim(child.queue_id) is not None


async def test_a_torn_file_is_put_aside_with_one_line(spool: Spooled) -> None:
    torn = spool.root / "incoming" / "ABC1"
    torn.write_bytes(b"C")
    torn.chmod(0o700)
    await spool.store.recover()
    assert spool.names("corrupt") == ["ABC1"]
    assert len(spool.log.lines) == 1


async def test_submit_keys_of_waiting_messages_are_known_again(spool: Spooled) -> None:
    draft = await spool.draft()
    await draft.commit(attributes={"submit_key": "00ff"})
    await spool.store.recover()
    assert spool.store.submit_keys == {"00ff": draft.queue_id}


async def test_two_names_of_one_file_become_one(spool: Spooled) -> None:
    queue_id = await spool.accept()
    for place in ("hold", "active"):
        os.link(spool.path("incoming", queue_id), spool.root / place / queue_id)
    await spool.store.recover()
    assert sum(len(spool.names(q)) for q in ("incoming", "active", "hold")) == 1
    assert spool.only("hold").stat().st_nlink == 1


@pytest.mark.parametrize("place", ["active", "hold", "deferred"])
async def test_of_two_copies_the_one_with_more_marks_stays(spool: Spooled, place: str) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    await spool.store.give_back(job)
    first = spool.path("incoming", job.queue_id)
    copy = spool.path(place, job.queue_id)
    shutil.copy2(first, copy)
    again = await spool.store.claim(job.queue_id)
    assert again is not None
    spool.store.mark(again, again.todo[0])
    await spool.store.give_back(again)
    if place == "active":
        again.handle = None
    await spool.store.recover()
    found = [p for q in ("incoming", "deferred", "hold") for p in (spool.root / q).rglob(job.queue_id[:5] + "*")]
    assert [states(p) for p in found if p.is_file()] == [["D", "R"]]


async def test_another_message_with_the_same_id_gets_an_id_of_its_own(spool: Spooled) -> None:
    for first_is_right in (True, False):
        one, two = await spool.accept("one@dst.test"), await spool.accept("two@dst.test")
        wanted = one if first_is_right else two
        place = spool.path("incoming", two if first_is_right else one)
        place.rename(spool.root / "hold" / wanted)
        await spool.store.recover()
        assert len(spool.names("incoming")) == len(spool.names("hold")) == 1
        assert spool.names("incoming") != spool.names("hold")
        for queue in ("incoming", "hold"):
            path = spool.only(queue)
            assert path.name.endswith(f"{path.stat().st_ino:X}")
            path.unlink()


async def test_a_restored_spool_gets_ids_that_fit_its_inodes(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.store.defer(job, NOW, {})
    path, reasons = spool.only("deferred"), spool.only("defer")
    reasons.write_bytes(b"some reason")
    copy = path.parent / "copy"
    shutil.copy2(path, copy)
    inode = copy.stat().st_ino
    copy.rename(path)
    await spool.store.recover()
    assert spool.only("deferred").name == spool.only("defer").name == job.queue_id[:5] + f"{inode:X}"
    assert await spool.store.claim(spool.only("deferred").name) is not None


async def test_files_in_the_wrong_hash_directory_are_moved(spool: Spooled) -> None:
    found = set()
    for _ in range(3):
        job = await claimed(spool)
        await spool.store.defer(job, NOW, {})
        found.add(job.queue_id)
    flat = spool.root / "deferred"
    for path in [p for p in flat.rglob("*") if p.is_file()]:
        path.rename(flat / path.name)
    await spool.store.recover()
    assert set(spool.names("deferred")) == found
    for queue_id in found:
        assert await spool.store.claim(queue_id) is not None


async def test_files_of_queues_that_were_hashed_before_are_found(spool: Spooled) -> None:
    """hash_queue_names of a Postfix, or of another time, named them; a message there was listed, and never tried."""
    back, held = await claimed(spool), await claimed(spool)
    await spool.store.give_back(back)
    await spool.store.hold(held)
    for path in (spool.only("incoming"), spool.only("hold")):
        deep = path.parent / path.name[0] / path.name[1]
        deep.mkdir(parents=True)
        path.rename(deep / path.name)
    await spool.store.recover()
    assert await spool.store.claim(back.queue_id) is not None
    assert (spool.root / "hold" / held.queue_id).exists()


async def test_recover_goes_on_when_one_file_makes_trouble(spool: Spooled) -> None:
    job, other = await claimed(spool), await claimed(spool)
    die(spool, job, other)
    failed: list[str] = []

    def once(op: str, path: str | int) -> None:
        if op == "rename" and not failed:
            failed.append(str(path))
            raise OSError(errno.EIO, "Input/output error")

    spool.fsio.hook = once
    await spool.store.recover()
    assert len(spool.names("incoming")) == len(spool.names("active")) == 1
    assert "Input/output error" in spool.log.lines[0]


async def test_recover_may_be_repeated(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    for _ in range(3):
        await spool.store.recover()
    assert states(spool.path("incoming", job.queue_id)) == ["D", "R"]
    assert len(spool.names("incoming")) == 2


async def test_a_large_deferred_queue_is_scanned_in_slices(spool: Spooled) -> None:
    queue_id = await spool.accept()
    raw = spool.path("incoming", queue_id).read_bytes()
    for n in range(SLICE + 10):
        path = spool.root / "deferred" / f"{n % 16:X}" / f"{n % 16:X}{n:04X}0"
        path.write_bytes(raw)
        path.chmod(0o700)
    assert len(await spool.store.scan(Queue.DEFERRED)) == SLICE + 10
    await spool.store.recover()
    found = await spool.store.scan(Queue.DEFERRED)
    assert len(found) == SLICE + 10
    assert await spool.store.claim(found[0][0]) is not None


async def test_directories_are_made_with_their_modes(spool: Spooled) -> None:
    modes = {p.name: p.stat().st_mode & 0o7777 for p in spool.root.iterdir()}
    assert modes["maildrop"] == 0o3733
    assert modes["public"] == modes["pid"] == 0o755
    assert modes["incoming"] == modes["active"] == modes["deferred"] == modes["hold"] == modes["corrupt"] == 0o700
    assert spool.root.stat().st_mode & 0o777 == 0o755
    assert len(list((spool.root / "deferred").iterdir())) == 16


async def test_missing_parents_of_the_spool_are_made(tmp_path: Path) -> None:
    with spooled(tmp_path / "a" / "b" / "spool") as deep:
        await deep.accept()
        assert deep.root == tmp_path / "a" / "b" / "spool"
        assert len(list((deep.root / "incoming").iterdir())) == 1


async def test_wrong_modes_are_repaired(spool: Spooled) -> None:
    (spool.root / "maildrop").chmod(0o755)
    (spool.root / "hold").rmdir()
    with spooled(spool.root) as again:
        assert (again.root / "maildrop").stat().st_mode & 0o7777 == 0o3733
        assert (again.root / "hold").is_dir()


async def test_a_child_whose_parent_cannot_be_marked_is_removed_because_the_parent_repeats_it(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    spool.fsio.hook = fail_at("pwrite", errno.EIO)
    await spool.store.recover()
    spool.fsio.hook = None
    assert child.queue_id not in spool.names("incoming")
    assert states(spool.path("incoming", job.queue_id)) == ["R"]


async def test_a_marked_parent_that_cannot_be_flushed_keeps_its_child_locked_until_a_scan_succeeds(
    spool: Spooled,
) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    spool.store.mark(job, job.todo[0])
    die(spool, job, child)
    spool.fsio.hook = fail_at("flush", errno.EIO)
    await spool.store.recover()
    spool.fsio.hook = None
    assert await spool.store.claim(child.queue_id) is None
    spool.arrived.clear()
    await spool.store.scan(Queue.INCOMING)
    assert spool.arrived == [child.queue_id]
    assert await spool.store.claim(child.queue_id) is not None
    assert states(spool.path("incoming", job.queue_id)) == ["D"]


def tear(path: Path) -> None:
    """What a power cut leaves of a file whose name and ends are on the disk and whose middle is not."""
    data = path.read_bytes()
    assert data.count(b"hello") == 1
    path.write_bytes(data.replace(b"hello", b"\0\0\0\0\0"))


async def test_a_key_is_not_known_again_when_the_content_is_torn(spool: Spooled) -> None:
    draft = await spool.draft()
    await draft.commit(attributes={"submit_key": "00ff"})
    tear(spool.path("incoming", draft.queue_id))
    await spool.store.recover()
    assert spool.store.submit_keys == {}
    assert spool.names("corrupt") == [draft.queue_id]


@pytest.mark.parametrize("records", [False, True])
async def test_a_torn_child_answers_for_nobody(spool: Spooled, records: bool) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)
    path = spool.path("incoming", child.queue_id)
    if records:
        path.write_bytes(path.read_bytes().replace(b"N\x05hello", b"\0" * 7))
    else:
        tear(path)
    await spool.store.recover()
    assert spool.names("corrupt") == [child.queue_id]
    assert states(spool.path("incoming", job.queue_id)) == ["R"]


async def test_a_child_that_cannot_be_opened_is_claimed_by_nobody_until_a_scan_has_settled_it(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    die(spool, job, child)

    def shut(op: str, path: str | int) -> None:
        if op == "open" and str(path).endswith(child.queue_id):
            raise OSError(errno.EMFILE, "too many")

    spool.fsio.hook = shut
    await spool.store.recover()
    await spool.store.scan(Queue.INCOMING)
    assert await spool.store.claim(child.queue_id) is None
    spool.fsio.hook = None
    assert await spool.store.claim(child.queue_id) is None
    assert states(spool.path("incoming", job.queue_id)) == ["R"]
    await spool.store.scan(Queue.INCOMING)
    assert await spool.store.claim(child.queue_id) is not None
    assert states(spool.path("incoming", job.queue_id)) == ["D"]


async def test_what_could_not_be_opened_and_is_gone_or_whole_or_torn_by_then_waits_no_longer(spool: Spooled) -> None:
    gone, whole, torn = [await spool.accept() for _ in range(3)]
    spool.fsio.hook = fail_at("open", errno.EIO)
    await spool.store.recover()
    spool.fsio.hook = None
    spool.path("incoming", gone).unlink()
    spool.path("incoming", torn).write_bytes(b"torn")
    await spool.store.scan(Queue.INCOMING)
    assert await spool.store.claim(whole) is not None
    assert await spool.store.claim(gone) is None
    assert spool.names("corrupt") == [torn]


@pytest.mark.parametrize("gone", [False, True])
async def test_what_cannot_be_moved_out_of_active_is_moved_by_a_later_scan(spool: Spooled, gone: bool) -> None:
    job = await claimed(spool)
    die(spool, job)
    spool.fsio.hook = fail_at("rename", errno.EDQUOT)
    await spool.store.recover()
    await spool.store.scan(Queue.INCOMING)
    assert spool.names("active") == [job.queue_id]
    spool.fsio.hook = None
    if gone:
        spool.path("active", job.queue_id).unlink()
    await spool.store.scan(Queue.INCOMING)
    assert (await spool.store.claim(job.queue_id) is None) is gone


async def test_a_child_that_can_be_neither_settled_nor_locked_waits_all_the_same(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    spool.store.mark(job, job.todo[0])
    die(spool, job, child)
    opened = 0

    def failing(op: str, path: str | int) -> None:
        nonlocal opened
        opened += op == "open" and str(path).endswith(child.queue_id)
        if op == "flush" or (op == "open" and opened > 2):  # read, and opened to be flushed
            raise OSError(errno.EMFILE, "too many")

    spool.fsio.hook = failing
    await spool.store.recover()
    spool.fsio.hook = None
    assert f"{child.queue_id}: cannot be locked" in "\n".join(spool.log.lines)
    assert await spool.store.claim(child.queue_id) is None
    await spool.store.scan(Queue.INCOMING)
    assert await spool.store.claim(child.queue_id) is not None
