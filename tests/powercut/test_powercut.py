"""A power cut at any step loses nothing, returns nothing wrongly, and repeats only what was in flight.

Every AIOMTA_CUT_EVERYth step of each scenario, from a random one on (`make crash`); all steps: `make crash-full`.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.powercut.disk import unusable
from tests.powercut.judge import Cutoff, Promises, judge
from tests.powercut.message import Copy, compose, read
from tests.powercut.steps import Record

ROOT = Path(__file__).resolve().parents[2]
EVERY = int(os.environ.get("AIOMTA_CUT_EVERY", "40"))
SEED = int(os.environ.get("AIOMTA_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
LIMIT = 900.0  # seconds
SAMPLE = {  # what differs most: the journal without the data on ext4, nothing at all on xfs
    ("ext4", "logflush"): ("accept", "remote", "two-disks", "early-child"),
    ("xfs", "nologflush"): ("maildrop", "dsn", "alias", "second-failure"),
}


@pytest.mark.needs_root
@pytest.mark.parametrize(("kind", "cut"), SAMPLE)
def test_a_power_cut_breaks_no_promise(kind: str, cut: str, capsys: pytest.CaptureFixture[str]) -> None:
    if why := unusable(kind):
        with capsys.disabled():
            print(f"\npower cut: {why}; ext4-writeback instead of {kind}")
        kind = "ext4-writeback"
    first = random.Random(SEED).randrange(1, EVERY + 1)
    wanted = [f"--scenario={name}" for name in SAMPLE[kind, cut]]
    run = subprocess.run(
        [sys.executable, "-m", "tests.powercut", f"--disk={kind}", f"--cut={cut}", f"--every={EVERY}",
         f"--first={first}", "--jobs=2", *wanted], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print(f"\npower cut: seed {SEED}\n{run.stdout}", end="")
    assert run.returncode == 0, f"seed {SEED}\n{run.stdout}{run.stderr}"
    assert len(run.stdout.splitlines()) == 1 + len(wanted) + 1


@pytest.mark.needs_root
def test_a_message_named_later_makes_durable_what_was_removed_before() -> None:
    order = [sys.executable, "-m", "tests.powercut.order", "--rounds=12", f"--seed={SEED}"]
    run = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert run.returncode == 0 and "0 came back, 0 lost" in run.stdout, f"{run.stdout}{run.stderr}"
    run = subprocess.run([*order, "--control"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert run.returncode == 1 and " lost" in run.stdout, "a check that finds nothing where nothing is promised"


# -- the judge itself -------------------------------------------------------------------------------------

NEVER = float("inf")
GIVEN = Promises({"m": ("ok@sink.test", "perm@sink.test")}, {"m"})
OK = Copy("m", "ok@sink.test", "A1", True, 5.0)
REPORT = Copy("", "back@sink.test", "B1", True, 6.0, (("m", "perm@sink.test"),))
FLUSHED = Record(0, 5.5, 5.6, "synced", "/disk/spool/active/A1")
MARK = Record(7, 5.2, 5.2, "mark", "/disk/spool/active/A1")


def sentences(*copies: Copy, cut: float = NEVER, restarted: float = NEVER, flushed: bool = False) -> str:
    return "\n".join(judge(GIVEN, copies, Cutoff(cut, restarted, [MARK, FLUSHED] if flushed else [])).wrong)


def test_what_was_promised_and_has_an_end_is_right() -> None:
    assert sentences(OK, REPORT) == ""


@pytest.mark.parametrize(
    ("copies", "says"),
    [
        ((OK,), "lost: ('m', 'perm@sink.test')"),
        ((OK, REPORT, Copy("", "back@sink.test", "B2", True, 7.0, REPORT.reports)), "bounced twice, as two messages"),
        ((OK, REPORT, Copy("m", "ok@sink.test", "A2", True, 7.0)), "delivered twice, as two messages"),
        ((OK, REPORT, Copy("m", "else@sink.test", "A1", True, 5.0)), "never sent"),
        ((OK, REPORT, Copy("", "back@sink.test", "B1", True, 7.0, (("m", "ok@sink.test"),))), "falsely bounced"),
        ((OK, REPORT, Copy("m", "perm@sink.test", "A1", True, 5.0)), "delivered and bounced"),
        ((Copy("m", "ok@sink.test", "A1", False, 5.0), REPORT), "altered"),
    ],
)
def test_every_broken_promise_is_named(copies: tuple[Copy, ...], says: str) -> None:
    assert says in sentences(*copies)


def test_a_second_copy_is_excused_only_while_its_mark_was_not_durable() -> None:
    again = Copy("m", "ok@sink.test", "A1", True, 9.0)
    assert sentences(OK, REPORT, again, cut=7.0, restarted=8.0) == ""
    assert "although its mark was durable" in sentences(OK, REPORT, again, cut=7.0, restarted=8.0, flushed=True)
    assert sentences(OK, REPORT, again, cut=5.55, restarted=8.0, flushed=True) == ""  # the flush had not ended
    assert "delivered 2 times" in sentences(OK, REPORT, again, cut=1.0, restarted=2.0)  # both after the start
    assert "delivered 3 times" in sentences(OK, REPORT, again, again, cut=7.0, restarted=8.0)


def test_a_flush_excuses_the_recipient_whose_mark_was_still_on_its_way() -> None:
    given = Promises({"m": ("ann@box.test", "bob@box.test")}, {"m"})
    synced = [Record(0, 4.0, when, "synced", f"/disk/mail/{name}") for name, when in (("ann", 4.5), ("bob", 4.6))]
    ann, bob = (Copy("m", f"{name}@box.test", "A1", True, 0.0) for name in ("ann", "bob"))

    def wrong(*trace: Record) -> list[str]:
        return judge(given, [ann, bob, bob], Cutoff(7.0, 8.0, [*synced, *trace, FLUSHED])).wrong

    assert wrong(MARK) == []
    assert "although its mark was durable" in wrong(MARK, MARK)[0]


def test_a_message_proves_itself_through_a_transport() -> None:
    sent = b"Received: from x by y with ESMTP\r\n\tid 3F2A1B; now\r\n" + compose("m", 900)
    assert read(sent, "ok@sink.test", 1.0) == Copy("m", "ok@sink.test", "3F2A1B", True, 1.0)
    assert not read(sent.replace(b"0123456789", b"012345678", 1), "ok@sink.test", 1.0).whole
    assert not read(sent[:-100], "ok@sink.test", 1.0).whole
