"""A deep queue at the start costs what was agreed, within a factor for a machine that has other things to do.

AIOMTA_LOAD sets how deep (make crash: 20,000; make load: 100,000 and no factor).
"""

import os

import pytest

from tests.crash import load

MESSAGES = int(os.environ.get("AIOMTA_LOAD", "6000"))
SLACK = 3.0


def test_a_deep_queue_delays_no_start_and_no_new_mail_and_takes_little_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missed, text = load.compare(MESSAGES, 500, "/var/tmp", {}, SLACK)
    with capsys.disabled():
        print(f"\nload: {text}")
    assert missed == []
