"""Where operations fail on purpose: the disk of the queue, the calls of mailbox delivery, the network.

One Faults object knows which call is to fail, with which errno, once or from then on until it is cleared.  Every
call that a room makes of the system passes `point(kind)` first, so its n-th call of each kind can be named.
"""

import asyncio
import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mta.clock import Clock
from tests.inline_fsio import InlineFsio
from tests.memory_net import MemoryNet, MemoryTransport

P = TypeVar("P", bound=asyncio.BaseProtocol)
HOLD = 20.0  # virtual seconds a lasting fault lasts
BOX = ("open", "write", "pread", "fstat", "lstat", "link", "unlink", "rename", "makedirs", "memfd_create", "close",
       "ftruncate", "lseek")  # fmt: skip


class Faults:
    """kind "": only count.  lasting: from call `at` on, until HOLD seconds after the first failure."""

    def __init__(self, kind: str = "", number: int = 0, at: int = 0, *, lasting: bool = False) -> None:
        self.kind, self.number, self.at, self.lasting = kind, number, at, lasting
        self.counts: Counter[str] = Counter()
        self.hits = 0
        self.first = self.cleared = -1.0  # virtual times; -1: not yet
        self.asleep = self.armed = True  # asleep: before the start
        self.lied: list[str] = []  # descriptors flushed again after an error without having been written again
        self._failed: dict[int, str] = {}

    def due(self, kind: str) -> bool:
        """Count a call; is it one that fails?"""
        if self.asleep:
            return False
        self.counts[kind] += 1
        if kind != self.kind or not self.armed or self.counts[kind] < self.at:
            return False
        self.hits += 1
        if self.hits == 1:
            loop = asyncio.get_running_loop()
            self.first = loop.time()
            loop.call_later(HOLD if self.lasting else 0.0, self.clear)
        self.armed = self.lasting
        return True

    def clear(self) -> None:
        """It works again."""
        self.armed = False
        self.cleared = asyncio.get_running_loop().time()

    def error(self) -> OSError:
        """What the call raises."""
        return OSError(self.number, os.strerror(self.number))

    def point(self, kind: str) -> None:
        """A call of this kind is about to be made."""
        if self.due(kind):
            raise self.error()

    def hook(self, operation: str, target: str | int) -> None:
        """For Fsio; watches that nobody believes a second flush."""
        if operation == "close":
            return
        if isinstance(target, int):
            if operation in ("write", "pwrite"):
                self._failed.pop(target, None)
            elif operation in ("flush", "flush_directory") and target in self._failed:
                self.lied.append(self._failed[target])
        try:
            self.point(operation)
        except OSError:
            if operation == "flush" and isinstance(target, int) and stat.S_ISREG(os.fstat(target).st_mode):
                self._failed[target] = os.readlink(f"/proc/self/fd/{target}")
            raise

    def closed(self, fd: int) -> None:
        """The number may be another file's from now on."""
        self._failed.pop(fd, None)


class FaultyFsio(InlineFsio):
    """The disk of the queue.  A close that fails has closed all the same, as on Linux."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(aio=False, hook=faults.hook)
        self._faults = faults

    def close_fd(self, fd: int) -> None:
        self._faults.closed(fd)
        super().close_fd(fd)
        self._faults.point("close")

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._faults.point("pread")
        return super().pread(fd, size, offset)

    def pread_cached(self, fd: int, size: int, offset: int, end: int) -> bytes:
        self._faults.point("pread_cached")
        return super().pread_cached(fd, size, offset, end)

    async def read(self, fd: int, size: int, offset: int) -> bytes:
        self._faults.point("read")
        return await super().read(fd, size, offset)

    def fstat(self, fd: int) -> os.stat_result:
        self._faults.point("fstat")
        return super().fstat(fd)

    def lstat(self, path: str) -> os.stat_result:
        self._faults.point("lstat")
        return super().lstat(path)

    def flock(self, fd: int) -> bool:
        self._faults.point("flock")
        return super().flock(fd)

    def scandir(self, path: str) -> Iterator[os.DirEntry[str]]:
        self._faults.point("scandir")
        return super().scandir(path)

    def statvfs(self, path: str) -> os.statvfs_result:
        self._faults.point("statvfs")
        return super().statvfs(path)

    def directory(self, path: str) -> int:
        self._faults.point("directory")
        return super().directory(path)


class FaultyOs:
    """In place of `os` in the modules that write mailboxes."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in BOX:
            return found

        def call(*args: Any, **options: Any) -> Any:
            if name == "close":
                found(*args, **options)
                self._faults.point("box-close")
                return None
            self._faults.point(f"box-{name}")
            return found(*args, **options)

        return call

    def fsync(self, fd: int) -> None:
        """What mailbox delivery is given to flush with."""
        self._faults.point("box-fsync")
        os.fsync(fd)


class FaultyTransport(MemoryTransport):
    """An end at the MTA: what it sends, or what it is to receive, ends the connection with an error."""

    faults: Faults
    side: str
    gone = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing and self.faults.due(f"net-send-{self.side}"):
            self._broken()
        else:
            super().write(data)

    def _deliver(self, data: bytes) -> None:
        if self.gone or self._lost:
            return
        if self.faults.due(f"net-recv-{self.side}"):
            self._broken()
        else:
            super()._deliver(data)

    def _broken(self) -> None:
        """As asyncio's: the protocol hears of it on the next turn, the other side of an end."""
        self._closing = self.gone = True
        self._loop.call_soon(self._lose_with, self.faults.error())

    def _lose_with(self, error: OSError) -> None:
        if not self._lost:
            self._lost = True
            if self._protocol is not None:
                self._protocol.connection_lost(error)
            if self._peer is not None:
                self._loop.call_soon(self._peer._end)


class FaultyNet(MemoryNet):
    """`connect` is the MTA's way out; `join` is how test clients come in."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    async def connect(
        self, factory: Callable[[], P], address: str, port: int, *, local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 (Connector's contract)
    ) -> tuple[asyncio.Transport, P]:  # fmt: skip
        self.faults.point("net-connect")
        return self._joined(factory, address, port, ours="client", theirs="")

    def join(self, factory: Callable[[], P], address: str, port: int) -> tuple[MemoryTransport, P]:
        if self.faults.due("net-accept"):
            raise ConnectionResetError(errno.ECONNRESET, "not accepted")
        return self._joined(factory, address, port, ours="", theirs="server")

    def _joined(
        self, factory: Callable[[], P], address: str, port: int, *, ours: str, theirs: str
    ) -> tuple[MemoryTransport, P]:
        listener = self.listeners.get((address, port))
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        self._port += 1
        near = self._end(ours, ("192.0.2.1", self._port), (address, port))
        far = self._end(theirs, (address, port), ("192.0.2.1", self._port))
        near._peer, far._peer = far, near
        client, server = factory(), listener()
        near.set_protocol(client)
        far.set_protocol(server)
        client.connection_made(near)
        far._loop.call_soon(server.connection_made, far)
        return near, client

    def _end(self, side: str, local: tuple[str, int], remote: tuple[str, int]) -> MemoryTransport:
        if not side:
            return MemoryTransport(local, remote)
        end = FaultyTransport(local, remote)
        end.faults, end.side = self.faults, side
        return end


class VirtualClock(Clock):
    """Waiting without a loop passes virtual time as well."""

    def __init__(self, wall: Callable[[], float], skip: Callable[[float], None]) -> None:
        super().__init__(wall)
        self._skip = skip

    def block(self, seconds: float) -> None:
        self._skip(max(0.0, seconds))
