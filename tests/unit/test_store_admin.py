"""hold, release, requeue, expire, delete: what they do to the spool, beside a queue manager that holds messages."""

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.clock import Clock
from mta.queue.api import FencedError, Queue, Reason
from mta.queue.store_admin import Administrator, Outcome, Verb
from tests.queue_support import NOW, Spooled, spooled


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spooled]:
    with spooled(tmp_path / "q") as made:
        yield made


def administrator(spool: Spooled) -> Administrator:
    return Administrator(spool.store.spool, spool.fsio, Clock(wall=lambda: spool.now))


async def deferred(spool: Spooled) -> str:
    queue_id = await spool.accept()
    job = await spool.store.claim(queue_id)
    assert job is not None
    await spool.store.defer(job, NOW + 1000, {r.offset: Reason("4.0.0", "later") for r in job.todo})
    return queue_id


async def test_each_verb_moves_the_message_where_postsuper_does(spool: Spooled) -> None:
    admin, queue_id = administrator(spool), await deferred(spool)
    done, absent = {queue_id: Outcome.DONE}, {queue_id: Outcome.ABSENT}
    assert await admin.act(Verb.RELEASE, [queue_id]) == absent
    assert await admin.act(Verb.HOLD, [queue_id]) == done
    assert await admin.act(Verb.HOLD, [queue_id]) == absent
    assert spool.names("hold") == [queue_id] and spool.names("deferred") == []
    assert await admin.act(Verb.EXPIRE, [queue_id]) == done
    assert await admin.act(Verb.EXPIRE, [queue_id]) == absent
    assert await admin.act(Verb.RELEASE, [queue_id]) == done
    assert spool.path("deferred", queue_id).stat().st_mtime == NOW, "due at once"
    job = await spool.store.claim(queue_id)
    assert job is not None and job.force_expire and set(await spool.store.reasons(job))
    await spool.store.give_back(job)
    assert await admin.act(Verb.REQUEUE, [queue_id]) == done
    assert spool.names("maildrop") == [queue_id] and spool.names("defer") == []
    assert await admin.act(Verb.DELETE, [queue_id]) == done
    assert [p for p in spool.root.rglob("*") if p.is_file()] == []


async def test_a_file_that_anybody_left_in_maildrop_under_its_id_does_not_save_a_message(spool: Spooled) -> None:
    admin, queue_id = administrator(spool), await deferred(spool)
    (spool.root / "maildrop" / queue_id).write_bytes(b"x")
    assert await admin.act(Verb.DELETE, [queue_id]) == {queue_id: Outcome.DONE}
    assert spool.names("deferred") == [] and spool.names("maildrop") == [queue_id]
    assert await admin.act(Verb.DELETE, [queue_id]) == {queue_id: Outcome.DONE}
    assert spool.names("maildrop") == []


async def test_an_active_message_can_be_deleted_or_held_and_its_owner_forgets_it(spool: Spooled) -> None:
    admin, one, two = administrator(spool), await spool.accept(), await spool.accept()
    jobs = [await spool.store.claim(queue_id) for queue_id in (one, two)]
    assert await admin.act(Verb.REQUEUE, [one]) == {one: Outcome.BUSY}, "its copy would be delivered again"
    assert await admin.act(Verb.DELETE, [one]) == {one: Outcome.DONE}
    assert await admin.act(Verb.HOLD, [two]) == {two: Outcome.DONE}
    for job in jobs:
        assert job is not None
        spool.store.mark(job, job.todo[0])
        with pytest.raises(FencedError):
            await spool.store.finish(job)
    assert spool.names("hold") == [two] and spool.names("active") == []
    assert await admin.act(Verb.RELEASE, [two]) == {two: Outcome.DONE}
    job = await spool.store.claim(two)
    assert job is not None and job.todo == [], "what was delivered meanwhile is marked"


