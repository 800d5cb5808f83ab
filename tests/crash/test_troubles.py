"""Storms of signals, a message that kills its handler, a slow disk: the whole system, judged from outside."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.crash import storms
from tests.crash.kill_scenarios import BODY, at_sink, mail
from tests.crash.kill_troubles import POISON, SLOW
from tests.crash.kill_world import LIMIT, World
from tests.system.support_system import directory

RESTARTS = int(os.environ.get("AIOMTA_RESTARTS", "3"))
SLACK = 3.0  # for machines that do something else, too


@pytest.fixture
def world() -> Iterator[World]:
    """One without root."""
    made = World(as_user=True)
    yield made
    made.close()


def test_stops_starts_and_storms_of_reloads_break_no_promise_and_repeat_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = random.SystemRandom().randrange(1, 1 << 30)
    with directory() as path:
        outcome = storms.run(path, RESTARTS, seed)
    with capsys.disabled():
        print(f"\nstorms: seed {seed}: {str(outcome).replace('kills', 'restarts')}")
    assert outcome.wrong == [], f"seed {seed}"
    assert outcome.promised > 0


def assert_held(world: World) -> None:
    """The poisonous message is on hold, and nothing else."""
    deadline = time.monotonic() + LIMIT
    while len(held := [path for path in world.queue_files() if path.parent.name == "hold"]) != 1:
        assert time.monotonic() < deadline, held
        time.sleep(0.05)
    assert POISON.encode() in held[0].read_bytes()


def test_a_message_that_kills_its_handler_is_put_on_hold_and_the_others_flow(world: World) -> None:
    good = mail("good", "src@sink.test", at_sink("ok1"), "sink:ok1@sink.test")
    bad = mail("bad", POISON, at_sink("ok2"), "sink:ok2@sink.test")
    world.trouble = "poison"
    world.begin(-1, {m.name: set(m.ends) for m in (good, bad)}, {"good": BODY, "bad": BODY})
    deaths = 0
    for _ in range(20):
        if not world.start():  # it died so early that the first process gave up
            deaths += 1
            world.stop()
            continue
        for each in (bad, good):
            each.give(world)
        deadline = time.monotonic() + LIMIT
        while "exit signal 9" not in (log := world.log.read_text()) and "placed on hold" not in log:
            assert time.monotonic() < deadline, log[-2000:]
            time.sleep(0.01)
        if "placed on hold" in log:
            break
        deaths += 1
        world.stop()  # the supervisor would start the handler again after 1, 2, 4 ... s; this is faster
        world.log.write_text("")
    assert 3 <= deaths <= 8, "six that are counted; one that comes before its attempt is written counts for nothing"
    assert_held(world)
    deadline = time.monotonic() + LIMIT
    while not (found := world.copies()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {copy.name for copy in found} == {"good"}
    assert sum(found.values()) <= 1 + deaths  # W2: it was in flight when the other one took the process along


def test_three_crashes_of_the_process_that_delivers_are_enough(world: World) -> None:
    """The first process brings it back after 1, then 2 s, and nobody else dies."""
    bad = mail("bad", POISON, at_sink("ok2"), "sink:ok2@sink.test")
    good = [mail(f"good{n}", "src@sink.test", at_sink(f"ok{n}"), f"sink:ok{n}@sink.test") for n in range(3)]
    world.trouble = "poison"
    world.begin(-1, {m.name: set(m.ends) for m in (bad, *good)}, {m.name: BODY for m in (bad, *good)})
    assert world.start()
    for each in (good[0], bad, good[1]):
        each.give(world)
    deadline = time.monotonic() + LIMIT
    while "placed on hold" not in (log := world.log.read_text()) or log.count("process scheduler pid") < 3:
        assert time.monotonic() < deadline, log[-2000:]
        time.sleep(0.05)
    assert log.count("process scheduler pid") == 3
    good[2].give(world)
    while {copy.name for copy in world.copies()} != {m.name for m in good}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_held(world)


def test_on_a_slow_disk_clients_wait_for_the_disk_and_nobody_else_for_them(world: World) -> None:
    mails = [mail(f"m{n}", "src@sink.test", at_sink(f"ok{n}"), f"sink:ok{n}@sink.test") for n in range(20)]
    world.trouble = "slow-disk"
    world.begin(-1, {m.name: set(m.ends) for m in mails}, {m.name: BODY for m in mails})
    assert world.start()
    took: list[float] = []

    def give(n: int) -> None:
        began = time.monotonic()
        mails[n].give(world)
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=give, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    greeted = []
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", world.port), LIMIT) as s:
            assert s.recv(4) == b"220 "
        greeted.append(time.monotonic() - began)
        time.sleep(0.02)
    assert sum(world.account.promised.values()) == 20
    assert min(took) >= SLOW  # the disk really was that slow
    assert max(took) < 6 * SLOW * SLACK  # and clients shared its flushes: one by one they would need 20 s
    assert sorted(greeted)[len(greeted) // 2] < 0.05 * SLACK
    assert world.wait_until_settled()
    assert world.account.verdict(world.copies()) == []
