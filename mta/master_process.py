"""The first process: forks the others, watches over them, and does nothing else.

It has no event loop and no threads, so that it can fork again at any time; memory it filled before
(modules, configuration) is shared with its children.  Signals are blocked and taken one by one with
sigwait(3): there is no code in signal handlers.

- a child ends: it is forked again, after a pause that doubles up to a minute while it keeps dying young;
- SIGTERM, SIGINT: children get SIGTERM, have `stop_limit` seconds, then SIGKILL;
- SIGHUP: `reload` makes new specifications (and may refuse: the running ones stay); children of the old
  ones get SIGTERM and are replaced, the listening sockets stay open here all the time;
- this process dies: the kernel kills the children (PR_SET_PDEATHSIG), which is a crash like any other.

See also: master(8), architecture of the processes in mta/INTERNALS.md
"""

import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from mta.clock import Clock
from mta.maillog import Maillog

_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM}
YOUNG = 10.0  # seconds; a child that lives shorter counts as failing
MAX_PAUSE = 60
EX_SOFTWARE = 70


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running.  run is called in the child, with default signals, and returns its exit status."""

    name: str
    run: Callable[[], int]


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    born: float
    leaving: bool = False


@dataclass(slots=True)
class Supervisor:
    """specs: what runs.  reload: new specs, or None to leave everything as it is.  rotate: reopen the log."""

    specs: tuple[ChildSpec, ...]
    reload: Callable[[], tuple[ChildSpec, ...] | None]
    log: Maillog
    clock: Clock
    stop_limit: float = 30.0
    _children: dict[int, _Child] = field(default_factory=dict)
    _pauses: dict[str, int] = field(default_factory=dict)
    _postponed: dict[str, tuple[float, ChildSpec]] = field(default_factory=dict)

    def run(self) -> int:
        """Fork the children and serve signals until told to stop; return the exit status."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()
        for spec in self.specs:
            self._fork(spec)
        while True:
            match signal.sigwait(_SIGNALS):
                case signal.SIGTERM | signal.SIGINT:
                    return self._stop()
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGUSR1:
                    self.log.reopen()
                    self._signal_all(signal.SIGUSR1)
                case signal.SIGCHLD:
                    self._reap()
                case _:
                    self._fork_postponed()

    def _fork(self, spec: ChildSpec) -> None:
        self.log.flush()
        pid = os.fork()
        if pid:
            self._children[pid] = _Child(spec, self.clock.now())
            return
        status = EX_SOFTWARE
        try:
            die_with_parent()
            signal.alarm(0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            status = spec.run()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else EX_SOFTWARE
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _reap(self) -> None:
        """Collect every child that ended; SIGCHLDs may have been merged into one."""
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None and not child.leaving:
                self._lost(child, pid, status)

    def _lost(self, child: _Child, pid: int, status: int) -> None:
        name = child.spec.name
        how = f"signal {-status}" if (status := os.waitstatus_to_exitcode(status)) < 0 else f"status {status}"
        self.log.warning("master", f"process {name} pid {pid} exit {how}")
        if self.clock.now() - child.born > YOUNG:
            self._pauses.pop(name, None)
            self._fork(child.spec)
            return
        pause = self._pauses[name] = min(MAX_PAUSE, self._pauses.get(name, 0) * 2 or 1)
        self._postponed[name] = (self.clock.now() + pause, child.spec)
        signal.alarm(1)

    def _fork_postponed(self) -> None:
        now = self.clock.now()
        for name, (when, spec) in list(self._postponed.items()):
            if when <= now:
                del self._postponed[name]
                self._fork(spec)
        if self._postponed:
            signal.alarm(1)

    def _reload(self) -> None:
        specs = self.reload()
        if specs is None:
            return
        self.specs = specs
        self._postponed.clear()
        for child in self._children.values():
            child.leaving = True
        self._signal_all(signal.SIGTERM)
        for spec in specs:
            self._fork(spec)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)

    def _stop(self) -> int:
        """Give the children time to end, then end them."""
        self._signal_all(signal.SIGTERM)
        deadline = self.clock.now() + self.stop_limit
        while self._children and self.clock.now() < deadline:
            for child in self._children.values():
                child.leaving = True
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._reap()
        self._signal_all(signal.SIGKILL)
        while self._children:
            pid, _ = os.waitpid(-1, 0)
            self._children.pop(pid, None)
        return 0


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
