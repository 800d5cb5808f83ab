"""One run of one mail system: messages in at one end, counted at the other, and what it took.

accept: until the last message was taken over.  end to end: until the receiver has counted all of them.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.counters import Group, Watch, machine_cpu
from tests.bench.lab import ROOT, Lab
from tests.bench.receivers import Maildir, Mbox, Receiver, Sink, wait
from tests.bench.systems import System

QUIET = 0.4  # seconds that the mail system gets to settle before its time is read
SAMPLING = 0.2  # seconds between two looks at the memory, in the run that does not count

RATE = "end_to_end"  # the figure of most cases
Figures = dict[str, float]
"""Of one run.  Rates in messages/s; cpu ms per message; fsyncs, flushes, commits per message; memory in MB;
generator, sink, other: shares of all processors."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: messages, parallel sessions, bytes per message, recipients per message."""

    messages: int
    sessions: int
    size: int = 5000
    recipients: int = 1
    reuse: bool = False


@dataclass(slots=True)
class Times:
    """What a generator measured by itself: seconds of each message, when it knows."""

    each: list[float] = field(default_factory=list)


Generator = Callable[[Lab, System, Load], Times]


def smtp(lab: Lab, system: System, load: Load, *, recipient: str = "to@dst.test") -> Times:
    """Postfix's smtp-source until its last 250."""
    words = f"-s {load.sessions} -m {load.messages} -l {load.size} -r {load.recipients}".split()
    words += ["-d"] if load.reuse else []
    words += ["-f", "from@src.test", "-t", recipient, "-M", "src.test", f"127.0.0.1:{system.port}"]
    argv = ["chroot", lab.tools.root, "/usr/sbin/smtp-source", *words]
    subprocess.run(Group("generator").command(argv), check=True, timeout=300)
    return Times()


def to_mailbox(lab: Lab, system: System, load: Load) -> Times:
    """The same, to a user of this machine."""
    return smtp(lab, system, load, recipient="bench@mx.bench.test")


def tls(lab: Lab, system: System, load: Load) -> Times:
    """tls_source.py: STARTTLS, connection per message."""
    numbers = (system.port, load.messages, load.sessions, load.size)
    argv = [sys.executable, "-m", "tests.bench.tls_source", *numbers]
    subprocess.run(Group("generator").command(argv), check=True, timeout=300, cwd=ROOT)
    return Times()


def sendmail(lab: Lab, system: System, load: Load) -> Times:
    """inject.py: `sendmail -t -i`.  These processes are part of the mail system, so their time is its time."""
    root, argv, environ = system.sendmail()
    words = [sys.executable, "-m", "tests.bench.inject", root, lab.message, load.messages, load.sessions]
    command = system.group.command([*words, *argv, "-t", "-i"])
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, cwd=ROOT, env=environ, check=True)
    return Times(json.loads(done.stdout))


def to_sink(lab: Lab, load: Load) -> Receiver:
    """Relayed mail."""
    return Sink(lab, load.size)


def to_mbox(lab: Lab, _: Load) -> Receiver:
    """Local mail."""
    return Mbox(lab)


def to_maildir(lab: Lab, _: Load) -> Receiver:
    """Local mail."""
    return Maildir(lab)


class Peak:
    """The largest sum of PSS while it runs; costs the mail system time, so not in a run that counts."""

    def __init__(self, group: Group) -> None:
        self._group, self._most, self._ended = group, 0, threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._ended.wait(SAMPLING):
            self._most = max(self._most, self._group.pss())

    def end(self) -> float:
        """MB."""
        self._ended.set()
        self._thread.join()
        return max(self._most, self._group.pss()) / 1024


def measure(
    lab: Lab,
    system: System,
    load: Load,
    generator: Generator = smtp,
    receive: Callable[[Lab, Load], Receiver] = to_sink,
    *,
    peak: bool = False,
) -> Figures:
    """One run; RuntimeError when a message is lost or comes twice, CalledProcessError when a tool fails."""
    receiver = receive(lab, load)
    watch: Watch | None = None
    memory: Peak | None = None
    try:
        lab.disk.settle()
        watch = Watch(lab.disk)
        groups = (system.group, Group("generator"), *([receiver.group] if receiver.group else []))
        before, commits, busy = [group.cpu() for group in groups], lab.disk.commits(), machine_cpu()
        if peak:
            memory = Peak(system.group)
        begin = time.monotonic()
        times = generator(lab, system, load)
        accepted = time.monotonic()
        end = wait(receiver, load.messages)
        time.sleep(QUIET)
        most = memory.end() if memory else 0.0
        used = [group.cpu() - was for group, was in zip(groups, before, strict=True)]
        commits, busy = lab.disk.commits() - commits, machine_cpu() - busy
        fsyncs, flushes = watch.end()
        if (seen := receiver.messages()) != load.messages:
            raise RuntimeError(f"{seen} messages arrived instead of {load.messages}")
    finally:
        receiver.close()
        if memory:
            memory.end()
        if watch:
            watch.end()
    n, span = load.messages, (end - begin) * (os.cpu_count() or 1)
    figures = {
        "accept": n / (accepted - begin),
        RATE: n / (end - begin),
        "cpu": used[0] * 1000 / n,
        "commits": commits / n,
        "generator": used[1] / span,
        "sink": used[2] / span if receiver.group else 0.0,
        "other": max(0.0, (busy - sum(used)) / span),
    }
    if fsyncs is not None:
        figures["fsyncs"] = fsyncs / n
    if flushes is not None:
        figures["flushes"] = flushes / n
    if peak:
        figures["peak"] = most
    if times.each:
        figures["median_ms"] = statistics.median(times.each) * 1000
    return figures
