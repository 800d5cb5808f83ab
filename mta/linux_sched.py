"""sched_setattr(2): who works in the background lets those run first who have little to do.

A process that wakes waits until the running one has used up its slice, when both have the same priority.  The
scheduler has some tenths of a millisecond to do for a new message, just when the client that handed it in wakes with
its next command: on a machine with few processors the client, and the worker who waits for it, stood still meanwhile
(a sixth of a session's time).  Who has asked for longer slices than the waking one is interrupted at once.  Its share
of the processor stays the same, unlike with nice(1): who waits for the scheduler, as sendmail does, waits no longer.

Linux 6.12 and later; earlier ones ignore the length of a slice, a sandbox may refuse it, and nothing depends on it.

See also: sched_setattr(2), Documentation/scheduler/sched-eevdf.rst of the kernel
"""

import contextlib
import ctypes
import os
import struct

BACKGROUND = 20_000_000  # nanoseconds; the kernel gives everybody 0.7 to 2.8 ms, and allows 0.1 to 100 ms
_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}  # sched_setattr, sched_getattr
# size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max
_ATTR = struct.Struct("=IIQiIQQQII")
_OTHER = 0  # SCHED_OTHER


def set_slice(nanoseconds: int) -> None:
    """Ask for slices of this length for this process, and for those that it starts.  OSError: not to be had."""
    set_number, _ = _numbers()
    policy, nice, _ = _attributes()
    if policy != _OTHER:  # the administrator wants something else
        return
    wanted = _ATTR.pack(_ATTR.size, _OTHER, 0, nice, 0, nanoseconds, 0, 0, 0, 0)
    _call(set_number, ctypes.c_int(0), ctypes.create_string_buffer(wanted, _ATTR.size), ctypes.c_uint(0))


def slice_of(pid: int) -> int:
    """Nanoseconds; 0 where the kernel does not say.  OSError: no such process, or not to be had."""
    return _attributes(pid)[2]


def stay_in_the_background() -> None:
    """Long slices where they are to be had."""
    with contextlib.suppress(OSError):
        set_slice(BACKGROUND)


def _numbers() -> tuple[int, int]:
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        raise OSError("sched_setattr: unknown machine")
    return numbers


def _attributes(pid: int = 0) -> tuple[int, int, int]:
    """Policy, nice value and slice."""
    buffer = ctypes.create_string_buffer(_ATTR.size)
    _call(_numbers()[1], ctypes.c_int(pid), buffer, ctypes.c_uint(_ATTR.size), ctypes.c_uint(0))
    _, policy, _, nice, _, runtime, *_ = _ATTR.unpack(buffer.raw)
    return policy, nice, runtime


def _call(number: int, *args: object) -> None:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    if syscall(ctypes.c_long(number), *args) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
