"""The maildrop is writable by anybody: what is opened, what is refused, what is removed."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clock import others_run
from mta.queue.api import QueueError
from mta.queue.maildrop_rules import file_limit
from mta.queue.queue_reader import DamagedError
from mta.queue.store import MaildropFile
from mta.queue.store_maildrop import READ_SIZE, in_turns
from tests.queue_support import Spooled, spooled
from tests.unit.test_store import fail_at

RAW = (Path(__file__).parents[1] / "golden/queue/maildrop.bin").read_bytes()
NAME = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "spool", limit=100_000) as made:
        yield made


def drop(spool: Spooled, raw: bytes = RAW, name: str = NAME, mode: int = 0o750) -> Path:
    path = spool.root / "maildrop" / name
    path.write_bytes(raw)
    path.chmod(mode)
    return path


async def opened(spool: Spooled, name: str = NAME) -> MaildropFile:
    file = await spool.store.open_maildrop(name)
    assert file is not None
    return file


async def test_a_dropped_file_is_found_read_and_removed(spool: Spooled) -> None:
    path = drop(spool)
    found = path.stat()
    assert await spool.store.scan_maildrop() == [NAME]
    file = await opened(spool)
    assert (file.owner, file.size) == (os.getuid(), len(RAW))
    assert file.uid == f"{found.st_dev}.{found.st_ino}.{found.st_ctime_ns}"
    message = await file.read()
    assert [r.address for r in message.envelope.recipients] == ["carol@dst.test", "dave@dst.test"]
    content = b"".join([c async for c in file.content(message)])
    assert content == b"Subject: dropped\n\nhi there\n.x\nlast\n"
    steps: list[str] = []
    spool.fsio.hook = lambda op, _: steps.append(op)
    await spool.store.remove_maildrop(file)
    assert steps == ["unlink", "close", "flush"], "the unlink is durable when it returns"
    assert not path.exists()
    file.close()


async def test_a_file_that_was_replaced_meanwhile_is_not_removed(spool: Spooled) -> None:
    path = drop(spool)
    file = await opened(spool)
    path.rename(path.with_name("other"))
    drop(spool, b"another message")
    with pytest.raises(QueueError):
        await spool.store.remove_maildrop(file)
    assert path.exists()


async def test_one_that_somebody_else_has_removed_is_an_error(spool: Spooled) -> None:
    path = drop(spool)
    file = await opened(spool)
    path.unlink()
    with pytest.raises(QueueError):
        await spool.store.remove_maildrop(file)
    assert await spool.store.open_maildrop(NAME) is None


async def test_an_unfinished_file_is_not_opened_and_not_complained_about(spool: Spooled) -> None:
    drop(spool, mode=0o600)
    assert await spool.store.open_maildrop(NAME) is None
    assert spool.log.lines == []


async def test_what_is_no_plain_file_with_one_name_is_refused_once(spool: Spooled) -> None:
    maildrop = spool.root / "maildrop"
    (maildrop / "A1").symlink_to("/etc/passwd")
    os.mkfifo(maildrop / "A2", 0o700)
    (maildrop / "A3").mkdir(mode=0o700)
    os.link(drop(spool, name="A4"), maildrop / "A5")
    os.truncate(drop(spool, name="A6"), file_limit(100_000) + 1)
    for _ in range(2):
        for name in await spool.store.scan_maildrop():
            assert await spool.store.open_maildrop(name) is None
    assert len(spool.log.lines) == 6
    assert len(list(maildrop.iterdir())) == 6, "nothing is removed"


@pytest.mark.parametrize("name", ["../incoming/x", "a.b", "", "x" * 300, "new\nline"])
async def test_names_that_are_no_queue_ids_are_not_touched(spool: Spooled, name: str) -> None:
    assert await spool.store.open_maildrop(name) is None


async def test_leftovers_of_dead_injectors_go_after_an_hour(spool: Spooled) -> None:
    path = drop(spool, name="123456.789", mode=0o600)
    spool.now = path.stat().st_ctime + 3599
    assert await spool.store.scan_maildrop() == []
    assert path.exists()
    spool.now += 2
    await spool.store.scan_maildrop()
    assert not path.exists()


async def test_a_file_that_shrinks_while_it_is_read_is_damaged(spool: Spooled) -> None:
    path = drop(spool)
    file = await opened(spool)
    message = await file.read()
    path.write_bytes(RAW[: len(RAW) // 2 + 60])
    with pytest.raises(DamagedError):
        async for _ in file.content(message):
            pass
    file.close()


@pytest.mark.parametrize("empty", [b"L\0", b"w\0", b"N\0L\0"])
async def test_others_have_their_turns_while_a_file_of_empty_records_is_read(empty: bytes, spool: Spooled) -> None:
    head, text, tail = RAW.partition(b"M\0")
    pieces = 5
    drop(spool, head + text + empty * (pieces * READ_SIZE // len(empty)) + tail)
    file = await opened(spool)
    message = await file.read()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await others_run()

    task = asyncio.get_running_loop().create_task(other())
    async for _ in file.content(message):
        pass
    task.cancel()
    file.close()
    assert turns >= pieces


async def test_a_file_that_grows_is_read_to_the_size_it_had(spool: Spooled) -> None:
    path = drop(spool, RAW[:-4])
    file = await opened(spool)
    path.write_bytes(RAW)
    with pytest.raises(DamagedError):
        await file.read()
    file.close()


async def test_a_removal_that_fails_is_an_error_and_the_file_stays(spool: Spooled) -> None:
    path = drop(spool)
    file = await opened(spool)
    spool.fsio.hook = fail_at("unlink", errno.EIO)
    with pytest.raises(QueueError):
        await spool.store.remove_maildrop(file)
    assert path.exists()


async def test_a_removal_that_cannot_be_flushed_closes_the_queue_but_counts(spool: Spooled) -> None:
    drop(spool)
    file = await opened(spool)
    spool.fsio.hook = fail_at("flush", errno.EIO)
    await spool.store.remove_maildrop(file)
    with pytest.raises(QueueError):
        await spool.draft()


def test_owners_take_turns() -> None:
    assert in_turns([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["b1", "c1", "a1", "c2", "a2", "a3"]
    assert in_turns([]) == []


async def test_a_file_that_goes_while_the_directory_is_read_is_left_out(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(spool)

    def late(where: str) -> Iterator[os.DirEntry[str]]:
        entries = list(os.scandir(where))
        path.unlink(missing_ok=True)
        return iter(entries)

    monkeypatch.setattr(spool.fsio, "scandir", late)
    assert await spool.store.scan_maildrop() == []
