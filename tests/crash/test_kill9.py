"""kill -9 of the whole system under load; AIOMTA_KILLS sets how often (make crash: 100)."""

import os
import random

import pytest

from tests.crash import kill9
from tests.system.support_system import directory

KILLS = int(os.environ.get("AIOMTA_KILLS", "5"))
SEED = int(os.environ.get("AIOMTA_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


def test_no_promise_is_broken_by_kills_at_random_moments(capsys: pytest.CaptureFixture[str]) -> None:
    with directory() as path:
        outcome = kill9.run(path, KILLS, SEED)
    with capsys.disabled():
        print(f"\nkill9: seed {SEED}: {outcome}")
    assert outcome.wrong == [], f"seed {SEED}"
    assert outcome.promised > 0
    assert outcome.in_flight * 2 >= outcome.kills or KILLS < 50  # of a few kills nothing can be said
