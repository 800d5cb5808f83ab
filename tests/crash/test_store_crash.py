"""Killed at every disk operation, the store loses nothing and repeats nothing but what was in flight."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"accept": 15, "deliver": 20, "bounce": 40, "delay": 25, "maildrop": 15}  # operations worth dying at


@pytest.mark.parametrize("scenario", LEAST)
def test_a_kill_at_any_operation_loses_and_repeats_nothing(scenario: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.crash.store_scenarios", scenario, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= LEAST[scenario]


@pytest.mark.parametrize("scenario", ["accept", "bounce", "delay", "maildrop"])
def test_a_kill_at_any_operation_of_recovery_changes_nothing_either(scenario: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.crash.store_scenarios", scenario, tmp_path, "recovery"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 3 * LEAST[scenario]
