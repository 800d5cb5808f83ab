"""The only user of the name service: who is this user, which groups does he have?

`pwd` and `grp` are not used: they raise KeyError both for "no such user" and for a name service that fails or
has no descriptor left, and an MTA that believes them bounces the mail of users who exist.  getpwnam_r(3) tells
the two apart: 0 with no result is "not found"; any error number is a failure, and that is a TableError.

Two faces: `UserLookup` is synchronous (start-up as root, the mta-local helper), `UserDb` asks it in a worker
with a deadline, remembers answers for seconds, and never has more than a few calls hanging.

See also: getpwnam_r(3), getgrouplist(3), nsswitch.conf(5)
"""

import asyncio
import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from mta.clock import Clock
from mta.descriptors import scarce
from mta.lookup.table import TableError
from mta.record import dataclass

P = ParamSpec("P")
T = TypeVar("T")

MAX_NAME = 256  # octets; longer names are nobody's
FIRST_BUFFER = 1024  # octets, doubled on ERANGE ...
LAST_BUFFER = 1 << 20  # ... up to here (a group with 100,000 members)
MAX_GROUPS = 65536  # NGROUPS_MAX
DEADLINE = 20.0  # seconds for one answer of the name service
MAX_HANGING = 4  # calls that may wait for a dead name service at once
FOUND_TTL, MISSING_TTL = 10.0, 1.0  # seconds an answer is remembered
CACHE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class User:
    """One entry of the user database; text is surrogateescape for what is not UTF-8."""

    name: str
    uid: int
    gid: int
    gecos: str
    home: str
    shell: str
    password: str = "x"  # noqa: S105  the placeholder of shadow(5), shown by unix:passwd.byname


@dataclass(frozen=True, slots=True)
class Group:
    """One entry of the group database."""

    name: str
    gid: int
    members: tuple[str, ...]
    password: str = "x"  # noqa: S105


class _Passwd(ctypes.Structure):
    """struct passwd of glibc and musl."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("gecos", ctypes.c_char_p),
        ("home", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    )


class _Group(ctypes.Structure):
    """struct group."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("gid", ctypes.c_uint32),
        ("members", ctypes.POINTER(ctypes.c_char_p)),
    )


class NameService(Protocol):
    """The C calls, so that a failing name service can be put in their place.

    Each returns an error number (0: asked and answered) and the entry or None.
    """

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]: ...

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]: ...

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]: ...

    def group_list(self, name: bytes, gid: int) -> list[int]: ...


def _declared() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    void, size, pointer = ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER
    libc.getpwnam_r.argtypes = [ctypes.c_char_p, pointer(_Passwd), void, size, pointer(pointer(_Passwd))]
    libc.getpwuid_r.argtypes = [ctypes.c_uint32, pointer(_Passwd), void, size, pointer(pointer(_Passwd))]
    libc.getgrnam_r.argtypes = [ctypes.c_char_p, pointer(_Group), void, size, pointer(pointer(_Group))]
    libc.getgrouplist.argtypes = [
        *(ctypes.c_char_p, ctypes.c_uint32, pointer(ctypes.c_uint32), pointer(ctypes.c_int)),
    ]
    return libc


class LibC:
    """The C library's reentrant calls."""

    _libc = _declared()

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]:
        return self._passwd(self._libc.getpwnam_r, name)

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]:
        return self._passwd(self._libc.getpwuid_r, uid)

    def _passwd(self, call: Callable[..., int], key: bytes | int) -> tuple[int, User | None]:
        entry = _Passwd()
        crowded = scarce()
        code, found, _buffer = _grow(call, key, entry)
        if not found:
            return code or _doubt(crowded), None
        name, gecos, home, shell, password = (
            os.fsdecode(raw or b"") for raw in (entry.name, entry.gecos, entry.home, entry.shell, entry.password)
        )
        return 0, User(name, int(entry.uid), int(entry.gid), gecos, home, shell, password)

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]:
        entry = _Group()
        crowded = scarce()
        code, found, _buffer = _grow(self._libc.getgrnam_r, name, entry)
        if not found:
            return code or _doubt(crowded), None
        members = []
        for raw in entry.members:  # ends at a null pointer
            if raw is None:
                break
            members.append(os.fsdecode(raw))
        return 0, Group(os.fsdecode(entry.name), int(entry.gid), tuple(members), os.fsdecode(entry.password or b""))

    def group_list(self, name: bytes, gid: int) -> list[int]:
        """Groups of a user, the primary one included; OSError when they cannot be told."""
        room = 64
        while room <= MAX_GROUPS:
            count = ctypes.c_int(room)
            groups = (ctypes.c_uint32 * room)()
            if self._libc.getgrouplist(name, gid, groups, ctypes.byref(count)) >= 0:
                return list(groups[: count.value])
            room = max(room * 2, count.value)
        raise OSError(errno.EINVAL, "getgrouplist: too many groups")


def _grow(
    call: Callable[..., int], key: bytes | int, entry: ctypes.Structure
) -> tuple[int, bool, "ctypes.Array[ctypes.c_char]"]:
    """Call a get..._r with a buffer that grows until the entry fits.  The buffer must outlive the entry."""
    size = FIRST_BUFFER
    while True:
        buffer = ctypes.create_string_buffer(size)
        result = ctypes.POINTER(type(entry))()
        code = call(key, ctypes.byref(entry), buffer, size, ctypes.byref(result))
        if code != errno.ERANGE or size >= LAST_BUFFER:
            return code, bool(result), buffer
        size *= 2


