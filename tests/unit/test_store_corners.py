"""What a spool meets rarely: files that vanish, lie, repeat themselves, or stand where they should not."""

import asyncio
import errno
import os
import pwd
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.deliver.request import CorruptContentError
from mta.fsio.fsio import Fsio
from mta.queue import store_listing
from mta.queue.api import FencedError, Job, Parent, Queue, QueueError, Reason
from mta.queue.maildrop_rules import file_limit
from mta.queue.queue_reader import DamagedError
from mta.queue.store import create_spool
from mta.queue.store_admin import Administrator, Outcome, Verb
from mta.queue.store_listing import SLICE, files
from mta.queue.store_maildrop import MAX_COMPLAINTS
from tests.queue_support import NOW, Spooled, settings, spooled
from tests.unit.test_queue_file import decoded
from tests.unit.test_store import fail_at


class BadDisk(Fsio):
    """Reading operations fail with these errors; the hook of Fsio is for the writing ones."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, int] = {}

    def _fail(self, name: str) -> None:
        if number := self.errors.get(name):
            raise OSError(number, os.strerror(number))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._fail("pread")
        return super().pread(fd, size, offset)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool") as made:
        yield made


async def claimed(spool: Spooled, *recipients: str, content: bytes = b"Subject: x\n\nhello\n") -> Job:
    job = await spool.store.claim(await spool.accept(*recipients, content=content))
    assert job is not None
    return job


def unlocked(job: Job) -> None:
    """As if the process had ended."""
    fd = getattr(job.handle, "fd", -1)
    os.close(fd)


# -- accepting ------------------------------------------------------------------------------------


async def test_a_name_that_is_always_taken_is_an_error_and_no_endless_search(spool: Spooled) -> None:
    spool.fsio.hook = fail_at("open_excl", errno.EEXIST)
    with pytest.raises(QueueError, match="no free name"):
        await spool.draft()


async def test_free_space_is_asked_for_each_message_when_it_is_short(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = os.statvfs(spool.root)
    room = 20_000_000

    def counted(path: str) -> os.statvfs_result:
        asked.append(path)
        blocks = room // real.f_frsize
        return os.statvfs_result((*real[:2], real.f_blocks, blocks, blocks, *real[5:]))

    monkeypatch.setattr(spool.fsio, "statvfs", counted)
    for _ in range(3):
        await spool.accept()
    assert len(asked) == 3
    room = 1 << 40
    for _ in range(3):
        await spool.accept()
    assert len(asked) == 4, "with much room it is not asked again for a while"


async def test_how_much_is_free_is_told_in_percent(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(spool.root)
    for blocks, free, percent in ((1000, 250, 25.0), (0, 0, 0.0)):
        found = os.statvfs_result((*real[:2], blocks, free, free, *real[5:]))
        monkeypatch.setattr(spool.fsio, "statvfs", lambda _, found=found: found)
        assert spool.store.space.free_percent() == percent


async def test_two_probes_at_once_open_the_queue_with_one_line(tmp_path: Path) -> None:
    class SlowDisk(Fsio):
        gate = asyncio.Event()

        async def flush(self, fd: int) -> None:
            await self.gate.wait()
            await super().flush(fd)

    disk = SlowDisk()
    with spooled(tmp_path / "q", fsio=disk) as spool:
        spool.store.space.failed(OSError(errno.EIO, "Input/output error"))
        drafts = []
        for _ in range(2):
            spool.store.space.next_probe = 0.0  # the disk takes longer than the pause between two probes
            drafts.append(asyncio.ensure_future(spool.draft()))
            await asyncio.sleep(0)
        disk.gate.set()
        for draft in await asyncio.gather(*drafts):
            draft.abort()
        assert [line for line in spool.log.lines if "flush works again" in line] != []
        assert len(spool.log.lines) == 2
        assert spool.names("incoming") == []


# -- claiming and reading -------------------------------------------------------------------------


async def test_a_file_that_the_device_cannot_read_is_put_aside_and_other_trouble_is_tried_again(tmp_path: Path) -> None:
    disk = BadDisk()
    with spooled(tmp_path / "q", fsio=disk) as spool:
        queue_id = await spool.accept()
        disk.errors["pread"] = errno.ENOMEM
        with pytest.raises(QueueError, match="claim"):
            await spool.store.claim(queue_id)
        assert spool.names("incoming") == [queue_id]
        disk.errors["pread"] = errno.EIO
        assert await spool.store.claim(queue_id) is None
        assert spool.names("corrupt") == [queue_id]
        (line,) = [line for line in spool.log.lines if "damaged" in line]
        assert "unreadable: Input/output error" in line


async def test_damaged_files_of_one_name_do_not_hide_each_other(spool: Spooled) -> None:
    for content in (b"first", b"second", b"third"):
        path = spool.root / "incoming" / "ABCDEF1"
        path.write_bytes(content)
        path.chmod(0o700)
        assert await spool.store.claim("ABCDEF1") is None
    assert spool.names("corrupt") == ["ABCDEF1", "ABCDEF1_1", "ABCDEF1_2"]
    assert (spool.root / "corrupt" / "ABCDEF1_2").read_bytes() == b"third"


async def test_a_message_without_text_has_none(spool: Spooled) -> None:
    job = await claimed(spool, content=b"")
    assert [chunk async for chunk in spool.store.content(job)] == []
    assert await spool.store.header(job, 100) == b""


class HeldOpen(Fsio):
    """Each file that is closed stays open elsewhere, as in the kernel's worker that has just flushed it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int] = []

    def close_fd(self, fd: int) -> None:
        self.kept.append(os.dup(fd))
        super().close_fd(fd)


