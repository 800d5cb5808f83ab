"""A LookupContext for tests: inline worker, warnings in a list."""

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from mta.clock import Clock
from mta.lookup.context import LookupContext
from mta.lookup.unix import Group, User, UserDb, UserLookup

P = ParamSpec("P")
T = TypeVar("T")


class Inline:
    """A worker that works at once; count = calls."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.count += 1
        return fn(*args, **kwargs)


class Notes:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, service: str, text: str) -> None:
        self.lines.append(f"{service}: {text}")

    def warning(self, service: str, text: str) -> None:
        self.lines.append(text)


class People:
    """A name service with these users; code = error number of a broken one."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.code = 0

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]:
        known = name.decode() in self.names and not self.code
        return self.code, User(name.decode(), 1000, 1000, "", f"/home/{name.decode()}", "/bin/sh") if known else None

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]:
        return self.code, None

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]:
        known = name.decode() in self.names and not self.code
        return self.code, Group(name.decode(), 1000, ("a", "b")) if known else None

    def group_list(self, name: bytes, gid: int) -> list[int]:
        return [gid]


class World:
    """Everything a table touches."""

    def __init__(self, *names: str, clock: Clock | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.worker, self.log, self.people = Inline(), Notes(), People(*names)
        self.clock = clock or Clock()
        users = UserDb(self.worker, self.clock, UserLookup(self.people))
        self.context = LookupContext(self.worker, self.clock, self.log, users, environ=environ or {})
