"""One run: a generator sends to an MTA, which relays to a sink; both are Postfix's own C programs.

accept: until the last 250.  end to end: until the sink has counted every message.
"""

import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass

from tests.bench.counters import Group, Watch, machine_cpu
from tests.bench.lab import Lab

SINK = "127.0.0.1:2599"
LIMIT = 120.0  # seconds without any progress of the sink
POLL, QUIET = 0.005, 0.4  # seconds: how often the sink is looked at; what the MTA gets to settle before we count


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: messages, parallel sessions, bytes per message, recipients per message."""

    messages: int
    sessions: int
    size: int = 5000
    recipients: int = 1
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one MTA.  Rates in messages/s, times in ms per message, counts per message, shares of all cores."""

    accept: float
    end_to_end: float
    cpu: float
    fsyncs: float | None
    flushes: float | None
    commits: float
    pss: int
    generator: float
    sink: float
    other: float

    def __str__(self) -> str:
        fsyncs, flushes = ("   -" if value is None else f"{value:5.2f}" for value in (self.fsyncs, self.flushes))
        return (
            f"accept {self.accept:6.0f}/s  end to end {self.end_to_end:6.0f}/s  cpu {self.cpu:7.3f} ms  "
            f"fsyncs {fsyncs}  flushes {flushes}  commits {self.commits:5.2f}  pss {self.pss / 1024:6.1f} MB  "
            f"(load {self.generator:3.0%} sink {self.sink:3.0%} others {self.other:3.0%})"
        )


class Sink:
    """smtp-sink, and what it has counted."""

    def __init__(self, lab: Lab, group: Group) -> None:
        self._out = tempfile.NamedTemporaryFile("w+", suffix=".sink", dir="/dev/shm")  # noqa: SIM115  (close())
        become = ["setpriv", "--reuid=nobody", "--clear-groups"]
        argv = ["chroot", lab.tools.root, *become, "/usr/sbin/smtp-sink", "-c", SINK, "4000"]
        self._process = subprocess.Popen(group.command(argv), stdout=self._out, stderr=self._out)
        time.sleep(0.2)
        if self._process.poll() is not None:
            raise RuntimeError(f"smtp-sink did not start: {self._tail()}")

    def _tail(self) -> str:
        descriptor = self._out.fileno()
        return os.pread(descriptor, 400, max(0, os.fstat(descriptor).st_size - 400)).decode()

    def messages(self) -> int:
        """So many were received."""
        seen = re.findall(r"mesg=(\d+)", self._tail())
        return int(seen[-1]) if seen else 0

    def wait(self, messages: int) -> float:
        """Wait for that many; returns when that was, on the monotonic clock.  RuntimeError when some do not come."""
        seen, moved = -1, time.monotonic()
        while (now := self.messages()) < messages:
            if now != seen:
                seen, moved = now, time.monotonic()
            elif time.monotonic() > moved + LIMIT:
                raise RuntimeError(f"{now} of {messages} messages arrived, then none for {LIMIT:.0f} s")
            time.sleep(POLL)
        return time.monotonic()

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(10)
        self._out.close()


def generate(lab: Lab, group: Group, port: int, load: Load) -> None:
    """smtp-source until its last 250."""
    words = f"-s {load.sessions} -m {load.messages} -l {load.size} -r {load.recipients}".split()
    words += ["-d"] if load.reuse else []
    words += ["-f", "from@src.test", "-t", "to@dst.test", "-M", "src.test", f"127.0.0.1:{port}"]
    argv = ["chroot", lab.tools.root, "/usr/sbin/smtp-source", *words]
    subprocess.run(group.command(argv), check=True, timeout=300)


def relay(lab: Lab, mta: Group, port: int, load: Load) -> Sample:
    """One run; RuntimeError when a message is lost or a tool fails."""
    source, receiver = Group("generator"), Group("sink")
    sink = Sink(lab, receiver)
    try:
        lab.disk.settle()
        watch = Watch(lab.disk)
        groups = (mta, source, receiver)
        before, commits, busy = [group.cpu() for group in groups], lab.disk.commits(), machine_cpu()
        begin = time.monotonic()
        generate(lab, source, port, load)
        accepted = time.monotonic()
        end = sink.wait(load.messages)
        time.sleep(QUIET)
        used = [group.cpu() - was for group, was in zip(groups, before, strict=True)]
        commits, busy = lab.disk.commits() - commits, machine_cpu() - busy
        fsyncs, flushes = watch.end()
        if (seen := sink.messages()) != load.messages:
            raise RuntimeError(f"{seen} messages arrived instead of {load.messages}")
    finally:
        sink.close()
    n, span = load.messages, (end - begin) * (os.cpu_count() or 1)
    return Sample(
        n / (accepted - begin), n / (end - begin), used[0] * 1000 / n,
        None if fsyncs is None else fsyncs / n, None if flushes is None else flushes / n, commits / n, mta.pss(),
        used[1] / span, used[2] / span, max(0.0, (busy - sum(used)) / span),
    )  # fmt: skip