async def test_a_message_can_be_claimed_though_the_kernel_has_not_closed_its_file_yet(tmp_path: Path) -> None:
    disk = HeldOpen()
    with spooled(tmp_path / "spool", fsio=disk) as spool:
        try:
            child = await spool.accept(parent=Parent("forward", "0" * 32, "PARENT"))
            for queue_id in (await spool.accept(), child):
                job = await spool.store.claim(queue_id)
                assert job is not None
                await spool.store.give_back(job)
                job = await spool.store.claim(queue_id)
                assert job is not None
                await spool.store.defer(job, NOW, {})
                assert await spool.store.claim(queue_id) is not None
        finally:
            for fd in disk.kept:
                os.close(fd)


# -- the end of an attempt ------------------------------------------------------------------------


async def test_a_removal_is_flushed_soon_and_nobody_waits_for_it(spool: Spooled) -> None:
    job = await claimed(spool)
    spool.store.mark(job, job.todo[0])
    flushed = asyncio.Event()
    active = spool.fsio.directory(f"{spool.root}/active")

    def noted(operation: str, fd: str | int) -> None:
        if operation == "flush" and fd == active:
            flushed.set()

    spool.fsio.hook = noted
    await spool.store.finish(job)
    assert spool.names("active") == [] and not flushed.is_set()
    async with asyncio.timeout(10):
        await flushed.wait()
    await spool.fsio.flush(active)  # the next group: the one before has ended
    (await spool.draft()).abort()
    assert spool.log.lines == []


async def test_a_removal_that_cannot_be_flushed_closes_the_queue(spool: Spooled) -> None:
    job = await claimed(spool)
    spool.store.mark(job, job.todo[0])
    failed = asyncio.Event()
    warned = spool.log.warning

    def warning(service: str, text: str) -> None:
        warned(service, text)
        failed.set()

    spool.log.warning = warning  # type: ignore[method-assign]  # to be told when
    spool.fsio.hook = fail_at("flush", errno.EIO)
    await spool.store.finish(job)
    async with asyncio.timeout(10):
        await failed.wait()
    spool.fsio.hook = None
    assert "flush failed" in spool.log.lines[0]
    with pytest.raises(QueueError, match="queue closed"):
        await spool.draft()


