"""Callers that attack sendmail, and the circumstances it must survive."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta.message_address import SLICE
from mta.submit.intake import Delivery
from mta.submit.options import parse_command
from mta.submit.prepare import Caller, Submission
from tests.sendmail.world import Done, World

Case = dict[str, Any]
CASES: list[Case] = [
    json.loads(line) for line in (Path(__file__).parent / "hostile_inject.jsonl").read_text().splitlines()
]
BIG = 1 << 30


def unescaped(text: str) -> bytes:
    return text.encode("latin1").decode("unicode_escape").encode("latin1")


class Arranged:
    """What the conditions in braces ask for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.before: list[Callable[[], object]] = []  # in the child before exec
        self.stop = False
        self.signal = 0
        self.big = False
        self.gone: Path | None = None

    def condition(self, text: str) -> None:
        match text:
            case "{daemon stopped}":
                self.stop = True
            case "{cwd deleted}":
                self.gone = self.world.root / "gone"
                self.gone.mkdir()
                gone = self.gone
                self.before += [lambda: os.chdir(gone), lambda: os.rmdir(gone)]
            case "{umask 777}":
                self.before.append(lambda: os.umask(0o777))
            case "{RLIMIT_NOFILE=4}":
                self.before.append(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)))
            case "{uid without passwd entry}":
                self.world.names.name = "nobody-has-this-uid"
            case "{started with fd 0,1,2 closed}":
                self.before.append(lambda: os.closerange(0, 3))
            case "{SIGTERM after 10 KiB}":
                self.signal = signal.SIGTERM
            case "{SIGKILL after 10 KiB}":
                self.signal = signal.SIGKILL
            case "{1 GiB stdin}":
                self.big = True
            case _:
                raise AssertionError(text)

    def child(self) -> None:
        for step in self.before:
            step()


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
async def test_hostile_caller(case: Case, world: World) -> None:
    arranged = Arranged(world)
    argv = [unescaped(a).decode("utf-8", "surrogateescape") for a in case["argv"]]
    for word in [a for a in argv if a.startswith("{")]:
        arranged.condition(word)
        argv.remove(word)
    if arranged.stop:
        await world.stop()
    stdin = unescaped(case["stdin"])
    started = time.monotonic()
    done = await run(world, arranged, argv, stdin)
    assert time.monotonic() - started < 20
    allowed = case["expect"]["exit"]
    if allowed is not None:
        assert str(done.status) in allowed.split("|"), done
    assert "Traceback" not in done.stderr
    assert "root:" not in done.stderr
    if arranged.stop:
        await world.start()
        await world.pickup.scan()
    judge(case["id"], done, await world.queued())


async def run(world: World, arranged: Arranged, argv: list[str], stdin: bytes) -> Done:
    if not arranged.signal and not arranged.big:
        return await world.run(argv[1:], stdin, program=argv[0], before=arranged.child if arranged.before else None)
    return await asyncio.to_thread(_feed, world, arranged, argv, stdin)


def _feed(world: World, arranged: Arranged, argv: list[str], stdin: bytes) -> Done:
    process = subprocess.Popen(
        [str(world.stub.parent / argv[0]), *argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={"MAIL_CONFIG": str(world.config)}, bufsize=0,
    )  # fmt: skip
    assert process.stdin is not None
    sent, piece = 0, b"x" * 65535 + b"\n"
    try:
        process.stdin.write(stdin + b"\n")
        while sent < (BIG if arranged.big else 10240):
            sent += process.stdin.write(piece) or 0
        if arranged.signal:
            process.send_signal(arranged.signal)
            process.wait(60)
    except BrokenPipeError:
        pass
    process.stdin.close()
    status = process.wait(60)
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read().decode(), process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    assert sent < 64 << 20, "it must stop reading at message_size_limit"
    return Done(status, out, err)


def judge(name: str, done: Done, messages: list[Any]) -> None:
    """The prose of the classes."""
    assert not os.path.lexists("/tmp/pwn")
    if done.status != 0:
        assert messages == []
        return
    if name in ("inj-bi",):
        return
    assert len(messages) == 1, messages
    (message,) = messages
    recipients = [r.address for r in message.envelope.recipients]
    assert all(r in ("user@test.example", "secret@test.example") for r in recipients), recipients
    assert message.header("Bcc") is None
    assert not any(h.startswith(("From x@y", ">From")) for h in message.headers)
    assert not any("\r" in line for line in (*message.headers, *message.body))
    if name == "inj-t-bcc-case":
        assert sorted(recipients) == ["secret@test.example", "user@test.example"]
    if name == "inj-lf-dot-lf-smuggle":
        assert message.body == ["x", ".", "MAIL FROM:<smuggled@test.example>"]
    if name == "inj-dynamicuser":
        assert message.envelope.sender == f"{os.getuid()}@example.test"


@pytest.mark.parametrize(("separator", "count"), [(", ", 60_000), (",\n ", 60_000), ("\nResent-To: ", 30_000)])
async def test_a_header_with_very_many_addresses_is_taken_in_slices(separator: str, count: int, world: World) -> None:
    name = separator.strip(" ,\n:") or "To"
    header = f"{name}: " + separator.join(f"u{n}@r" for n in range(count))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    submission = Submission(parse_command(["sendmail", "-t"], uid=1), Caller(1, "alice"))
    delivery = Delivery(world.cleanup, submission, world.maillog, world.clock, hop_limit=50, key="00")
    task = asyncio.create_task(other())
    await delivery.feed(f"{header}\n\nbody\n".encode())
    task.cancel()
    assert turns >= 3 * count // SLICE, "in parsing, in making the envelope and in rewriting it"
    assert (await delivery.finish()).is_positive
    (message,) = await world.queued()
    assert [r.address for r in message.envelope.recipients] == [f"u{n}@r" for n in range(count)]
