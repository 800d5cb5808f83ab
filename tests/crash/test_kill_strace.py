"""A sample of the second opinion: strace kills single processes of the MTA at a system call."""

import os

import pytest

from tests.crash import kill_strace

MOST = int(os.environ.get("AIOMTA_STRACE_MOST", "2"))
SAMPLE = [
    ("remote-mix", "scheduler", "pwrite64"),
    ("remote-mix", "scheduler", "io_submit"),
    ("report", "scheduler", "unlink"),
    ("forward", "scheduler", "rename"),
    ("accept", "smtpd", "io_submit"),
    ("accept", "smtpd", "rename"),
]


@pytest.mark.needs_root
@pytest.mark.parametrize("task", SAMPLE, ids=["-".join(task) for task in SAMPLE])
def test_a_process_that_the_kernel_kills_at_a_call_breaks_no_promise(task: tuple[str, str, str]) -> None:
    kill_strace.ensure_strace()
    row = kill_strace.every(*task, MOST)
    assert row.wrong == []
    assert row.kills >= 1