async def test_a_job_that_cannot_be_given_back_is_still_held(spool: Spooled) -> None:
    job = await claimed(spool)
    spool.fsio.hook = fail_at("utime", errno.EROFS)
    with pytest.raises(QueueError, match="give back"):
        await spool.store.give_back(job)
    spool.fsio.hook = None
    assert spool.names("active") == [job.queue_id]
    await spool.store.give_back(job)
    assert spool.names("incoming") == [job.queue_id]


async def test_a_message_that_is_gone_when_it_is_deferred_is_forgotten_and_not_made_again(spool: Spooled) -> None:
    """Also when its hash directory had to be made for the move."""
    job = await claimed(spool)
    (spool.root / "active" / job.queue_id).unlink()
    shutil.rmtree(spool.path("deferred", job.queue_id).parent)
    with pytest.raises(FencedError):
        await spool.store.defer(job, NOW, {})
    assert spool.names("deferred") == spool.names("active") == []


async def test_what_was_delivered_of_a_message_that_was_put_on_hold_meanwhile_is_made_durable(spool: Spooled) -> None:
    job = await claimed(spool)
    assert await administrator(spool).act(Verb.HOLD, [job.queue_id]) == {job.queue_id: Outcome.DONE}
    spool.store.mark(job, job.todo[0])
    flushed: list[str] = []

    def hook(operation: str, target: str | int) -> None:
        if operation == "flush":
            flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{target}")))
            if len(flushed) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool.fsio.hook = hook
    with pytest.raises(QueueError, match="marks not durable"):
        await spool.store.finish(job)
    with pytest.raises(FencedError):
        await spool.store.finish(job)
    spool.fsio.hook = None
    assert flushed == [job.queue_id] * 2


async def test_a_message_that_was_deleted_while_it_was_tried_leaves_no_reasons(spool: Spooled) -> None:
    deleted, held = await claimed(spool), await claimed(spool)
    await administrator(spool).act(Verb.DELETE, [deleted.queue_id])
    await administrator(spool).act(Verb.HOLD, [held.queue_id])
    for job in (deleted, held):
        with pytest.raises(FencedError):
            await spool.store.defer(job, NOW, {r.offset: Reason("4.0.0", "later") for r in job.todo})
    assert spool.names("defer") == [held.queue_id]


@pytest.mark.parametrize("verb", [Verb.DELETE, Verb.HOLD])
async def test_a_damaged_message_that_an_administrator_took_away_meanwhile_is_forgotten(
    spool: Spooled, verb: Verb
) -> None:
    job = await claimed(spool)
    path = spool.only("active")
    path.write_bytes(path.read_bytes().replace(b"hello", b"hallo"))
    with pytest.raises(CorruptContentError):
        assert [chunk async for chunk in spool.store.content(job)]
    await administrator(spool).act(verb, [job.queue_id])
    with pytest.raises(FencedError):
        await spool.store.defer(job, NOW, {})
    assert spool.names("corrupt") == []
    if verb is Verb.HOLD:
        assert await administrator(spool).act(Verb.RELEASE, [job.queue_id]) == {job.queue_id: Outcome.DONE}


async def test_a_message_is_removed_only_when_that_can_be_made_durable(spool: Spooled) -> None:
    job = await claimed(spool)
    spool.fsio.close()  # as if there had been no descriptor for the directory at the claim
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(QueueError, match="Too many open files"):
            await spool.store.finish(job)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert spool.names("active") == [job.queue_id]
    await spool.store.finish(job)
    assert spool.names("active") == []


# -- looking over queues --------------------------------------------------------------------------


async def test_files_and_directories_that_vanish_while_they_are_listed_are_left_out(spool: Spooled) -> None:
    ids = [await spool.accept() for _ in range(3)]
    assert list(files(spool.fsio, f"{spool.root}/nothing")) == []
    plain = spool.fsio.scandir

    def vanishing(path: str) -> Iterator["os.DirEntry[str]"]:
        for entry in plain(path):
            if entry.name == ids[1]:
                os.unlink(entry.path)
            yield entry

    spool.fsio.scandir = vanishing  # type: ignore[method-assign]  # the file goes between its name and its status
    assert sorted(i for i, _ in await spool.store.scan(Queue.INCOMING)) == sorted({ids[0], ids[2]})


