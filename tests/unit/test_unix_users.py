"""The name service: found, not found and failed are three different answers."""

import asyncio
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from mta.clock import Clock
from mta.lookup import unix
from mta.lookup.table import TableError
from mta.lookup.unix import DEADLINE, Group, LibC, User, UserDb, UserLookup
from tests.virtual_time import run_virtual

ROOT = Path(__file__).resolve().parents[2]
P = ParamSpec("P")
T = TypeVar("T")
ALICE = User("alice", 1000, 1000, "Alice", "/home/alice", "/bin/sh")


class Inline:
    """A worker that works at once."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)


class Stuck:
    """A worker whose calls never end."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


class FakeService:
    """A name service with one user, and a switch to break it."""

    def __init__(self) -> None:
        self.code = 0
        self.asked: list[bytes | int] = []

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]:
        self.asked.append(name)
        return self.code, ALICE if name == b"alice" and not self.code else None

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]:
        self.asked.append(uid)
        return self.code, ALICE if uid == 1000 and not self.code else None

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]:
        return self.code, None

    def group_list(self, name: bytes, gid: int) -> list[int]:
        if self.code:
            raise OSError(self.code, "no")
        self.asked.append(gid)
        return [gid]


def test_root_is_found_by_name_and_number() -> None:
    lookup = UserLookup()
    by_name, by_uid = lookup.by_name_now("root"), lookup.by_uid_now(0)
    assert by_name is not None and by_name.uid == 0 and by_name.home == "/root"
    assert by_uid is not None and by_uid.name == "root"
    assert 0 in lookup.groups_now(by_name)
    group = lookup.group_by_name_now("root")
    assert group is not None and group.gid == 0


@pytest.mark.parametrize("name", ["no-such-user-here", "", "a:b", "a/b", "a\nb", "x" * 300, "x\0y", "\udcff\udcfe"])
def test_who_does_not_exist_is_none_and_no_error(name: str) -> None:
    assert UserLookup().by_name_now(name) is None


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ECONNREFUSED, errno.EMFILE, errno.EIO])
def test_any_error_number_is_a_failure_never_an_unknown_user(code: int) -> None:
    service = FakeService()
    service.code = code
    lookup = UserLookup(service)
    with pytest.raises(TableError):
        lookup.by_name_now("alice")
    with pytest.raises(TableError):
        lookup.by_uid_now(1000)
    with pytest.raises(TableError):
        lookup.groups_now(ALICE)


WITHOUT_DESCRIPTORS = """
import resource
from mta.lookup.table import TableError
from mta.lookup.unix import UserLookup
lookup = UserLookup()
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
try:
    answer = lookup.by_name_now("root")
except TableError:
    answer = "error"
print("unknown" if answer is None else "safe")
"""


def test_without_free_descriptors_an_existing_user_does_not_become_unknown() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DESCRIPTORS], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "safe", done.stderr


def test_the_buffer_grows_until_the_entry_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "FIRST_BUFFER", 1)
    assert UserLookup(LibC()).by_name_now("root") is not None


def test_answers_are_remembered_for_seconds_only() -> None:
    service = FakeService()

    async def main(clock: Clock) -> None:
        users = UserDb(Inline(), clock, UserLookup(service))
        assert await users.by_name("alice") == ALICE
        assert await users.by_name("alice") == ALICE
        assert await users.by_name("bob") is None
        assert await users.by_uid(1000) == ALICE
        assert service.asked == [b"alice", b"bob", 1000]
        await clock.sleep(2)
        assert await users.by_name("bob") is None  # a user who was just created is seen soon
        await clock.sleep(20)
        assert await users.by_name("alice") == ALICE
        assert service.asked == [b"alice", b"bob", 1000, b"bob", b"alice"]

    run_virtual(main)


def test_groups_are_remembered_for_seconds_and_failures_are_not() -> None:
    service = FakeService()

    async def main(clock: Clock) -> None:
        users = UserDb(Inline(), clock, UserLookup(service))
        service.code = errno.EIO
        with pytest.raises(TableError):
            await users.groups(ALICE)
        service.code = 0
        assert await users.groups(ALICE) == await users.groups(ALICE) == (1000,)
        assert service.asked == [1000]
        await clock.sleep(20)
        assert await users.groups(ALICE) == (1000,)
        assert service.asked == [1000, 1000]

    run_virtual(main)


def test_failures_are_not_remembered() -> None:
    service = FakeService()

    async def main(clock: Clock) -> None:
        users = UserDb(Inline(), clock, UserLookup(service))
        service.code = errno.ECONNREFUSED
        with pytest.raises(TableError):
            await users.by_name("alice")
        service.code = 0
        assert await users.by_name("alice") == ALICE

    run_virtual(main)


def test_a_name_service_that_hangs_is_a_failure_within_the_deadline_and_takes_few_threads() -> None:
    async def main(clock: Clock) -> None:
        users = UserDb(Stuck(), clock, UserLookup(FakeService()))
        before = clock.monotonic()
        answers = await asyncio.gather(*(users.by_name(f"u{i}") for i in range(10)), return_exceptions=True)
        assert all(isinstance(a, TableError) for a in answers)
        assert clock.monotonic() - before <= DEADLINE + 1
        begun = clock.monotonic()
        with pytest.raises(TableError):  # the threads are still out: no further one is taken
            await users.by_name("another")
        assert clock.monotonic() - begun < 2

    run_virtual(main)


def test_simultaneous_questions_for_one_user_are_one_call() -> None:
    service = FakeService()

    async def main(clock: Clock) -> None:
        users = UserDb(Inline(), clock, UserLookup(service))
        assert await asyncio.gather(*(users.by_name("alice") for _ in range(5))) == [ALICE] * 5
        assert service.asked == [b"alice"]

    run_virtual(main)
