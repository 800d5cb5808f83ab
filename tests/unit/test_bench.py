"""The parts of the benchmark that could count wrong without anybody seeing it."""

import socket

import pytest

from tests.bench.bulk_sink import Client
from tests.bench.cases import CASES
from tests.bench.profile import Profile
from tests.bench.receivers import FromLines
from tests.bench.report import compared, ratios

TWO = b"From from@src.test  Sat\nbody\nFrom from@src.tes\n\nFrom from@src.test  Sun\nx\n\n"
DIALOGUE = (
    b"EHLO a\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n..\r\nx\r\n.x\r\n\r\n.\r\n"
    b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\nQUIT\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 19, 20, 21, 1000])
def test_messages_of_an_mbox_count_once_wherever_it_is_cut(size: int) -> None:
    lines = FromLines()
    for at in range(0, len(TWO), size):
        lines.take(TWO[at : at + size])
    assert lines.take(b"") == 2


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_the_sink_counts_every_end_of_data_wherever_it_is_cut(size: int) -> None:
    with socket.socket() as sock:
        client, ended, answers = Client(sock), 0, b""
        for at in range(0, len(DIALOGUE), size):
            more, text = client.take(DIALOGUE[at : at + size])
            ended, answers = ended + more, answers + text
    codes = [line[:4] for line in answers.split(b"\r\n") if line[3:4] == b" "]
    assert ended == 2
    assert codes == [b"250 ", *2 * [b"250 ", b"250 ", b"354 ", b"250 "], b"221 "]


def test_a_ratio_compares_runs_of_the_same_round() -> None:
    samples = {"ours": [{"cpu": 1.0}, {"cpu": 4.0}], "theirs": [{"cpu": 2.0}, {"cpu": 4.0}]}
    assert ratios(samples, "ours", "theirs", "cpu") == [0.5, 1.0]


def test_a_goal_for_a_time_is_reached_from_below_and_one_for_a_rate_from_above() -> None:
    by_name = {case.name: case for case in CASES}
    half = {"aiomta": [{"median_ms": 5.0, "end_to_end": 5.0}], "postfix": [{"median_ms": 10.0, "end_to_end": 10.0}]}
    assert any("<= 1.0: reached" in line for line in compared(by_name["sendmail"], half))
    assert any(">= 2.0: MISSED" in line for line in compared(by_name["5k-10"], half))


def test_a_sample_belongs_to_the_stage_of_its_innermost_frame() -> None:
    profile = Profile("smtpd", 1.0)
    profile.add(["run (asyncio/runners.py:1)", "_run (mta/smtpd/server_connection.py:2)"], 2)
    profile.add(["_run (mta/smtpd/server_connection.py:2)", "check (mta/smtpd/restrictions.py:3)", "find (re.py:4)"], 3)
    profile.add(["run (asyncio/runners.py:1)"], 5)
    assert profile.stages == {"accept": 2, "restrictions": 3, "loop": 5}
    assert dict(profile.per_message(profile.stages, 1000)) == pytest.approx(
        {"accept": 200, "restrictions": 300, "loop": 500}
    )


def test_what_ours_may_have_at_most_is_the_median_of_the_rounds_and_their_spread_is_shown() -> None:
    backlog = next(case for case in CASES if case.name == "backlog")
    rounds = [{"passing_growth": one, "flushed_growth": 1.3} for one in (1.0, 1.5, 1.1)]
    assert [line.strip() for line in compared(backlog, {"aiomta": rounds})] == [
        "aiomta: passing_growth 1.10 [1.00-1.50] (at most 1.2: reached)",
        "aiomta: flushed_growth 1.30 [1.30-1.30] (at most 1.2: MISSED)",
    ]