async def test_directories_in_maildrop_and_below_the_hashed_ones_are_not_entered(spool: Spooled) -> None:
    kept = await spool.accept()
    for queue, depth in (("maildrop", 1), ("deferred", 17)):
        path = spool.root / queue
        for _ in range(depth):
            path /= "a"
            path.mkdir()
        (path / "4FAB").write_bytes(b"x")
    assert [row.queue_id async for row in spool.store.listing()] == [kept]
    assert await administrator(spool).everything(Verb.DELETE, [Queue.MAILDROP]) == ["a"]
    assert await spool.store.scan(Queue.DEFERRED) == []


async def test_what_cannot_be_read_is_told_and_all_others_are_listed(spool: Spooled) -> None:
    ids = [await spool.accept() for _ in range(3)]
    plain = spool.fsio.scandir

    def refuse(path: str) -> Iterator["os.DirEntry[str]"]:
        if path.endswith("/maildrop"):
            raise OSError(errno.EACCES, "Permission denied")
        yield from plain(path)

    def hook(operation: str, path: str | int) -> None:
        if operation == "open" and str(path).endswith(ids[1]):
            raise OSError(errno.EPERM, "Operation not permitted")

    spool.fsio.scandir = refuse  # type: ignore[method-assign]  # root may read everything
    spool.fsio.hook = hook
    told: list[str] = []
    rows = [row.queue_id async for row in spool.store.listing(lambda name, _: told.append(name))]
    assert sorted(rows) == sorted({ids[0], ids[2]}) and told == ["maildrop", f"incoming/{ids[1]}"]


async def test_mailq_shows_messages_and_nothing_else(spool: Spooled) -> None:
    whole = await spool.accept()
    incoming = spool.root / "incoming"
    (incoming / "no-id.txt").write_bytes(b"x")
    (incoming / "LINK1").symlink_to(incoming / whole)
    (incoming / "DIR1").mkdir(mode=0o700)
    os.mkfifo(incoming / "FIFO1", 0o700)
    (incoming / "HALF1").write_bytes(b"x")
    (incoming / "HALF1").chmod(0o600)
    (incoming / "TORN1").write_bytes(b"x")
    (incoming / "TORN1").chmod(0o700)
    assert [row.queue_id async for row in spool.store.listing()] == [whole]


