"""The store on a real disk: accepting, claiming, reading, and what damage does."""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta.deliver.request import CorruptContentError
from mta.envelope import Envelope
from mta.fsio.fsio import Fsio
from mta.queue.api import FencedError, Parent, Queue, QueueError, QueueFullError
from mta.queue.queue_file import PLAIN_LIMIT
from mta.queue.store import SpoolStore
from tests.queue_support import NOW, Spooled, spooled
from tests.unit.test_queue_file import decoded

BIG = b"".join(b"line %d of a large message\n" % i for i in range(40_000))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool") as made:
        yield made


async def read(spool: Spooled, queue_id: str) -> bytes:
    """Claim, read and give back."""
    job = await spool.store.claim(queue_id)
    assert job is not None
    chunks = [c async for c in spool.store.content(job)]
    assert all(len(c) <= 65536 for c in chunks)
    await spool.store.give_back(job)
    return b"".join(chunks)


async def test_a_committed_message_is_in_incoming_under_an_id_of_its_inode(spool: Spooled) -> None:
    draft = await spool.draft()
    assert spool.names("incoming") != [draft.queue_id]
    await draft.commit()
    assert spool.names("incoming") == spool.arrived == [draft.queue_id]
    found = spool.only("incoming").stat()
    assert found.st_mode & 0o7777 == 0o700
    assert draft.queue_id.endswith(f"{found.st_ino:X}")


async def test_long_ids_when_asked_for(tmp_path: Path) -> None:
    with spooled(tmp_path, long=True) as spool:
        queue_id = await spool.accept()
        assert "z" in queue_id
        assert await read(spool, queue_id) == b"Subject: x\n\nhello\n"


async def test_the_order_of_a_commit_is_name_file_directory(spool: Spooled) -> None:
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.accept()
    assert steps == ["open_excl", "write", "fchmod", "rename", "flush", "flush_directory", "close"]


async def test_the_lock_is_held_until_the_message_is_durable(spool: Spooled) -> None:
    claims: list[object] = []

    def look(op: str, _: str | int) -> None:
        if op == "flush_directory":
            spool.fsio.hook = None
            claims.append(asyncio.ensure_future(spool.store.claim(draft.queue_id)))

    draft = await spool.draft()
    spool.fsio.hook = look
    await draft.commit()
    (first,) = claims
    assert isinstance(first, asyncio.Future)
    # the claim ran beside the flush or after it, never before the message was whole
    job = await first
    assert job is None or job.queue_id == draft.queue_id


@pytest.mark.parametrize("content", [
    b"Subject: x\n\nhello\n", b"no newline at the end", b"\n", b"x" * 10_000 + b"\n", BIG, BIG + b"open end",
    b"\n" * 300_000, b"z" * 300_000, b"y" * 65536 * 5 + b"\n", b"\xff\x00\n" * 10,
])  # fmt: skip
async def test_content_comes_back_as_lines(spool: Spooled, content: bytes) -> None:
    queue_id = await spool.accept(content=content)
    expected = content if content.endswith(b"\n") else content + b"\n"
    assert await read(spool, queue_id) == expected


