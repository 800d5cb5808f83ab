"""Run the MTA (or its sendmail) with a hook on every step that a power cut could follow.

    python -m tests.powercut.launch DIRECTORY mta -c CONFIG start-fg
    python -m tests.powercut.launch DIRECTORY sendmail ARGUMENT...

A step is a call that changes a disk under DIRECTORY/../, a flush, or a write to a TCP connection.  While the
counter in DIRECTORY/steps is armed, all processes count their steps in it, one at a time; the process that comes to
the chosen step says so in the FIFO DIRECTORY/cut and stands still *before* it, and with it everybody else who wants
to make a step.  Each step, and each flush that has ended, is a line of DIRECTORY/trace.

The calls are replaced from outside, in this process and in all that it forks; the program knows nothing of it.
"""

import contextlib
import fcntl
import mmap
import os
import runpy
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mta.fsio import linux_aio

COUNTERS = struct.Struct("=QQd")  # steps so far, the step to stop before (0: not armed), seconds to hold up marks
Call = Callable[..., Any]

_CREATES = os.O_CREAT | os.O_TRUNC
_BY_DESCRIPTOR = ("write", "writev", "pwrite", "pwritev", "ftruncate", "fchmod", "fchown", "posix_fallocate")
_BY_PATH = ("unlink", "remove", "mkdir", "rmdir", "chmod", "chown", "utime", "truncate")
_BY_TARGET = ("rename", "replace", "link", "symlink")
_FLUSHES = ("fsync", "fdatasync")


class Hook:
    """The counter, shared by all processes."""

    def __init__(self, directory: str) -> None:
        self._directory, self._os = directory, {name: getattr(os, name) for name in ("open", "write", "close")}
        self._disks = os.path.dirname(directory) + "/disk"
        with open(f"{directory}/steps", "r+b") as file:
            self._shared = mmap.mmap(file.fileno(), COUNTERS.size)
        self._thread = threading.Lock()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._thread = threading.Lock()

    def armed(self) -> bool:
        """Is a scenario under way?"""
        return bool(COUNTERS.unpack_from(self._shared)[1])

    def delay(self) -> float:
        """Seconds that a flush of marks is to be held up."""
        return float(COUNTERS.unpack_from(self._shared)[2])

    def ours(self, target: object, dir_fd: object = None) -> str:
        """The path of a file on one of the disks; "" for anything else."""
        if isinstance(target, int):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{target}")
                return path if path.startswith(self._disks) else ""
        if isinstance(target, str | bytes | os.PathLike) and dir_fd is None:
            path = os.path.abspath(os.fsdecode(target))
            return path if path.startswith(self._disks) else ""
        return ""

    def step(self, name: str, detail: str) -> None:
        """Count one; does not return from the step it was told to stop before."""
        if not self.armed():
            return
        with self._thread, self._alone():
            count, target, delay = COUNTERS.unpack_from(self._shared)
            COUNTERS.pack_into(self._shared, 0, count + 1, target, delay)
            self._line("trace", f"{count + 1} {time.monotonic():.6f} {os.getpid()} {name} {detail}\n")
            if count + 1 == target:
                self._line("cut", "x")
                while True:
                    time.sleep(60)

    def synced(self, path: str, begun: float) -> None:
        """A flush has ended well."""
        if self.armed():
            self._line("trace", f"{begun:.6f} {time.monotonic():.6f} {os.getpid()} synced {path}\n")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Among all processes.  Opened each time: a delivery closes every descriptor it does not know."""
        fd = self._os["open"](f"{self._directory}/lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            self._os["close"](fd)

    def _line(self, name: str, text: str) -> None:
        fd = self._os["open"](f"{self._directory}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._os["write"](fd, text.encode("utf-8", "surrogateescape"))
        finally:
            self._os["close"](fd)


def replace(hook: Hook) -> None:
    """Put the hook before the calls."""

    def wrap(name: str, subject: Callable[[tuple[Any, ...], dict[str, Any]], str]) -> None:
        original: Call = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            path = subject(args, kwargs) if hook.armed() else ""
            if not path:
                return original(*args, **kwargs)
            hook.step("mark" if name == "pwrite" and args[1] == b"D" else name, path)
            begun = time.monotonic()
            result = original(*args, **kwargs)
            if name in _FLUSHES:
                hook.synced(path, begun)
            return result

        setattr(os, name, call)

    for name in (*_BY_DESCRIPTOR, *_FLUSHES):
        wrap(name, lambda args, _: hook.ours(args[0]))
    for name in _BY_PATH:
        wrap(name, lambda args, named: hook.ours(args[0], named.get("dir_fd")))
    for name in _BY_TARGET:
        wrap(name, lambda args, _: hook.ours(args[1]))
    wrap("open", lambda args, _: hook.ours(args[0]) if len(args) > 1 and args[1] & _CREATES else "")
    _replace_aio(hook)
    _replace_send(hook)


def _replace_aio(hook: Hook) -> None:
    original = linux_aio.LinuxAio.submit

    def submit(self: linux_aio.LinuxAio, fds: Sequence[int], op: int, done: linux_aio.Done) -> None:
        paths = [hook.ours(fd) for fd in fds]
        marks = op == linux_aio.FDSYNC
        hook.step("fdsync" if marks else "sync", " ".join(paths))
        begun = time.monotonic()

        def finished(results: list[OSError | None]) -> None:
            for path, error in zip(paths, results, strict=True):
                if error is None:
                    hook.synced(path, begun)
            done(results)

        if marks and hook.armed() and hook.delay():
            self._loop.call_later(hook.delay(), original, self, fds, op, finished)
        else:
            original(self, fds, op, finished)

    linux_aio.LinuxAio.submit = submit  # type: ignore[method-assign]  # what this program is for


def _replace_send(hook: Hook) -> None:
    for name in ("send", "sendall", "sendmsg"):
        original: Call = getattr(socket.socket, name)

        def call(self: socket.socket, data: Any, *args: Any, _original: Call = original) -> Any:
            if self.family == socket.AF_INET and hook.armed():
                start = data[0] if isinstance(data, list | tuple) else data
                hook.step("send", repr(bytes(start[:40])))
            return _original(self, data, *args)

        setattr(socket.socket, name, call)


def main() -> None:
    """Run what the command line says; ends as it ends."""
    directory, program, *arguments = sys.argv[1:]
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its writes to a connection cannot be seen from here
    replace(Hook(directory))
    sys.argv = [program, *arguments]
    if program == "sendmail":
        from sendmail_compat import slow

        sys.exit(slow.run(sys.argv, os.environ["MAIL_CONFIG"], None))
    runpy.run_module("mta", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
