"""Dates as texts."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from mta.clock import rfc5322_date, stamp


@pytest.fixture(params=["UTC0", "EST5EDT,M3.2.0,M11.1.0", "<+0530>-5:30", "<-0330>3:30", "<+0019>-0:19"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_a_date_is_that_of_the_email_package(zone: str) -> None:
    for when in [0, 1, 86399, 951782400, 1709209799, 1795219263, 1804000000, *range(1700000000, 1731536000, 864000)]:
        assert rfc5322_date(when).partition(" (")[0] == formatdate(when, localtime=True)
        assert rfc5322_date(when + 0.999).partition(" (")[0] == formatdate(when, localtime=True)


def test_the_name_of_the_zone_is_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert rfc5322_date(1795219263) == "Sat, 21 Nov 2026 01:01:03 +0100 (CET)"
        assert stamp(1795219263, "%Y%m%d%H%M%S") == "20261121010103"
        assert stamp(1795219263, "%Y%m%d%H%M%S", utc=True) == "20261121000103"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("when", [-9e15, 9e11, 1e30])
def test_a_year_that_no_mail_has_is_refused(when: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        rfc5322_date(when)
