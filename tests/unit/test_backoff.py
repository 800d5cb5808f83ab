"""Retry times."""

import pytest

from mta.qmgr.backoff import BackoffSettings, due, expired, next_attempt

SETTINGS = BackoffSettings(
    minimal_backoff_time=300.0,
    maximal_backoff_time=4000.0,
    maximal_queue_lifetime=432000.0,
    bounce_queue_lifetime=86400.0,
)


@pytest.mark.parametrize(
    ("age", "gap"),
    [
        (0, 300),  # fresh mail waits the floor
        (-50, 300),  # clock set back: neither a crash nor a flood
        (1200, 1200),  # the gap equals the age ...
        (4800, 4000),  # ... up to the ceiling
    ],
)
def test_gap_equals_age_within_limits(age: float, gap: float) -> None:
    assert next_attempt(1000.0 - age, 1000.0, SETTINGS) == 1000.0 + gap


def test_mail_expires_at_its_lifetime_and_bounces_at_their_own() -> None:
    assert not expired(0.0, 431999.0, null_sender=False, settings=SETTINGS)
    assert expired(0.0, 432000.0, null_sender=False, settings=SETTINGS)
    assert expired(0.0, 86400.0, null_sender=True, settings=SETTINGS)
    assert not expired(1000.0, 0.0, null_sender=True, settings=SETTINGS)


def test_a_stored_time_beyond_any_backoff_is_due_now() -> None:
    assert due(5000.0, 1000.0, SETTINGS) == 5000.0
    assert due(5001.0, 1000.0, SETTINGS) == 1000.0