async def test_mailq_reads_no_more_of_what_a_user_left_than_pickup_does(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (Path(__file__).parents[1] / "golden/queue/maildrop.bin").read_bytes()
    os.truncate(drop(spool, "HUGE1", whole), file_limit(10_240_000) + 1)
    drop(spool, "WHOLE1", whole)
    assert [row.queue_id async for row in spool.store.listing()] == ["WHOLE1"]
    monkeypatch.setattr(store_listing, "MAX_RECORDS", 5)
    assert [row.queue_id async for row in spool.store.listing()] == []
    kept = await spool.accept("a@x.test", "b@x.test", "c@x.test")
    assert [row.queue_id async for row in spool.store.listing()] == [kept]


async def test_of_messages_to_many_few_are_in_memory_at_once(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_listing, "RECIPIENTS", 3)
    ids = {await spool.accept("a@x.test", "b@x.test") for _ in range(5)}
    opened: list[str | int] = []
    spool.fsio.hook = lambda operation, path: opened.append(path) if operation == "open" else None
    rows = spool.store.listing()
    found = {(await anext(rows)).queue_id}
    assert len(opened) == 2
    assert found | {row.queue_id async for row in rows} == ids


# -- the maildrop ---------------------------------------------------------------------------------


def drop(spool: Spooled, name: str, data: bytes, mode: int = 0o750) -> Path:
    path = spool.root / "maildrop" / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


async def test_padding_in_a_dropped_file_is_no_text(spool: Spooled) -> None:
    raw = b"T\x011S\x01aR\x01bM\x00" + b"w\xf8\xff\x01" + b" " * 32760 + b"N\x02hiX\x00E\x00"
    drop(spool, "A1", raw)
    file = await spool.store.open_maildrop("A1")
    assert file is not None
    assert [chunk async for chunk in file.content(await file.read())] == [b"hi\n"]
    file.close()


async def test_other_names_in_the_maildrop_are_not_looked_at(spool: Spooled) -> None:
    drop(spool, "A1", b"x")
    drop(spool, "not a queue id", b"x")
    assert await spool.store.scan_maildrop() == ["A1"]


async def test_a_maildrop_that_cannot_be_opened_now_is_tried_again(spool: Spooled) -> None:
    drop(spool, "A1", b"x")
    spool.fsio.hook = fail_at("open", errno.EMFILE)
    with pytest.raises(QueueError, match="maildrop/A1"):
        await spool.store.open_maildrop("A1")
    assert spool.log.lines == []


async def test_refusals_are_remembered_but_not_without_end(spool: Spooled) -> None:
    directory = spool.root / "maildrop" / "D1"
    directory.mkdir()
    for i in range(MAX_COMPLAINTS + 1):
        directory = directory.rename(directory.with_name(f"D{i}"))
        assert await spool.store.open_maildrop(directory.name) is None
    assert await spool.store.open_maildrop(directory.name) is None
    assert len(spool.log.lines) == MAX_COMPLAINTS + 1
    directory.rename(directory.with_name("D0"))
    assert await spool.store.open_maildrop("D0") is None
    assert len(spool.log.lines) == MAX_COMPLAINTS + 2, "the first ones are forgotten, and told again"


async def test_a_child_whose_parent_has_no_name_of_a_dropped_file_touches_nothing(spool: Spooled) -> None:
    victim = spool.root / "pid" / "unix.qmgr"
    victim.write_bytes(b"")
    await spool.accept(parent=Parent("maildrop", "1.2.3", "../pid/unix.qmgr"))
    await spool.store.recover()
    assert victim.exists() and spool.log.lines == []
    with pytest.raises(QueueError, match="no name of a maildrop file"):
        spool.store._maildrop.unlink_if_same("../pid/unix.qmgr", "1.2.3")


# -- start-up -------------------------------------------------------------------------------------


async def test_reasons_of_a_long_queue_are_put_in_their_place_in_slices(spool: Spooled) -> None:
    for i in range(SLICE + 1):
        (spool.root / "defer" / f"{i:05X}ABCD").write_bytes(b"why")
    await spool.store.recover()
    assert len([p for p in (spool.root / "defer").iterdir() if p.is_file()]) == 0
    assert len(spool.names("defer")) == SLICE + 1


async def test_a_parent_that_is_damaged_leaves_its_child_to_stand_alone(spool: Spooled) -> None:
    job = await claimed(spool)
    child = await spool.accept("a@src.test", parent=Parent("bounce", job.uid, job.queue_id, (job.todo[0].offset,)))
    path = spool.root / "active" / job.queue_id
    unlocked(job)
    os.truncate(path, 100)
    await spool.store.recover()
    assert await spool.store.claim(child) is not None
    assert await spool.store.claim(job.queue_id) is None
    assert spool.names("corrupt") == [job.queue_id]


async def test_a_delay_notice_of_a_message_that_wants_none_any_more_changes_nothing(spool: Spooled) -> None:
    job = await claimed(spool)
    await spool.accept("a@src.test", parent=Parent("delay", job.uid, job.queue_id, (job.todo[0].offset,)))
    before = (spool.root / "active" / job.queue_id).read_bytes()
    unlocked(job)
    await spool.store.recover()
    assert spool.path("incoming", job.queue_id).read_bytes() == before


async def test_the_copy_with_fewer_marks_goes_when_it_is_the_second_one_too(spool: Spooled) -> None:
    job = await claimed(spool, "b@dst.test", "c@dst.test")
    await spool.store.give_back(job)
    first = spool.path("incoming", job.queue_id)
    marked = spool.root / "hold" / job.queue_id
    shutil.copy2(first, marked)
    offset = decoded(marked.read_bytes()).envelope.recipients[0].offset
    with marked.open("r+b") as file:
        file.seek(offset)
        file.write(b"D")
    await spool.store.recover()
    (left,) = [p for q in ("incoming", "hold") for p in (spool.root / q).iterdir()]
    assert [r.state for r in decoded(left.read_bytes()).envelope.recipients] == ["D", "R"]


async def test_a_damaged_file_with_the_id_of_another_is_not_believed_to_be_its_copy(spool: Spooled) -> None:
    whole = await spool.accept()
    torn = spool.root / "active" / whole
    torn.write_bytes(b"torn")
    torn.chmod(0o700)
    own = f"{whole[:5]}{torn.stat().st_ino:X}"
    await spool.store.recover()
    assert spool.names("incoming") == sorted([whole, own])
    assert await spool.store.claim(own) is None and await spool.store.claim(whole) is not None
    assert spool.names("corrupt") == [own]


async def test_two_strangers_with_one_id_that_fits_neither_both_get_new_names(spool: Spooled) -> None:
    one, two = await spool.accept("one@dst.test"), await spool.accept("two@dst.test")
    wanted = "00000" + f"{os.stat(spool.root).st_ino:X}"
    spool.path("incoming", one).rename(spool.root / "incoming" / wanted)
    spool.path("incoming", two).rename(spool.root / "hold" / wanted)
    await spool.store.recover()
    for queue in ("incoming", "hold"):
        path = spool.only(queue)
        assert path.name == f"00000{path.stat().st_ino:X}"


async def test_a_name_that_is_taken_already_is_not_taken_away(spool: Spooled) -> None:
    queue_id = await spool.accept()
    path = spool.path("incoming", queue_id)
    fitting = path.with_name("00000" + f"{path.stat().st_ino:X}")
    misnamed = path.rename(path.with_name("00000" + f"{path.stat().st_ino + 1:X}"))
    fitting.mkdir()
    await spool.store.recover()
    assert misnamed.exists() and fitting.is_dir()


async def test_what_is_no_message_keeps_its_place_at_the_start(spool: Spooled) -> None:
    strange = [spool.root / "active" / "README.txt", spool.root / "deferred" / "README.txt"]
    for path in strange:
        path.write_bytes(b"x")
    directory = spool.root / "deferred" / "ABCDEF1"
    directory.mkdir()
    await spool.store.recover()
    assert all(path.exists() for path in (*strange, directory))


async def test_a_file_that_goes_while_the_start_looks_at_it_is_no_trouble(spool: Spooled) -> None:
    queue_id = await spool.accept()
    plain = spool.fsio.open

    def gone(path: str, *, write: bool = False) -> int:
        if path.endswith(queue_id):
            os.unlink(path)
        return plain(path, write=write)

    spool.fsio.open = gone  # type: ignore[method-assign]  # somebody deletes it at that moment
    await spool.store.recover()
    assert spool.names("incoming") == [] and spool.log.lines == []


async def recovered_with(spool: Spooled, operation: str) -> None:
    """A start on a disk that fails one kind of operation."""
    spool.fsio.hook = fail_at(operation, errno.EIO)
    await spool.store.recover()


async def test_a_message_that_cannot_be_flushed_at_the_start_may_be_claimed_and_its_key_is_not_known(
    spool: Spooled,
) -> None:
    draft = await spool.draft()
    await draft.commit(attributes={"submit_key": "ab" * 16})
    await recovered_with(spool, "flush")
    spool.fsio.hook = None
    assert spool.store.submit_keys == {}
    assert await spool.store.claim(draft.queue_id) is not None


async def test_a_copy_of_a_dropped_file_that_cannot_be_flushed_goes_because_the_file_is_still_there(
    spool: Spooled,
) -> None:
    dropped = drop(spool, "A1", b"x")
    found = dropped.stat()
    await spool.accept(parent=Parent("maildrop", f"{found.st_dev}.{found.st_ino}.{found.st_ctime_ns}", "A1"))
    await recovered_with(spool, "flush")
    assert spool.names("incoming") == [] and dropped.exists()


@pytest.mark.parametrize("kind", ["delay", "bounce"])
async def test_a_child_that_nobody_is_sure_to_repeat_waits_locked_for_as_many_scans_as_it_takes(
    spool: Spooled, kind: str
) -> None:
    """A delay notice may have been noted already; the parent of the bounce is finished."""
    if kind == "delay":
        job = await claimed(spool)
        parent = Parent(kind, job.uid, job.queue_id, (job.todo[0].offset,))
        unlocked(job)
    else:
        parent = Parent(kind, "0" * 32, "ABCDEF1", (100,))
    child = await spool.accept("a@src.test", parent=parent)
    await recovered_with(spool, "flush")
    spool.arrived.clear()
    await spool.store.scan(Queue.INCOMING)
    assert spool.arrived == [] and await spool.store.claim(child) is None
    spool.fsio.hook = None
    await spool.store.scan(Queue.INCOMING)
    assert spool.arrived == [child] and await spool.store.claim(child) is not None


async def test_a_child_that_a_scan_settles_is_claimed_by_nobody_before_it_has_settled_it(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await spool.accept("a@src.test", parent=Parent("bounce", "0" * 32, "ABCDEF1", (100,)))
    await recovered_with(spool, "open")
    spool.fsio.hook, flush = None, spool.fsio.flush
    claimed_meanwhile: list[Job | None] = []

    async def slow(fd: int) -> None:
        claimed_meanwhile.append(await spool.store.claim(child))
        await flush(fd)

    monkeypatch.setattr(spool.fsio, "flush", slow)
    await spool.store.scan(Queue.INCOMING)
    assert claimed_meanwhile == [None, None], "not before it and its name are flushed"
    assert await spool.store.claim(child) is not None


async def test_a_dropped_file_that_goes_just_before_it_is_removed_is_removed(spool: Spooled) -> None:
    dropped = drop(spool, "A1", b"x")
    found = dropped.stat()

    def first(operation: str, target: str | int) -> None:
        if operation == "unlink" and target == str(dropped):
            dropped.unlink()

    spool.fsio.hook = first
    uid = f"{found.st_dev}.{found.st_ino}.{found.st_ctime_ns}"
    assert not spool.store._maildrop.unlink_if_same("A1", uid)
    assert not dropped.exists()


@pytest.mark.parametrize(("alone", "before", "after"), [
    (True, 0, 0), (True, 1, 2), (True, 2, 2), (True, 3, 4), (True, 9, 9), (False, 1, 1),
])  # fmt: skip
async def test_a_crash_of_the_delivering_process_alone_counts_twice_for_what_was_being_tried(
    spool: Spooled, alone: bool, before: int, after: int
) -> None:
    job = await claimed(spool)
    path = spool.root / "active" / job.queue_id
    raw = path.read_bytes()
    at = decoded(raw).crashes_offset
    path.write_bytes(raw[:at] + b"%d" % before + raw[at + 1 :])
    unlocked(job)
    torn = spool.root / "active" / "ABCDEF1"
    torn.write_bytes(b"torn")
    torn.chmod(0o700)
    spool.store.handler_crashed = alone
    await spool.store.recover()
    again = await spool.store.claim(job.queue_id)
    assert again is not None and again.crashes == after
    (left,) = [name for name in spool.names("incoming") if name != job.queue_id]
    assert spool.path("incoming", left).read_bytes() == b"torn"


# -- directories ----------------------------------------------------------------------------------


async def test_a_hash_directory_is_made_when_the_first_message_comes(tmp_path: Path) -> None:
    with spooled(tmp_path / "q", depth=2) as spool:
        job = await claimed(spool)
        await spool.store.defer(job, NOW, {job.todo[0].offset: Reason("4.0.0", "later")})
        first, second = job.queue_id[0], job.queue_id[1]
        assert (spool.root / "deferred" / first / second / job.queue_id).exists()


@pytest.mark.needs_root
def test_root_gives_the_spool_to_its_owner_and_maildrop_keeps_its_group_bit(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    owner = (nobody.pw_uid, nobody.pw_gid)
    fsio = Fsio()
    for _ in range(2):  # and again, when nothing is left to do
        create_spool(settings(tmp_path / "q"), fsio, owner)
    for path in (tmp_path / "q", *(tmp_path / "q").iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert (tmp_path / "q" / "maildrop").stat().st_mode & 0o7777 == 0o3733


def test_the_owner_is_changed_before_the_mode_because_that_clears_the_group_bit(tmp_path: Path) -> None:
    """The same as any user: what would be asked of the system, in which order."""

    class Noted(Fsio):
        def chown(self, path: str, uid: int, gid: int) -> None:
            asked.append((Path(path).name, "chown", uid, gid))

        def chmod(self, path: str, mode: int) -> None:
            asked.append((Path(path).name, "chmod", mode, 0))

    asked: list[tuple[str, str, int, int]] = []
    create_spool(settings(tmp_path / "q"), Fsio())
    (tmp_path / "q" / "maildrop").chmod(0o733)
    create_spool(settings(tmp_path / "q"), Noted(), (12345, 23456))
    assert asked.count(("maildrop", "chown", 12345, 23456)) == 1
    of_maildrop = [name for directory, name, _, _ in asked if directory == "maildrop"]
    assert of_maildrop == ["chown", "chmod"]


def test_a_link_in_the_place_of_a_directory_of_the_queue_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "q").mkdir()
    (tmp_path / "q/deferred").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        create_spool(settings(tmp_path / "q"), Fsio())
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o700



# -- an administrator -----------------------------------------------------------------------------


def administrator(spool: Spooled) -> Administrator:
    return Administrator(spool.store.spool, spool.fsio, Clock(wall=lambda: spool.now))


async def test_an_administrator_hears_of_a_disk_that_does_not_let_him(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.fsio.hook = fail_at("rename", errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        await administrator(spool).act(Verb.HOLD, [queue_id])
    assert spool.names("incoming") == [queue_id]


async def test_a_message_that_cannot_be_changed_is_told_and_all_others_are_changed(spool: Spooled) -> None:
    ids = [await spool.accept() for _ in range(3)]

    def hook(operation: str, path: str | int) -> None:
        if operation in ("open", "utime") and str(path).endswith(ids[1]):
            raise OSError(errno.EPERM, "Operation not permitted")

    spool.fsio.hook = hook
    told: list[str] = []
    found = await administrator(spool).act(Verb.HOLD, ids, failed=lambda name, _: told.append(name))
    assert list(found.values()) == [Outcome.DONE, Outcome.FAILED, Outcome.DONE] and told == [ids[1]]
    spool.fsio.hook = None
    await administrator(spool).act(Verb.HOLD, ids)
    await administrator(spool).act(Verb.RELEASE, ids)
    spool.fsio.hook = hook
    assert await spool.store.wake(ids) == 2
    assert spool.log.lines == [f"qmgr: {ids[1]}: flush: Operation not permitted"]


async def test_what_is_no_message_is_absent_to_an_administrator_too(spool: Spooled) -> None:
    os.mkfifo(spool.root / "incoming" / "FIFO1", 0o700)
    (spool.root / "deferred" / "LINK1").symlink_to("/etc/passwd")
    assert set((await administrator(spool).act(Verb.HOLD, ["FIFO1", "LINK1"])).values()) == {Outcome.ABSENT}


async def test_a_message_that_another_process_holds_is_busy_and_one_not_released_is_not_there(spool: Spooled) -> None:
    held = await spool.accept()
    spool.path("incoming", held).rename(spool.root / "hold" / held)
    fds = [os.open(spool.root / "hold" / held, os.O_RDONLY)]
    assert spool.fsio.flock(fds[0])
    child = await spool.draft()
    await child.commit(parent=Parent("bounce", "0" * 32, "ABC1", (100,)))
    found = await administrator(spool).act(Verb.REQUEUE, [held, child.queue_id])
    assert found == {held: Outcome.BUSY, child.queue_id: Outcome.ABSENT}
    os.close(fds[0])
    assert await administrator(spool).act(Verb.REQUEUE, [held]) == {held: Outcome.DONE}
    child.abort()


def test_a_torn_file_says_so() -> None:
    with pytest.raises(DamagedError):
        decoded(b"torn")