async def test_what_was_held_while_it_is_delivered_can_be_released_expired_and_deleted(spool: Spooled) -> None:
    admin, kept, gone = administrator(spool), await spool.accept("a@x.test", "b@x.test"), await spool.accept()
    jobs = [await spool.store.claim(queue_id) for queue_id in (kept, gone)]
    both = dict.fromkeys((kept, gone), Outcome.DONE)
    assert await admin.act(Verb.HOLD, [kept, gone]) == both
    assert await admin.act(Verb.EXPIRE, [kept]) == {kept: Outcome.DONE}
    assert await admin.act(Verb.RELEASE, [kept]) == {kept: Outcome.DONE}
    assert await admin.act(Verb.REQUEUE, [kept, gone]) == dict.fromkeys((kept, gone), Outcome.BUSY)
    assert await admin.act(Verb.DELETE, [gone]) == {gone: Outcome.DONE}
    assert await spool.store.claim(kept) is None, "its delivery goes on"
    for job in jobs:
        assert job is not None
        spool.store.mark(job, job.todo[0])
        with pytest.raises(FencedError):
            await spool.store.defer(job, NOW + 1000, {})
    job = await spool.store.claim(kept)
    assert job is not None and job.force_expire and [r.address for r in job.todo] == ["b@x.test"]
    assert [spool.names(queue) for queue in ("active", "deferred", "hold")] == [[kept], [], []]


async def test_what_is_not_committed_yet_and_a_child_that_was_not_released_are_not_there(spool: Spooled) -> None:
    admin, draft = administrator(spool), await spool.draft()
    await draft.commit(hold=False)
    child = await spool.draft()
    temporary = os.path.basename(spool.only("incoming")) if len(spool.names("incoming")) == 1 else ""
    assert await admin.everything(Verb.DELETE) == [draft.queue_id]
    assert await admin.act(Verb.DELETE, [child.queue_id, temporary]) == {
        child.queue_id: Outcome.ABSENT, temporary: Outcome.ABSENT,
    }  # fmt: skip
    child.abort()


async def test_only_the_named_queues_are_looked_at_and_no_name_leads_out_of_the_spool(spool: Spooled) -> None:
    admin, queue_id = administrator(spool), await deferred(spool)
    assert await admin.act(Verb.DELETE, [queue_id], [Queue.HOLD]) == {queue_id: Outcome.ABSENT}
    outside = spool.root.parent / "victim"
    outside.write_bytes(b"x")
    name = "../../victim"
    assert await admin.act(Verb.DELETE, [name]) == {name: Outcome.ABSENT}
    spool.path("hold", "4FLINK").symlink_to(outside)
    assert await admin.act(Verb.EXPIRE, ["4FLINK"]) == {"4FLINK": Outcome.ABSENT}
    assert stat.S_IMODE(outside.stat().st_mode) & 0o010 == 0
    assert spool.names("deferred") == [queue_id]


async def test_two_administrators_at_once_both_wait_for_the_disk(
    spool: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, one, two = administrator(spool), await spool.accept(), await spool.accept()
    begun, flushing, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    flush, run = spool.fsio.flush, spool.fsio.run
    flushed: list[str] = []

    async def slow_run(*args: Any) -> Any:
        found = await run(*args)
        if not begun.is_set():  # the first has done its work, and waits for its turn in the loop
            begun.set()
            await flushing.wait()
        return found

    async def slow_flush(fd: int) -> None:
        flushing.set()
        await go_on.wait()
        await flush(fd)
        flushed.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(spool.fsio, "run", slow_run)
    monkeypatch.setattr(spool.fsio, "flush", slow_flush)
    first = asyncio.ensure_future(admin.act(Verb.HOLD, [one]))
    await begun.wait()
    second = asyncio.ensure_future(admin.act(Verb.DELETE, [two]))
    await flushing.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done(), "what it did is not durable yet"
    go_on.set()
    assert await first == {one: Outcome.DONE} and await second == {two: Outcome.DONE}
    assert set(flushed) == {str(spool.root / name) for name in ("incoming", "hold")}
