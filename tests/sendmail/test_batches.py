"""rmail and rsmtp: mail that comes in by other doors than sendmail's."""

import asyncio
import os
import subprocess

import pytest

from sendmail_compat.rmail import sender_of
from tests.sendmail.world import World

STACK = b"From c Sat Nov 21 00:00:00 2026 remote from h2\n>From c Sat Nov 21 00:00:00 2026 remote from h1\n"


@pytest.mark.parametrize(
    ("head", "sender"),
    [
        (b"From alice Sat Nov 21 00:00:00 2026\nTo: x\n", "alice"),
        (STACK + b"To: x\n", "h2!h1!c"),
        (b"From h2!h1!c Sat Nov 21 00:00:00 2026\n\nFrom here\n", "h2!h1!c"),
        (b"From a@b.test  Sat Nov 21 00:00:00 2026 remote from gate\r\nTo: x\n", "gate!a@b.test"),
    ],
)
def test_the_sender_is_the_way_back(head: bytes, sender: str) -> None:
    found, length, problem = sender_of(head)
    assert (found, problem) == (sender, "")
    assert not head[length:].startswith((b"From ", b">From ")) and head[length:] in head


async def test_rmail_hands_in_what_follows_the_from_lines(world: World) -> None:
    done = await world.run(["bob@r.test", "carol@q.test"], STACK + b"Subject: s\n\nFrom me\n.\nend\n", program="rmail")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    (message,) = await world.queued()
    assert [r.address for r in message.envelope.recipients] == ["bob@r.test", "carol@q.test"]
    assert message.envelope.sender in ("h1!c@h2", "h2!h1!c")
    assert message.body == ["From me", ".", "end"]


async def test_rmail_refuses_what_it_cannot_return(world: World) -> None:
    for argv, stdin, status, text in (
        ([], b"From a x\n\n", 64, "usage: rmail"), (["-bob"], b"From a x\n\n", 64, "dash precedes argument: -bob"),
        (["bob"], b"Subject: s\n\nx\n", 65, "missing or empty From line: Subject: s"),
        (["bob"], b"", 65, "missing or empty From line"), (["bob"], b"From \n\nx\n", 65, "corrupted From line"),
    ):  # fmt: skip
        done = await world.run(argv, stdin, program="rmail")
        assert done.status == status and text in done.stderr, (argv, done)
    assert await world.queued() == []


async def test_rmail_of_a_large_message_and_without_the_daemon(world: World) -> None:
    body = b"".join(b"%07d\n" % i for i in range(300_000))
    assert (await world.run(["bob@r.test"], STACK + b"Subject: s\n\n" + body, program="rmail")).status == 0
    (message,) = await world.queued()
    assert "\n".join(message.body) + "\n" == body.decode()
    await world.stop()
    assert (await world.run(["bob@r.test"], STACK + b"Subject: s\n\nx\n", program="rmail")).status == 0
    assert len(os.listdir(world.queue / "maildrop")) == 1


BATCH = b"HELO x\nMAIL FROM:<a@s.test>\nRCPT TO:<%b>\nDATA\nSubject: s\n\n..dot\nbody\n.\n"


async def test_rsmtp_hands_in_a_batch_and_says_nothing(world: World) -> None:
    done = await world.run(
        ["-bS"], BATCH % b"bob@r.test" + (BATCH % b"carol@q.test").replace(b"\n", b"\r\n"), program="rsmtp"
    )
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    found = {m.envelope.recipients[0].address: m for m in await world.queued()}
    assert set(found) == {"bob@r.test", "carol@q.test"}
    assert all(m.body == [".dot", "body"] for m in found.values())


async def test_rsmtp_stops_at_the_first_refusal_and_an_open_message_is_not_queued(world: World) -> None:
    good = BATCH % b"bob@r.test"
    done = await world.run([], good + b"NONSENSE\n" + good, program="rsmtp")
    assert done.status == 1 and "NONSENSE: 5" in done.stderr and "1 accepted before" in done.stderr
    done = await world.run([], b"NONSENSE\n" + good, program="rsmtp")
    assert done.status == 2
    done = await world.run([], good[:-2], program="rsmtp")
    assert done.status == 2 and "input ends inside a message" in done.stderr
    assert len(await world.queued()) == 1
    await world.stop()
    assert (await world.run([], good, program="rsmtp")).status == 75


async def test_runq_flushes(world: World) -> None:
    assert (await world.run([], program="runq")).status == 0
    await world.stop()
    assert (await world.run([], program="runq")).status == 69


@pytest.mark.parametrize("command", ["{0} -bs < {1}", "cat {1} | {0} -bs"])
async def test_a_dialogue_with_more_replies_than_the_socket_holds_is_not_stuck(command: str, world: World) -> None:
    """The daemon takes no more commands while nobody reads its replies.  What follows QUIT costs none of them."""
    batch, out = world.root / "batch", world.root / "out"
    people = b"RCPT TO:<bob@r.test>\n" * 1900
    batch.write_bytes(b"EHLO x\n" + (b"MAIL FROM:<a@s.test>\n" + people + b"RSET\n") * 10 + b"QUIT\n" + people * 9)
    call = ["sh", "-c", command.format(world.stub, batch) + f" > {out}"]
    environ = {"MAIL_CONFIG": str(world.config), "PATH": os.environ["PATH"]}
    done = await asyncio.to_thread(subprocess.run, call, capture_output=True, env=environ, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    replies = out.read_bytes().split(b"\r\n")
    assert sum(line.startswith((b"250 2.1.5", b"452 4.5.3")) for line in replies) == 19_000
    assert replies[-2:] == [b"221 2.0.0 Bye", b""]
