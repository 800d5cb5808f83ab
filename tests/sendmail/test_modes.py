"""-bv, -bt, -d0, -qf, -qG, -oQ and who may use the commands."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.queue.api import Reason
from mta.queue.store import Queue  # type: ignore[attr-defined]  # re-exported from api
from tests.queue_support import spooled
from tests.sendmail.world import World

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
async def configured() -> AsyncIterator[World]:
    """A world with a whole configuration."""
    async with World() as world:
        aliases = world.root / "aliases"
        aliases.write_text(
            'postmaster: root\nroot: staff, boss@far.test\nstaff: games, "|/bin/cat"\nbad: "x\nself: self, games\n'
        )
        (world.root / "virtual").write_text("info@v.test games, x@r.test\n")
        (world.root / "transport").write_text("slow.test slow:[mx.slow.test]\ngone.test error:5.1.2 no such domain\n")
        world.write_config(
            myhostname="host.example.test", myorigin="example.test", mydomain="example.test",
            mydestination="$myhostname, example.test", virtual_alias_maps=f"hash:{world.root}/virtual",
            virtual_alias_domains="v.test", transport_maps=f"hash:{world.root}/transport",
            data_directory=str(world.root), compatibility_level="3.6", mail_owner="nobody",
        )  # fmt: skip
        shutil.copy(CONF / "master.cf", world.config / "master.cf")
        yield world


async def test_bv_says_what_sendmail_says(configured: World) -> None:
    done = await configured.run(["-bv", "games", "x@r.test", "info@v.test", "root", "u@slow.test"])
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "games... deliverable: mailer local, user games",
        "x@r.test... deliverable: mailer smtp, host r.test, user x@r.test",
        "games@example.test... deliverable: mailer local, user games",
        "x@r.test... deliverable: mailer smtp, host r.test, user x@r.test",
        "games... deliverable: mailer local, user games",
        "|/bin/cat... deliverable: mailer local",
        "boss@far.test... deliverable: mailer smtp, host far.test, user boss@far.test",
        "u@slow.test... deliverable: mailer slow, host [mx.slow.test], user u@slow.test",
    ]
    done = await configured.run(["-bv", "self", "nosuchuser77", "a@gone.test"])
    assert done.status == 67
    assert done.stdout.splitlines() == [
        "games... deliverable: mailer local, user games", "nosuchuser77... User unknown",
        "a@gone.test... 5.1.2 no such domain",
    ]  # fmt: skip
    done = await configured.run(["-bv", "bad"])
    assert done.status == 75 and "cannot be verified now" in done.stdout
    os.unlink(configured.root / "virtual")
    assert (await configured.run(["-bv", "games"])).status == 75
    assert (await configured.run(["-bv"])).status == 64
    assert (await configured.run(["-bv", "-games"])).status == 64
    assert await configured.queued() == []


async def test_bt_explains_addresses_and_sends_nothing(configured: World) -> None:
    done = await configured.run(["-bt"], "info@v.test\n\nBob <h1!u>, x@slow.test\n")
    assert done.status == 0
    text = done.stdout
    assert "    virtual: games@example.test, x@r.test\n" in text
    assert "    address: u@h1\n" in text
    assert "    route: slow:[mx.slow.test] x@slow.test (default)\n" in text
    assert (await configured.run(["-bt", "alice"])).status == 64
    assert await configured.queued() == []


async def test_d0_says_what_is_wrong_and_then_obeys_the_rest(configured: World) -> None:
    loose = configured.root / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    configured.write_config(alias_maps=f"hash:{loose}/aliases", myhostname="short")
    done = await configured.run(["-d0.4", "-bt"], "a@r.test\n")
    assert f"WARNING: World writable directory {loose}" in done.stdout
    assert "WARNING: myhostname = short is not a full domain name" in done.stdout
    assert f"Configuration directory: {configured.config}" in done.stdout and "mail system: answers" in done.stdout
    assert "address: a@r.test" in done.stdout
    assert (await configured.run(["-d5", "bob"])).status == 64


async def deferred(world: World, recipient: str) -> str:
    await world.run(["-i", "-f", "a@s.test", recipient], "Subject: s\n\nx\n")
    ((queue_id, _),) = await world.store.scan(Queue.INCOMING)
    job = await world.store.claim(queue_id)
    assert job is not None
    await world.store.defer(job, world.clock.now() + 3000, {r.offset: Reason("4.0.0", "later") for r in job.todo})
    return queue_id


async def due(world: World) -> set[str]:
    return {queue_id for queue_id, when in await world.store.scan(Queue.DEFERRED) if when <= world.clock.now()}


@pytest.mark.parametrize(
    ("option", "woken"),
    [
        ("-qRslow", "slow"), ("-q!Rslow", "far"), ("-qGslow", "slow"), ("-q!Gslow", "far"), ("-qSnobody", ""),
        ("-qSa@s", "slow far"), ("-q!Sa@s", ""), ("-q", "slow far"),
    ],
)  # fmt: skip
async def test_q_with_a_selection_tries_just_these(configured: World, option: str, woken: str) -> None:
    ids = {"slow": await deferred(configured, "u@slow.test"), "far": await deferred(configured, "v@far.test")}
    done = await configured.run([option])
    assert (done.status, done.stderr) == (0, "")
    assert await due(configured) == {ids[name] for name in woken.split()}


async def test_q_by_id_takes_a_part_of_it_and_its_negation(configured: World) -> None:
    one, two = await deferred(configured, "u@slow.test"), await deferred(configured, "v@far.test")
    assert (await configured.run([f"-q!I{two}"])).status == 0
    assert await due(configured) == {one}
    assert (await configured.run([f"-qI{two[-12:]}"])).status == 0
    assert two in await due(configured)


@pytest.mark.parametrize("word", ["-qIC0FFEE", "-q!ICC", "-qRoC", "-q!SC@x.test", "-bpC", "-dC"])
async def test_what_belongs_to_an_option_is_not_taken_for_another(configured: World, word: str) -> None:
    done = await configured.run([word])
    assert "main.cf" not in done.stderr, done


async def test_what_follows_a_mode_in_a_word_of_its_own_is_read(configured: World, tmp_path: Path) -> None:
    done = await configured.run(["-b", "p", "-C", str(tmp_path / "nowhere")])
    assert done.status == 78 and "nowhere/main.cf" in done.stderr, done


async def test_oq_takes_over_another_queue_once_and_leaves_what_is_held(configured: World) -> None:
    other = configured.root / "other"
    with spooled(other) as spool:
        first = await spool.accept("bob@r.test", "carol@r.test", sender="x@old.test")
        held = await spool.accept("held@r.test")
        job = await spool.store.claim(held)
        assert job is not None
        await spool.store.hold(job)
        job = await spool.store.claim(first)
        assert job is not None
        spool.store.mark(job, job.todo[0])
        await spool.store.defer(job, spool.now, {r.offset: Reason("4.0.0", "later") for r in job.todo})
        (other / "incoming" / "4Fbroken").write_bytes(b"rubbish")
        (other / "incoming" / "4Fbroken").chmod(0o700)
    done = await configured.run([f"-oQ{other}", "-q"])
    assert done.status == 0, done
    assert done.stdout == f"sendmail: 1 message taken over from {other}, 1 left there\n"
    assert await configured.pickup.scan() == 1
    (message,) = await configured.queued()
    assert message.envelope.sender == "x@old.test"
    assert [r.address for r in message.envelope.recipients] == ["carol@r.test"], "bob has it already"
    left = sorted(p.name for p in other.rglob("*") if p.is_file())
    assert left == sorted(["4Fbroken", held])
    done = await configured.run([f"-oQ{other}", "-q"])
    assert done.stdout == f"sendmail: 0 messages taken over from {other}, 1 left there\n"
    assert (await configured.run(["-oQ/nonexistent", "-q"])).status == 66


async def test_oq_leaves_a_queue_alone_that_is_in_use(configured: World) -> None:
    import fcntl

    other = configured.root / "other"
    with spooled(other) as spool:
        await spool.accept("bob@r.test")
    with (other / "pid" / "master.pid").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = await configured.run([f"-oQ{other}", "-q"])
        assert done.status == 75 and "is in use" in done.stderr
    assert len(list((other / "incoming").iterdir())) == 1


@pytest.mark.needs_root
async def test_oq_is_for_root_and_the_owner_of_the_queue_only(configured: World) -> None:
    done = await configured.run([f"-oQ{configured.root}/other", "-q"], become=12345)
    assert done.status == 77
    await asyncio.sleep(0)


@pytest.mark.needs_root
async def test_quarantine_is_hold_and_for_root_only(configured: World) -> None:
    slow, far = await deferred(configured, "u@slow.test"), await deferred(configured, "v@far.test")
    done = await configured.run(["-Qtoo strange", "-qRslow"])
    assert (done.status, done.stderr) == (0, f"sendmail: {slow}: placed on hold: too strange\n")
    assert os.listdir(configured.queue / "hold") == [slow]
    done = await configured.run(["-Q", "-q!Rfar"])
    assert (done.status, done.stderr) == (0, f"sendmail: {slow}: released from hold\n")
    assert os.listdir(configured.queue / "hold") == []
    assert {far, slow} == {queue_id for queue_id, _ in await configured.store.scan(Queue.DEFERRED)}
    assert (await configured.run(["-Qx", "-q"])).status == 64
    done = await configured.run(["-Qx", "-qRslow"], become=12345)
    assert done.status == 64 and "invalid option -- 'Q'" in done.stderr


async def test_p_is_recorded_for_root_only(world: World) -> None:
    assert (await world.run(["-pSMTP:client.example", "-i", "bob@r.test"], "Subject: s\n\nbody\n")).status == 0
    (message,) = await world.queued()
    trace = message.header("Received") or ""
    uid = os.getuid()
    start = f"by host.example.test (aiomta, from userid {uid})"
    wanted = f"from client.example\n\t{start} with SMTP" if uid == 0 else start
    assert trace.startswith(f"Received: {wanted}\n\tid {message.queue_id}; ")
