"""Two accidents in a row: what a kill left in the page cache is not taken for durable when the power fails next.

A third of all pairs of steps, unless AIOMTA_PAIRS is 1.
"""

import os
from collections.abc import Iterator

import pytest

from tests.sim.plan import Fault, Message, Plan
from tests.sim.syscalls import installed
from tests.sim.world import play

PAIRS = int(os.environ.get("AIOMTA_PAIRS", "3"))


@pytest.fixture(autouse=True)
def simulated() -> Iterator[None]:
    with installed():
        yield


def plan(number: int, door: str, recipients: list[str], faults: list[Fault]) -> Plan:
    made = Plan(number, ordered=False, separate_home=False, maildir=True, worker=False, delay_warning=False, split=0.0)
    made.messages = [Message(0, door, 0.5, "anna@sim.example", recipients, "", 1, 1)]
    made.scripts, made.faults = {"r@d1.example": [550]}, faults
    return made


@pytest.mark.parametrize(
    ("door", "recipients", "killed"),
    [
        ("maildrop", ["bert@sim.example"], range(3, 9)),  # the copy is committed, the original unlinked
        ("submit", ["bert@sim.example"], range(3, 9)),  # sendmail asks again with its key
        ("smtp", ["r@d1.example"], range(14, 26)),  # the report is committed, its parent marked
    ],
)
def test_a_power_cut_after_a_kill_loses_and_repeats_nothing(door: str, recipients: list[str], killed: range) -> None:
    for first in killed:
        for then in range(1 + first % PAIRS, 12, PAIRS):
            faults = [Fault("kill", step=first, seconds=0.1), Fault("cut", step=then, seconds=1.0)]
            outcome = play(plan(1000 * first + then, door, recipients, faults))
            assert outcome.wrong == [], f"killed at step {first}, power cut at step {then}"


def test_the_name_of_a_new_mailbox_is_durable_before_there_is_mail_in_it() -> None:
    for first in range(9, 22):
        for then in range(2 + first % PAIRS, 24, PAIRS):
            faults = [Fault("kill", step=first, seconds=0.1), Fault("cut", step=then, seconds=1.0)]
            made = plan(1000 * first + then, "smtp", ["bert@sim.example", "cora@sim.example"], faults)
            made.maildir = False
            assert play(made).wrong == [], f"killed at step {first}, power cut at step {then}"


def test_a_child_that_cannot_be_made_durable_at_the_start_is_delivered_when_the_disk_works_again() -> None:
    errors = Fault("errno", at=0.51, seconds=60.0, what="EIO fsync", amount=1.0)
    for step in range(3, 9):
        outcome = play(plan(step, "maildrop", ["bert@sim.example"], [Fault("kill", step=step, seconds=0.2), errors]))
        assert outcome.wrong == []
