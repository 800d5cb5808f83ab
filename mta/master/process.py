"""The first process: forks the others, watches over them, and does nothing else.

It has no event loop and no threads, so that it can fork again at any time; memory it filled before
(modules, configuration) is shared with its children.  Signals are blocked and taken one by one with
sigwait(3): there is no code in signal handlers.

- start: when every child has said that it serves, `ready` is called; a child that ends before is the end of all,
  with its exit status, because whoever started us is still there to be told;
- a child ends: it is forked again, after a pause that doubles up to a minute while it keeps dying young;
- SIGTERM, SIGINT: children get SIGTERM, have `stop_limit` seconds, then SIGKILL;
- SIGHUP: `reload` makes new specifications (and may refuse: the running ones stay); new children are forked and
  the old ones get the signal of their kind; the listening sockets stay open here all the time;
- SIGUSR1: the log is opened again, here and in the children;
- this process dies: the kernel kills the children (PR_SET_PDEATHSIG), which is a crash like any other.

See also: master(8), architecture of the processes in mta/INTERNALS.md
"""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from mta.clock import Clock
from mta.maillog.maillog import Maillog
from mta.record import dataclass

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # made before the fork: it costs more than the call
_SIGNALS = {
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM
}  # fmt: skip
_HELD = {signal.SIGHUP, signal.SIGUSR1}
"""Stay blocked in a new child until it can handle them (or for good): their default would end it."""
YOUNG = 10.0  # seconds; a child that lives shorter counts as failing
MAX_PAUSE = 60
EX_SOFTWARE = 70
_CALL, _LEAVING = b"+", b"-"  # the second with a pid

class Parent(Protocol):
    """What a child can say to the first process."""

    def serving(self) -> None:
        """It serves; to be called once."""

    def call(self) -> None:
        """One more of the children that start when called for is wanted."""

    def leaving(self) -> None:
        """It has begun to end; a call brings a successor at once."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running.

    run is called in the child, with default signals (SIGHUP and SIGUSR1 blocked), and returns its exit status.
    leave: what tells it that a successor has been forked.  when_called: not forked before another child calls, one for
    each call, the first that is missing; and again only when called once it has ended with status 0.
    """

    name: str
    run: Callable[[Parent], int]
    leave: signal.Signals = signal.SIGTERM
    when_called: bool = False


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    born: float
    leaving: bool = False


