"""Processes of the simulated machine, and how one of them dies.

A process is a context variable: whatever its code schedules on the loop inherits it, and whatever the loop would
still run for it after its death is dropped.  Each step of a process that leaves a trace outside of it (a change on a
disk, bytes to a peer) is counted; a process may be doomed to die at its n-th step, before the step is done.
"""

import asyncio
import contextvars
import os
import random
from collections.abc import Callable
from typing import Any, Protocol

from tests.sim.disk import Disk, Inode

FIRST_FD = 1 << 20  # simulated descriptors; smaller ones are real (memory files)


class Killed(BaseException):
    """The process does not exist any more."""


class Faults(Protocol):
    """Decides whether a system call fails."""

    def error(self, call: str, path: str) -> OSError | None:
        """The error of this call, None when it works."""


class OpenFile:
    """An open file description."""

    __slots__ = ("append", "disk", "inode", "path", "position")

    def __init__(self, inode: Inode, disk: Disk, path: str, *, append: bool) -> None:
        self.inode, self.disk, self.path, self.append, self.position = inode, disk, path, append, 0


class Process:
    """One process; on_death: what else ends with it (connections)."""

    def __init__(self, name: str, pid: int, rng: random.Random, faults: Faults, *, uid: int = 1000) -> None:
        self.name, self.pid, self.uid, self.rng, self.faults = name, pid, uid, rng, faults
        self.alive = True
        self.steps = 0
        self.doom = -1  # the step it does not survive
        self.doomed: Callable[[], None] = lambda: None  # what happens then
        self.files: dict[int, OpenFile] = {}
        self.real: set[int] = set()
        self.on_death: list[Callable[[], None]] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.life: asyncio.Task[None] | None = None
        self._next_fd = FIRST_FD
        self.kept: list[asyncio.Task[Any]] = []  # frozen tasks: collecting them would run their "finally"

    def step(self) -> None:
        """About to leave a trace; Killed when this is the end."""
        if not self.alive:
            raise Killed
        self.steps += 1
        if self.steps == self.doom:
            self.doomed()
            raise Killed

    def give_fd(self, file: OpenFile) -> int:
        """A new descriptor."""
        self._next_fd += 1
        self.files[self._next_fd] = file
        file.inode.opened += 1
        return self._next_fd

    def kill(self, loop: asyncio.AbstractEventLoop, *, close: Callable[["Process", int], None] | None) -> None:
        """End it now: nothing of it runs again.  close: lets go of a descriptor; None: the machine is off."""
        if not self.alive:
            return
        self.kept = [task for task in asyncio.all_tasks(loop) if task.get_loop() is loop]
        self.alive = False
        if close is not None:
            for fd in list(self.files):
                close(self, fd)
        self.files.clear()
        for fd in self.real:
            os.close(fd)
        self.real.clear()
        for ended in self.on_death:
            ended()
        self.on_death.clear()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current() -> Process:
    """Who calls; Killed when it is dead."""
    process = PROCESS.get()
    if process is None or not process.alive:
        raise Killed
    return process
