"""Filters of `mta queue`: which messages are meant."""

import pytest

from mta.queue_admin import Filter, FilterError, age_text, comparison

MESSAGE = (
    "4FAB", "deferred", "News@list.example",
    [("bob@r.test", "connect to mx.r.test[192.0.2.1]:25: Connection refused"), ("carol@sub.q.test", "")],
)  # fmt: skip


def matches(wanted: Filter, age: float = 3700, size: int = 20_000, sender: str = MESSAGE[2]) -> bool:
    return wanted.matches(MESSAGE[0], MESSAGE[1], sender, MESSAGE[3], age=age, size=size)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(), Filter(sender="news@*"), Filter(sender="*LIST*"), Filter(recipient="carol@*"),
        Filter(domain="r.test"), Filter(domain="*.q.test"), Filter(domain="list.example"),
        Filter(reason="connection REFUSED"), Filter(reason="connect to *refused"), Filter(queues=("hold", "deferred")),
        Filter(ids=frozenset(("4FAB", "x"))), Filter(age=comparison(">1h", sizes=False)),
        Filter(age=comparison("1h", sizes=False)), Filter(age=comparison("<2h", sizes=False)),
        Filter(size=comparison(">=10k", sizes=True)), Filter(size=comparison("< 1 MiB", sizes=True)),
    ],
)  # fmt: skip
def test_a_filter_that_fits(wanted: Filter) -> None:
    assert matches(wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(sender="news"), Filter(recipient="bob"), Filter(domain="q.test"), Filter(domain="test"),
        Filter(reason="timed out"), Filter(queues=("hold",)), Filter(ids=frozenset(("4FA",))),
        Filter(age=comparison(">2h", sizes=False)), Filter(size=comparison(">1m", sizes=True)),
        Filter(size=comparison("=20k", sizes=True)), Filter(sender="news@*", recipient="zed@*"),
        Filter(sender="<>"), Filter(sender="MAILER-DAEMON"),
    ],
)  # fmt: skip
def test_a_filter_that_does_not_fit(wanted: Filter) -> None:
    assert not matches(wanted)


@pytest.mark.parametrize("sender", ["", "MAILER-DAEMON"])
def test_bounces_are_found_by_either_name(sender: str) -> None:
    for pattern in ("<>", "mailer-daemon", "MAILER*", "*"):
        assert matches(Filter(sender=pattern), sender=sender)
    assert not matches(Filter(sender="*@*"), sender=sender)


@pytest.mark.parametrize("text", ["", "2x", "> ", "h", "1h2m", "-5m", ">>1h", "10k"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        comparison(text, sizes=False)


@pytest.mark.parametrize("text", ["", "5d", "k", "10 kbit"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        comparison(text, sizes=True)


def test_an_age_is_short() -> None:
    assert [age_text(s) for s in (-5, 0, 59, 60, 7199, 7200, 172_800)] == ["0s", "0s", "59s", "1m", "119m", "2h", "2d"]
