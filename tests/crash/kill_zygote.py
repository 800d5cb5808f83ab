"""A warm parent: has imported the MTA and its injector once, and forks a start of either in a few milliseconds.

Requests come as JSON lines on standard input, a unix socket; each is answered with the number and a pidfd of the
forked process, which leads a session of its own.  Nobody waits for it.
"""

import ctypes
import json
import os
import posix
import signal
import socket
import sys
import traceback
from typing import Any

import mta.cli
import mta.master.local
import mta.master.master
import sendmail_compat.fast
import sendmail_compat.maildrop
import sendmail_compat.slow
from tests.crash import kill_steps, kill_troubles

_PR_SET_CHILD_SUBREAPER = 36


def become(uid: int, gid: int) -> None:
    """Another user for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def run_mta(request: dict[str, Any]) -> None:
    """`mta start-fg`."""
    status = 70
    try:
        status = mta.cli.main(["-c", request["etc"], "start-fg"])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_sendmail(request: dict[str, Any]) -> None:
    """`sendmail ARGV`; the exit status is left in a file, by rename, just before it would be seen."""
    leave, rename, opener, write = posix._exit, request["rename"], request["open"], request["write"]

    def exit_and_tell(status: int) -> None:
        fd = opener(request["result"] + ".new", os.O_CREAT | os.O_WRONLY, 0o600)
        write(fd, b"%d" % status)
        rename(request["result"] + ".new", request["result"])
        leave(status)

    posix._exit = exit_and_tell  # type: ignore[assignment]  # it does not return either
    sys.argv = request["argv"]
    sendmail_compat.fast.start()


def child(request: dict[str, Any]) -> None:
    """Never returns."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(request.get("stdin", "/dev/null"), os.O_RDONLY)
    out = os.open(request["out"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.closerange(3, 64)
    os.environ.update(request.get("environment", {}))
    request |= {"rename": os.rename, "open": os.open, "write": os.write}  # uncounted
    if request.get("counter"):
        kill_steps.arm(request["counter"], request["die_at"])
    if request.get("trouble"):
        kill_troubles.TROUBLES[request["trouble"]]()
    if "uid" in request:
        become(request["uid"], request["gid"])
    (run_mta if "etc" in request else run_sendmail)(request)


def main() -> None:
    """Serve until standard input is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead vanish at once, also grandchildren: they become ours
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=os.dup(0))
    for line in control.makefile("r"):
        request = json.loads(line)
        go, told = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.read(go, 1)  # until somebody holds a pidfd of this process
                child(request)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(71)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(control, [b"%d\n" % pid], [pidfd])
        for fd in (pidfd, go):
            os.close(fd)
        os.write(told, b"x")
        os.close(told)


if __name__ == "__main__":
    main()
