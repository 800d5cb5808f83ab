"""Linux AIO, only for flushing: one io_submit makes a whole group of files durable, without a thread.

A thread that calls fsync gives up the GIL on every call and waits for it again beside a busy loop.  Here the
kernel's own workers flush, and an eventfd in the event loop tells when.  Errors come back per descriptor.

io_setup may be refused (ENOSYS, EPERM in a sandbox, EAGAIN at fs.aio-max-nr) and IOCB_CMD_FSYNC needs
kernel 4.18: the constructor raises OSError, and mta/fsio/fsio.py takes threads.  A context belongs to the process
that made it: make it after fork.

See also: io_submit(2), include/uapi/linux/aio_abi.h
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence

from mta.fsio.linux_writeback import start_writing

FSYNC, FDSYNC = 2, 3  # IOCB_CMD_*
CONTEXT_SIZE = 256  # requests in flight
_NUMBERS = {  # io_setup, io_destroy, io_getevents, io_submit
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
    "riscv64": (0, 1, 4, 2),
}
_IOCB = struct.Struct("<QIiHhIQQqQII")  # data, key, rw_flags, opcode, prio, fd, buf, nbytes, offset, -, flags, resfd
_EVENT = struct.Struct("<QQqq")  # data, obj, res, res2
_IOCB_FLAG_RESFD = 1

Done = Callable[[list[OSError | None]], None]


class LinuxAio:
    """Flushes groups of descriptors; a group's callback gets one result per descriptor, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        numbers = _NUMBERS.get(os.uname().machine)
        if numbers is None:
            raise OSError(errno.ENOSYS, "io_setup: unknown machine")
        self._setup, self._destroy, self._getevents, self._submit = (ctypes.c_long(n) for n in numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._call("io_setup", self._setup, ctypes.c_long(CONTEXT_SIZE), ctypes.byref(self._context))
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(_EVENT.size * CONTEXT_SIZE)
        self._no_wait = ctypes.create_string_buffer(16)  # struct timespec of zeros
        self._groups: dict[int, _Group] = {}
        self._queue: list[tuple[int, int, int]] = []  # (data, op, fd) that the context had no room for
        self._flying = 0
        self._next = 0
        self._loop = loop
        loop.add_reader(self._eventfd, self._reap)

    def begin(self, fd: int) -> None:
        """See Flusher in mta/fsio/flusher.py."""
        start_writing(fd)

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        """Flush these descriptors (distinct, at least one); they may be closed only after `done` was called."""
        self._next += 1
        self._groups[self._next] = _Group(len(fds), done)
        self._queue += [(self._next << 16 | i, op, fd) for i, fd in enumerate(fds)]
        self._send()

    def close(self) -> None:
        """Wait for what is in flight and release the context."""
        self._loop.remove_reader(self._eventfd)
        self._call("io_destroy", self._destroy, self._context)
        os.close(self._eventfd)

    def _call(self, name: str, *args: object) -> int:
        result: int = self._syscall(*args)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result

    def _send(self) -> None:
        while self._queue and self._flying < CONTEXT_SIZE:
            batch = self._queue[: CONTEXT_SIZE - self._flying]
            size, n = _IOCB.size, len(batch)
            blocks = ctypes.create_string_buffer(size * n)
            address = ctypes.addressof(blocks)
            pointers = (ctypes.c_void_p * n)(*(address + size * i for i in range(n)))
            for i, (data, op, fd) in enumerate(batch):
                _IOCB.pack_into(
                    blocks, size * i, data, 0, 0, op, 0, fd, 0, 0, 0, 0, _IOCB_FLAG_RESFD, self._eventfd
                )  # fmt: skip
            try:
                taken = self._call("io_submit", self._submit, self._context, ctypes.c_long(n), pointers)
            except OSError as error:
                if error.errno == errno.EAGAIN and self._flying:
                    return  # goes on when something completes
                self._refused(batch[0][0], error)
                taken, self._flying = 1, self._flying - 1
            self._flying += taken
            del self._queue[:taken]

    def _refused(self, data: int, error: OSError) -> None:
        """The first request of a batch was not accepted: a bad descriptor, or no AIO on this file system."""
        self._loop.call_soon(self._complete, data, error)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):  # its events were taken with those before
            os.eventfd_read(self._eventfd)
        count = self._call(
            "io_getevents", self._getevents, self._context, ctypes.c_long(0), ctypes.c_long(CONTEXT_SIZE),
            self._events, self._no_wait,
        )  # fmt: skip
        self._flying -= count
        for i in range(count):
            data, _, result, _ = _EVENT.unpack_from(self._events, _EVENT.size * i)
            self._complete(data, OSError(-result, os.strerror(-result)) if result < 0 else None)
        self._send()

    def _complete(self, data: int, error: OSError | None) -> None:
        group = self._groups[data >> 16]
        group.results[data & 0xFFFF] = error
        group.missing -= 1
        if not group.missing:
            del self._groups[data >> 16]
            group.done(group.results)


class _Group:
    __slots__ = ("done", "missing", "results")

    def __init__(self, size: int, done: Done) -> None:
        self.missing, self.done = size, done
        self.results: list[OSError | None] = [None] * size
