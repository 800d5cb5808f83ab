"""The simulator finds what it must find, exercises what it claims, and repeats itself exactly."""

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

import mta
from tests.sim import broken
from tests.sim.minimise import smaller
from tests.sim.plan import make
from tests.sim.syscalls import MODULES, installed
from tests.sim.world import play

FEW = 120  # seeds
WITHIN = 200  # seeds in which each broken store must be found
HAPPENED = (
    "cut in flight", "kill in flight", "kill-worker", "dns out", "host silent", "host refuses", "slow", "stop", "jump",
    "full", "peer 421", "peer 451", "peer drop-before", "peer drop-after", "peer hang", "peer 4rcpt",
)  # fmt: skip


@pytest.fixture(autouse=True)
def simulated() -> Iterator[None]:
    with installed():
        yield
    gc.enable()


def test_every_rule_holds_over_a_few_seeds_and_every_kind_of_fault_happens() -> None:
    counts: Counter[str] = Counter()
    for seed in range(FEW):
        outcome = play(make(seed))
        assert outcome.wrong == [], f"python -m tests.sim --seed {seed}"
        counts += outcome.counts
    assert [what for what in HAPPENED if not counts[what]] == []
    assert {what.split()[1] for what in counts if what.split()[0].isupper()} >= {"fsync", "write", "open", "create"}
    assert counts["cut in flight"] * 4 > counts["cut"]
    assert counts["kill in flight"] * 4 > counts["kill"]


def test_a_thread_that_waits_for_a_lock_is_not_held_against_the_delivery_before_it() -> None:
    assert play(make(17190)).wrong == []


@pytest.mark.parametrize("mistake", [broken.no_fsync, broken.mark_after_unlink, broken.rename_after_fsync])
def test_a_broken_store_is_found(mistake: Callable[[], AbstractContextManager[None]]) -> None:
    with mistake():
        assert any(play(make(seed)).wrong for seed in range(WITHIN))


def test_a_failing_seed_is_made_smaller() -> None:
    with broken.no_fsync():
        seed = next(seed for seed in range(WITHIN) if play(make(seed)).wrong)
        plan, outcome = smaller(make(seed))
    before = make(seed)
    assert outcome.wrong
    assert len(plan.messages) + len(plan.faults) < len(before.messages) + len(before.faults)


def test_a_seed_plays_the_same_whatever_the_hash_seed_of_the_interpreter_is() -> None:
    code = (
        "from tests.sim.plan import make\nfrom tests.sim.world import play\nfrom tests.sim.syscalls import installed\n"
        "with installed():\n    print([play(make(seed)).digest for seed in range(12)])"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": number}, capture_output=True, check=True
        ).stdout
        for number in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0]) > 12 * 64


def test_every_module_of_the_queue_that_reaches_for_the_system_is_simulated() -> None:
    simulated = {module.__name__ for module in MODULES}
    seen = {
        name
        for name, module in sys.modules.items()
        if name.startswith(("mta.queue", "mta.fsio", "mta.deliver", "mta.bounce", "mta.cleanup", "mta.pickup"))
        and getattr(module, "os", None) is not None
    }
    harmless = {  # annotations, os.path on strings, os.urandom as a default that is replaced
        "mta.queue.store", "mta.queue.store_listing", "mta.queue.store_maildrop", "mta.queue.store_recover",
        "mta.queue.store_recover_children", "mta.queue.store_recover_names",
        "mta.bounce.bounce", "mta.deliver.local_trust", "mta.deliver.local_client", "mta.deliver.smtp",
        "mta.fsio.flusher", "mta.fsio.linux_aio", "mta.fsio.linux_writeback",  # a flusher of its own stands for them
        "mta.queue.store_claim", "mta.queue.store_admin",  # administrators' commands are not simulated
    }  # fmt: skip
    assert mta.__name__ == "mta"
    assert seen - simulated - harmless == set()