async def test_small_content_is_line_records_and_large_content_is_blocks(spool: Spooled) -> None:
    for content, blocks in ((b"x\n" * (PLAIN_LIMIT // 2), False), (b"x\n" * (PLAIN_LIMIT // 2) + b"y", True)):
        raw = spool.path("incoming", await spool.accept(content=content)).read_bytes()
        assert decoded(raw).blocks == blocks


async def test_a_large_draft_holds_little_memory(spool: Spooled) -> None:
    draft = await spool.draft(content=b"")
    for _ in range(200):
        draft.write(b"x" * 65_535 + b"\n")
        assert draft._buffered <= PLAIN_LIMIT
    await draft.commit()
    assert draft.size == 200 * 65536


async def test_size_is_counted_as_postfix_does(spool: Spooled) -> None:
    job = await spool.store.claim(await spool.accept(content=b"ab\n\nc\n"))
    assert job is not None
    assert job.size == (2 + 2) + 2 + (2 + 1)


async def test_eight_bit_content_is_noticed(spool: Spooled) -> None:
    for content, expected in ((b"a\n", False), (b"\xe9\n", True), (BIG + b"\xe9", True)):
        job = await spool.store.claim(await spool.accept(content=content))
        assert job is not None
        assert job.content_8bit is expected


async def test_an_aborted_draft_leaves_no_trace(spool: Spooled) -> None:
    for content in (b"x\n", BIG):
        draft = await spool.draft(content=content)
        draft.abort()
        draft.abort()
        assert spool.names("incoming") == []


async def test_the_envelope_comes_once_and_before_content(spool: Spooled) -> None:
    draft = await spool.draft()
    with pytest.raises(RuntimeError):
        draft.envelope(Envelope("x", [], NOW))
    await draft.commit()
    with pytest.raises(RuntimeError):
        await draft.commit()
    empty = await spool.store.draft(NOW)
    with pytest.raises(RuntimeError):
        await empty.commit()
    empty.abort()


async def test_hold_goes_to_hold_and_is_not_announced(spool: Spooled) -> None:
    draft = await spool.draft()
    await draft.commit(hold=True)
    assert spool.names("hold") == [draft.queue_id]
    assert spool.arrived == []
    assert await spool.store.claim(draft.queue_id) is None


async def test_a_child_is_born_held_until_its_release(spool: Spooled) -> None:
    draft = await spool.draft()
    await draft.commit(parent=Parent("bounce", "00" * 16, "ABC", (1,)))
    assert await spool.store.claim(draft.queue_id) is None
    assert spool.arrived == []
    await spool.store.release([draft])
    await spool.store.release([draft])
    assert spool.arrived == [draft.queue_id]
    assert await spool.store.claim(draft.queue_id) is not None


async def test_a_child_can_be_taken_back_before_its_release(spool: Spooled) -> None:
    draft = await spool.draft()
    await draft.commit(parent=Parent("bounce", "00" * 16, "ABC", (1,)))
    draft.abort()
    assert spool.names("incoming") == []
    with pytest.raises(QueueError):
        await spool.store.release([draft])


async def test_a_cancelled_commit_of_accepted_mail_goes_on_and_one_of_a_child_is_taken_back(spool: Spooled) -> None:
    for parent, left in ((None, 1), (Parent("bounce", "00" * 16, "ABC", (1,)), 0)):
        draft = await spool.draft()
        task = asyncio.ensure_future(draft.commit(parent=parent))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await spool.fsio.flush(spool.fsio.directory(str(spool.root)))  # the group after it
        assert len(spool.names("incoming")) == left
        for name in spool.names("incoming"):
            assert spool.arrived == [name]
            assert (await spool.store.claim(name)) is not None


# -- errors of the disk ---------------------------------------------------------------------------


def fail_at(operation: str, number: int) -> Callable[[str, str | int], None]:
    def hook(op: str, _: str | int) -> None:
        if op == operation:
            raise OSError(number, os.strerror(number))

    return hook


@pytest.mark.parametrize("operation", ["open_excl", "write", "fchmod", "rename", "flush", "flush_directory"])
@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, QueueFullError), (errno.EDQUOT, QueueFullError), (errno.EIO, QueueError), (errno.EMFILE, QueueError),
    (errno.EROFS, QueueError),
])  # fmt: skip
async def test_after_a_disk_error_nothing_is_queued(
    spool: Spooled, operation: str, number: int, kind: type[QueueError]
) -> None:
    for content in (b"small\n", BIG):
        spool.fsio.hook = fail_at(operation, number)
        with pytest.raises(QueueError) as caught:
            await (await spool.draft(content=content)).commit()
        assert isinstance(caught.value, kind)
        assert spool.names("incoming") == []
        spool.fsio.hook = None
        spool.store.space.next_probe = 0.0  # the next draft may try


