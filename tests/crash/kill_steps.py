"""Every step of the MTA to the outside, counted over all of its processes; at the n-th all of them die.

A step is an operation that changes the disk (create, write, rename, link, unlink, mode, time, flush, ...) or moves
bytes over a socket (accept, connect, send, receive: SMTP, submit, control and worker sockets alike).  They are
taken where every module meets the system: in `os`, `posix`, `socket.socket` and the AIO flusher, not in one room
of the MTA, so that nothing passes uncounted because it went another way.  A daemon that is started without
this module has none of it.

    MTA_KILL_COUNTER=FILE [MTA_KILL_AT=N] python -m tests.crash.kill_steps -c ETC start-fg

FILE is the counter: one record of RECORD bytes per step, appended under a lock, so its length says how many there
were and its text which.  The process that reaches step N kills its process group before it does the step; from then
on no process passes a step, whatever its group or rights are.  Receiving is counted when something has come: to
die before it is to die after the step before.

uvloop does its input and output in C; it is hidden from the process, which runs on asyncio's own loop.
"""

import contextlib
import fcntl
import os
import posix
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

RECORD = 96  # bytes
_WRITES = ("write", "pwrite", "writev", "pwritev", "ftruncate", "fchmod", "fsync", "fdatasync", "posix_fallocate")
_NAMES = ("rename", "replace", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "chmod", "chown", "lchown",
          "truncate", "utime")  # fmt: skip
_SENDS = ("send", "sendall", "sendto", "sendmsg", "connect", "connect_ex")
_RECEIVES = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "accept")
_CHANGING = os.O_CREAT | os.O_TRUNC

_open, _write, _close, _lseek, _kill = os.open, os.write, os.close, os.lseek, os.kill
_lock = threading.Lock()
_counter = ""
_die_at = 0


def _fresh_lock() -> None:
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held it at the fork


def step(kind: str, detail: str) -> None:
    """Count one step, or die at it."""
    with _lock:
        fd = _open(_counter, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            n = _lseek(fd, 0, os.SEEK_END) // RECORD + 1
            if not _die_at or n <= _die_at:
                line = f"{n:5d} {os.getpid():7d} {kind:9s} {detail[-70:]}"
                _write(fd, line.encode("utf-8", "replace")[: RECORD - 1].ljust(RECORD - 1) + b"\n")
        finally:
            _close(fd)
        if _die_at and n >= _die_at:
            _kill(0, signal.SIGKILL)  # includes this process, at once
            while True:
                time.sleep(60)


def _name(target: object) -> str:
    """What a descriptor or path stands for."""
    if isinstance(target, int):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{target}")
        return str(target)
    return os.fsdecode(target) if isinstance(target, str | bytes | os.PathLike) else repr(target)


def _of_disk(fd: object) -> bool:
    """Is this a file or directory with a name?  Not a pipe, a terminal, the log, or a file in memory."""
    if not isinstance(fd, int):
        return True
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return False
    name = _name(fd)
    return name.startswith("/") and not name.startswith(("/memfd:", "/dev/")) and not name.endswith("/maillog")


def _disk(name: str, function: Callable[..., Any], *, by_fd: bool) -> Callable[..., Any]:
    def counted(target: Any, *args: Any, **options: Any) -> Any:
        if _of_disk(target) if by_fd else not (name == "mkdir" and os.path.isdir(target)):
            step(name, _name(target))
        return function(target, *args, **options)

    return counted


def _opening(function: Callable[..., int]) -> Callable[..., int]:
    def counted(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & _CHANGING and not _name(path).endswith("/maillog"):
            step("open", _name(path))
        return function(path, flags, *args, **options)

    return counted


def _sending(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(self: socket.socket, data: Any, *args: Any) -> Any:
        if data != b"\0":  # asyncio wakes its own loop with that
            step(name, socket.AddressFamily(self.family).name)
        return function(self, data, *args)

    return counted


def _receiving(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(self: socket.socket, *args: Any) -> Any:
        result = function(self, *args)
        if not (isinstance(result, bytes) and result and not result.strip(b"\0")):
            step(name, socket.AddressFamily(self.family).name)
        return result

    return counted


def arm(counter: str, die_at: int) -> None:
    """Count from now on in this process and the ones it forks; die_at 0 only counts."""
    global _counter, _die_at
    _counter, _die_at = counter, die_at
    os.register_at_fork(after_in_child=_fresh_lock)
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # import uvloop fails
    for module in (os, posix):
        for names, by_fd in ((_WRITES, True), (_NAMES, False)):
            for name in names:
                setattr(module, name, _disk(name, getattr(module, name), by_fd=by_fd))
        module.open = _opening(module.open)  # type: ignore[attr-defined]  # the module is the seam
    for name in _SENDS:
        setattr(socket.socket, name, _sending(name, getattr(socket.socket, name)))
    for name in _RECEIVES:
        setattr(socket.socket, name, _receiving(name, getattr(socket.socket, name)))
    from mta.fsio.linux_aio import LinuxAio  # not at the top: sendmail counts its steps too, and has no use for it

    submit = LinuxAio.submit

    def flushing(self: LinuxAio, fds: Any, op: int, done: Any) -> None:
        step("aio-flush", " ".join(_name(fd).rpartition("/")[2] for fd in fds))
        submit(self, fds, op, done)

    LinuxAio.submit = flushing  # type: ignore[method-assign]


def arm_from_environment() -> None:
    """Arm when MTA_KILL_COUNTER is set."""
    counter = os.environ.get("MTA_KILL_COUNTER", "")
    if counter:
        arm(counter, int(os.environ.get("MTA_KILL_AT", "0")))


def taken(counter: str) -> list[str]:
    """The steps so far, one line each."""
    with open(counter, encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in file]


if __name__ == "__main__":
    arm_from_environment()
    from mta.cli import main

    sys.exit(main())
