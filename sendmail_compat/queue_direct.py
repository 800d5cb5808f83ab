"""The queue without the daemon: reads and changes the directories itself, for root and the owner of the queue.

Root becomes the owner of the queue first: files and directories made here are the daemon's, and no link in a
directory that the owner writes to leads root astray.  Every change is made under the lock of its file, so a daemon
that starts, or that is only frozen, is not disturbed.

See also: mta/queue/store_admin.py, mta/queue/store_listing.py
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence

from mta.clock import Clock
from mta.control import listing_lines
from mta.fsio.fsio import Fsio
from mta.queue.api import Queue
from mta.queue.store import SpoolStore, StoreSettings
from mta.queue.store_admin import EVERYTHING, Administrator, Verb
from sendmail_compat.config import Config


class _Silent:
    """No log: the caller's terminal is not the mail log."""

    def write(self, service: str, text: str) -> None: ...

    def warning(self, service: str, text: str) -> None: ...


def become_owner(config: Config) -> bool:
    """As root, take the rights of the queue's owner, for good; False when we may not change the queue."""
    try:
        found = os.stat(f"{config.queue}/incoming")
    except OSError:
        return False
    if os.geteuid() == 0 and found.st_uid != 0:
        os.setgroups([])
        os.setresgid(found.st_gid, found.st_gid, found.st_gid)
        os.setresuid(found.st_uid, found.st_uid, found.st_uid)
    return os.geteuid() == found.st_uid


def _settings(config: Config) -> StoreSettings:
    names = config.text("hash_queue_names").replace(",", " ").split()
    depth = config.text("hash_queue_depth")
    long = config.text("enable_long_queue_ids").lower() == "yes"
    levels, limit = int(depth) if depth.isdigit() else 1, config.size_limit
    return StoreSettings(config.queue, long, tuple(names), levels, limit, 0, 4000.0, True)


@contextlib.contextmanager
def _store(config: Config, *, owner: bool) -> Iterator[SpoolStore]:
    """owner: it may be recovered."""
    fsio = Fsio(aio=False)
    try:
        yield SpoolStore(_settings(config), fsio, Clock(), _Silent(), owner=owner)
    finally:
        fsio.close()


def direct_lines(config: Config) -> list[str]:
    """What the showq socket would answer; raises OSError."""

    async def collect() -> list[str]:
        with _store(config, owner=False) as store:
            return [line async for line in listing_lines(store)]

    return asyncio.run(collect())


def direct_act(config: Config, verb: Verb, queue_ids: Sequence[str], queues: Sequence[Queue]) -> dict[str, str]:
    """Id -> outcome, or "failed why"; [EVERYTHING] stands for every message; raises OSError."""
    why: dict[str, str] = {}

    def failed(name: str, error: OSError) -> None:
        why[name] = f"failed {error.strerror or error}"

    async def act() -> dict[str, str]:
        with _store(config, owner=False) as store:
            administrator = Administrator(store.spool, store.fsio, Clock())
            everything = list(queue_ids) == [EVERYTHING]
            wanted = await administrator.everything(verb, queues, failed) if everything else queue_ids
            found = await administrator.act(verb, wanted, queues, failed)
            return {queue_id: str(outcome) for queue_id, outcome in found.items()} | why

    return asyncio.run(act())


def direct_wake(config: Config, queue_ids: Sequence[str] | None) -> int:
    """Make deferred messages due when the daemon starts; how many; raises OSError."""

    async def wake() -> int:
        with _store(config, owner=False) as store:
            return await store.wake(queue_ids)

    return asyncio.run(wake())


def next_attempt(config: Config, queue_id: str) -> float | None:
    """When a deferred message is tried again, Unix time; None when it is not there."""
    with _store(config, owner=False) as store:
        try:
            return os.lstat(store.spool.path(Queue.DEFERRED, queue_id)).st_mtime
        except OSError:
            return None


def repair(config: Config) -> bool:
    """What the daemon does first when it starts; False when it runs, and has done it."""
    fd = os.open(f"{config.queue}/pid/unix.qmgr", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False

    async def recover() -> None:
        with _store(config, owner=True) as store:
            await store.recover()
            store.close()

    try:
        asyncio.run(recover())
    finally:
        os.close(fd)
    return True