async def test_after_a_failed_flush_the_queue_is_closed_until_a_probe_passes(spool: Spooled) -> None:
    spool.fsio.hook = fail_at("flush", errno.EIO)
    draft = await spool.draft()
    with pytest.raises(QueueError):
        await draft.commit()
    with pytest.raises(QueueError, match="closed"):
        await spool.draft()  # too early to try again
    spool.store.space.next_probe = 0.0
    with pytest.raises(QueueError, match="closed"):
        await spool.draft()  # tried, failed again
    spool.fsio.hook = None
    spool.store.space.next_probe = 0.0
    await spool.accept()
    assert len(spool.names("incoming")) == 1
    assert [("accepting no mail" in line, "works again" in line) for line in spool.log.lines] == [
        (True, False), (False, True),
    ]  # fmt: skip


async def test_a_flush_that_fails_for_somebody_who_has_gone_closes_the_queue_all_the_same(spool: Spooled) -> None:
    spool.fsio.hook = fail_at("flush", errno.EIO)
    task = asyncio.ensure_future((await spool.draft()).commit())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    with pytest.raises(QueueError, match="closed"):
        await spool.draft()
    assert spool.names("incoming") == []


async def test_a_scan_removes_what_a_dead_worker_left_an_hour_ago_and_nothing_that_is_still_written(
    spool: Spooled,
) -> None:
    draft = await spool.draft()
    (writing,) = spool.names("incoming")
    left, other = spool.path("incoming", "1.77"), spool.path("incoming", "README")
    for path in (left, other):
        path.write_bytes(b"x")
    for later, remain in ((3500, {writing, left.name, other.name}), (3700, {writing, other.name})):
        assert await spool.store._lister.scan(Queue.INCOMING, time.time() + later, 0.0) == []
        assert set(spool.names("incoming")) == remain
    draft.abort()


async def test_a_full_disk_refuses_before_anything_is_written(tmp_path: Path) -> None:
    with spooled(tmp_path, limit=1 << 60) as spool:
        with pytest.raises(QueueFullError):
            await spool.draft()
        assert spool.names("incoming") == []


async def test_two_drafts_in_the_same_microsecond_have_two_names(spool: Spooled) -> None:
    first, second = await spool.draft(), await spool.draft()
    await asyncio.gather(first.commit(), second.commit())
    assert len(spool.names("incoming")) == 2


async def test_a_draft_that_was_swept_away_is_refused(spool: Spooled) -> None:
    draft = await spool.draft()
    spool.only("incoming").unlink()
    with pytest.raises(QueueError):
        await draft.commit()
    assert spool.names("incoming") == []


# -- claiming -------------------------------------------------------------------------------------


async def test_a_claimed_message_is_active_and_nobody_elses(spool: Spooled) -> None:
    queue_id = await spool.accept("b@dst.test", "c@dst.test", sender="x@src.test")
    job = await spool.store.claim(queue_id)
    assert job is not None
    assert spool.names("active") == [queue_id]
    assert job.origin_queue is Queue.INCOMING
    assert job.envelope.sender == "x@src.test"
    assert [r.address for r in job.todo] == ["b@dst.test", "c@dst.test"]
    assert await spool.store.claim(queue_id) is None


@pytest.mark.parametrize("name", ["ABC", "../../etc/passwd", "", "1.2"])
async def test_what_is_not_there_cannot_be_claimed(spool: Spooled, name: str) -> None:
    assert await spool.store.claim(name) is None


