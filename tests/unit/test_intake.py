"""What the queue manager begins next: new mail and due mail in turn, and lists that are older than what happened."""

import pytest

from mta.qmgr.intake import AT_ONCE, Intake

NOW = 1_700_000_000.0


def taken(intake: Intake) -> list[str]:
    found = []
    while intake:
        found.append(intake.next())
    return found


def test_new_mail_stands_behind_no_flush() -> None:
    intake = Intake(1000)
    for n in range(6):
        intake.later(f"due{n}", NOW - 10 + n)
    intake.take_due(NOW, active=0)
    for n in range(2):
        intake.arrived(f"new{n}")
    assert taken(intake) == ["due0", "new0", "due1", "new1", "due2", "due3", "due4", "due5"]


def test_due_mail_stands_behind_no_new_mail() -> None:
    intake = Intake(1000)
    for n in range(4):
        intake.arrived(f"new{n}")
    intake.later("due", NOW)
    assert intake.next() == "new0"
    intake.take_due(NOW, active=1)
    assert taken(intake) == ["due", "new1", "new2", "new3"]


def test_a_backlog_of_new_mail_larger_than_the_active_queue_leaves_room_for_due_mail() -> None:
    intake = Intake(4)
    for n in range(10):
        intake.arrived(f"new{n}")
    intake.later("due", NOW)
    assert intake.ready(NOW, active=0)
    intake.take_due(NOW, active=0)
    assert "due" in [intake.next() for _ in range(2)]


def test_due_ones_are_taken_as_far_as_there_is_room() -> None:
    intake = Intake(10)
    for n in range(20):
        intake.later(f"due{n:02d}", NOW - 20 + n)
    intake.take_due(NOW, active=7)
    assert taken(intake) == ["due00", "due01", "due02"]
    intake.arrived("new")
    intake.take_due(NOW, active=8)
    intake.take_due(NOW, active=8)
    assert taken(intake) == ["new", "due03", "due04"]


def test_what_is_not_due_is_not_taken() -> None:
    intake = Intake(10)
    intake.later("later", NOW + 60)
    intake.take_due(NOW, active=0)
    assert not intake
    assert not intake.ready(NOW, active=0)
    assert intake.pause(NOW, active=0) == 60.0
    assert intake.pause(NOW + 61, active=0) == 0.0
    assert intake.ready(NOW + 61, active=0)


@pytest.mark.parametrize(("limit", "some"), [(1, 1), (10, 1), (100, 5), (20_000, AT_ONCE)])
def test_in_a_long_queue_room_for_one_alone_is_no_room(limit: int, some: int) -> None:
    intake = Intake(limit)
    for n in range(2 * AT_ONCE):
        intake.later(str(n), NOW)
    assert [intake.ready(NOW, limit - room) for room in range(some + 2)] == [False] * some + [True] * 2
    assert intake.pause(NOW, limit - some + 1) is None
    assert intake.pause(NOW, limit - some) == 0.0
    assert intake.pause(NOW - 60, limit) == 60.0, "there may be room by then"


def test_a_list_says_nothing_of_messages_that_wait_are_active_or_were_deferred_meanwhile() -> None:
    intake = Intake(1000)
    intake.arrived("waits")
    intake.begin_list()
    intake.later("again", NOW + 300)
    intake.listed_new(["waits", "active", "again", "found"], active={"active": None})
    intake.listed_deferred([(NOW, name) for name in ("waits", "active", "again", "due")], active={"active": None})
    intake.end_list()
    intake.take_due(NOW, active=1)
    assert sorted(taken(intake)) == ["due", "found", "waits"]
    intake.take_due(NOW + 300, active=0)
    assert taken(intake) == ["again"]


def test_a_list_forgets_what_is_no_longer_deferred() -> None:
    intake = Intake(1000)
    intake.later("gone", NOW)
    intake.begin_list()
    intake.listed_deferred([], active=())
    intake.end_list()
    intake.take_due(NOW, active=0)
    assert not intake
    assert intake.pause(NOW, active=0) is None