@dataclass(slots=True)
class Supervisor:
    """specs: what runs.  reload: new specs, or None to leave everything as it is.

    rotate: called when the log is to be opened again.  ready: see above.  stopping: called before children are told
    to end.  detach: a daemon; children let go of the terminal when they serve.
    """

    specs: tuple[ChildSpec, ...]
    reload: Callable[[], tuple[ChildSpec, ...] | None]
    log: Maillog
    clock: Clock
    stop_limit: float = 45.0
    rotate: Callable[[], None] = _nothing
    ready: Callable[[], None] = _nothing
    stopping: Callable[[], None] = _nothing
    detach: bool = False
    _children: dict[int, _Child] = field(default_factory=dict)
    _pauses: dict[str, int] = field(default_factory=dict)
    _postponed: dict[str, tuple[float, ChildSpec]] = field(default_factory=dict)
    _starting: set[int] = field(default_factory=set)
    _started: bool = False
    _failed: int = 0
    _pipe: tuple[int, int] = (-1, -1)

    def run(self) -> int:
        """Fork the children and serve signals until told to stop; return the exit status."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for spec in self.specs:
            if not spec.when_called:
                self._fork(spec)
        while not self._failed:
            match signal.sigwait(_SIGNALS):
                case signal.SIGTERM | signal.SIGINT:
                    return self._stop()
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGUSR1:
                    self.log.reopen()
                    self.rotate()
                    self._signal_all(signal.SIGUSR1)
                case signal.SIGUSR2:
                    self._heard()
                case signal.SIGCHLD:
                    self._reap()
                case _:
                    self._fork_postponed()
        self._stop()
        return self._failed

    # -- births -----------------------------------------------------------------------------------

    def _fork(self, spec: ChildSpec) -> None:
        self.log.flush()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.log.warning("master", f"fork {spec.name}: {error.strerror}")
            self._postpone(spec)
            return
        if pid == 0:
            self._be_child(spec, parent)
        self._children[pid] = _Child(spec, self.clock.seconds())
        if not self._started:
            self._starting.add(pid)

    def _be_child(self, spec: ChildSpec, parent: int) -> None:
        """Never returns."""
        status = EX_SOFTWARE
        try:
            die_with_parent(parent)
            signal.alarm(0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - _HELD)
            status = spec.run(_Voice(self, parent))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else EX_SOFTWARE
        except BaseException:
            traceback.print_exc()
            self.log.reopen()
            for line in traceback.format_exc().splitlines():
                self.log.warning("master", f"{spec.name}: {line}")
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _say(self, what: bytes, parent: int) -> None:
        os.write(self._pipe[1], what)
        os.kill(parent, signal.SIGUSR2)

    def _heard(self) -> None:
        """Children say that they serve, leave or call; several signals may have been merged into one."""
        with contextlib.suppress(BlockingIOError):
            for word in os.read(self._pipe[0], 4096).split():
                if word == _CALL:
                    self._called()
                elif word.startswith(_LEAVING):
                    if child := self._children.get(int(word[1:])):
                        child.leaving = True
                else:
                    self._starting.discard(int(word))
        if not self._starting and not self._started:
            self._started = True
            self.ready()

    def _called(self) -> None:
        there = {child.spec.name for child in self._children.values() if not child.leaving}
        for spec in self.specs:
            if spec.when_called and spec.name not in there and spec.name not in self._postponed:
                self._fork(spec)
                return

    # -- deaths -----------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Collect every child that ended; SIGCHLDs may have been merged into one."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None and not child.leaving and not (child.spec.when_called and status == 0):
                self._lost(child, pid, os.waitstatus_to_exitcode(status))

    def _lost(self, child: _Child, pid: int, status: int) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self.log.warning("master", f"process {child.spec.name} pid {pid} exit {how}")
        if not self._started:
            print(f"mta: fatal: process {child.spec.name}: exit {how}; not started", file=sys.stderr)
            self._failed = status if status > 0 else EX_SOFTWARE
        elif self.clock.seconds() - child.born > YOUNG:
            self._pauses.pop(child.spec.name, None)
            self._fork(child.spec)
        else:
            self._postpone(child.spec)

    def _postpone(self, spec: ChildSpec) -> None:
        pause = self._pauses[spec.name] = min(MAX_PAUSE, self._pauses.get(spec.name, 0) * 2 or 1)
        self._postponed[spec.name] = (self.clock.seconds() + pause, spec)
        signal.alarm(1)

    def _fork_postponed(self) -> None:
        now = self.clock.seconds()
        for name, (when, spec) in list(self._postponed.items()):
            if when <= now:
                del self._postponed[name]
                self._fork(spec)
        if self._postponed:
            signal.alarm(1)

    # -- all of them ------------------------------------------------------------------------------

    def _reload(self) -> None:
        try:
            specs = self.reload()
        except Exception as error:
            self.log.warning("master", f"reload failed: {type(error).__name__}: {error}")
            return
        if specs is None:
            return
        self.specs = specs
        self._postponed.clear()
        self._pauses.clear()
        old = [(pid, child) for pid, child in self._children.items() if not child.leaving]
        for spec in specs:
            if not spec.when_called:
                self._fork(spec)
        for pid, child in old:
            child.leaving = True
            self._starting.discard(pid)
            os.kill(pid, child.spec.leave)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)

    def _stop(self) -> int:
        """Give the children time to end, then end them."""
        self.stopping()
        for child in self._children.values():
            child.leaving = True
        self._signal_all(signal.SIGTERM)
        deadline = self.clock.seconds() + self.stop_limit
        while self._children and self.clock.seconds() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._reap()
        self._signal_all(signal.SIGKILL)
        while self._children:
            pid, _ = os.waitpid(-1, 0)
            self._children.pop(pid, None)
        return 0


@dataclass(frozen=True, slots=True)
class _Voice:
    """Implements Parent in a child."""

    supervisor: Supervisor
    parent: int

    def serving(self) -> None:
        """A child that serves has a log of its own; ours would hold a rotated file open."""
        self.supervisor.log.close()
        if self.supervisor.detach:
            leave_terminal()
        self.supervisor._say(b"%d\n" % os.getpid(), self.parent)

    def call(self) -> None:
        """See Parent."""
        self.supervisor._say(_CALL + b"\n", self.parent)

    def leaving(self) -> None:
        """See Parent."""
        self.supervisor._say(b"%b%d\n" % (_LEAVING, os.getpid()), self.parent)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; ends it when the parent has died already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EX_SOFTWARE)


def leave_terminal() -> None:
    """Standard input, output and error are /dev/null from now on."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