async def test_an_unfinished_file_cannot_be_claimed(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.only("incoming").chmod(0o600)
    assert await spool.store.claim(queue_id) is None
    assert spool.names("incoming") == [queue_id]


async def test_a_file_with_two_names_cannot_be_claimed(spool: Spooled) -> None:
    queue_id = await spool.accept()
    os.link(spool.only("incoming"), spool.root / "copy")
    assert await spool.store.claim(queue_id) is None


async def test_no_descriptors_left_is_an_error_and_the_message_stays(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.fsio.hook = fail_at("open", errno.EMFILE)
    with pytest.raises(QueueError):
        await spool.store.claim(queue_id)
    spool.fsio.hook = None
    assert spool.names("incoming") == [queue_id]


async def test_a_file_we_may_not_open_stays_and_is_complained_about(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.fsio.hook = fail_at("open", errno.EACCES)
    assert await spool.store.claim(queue_id) is None
    spool.fsio.hook = None
    assert spool.names("incoming") == [queue_id]
    assert "Permission denied" in spool.log.lines[0]


async def test_a_rename_that_fails_leaves_the_message_claimable(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.fsio.hook = fail_at("rename", errno.EROFS)
    with pytest.raises(QueueError):
        await spool.store.claim(queue_id)
    spool.fsio.hook = None
    assert await spool.store.claim(queue_id) is not None


async def test_a_message_taken_away_between_open_and_rename_is_nobodys(spool: Spooled) -> None:
    queue_id = await spool.accept()

    def steal(op: str, path: str | int) -> None:
        if op == "rename":
            spool.fsio.hook = None
            Path(str(path)).rename(spool.root / "hold" / queue_id)

    spool.fsio.hook = steal
    assert await spool.store.claim(queue_id) is None
    assert spool.names("hold") == [queue_id]
    assert spool.names("active") == []


async def test_a_force_expired_message_says_so(spool: Spooled) -> None:
    queue_id = await spool.accept()
    spool.only("incoming").chmod(0o710)
    job = await spool.store.claim(queue_id)
    assert job is not None
    assert job.force_expire


# -- damage ---------------------------------------------------------------------------------------


async def test_a_cut_file_is_never_delivered(spool: Spooled) -> None:
    queue_id = await spool.accept("b@dst.test", content=b"Subject: x\n\nsome text\n")
    path = spool.path("incoming", queue_id)
    raw = path.read_bytes()
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        path.chmod(0o700)
        assert await spool.store.claim(queue_id) is None, n
        saved = spool.only("corrupt")
        assert saved.read_bytes() == raw[:n]
        assert saved.stat().st_mode & 0o7777 == 0o400
        assert len(spool.log.lines) == n + 1
        saved.unlink()
    path.write_bytes(raw)
    path.chmod(0o700)
    assert await read(spool, queue_id) == b"Subject: x\n\nsome text\n"


async def test_one_flipped_bit_anywhere_is_found_before_anything_is_sent(spool: Spooled) -> None:
    queue_id = await spool.accept("b@dst.test", "c@dst.test", content=b"Subject: x\n\ntext\n", warn_time=NOW)
    path = spool.path("incoming", queue_id)
    raw = path.read_bytes()
    file = decoded(raw)
    # what may change in place is not covered: the digits of W and of crashes; a flip there costs a notice or a count
    exempt = {*range(file.warn_offset + 2, file.warn_offset + 17), file.crashes_offset}
    for at in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            path.chmod(0o700)
            job = await spool.store.claim(queue_id)
            if job is None:
                spool.only("corrupt").unlink()
                continue
            assert [r.address for r in job.todo] == ["b@dst.test", "c@dst.test"], (at, bit)
            if at in exempt:
                await spool.store.give_back(job)
                continue
            text = b""
            try:
                async for chunk in spool.store.content(job):
                    text += chunk
            except CorruptContentError:
                await spool.store.defer(job, NOW, {})
                spool.only("corrupt").unlink()
            else:  # the last N made an L: the same text
                assert text == b"Subject: x\n\ntext\n", (at, bit)
                await spool.store.give_back(job)
    assert spool.names("active") == []


async def test_damage_in_a_block_file_is_found_at_the_end_of_the_content(spool: Spooled) -> None:
    queue_id = await spool.accept(content=BIG)
    path = spool.path("incoming", queue_id)
    raw = path.read_bytes()
    path.write_bytes(raw[:500_000] + b"?" + raw[500_001:])
    job = await spool.store.claim(queue_id)
    assert job is not None
    with pytest.raises(CorruptContentError):
        async for _ in spool.store.content(job):
            pass
    await spool.store.defer(job, NOW, {})
    assert spool.names("corrupt") == [queue_id]
    assert 'queue "corrupt"' in spool.log.lines[0]


@pytest.mark.parametrize(("number", "queue"), [(errno.ENOMEM, "deferred"), (errno.EIO, "corrupt")])
async def test_only_a_device_that_cannot_read_a_message_makes_it_a_damaged_one(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch, number: int, queue: str
) -> None:
    queue_id = await spool.accept()
    job = await spool.store.claim(queue_id)
    assert job is not None

    async def read(fd: int, size: int, offset: int) -> bytes:
        raise OSError(number, os.strerror(number))

    def pread(fd: int, size: int, offset: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(spool.store.fsio, "read", read)
    monkeypatch.setattr(spool.store.fsio, "pread", pread)
    with pytest.raises(CorruptContentError if queue == "corrupt" else QueueError):
        await spool.store.header(job, 100)
    await spool.store.defer(job, NOW, {})
    assert spool.names(queue) == [queue_id]


@pytest.mark.parametrize("sender", ["a@src.test", "ab@src.test"])
async def test_a_message_of_which_only_a_part_is_in_memory_is_read_whole(spool: Spooled, sender: str) -> None:
    text = b"\n" * 60_000  # a record begins at every second byte, so at the last one of a page with one of the senders
    queue_id = await spool.accept(content=text, sender=sender)
    job = await spool.store.claim(queue_id)
    assert job is not None
    with spool.path("active", queue_id).open("rb") as file:
        for kept in range(4096, 120_000, 4096):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more pages than asked for
            os.pread(file.fileno(), kept, 0)
            assert b"".join([chunk async for chunk in spool.store.content(job)]) == text, kept


def out_of_memory(*_: object) -> bytes:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("pread", [os.pread, out_of_memory])
async def test_content_that_can_be_read_in_the_end_is_no_damaged_one(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch, pread: Callable[..., bytes]
) -> None:
    queue_id = await spool.accept()
    job = await spool.store.claim(queue_id)
    assert job is not None

    async def read(fd: int, size: int, offset: int) -> bytes:
        return b"N"

    with monkeypatch.context() as patch:
        patch.setattr(spool.store.fsio, "read", read)
        with pytest.raises(CorruptContentError):
            await spool.store.header(job, 100)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        await spool.store.defer(job, NOW, {})
    assert spool.names("deferred") == [queue_id]
    assert "read wrong once" in spool.log.lines[0]


async def test_a_second_damaged_file_does_not_replace_the_first(spool: Spooled) -> None:
    for content in (b"one", b"two"):
        path = spool.path("incoming", "ABC123")
        path.write_bytes(content)
        path.chmod(0o700)
        assert await spool.store.claim("ABC123") is None
    assert {p.read_bytes() for p in (spool.root / "corrupt").iterdir()} == {b"one", b"two"}


async def test_a_link_in_the_queue_is_put_aside_and_not_followed(spool: Spooled) -> None:
    (spool.root / "incoming" / "ABC").symlink_to("/etc/passwd")
    assert await spool.store.claim("ABC") is None
    assert (spool.root / "corrupt" / "ABC").is_symlink()


async def test_unreadable_sectors_put_a_file_aside(spool: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    queue_id = await spool.accept()

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Fsio, "pread", fail)
        assert await spool.store.claim(queue_id) is None
    assert spool.names("corrupt") == [queue_id]


async def test_header_is_the_beginning_of_the_content(spool: Spooled) -> None:
    for content in (b"Subject: x\n\nhello\n", BIG):
        job = await spool.store.claim(await spool.accept(content=content))
        assert job is not None
        assert await spool.store.header(job, 10) == content[:10]
        assert await spool.store.header(job, 100_000) == content[:100_000]


async def test_a_process_that_only_drafts_shares_the_spool(spool: Spooled) -> None:
    worker = SpoolStore(spool.store.settings, spool.fsio, spool.store.clock, spool.log, owner=False)
    draft = await worker.draft(NOW)
    draft.envelope(Envelope("a@b", [], NOW))
    await draft.commit()
    assert [i for i, _ in await spool.store.scan(Queue.INCOMING)] == [draft.queue_id]
    with pytest.raises(RuntimeError):
        await worker.claim(draft.queue_id)
    with pytest.raises(RuntimeError):
        await worker.recover()


async def test_content_of_a_message_that_was_let_go_is_not_read_on(spool: Spooled) -> None:
    job = await spool.store.claim(await spool.accept(content=BIG))
    assert job is not None
    chunks = spool.store.content(job)
    await anext(chunks)
    await spool.store.give_back(job)
    with pytest.raises(FencedError):
        await anext(chunks)
