"""Did the scheduler before this one crash?  The lock file and /proc tell."""

import os
from pathlib import Path

import pytest

from mta.master import scheduler as master_scheduler


def test_where_proc_hides_other_processes_the_scheduler_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        assert not master_scheduler._predecessor_crashed(lock), "the first one"
        assert master_scheduler._predecessor_crashed(lock), "its stamp is still there"
        monkeypatch.setattr(os, "getppid", lambda: 1 << 30)
        assert not master_scheduler._predecessor_crashed(lock)
    finally:
        os.close(lock)