def _doubt(crowded: bool) -> int:
    """EMFILE when a "not found" is not to be believed: one of several services in nsswitch.conf may have had no
    descriptor, and then the answer is that of the others (measured with "files systemd": 0 and no entry)."""
    return errno.EMFILE if crowded or scarce() else 0


def _impossible(name: str) -> bool:
    """True for what no user can be called: it would not fit a line of passwd(5), or is not a file name component."""
    return not name or len(name) > MAX_NAME or not name.isprintable() or ":" in name or "/" in name


class UserLookup:
    """Synchronous lookups: for the start as root and for helpers without a loop.  TableError = could not tell."""

    def __init__(self, service: NameService | None = None) -> None:
        self._service = service or LibC()

    def by_name_now(self, name: str) -> User | None:
        """The user, None when there is none."""
        if _impossible(name) and not _printable_bytes(name):
            return None
        code, user = self._service.passwd_by_name(os.fsencode(name))
        return _checked(code, user, f"getpwnam_r {name}")

    def by_uid_now(self, uid: int) -> User | None:
        """The first user with this number, None when there is none."""
        if not 0 <= uid < 2**32 - 1:
            return None
        code, user = self._service.passwd_by_uid(uid)
        return _checked(code, user, f"getpwuid_r {uid}")

    def group_by_name_now(self, name: str) -> Group | None:
        """The group, None when there is none."""
        if _impossible(name):
            return None
        code, group = self._service.group_by_name(os.fsencode(name))
        return _checked(code, group, f"getgrnam_r {name}")

    def groups_now(self, user: User) -> tuple[int, ...]:
        """All groups of a user, the primary one included."""
        try:
            return tuple(self._service.group_list(os.fsencode(user.name), user.gid))
        except OSError as error:
            raise TableError(f"unix: groups of {user.name}: {error}") from error


def _printable_bytes(name: str) -> bool:
    """True for a name in another character set than UTF-8 (surrogates), which isprintable() refuses."""
    plain = "".join(c for c in name if not "\udc80" <= c <= "\udcff")
    return plain != name and not (plain and _impossible(plain)) and len(name) <= MAX_NAME


def _checked(code: int, found: T | None, what: str) -> T | None:
    if code and found is None:
        raise TableError(f"unix: {what}: {os.strerror(code)}")
    return found


class _Worker(Protocol):
    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


class UserDb:
    """Asynchronous lookups with a deadline and a memory of seconds.  TableError = could not tell.

    A name service that hangs costs at most MAX_HANGING worker threads: while so many calls are out, further
    ones fail at once instead of taking the threads that read tables and write the queue.
    """

    def __init__(self, fsio: _Worker, clock: Clock, lookup: UserLookup | None = None) -> None:
        self._fsio, self._clock = fsio, clock
        self.now = lookup or UserLookup()
        self._users: OrderedDict[str | int, tuple[float, User | None]] = OrderedDict()
        self._groups: OrderedDict[User, tuple[float, tuple[int, ...]]] = OrderedDict()
        self._asked: dict[str | int, asyncio.Task[User | None]] = {}
        self._hanging = 0

    async def by_name(self, name: str) -> User | None:
        """The user, None when there is none."""
        return await self._user(name)

    async def by_uid(self, uid: int) -> User | None:
        """The first user with this number, None when there is none."""
        return await self._user(uid)

    async def groups(self, user: User) -> tuple[int, ...]:
        """All groups of a user, the primary one included."""
        known = self._groups.get(user)
        if known is None or self._clock.monotonic() >= known[0]:
            known = self._clock.monotonic() + FOUND_TTL, await self._ask(self.now.groups_now, user)
            self._groups[user] = known
            while len(self._groups) > CACHE_SIZE:
                self._groups.popitem(last=False)
        return known[1]

    async def group_by_name(self, name: str) -> Group | None:
        """The group, None when there is none."""
        return await self._ask(self.now.group_by_name_now, name)

    async def _user(self, key: str | int) -> User | None:
        known = self._users.get(key)
        if known is not None:
            if self._clock.monotonic() < known[0]:
                return known[1]
            del self._users[key]
        task = self._asked.get(key)
        if task is None:  # one call for all who ask for the same user meanwhile
            task = asyncio.ensure_future(self._fetch(key))
            self._asked[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(task)

    def _fetched(self, key: str | int, task: "asyncio.Task[User | None]") -> None:
        self._asked.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen: whoever asked may have gone away

    async def _fetch(self, key: str | int) -> User | None:
        if isinstance(key, str):
            user = await self._ask(self.now.by_name_now, key)
        else:
            user = await self._ask(self.now.by_uid_now, key)
        self._users[key] = self._clock.monotonic() + (FOUND_TTL if user else MISSING_TTL), user
        while len(self._users) > CACHE_SIZE:
            self._users.popitem(last=False)
        return user

    async def _ask(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._hanging >= MAX_HANGING:
            await self._wait_for_room()
        self._hanging += 1
        work = asyncio.ensure_future(self._fsio.run(call, *args, **kwargs))
        work.add_done_callback(self._returned)
        try:
            async with self._clock.timeout(DEADLINE):
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise TableError("unix: the name service does not answer") from error
        except OSError as error:
            raise TableError(f"unix: {error}") from error

    def _returned(self, work: "asyncio.Future[T]") -> None:
        self._hanging -= 1
        if not work.cancelled():
            work.exception()

    async def _wait_for_room(self) -> None:
        """Give calls under way a moment; they take microseconds when the name service works."""
        pause = 0.001
        while self._hanging >= MAX_HANGING:
            if pause > 1:
                raise TableError("unix: the name service does not answer")
            await self._clock.sleep(pause)
            pause *= 2
