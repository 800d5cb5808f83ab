"""`mta queue`, with the daemon and without it."""

import json
import os

import pytest

from mta.queue.api import Queue, Reason
from tests.sendmail.world import World


async def fill(world: World) -> dict[str, str]:
    """Three messages: deferred for bob, deferred for carol, a bounce in incoming."""
    ids = {}
    for name, sender, reason in (("bob@r.test", "a@s.test", "refused"), ("carol@q.test", "b@s.test", "timed out")):
        await world.run(["-i", "-f", sender, name], f"Subject: for {name}\n\nbody\n")
        ((queue_id, _),) = await world.store.scan(Queue.INCOMING)
        job = await world.store.claim(queue_id)
        assert job is not None
        reasons = {r.offset: Reason("4.0.0", reason) for r in job.todo}
        await world.store.defer(job, world.clock.now() + 3000, reasons)
        ids[name[:3]] = queue_id
    await world.run(["-i", "-f", "", "zed@z.test"], "Subject: x\n\n" + "long body\n" * 2000)
    ((queue_id, _),) = await world.store.scan(Queue.INCOMING)
    return {**ids, "zed": queue_id}


@pytest.mark.parametrize("running", [True, False])
async def test_list_and_show(running: bool) -> None:
    async with World() as world:
        ids = await fill(world)
        if not running:
            await world.stop()
        table = (await world.mta("queue", "list", "--table")).stdout.splitlines()
        assert table[0].split() == ["QUEUE", "ID", "QUEUE", "SIZE", "AGE", "SENDER", "RECIPIENT", "REASON"]
        assert sorted(line.split()[0] for line in table[1:]) == sorted(ids.values())
        rows = (await world.mta("queue", "list", "--json", "--domain", "r.test")).stdout.splitlines()
        assert [json.loads(row)["queue_id"] for row in rows] == [ids["bob"]]
        text = await world.mta("queue", "list", "--sender", "*@s.test")
        assert text.stdout.endswith("in 2 Requests.\n") and "(timed out)" in text.stdout
        assert (await world.mta("queue", "list", "--size", ">100m")).stdout == "Mail queue is empty\n"
        shown = await world.mta("queue", "show", ids["car"])
        assert shown.stdout.startswith(f"{ids['car']}: deferred\n")
        assert "recipient  carol@q.test  (timed out)" in shown.stdout
        assert "    Subject: for carol@q.test\n" in shown.stdout and "next try" in shown.stdout
        one = json.loads((await world.mta("queue", "show", "--json", ids["bob"])).stdout)
        assert one["next_attempt"] > one["arrival_time"] and "Subject: for bob@r.test\n" in one["header"]


@pytest.mark.parametrize("running", [True, False])
async def test_every_destructive_verb_says_what_it_did_and_can_be_tried_dry(running: bool) -> None:
    async with World() as world:
        ids = await fill(world)
        log = world.root / "log"
        log.touch()
        with (world.config / "main.cf").open("a") as main_cf:
            main_cf.write(f"maillog_file = {log}\n")
        if not running:
            await world.stop()
        bob = ids["bob"]
        dry = await world.mta("queue", "hold", "--recipient", "bob@*", "--dry-run")
        assert dry.stdout == f"{bob}: would be placed on hold\nWould be placed on hold: 1 message\n"
        assert os.listdir(world.queue / "hold") == []
        done = await world.mta("queue", "hold", "--recipient", "bob@*")
        assert (done.status, done.stdout) == (0, f"{bob}: placed on hold\nPlaced on hold: 1 message\n"), done.stderr
        assert os.listdir(world.queue / "hold") == [bob]
        done = await world.mta("queue", "release", "ALL", "--json")
        report = {"verb": "release", "dry_run": False, "count": 1, "queue_ids": [bob], "busy": []}
        assert json.loads(done.stdout) == report
        done = await world.mta("queue", "expire", "--reason", "timed out")
        assert done.stdout.endswith("Expired: 1 message\n")
        done = await world.mta("queue", "flush", "--age", "<1h", "--queue", "deferred")
        assert done.stdout.endswith("To be tried now: 2 messages\n")
        due = [when for _, when in await world.store.scan(Queue.DEFERRED)]
        assert max(due) <= world.clock.now()
        done = await world.mta("queue", "requeue", bob)
        assert done.stdout == f"{bob}: requeued\nRequeued: 1 message\n"
        assert os.listdir(world.queue / "maildrop") == [bob]
        done = await world.mta("queue", "delete", "--size", ">10k", "NOSUCH", ids["zed"])
        assert done.status == 1 and "NOSUCH: not in the queue" in done.stderr
        assert done.stdout == f"{ids['zed']}: deleted\nDeleted: 1 message\n"
        text = log.read_text()
        assert f": {bob}: placed on hold\n" in text and f": {ids['zed']}: removed\n" in text, "what logwatch knows"
        done = await world.mta("queue", "delete", "ALL")
        assert done.stdout.endswith("Deleted: 2 messages\n")
        assert (await world.mta("queue", "list")).stdout == "Mail queue is empty\n"


@pytest.mark.parametrize("running", [True, False])
async def test_a_users_file_under_the_name_all_is_one_message(running: bool) -> None:
    async with World() as world:
        ids = await fill(world)
        if not running:
            await world.stop()
        named = world.queue / "maildrop" / "ALL"
        named.write_bytes(b"T\x011S\x0am@evil.tldR\x01xM\0N\x01xX\0E\0")
        named.chmod(0o700)
        done = await world.mta("queue", "delete", "--sender", "m@evil.tld")
        assert (done.status, done.stdout) == (0, "ALL: deleted\nDeleted: 1 message\n")
        rows = (await world.mta("queue", "list", "--json")).stdout.splitlines()
        assert sorted(json.loads(row)["queue_id"] for row in rows) == sorted(ids.values())


async def test_a_requeued_message_comes_back_under_a_new_id() -> None:
    async with World() as world:
        ids = await fill(world)
        assert (await world.mta("queue", "requeue", ids["bob"])).status == 0
        assert await world.pickup.scan() == 1
        found = [m for m in await world.queued() if m.queue_id != ids["zed"]]
        assert [(m.envelope.sender, m.envelope.recipients[0].address) for m in found] == [("a@s.test", "bob@r.test")]
        assert found[0].queue_id != ids["bob"] and found[0].body == ["body"]


async def test_nothing_is_changed_by_a_command_that_does_not_say_what_it_means() -> None:
    async with World() as world:
        ids = await fill(world)
        for words in (
            ["delete"], ["hold", "--age", "soon"], ["burn"], ["delete", "--size", "5d", "ALL"], [], ["show"],
            ["delete", "--queue", "nosuch"], ["delete", "--sender"], ["delete", "--nosuch", "x"],
        ):  # fmt: skip
            done = await world.mta("queue", *words)
            assert done.status == 64 and done.stderr.startswith("mta: queue: "), (words, done)
        left = {i for q in (Queue.INCOMING, Queue.DEFERRED) for i, _ in await world.store.scan(q)}
        assert left == set(ids.values())
