"""A soak: a whole MTA under mixed load for as long as it is told, watched from outside and judged by the ledger.

    python -m tests.crash.soak --hours 72 --out var/soak [--rate 20] [--faults kill,reload,restart --every 300]

Over SMTP and by sendmail come small and large messages for a remote site, a Maildir, recipients that are greylisted
first and recipients that are refused.  Every --interval seconds one line goes to OUT/soak.csv: memory (PSS) and
descriptors of all processes, files in each queue, what was sent and delivered, and latencies; OUT/soak.svg shows it.
The plot is drawn anew each hour and at the end.  Exit 1 on a broken promise.
"""

import argparse
import contextlib
import csv
import email
import os
import random
import signal
import smtplib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sendmail_compat.install import install
from tests.crash.sink import Sink
from tests.crash.soak_ledger import SoakLedger
from tests.crash.soak_plot import curves, slope
from tests.crash.system import System
from tests.crash.under_load import still_promised
from tests.system.support_system import DOMAIN, cpu, local_user, processes, pss

SENDERS = 4
SIZES = (1_000, 3_000, 3_000, 3_000, 10_000, 100_000)  # bytes, and now and then
LARGE = 1_000_000
SETTLE_EVERY = 60.0  # seconds
DRAW_EVERY = 3600.0
LOG_LIMIT = 50_000_000  # bytes; then it is rotated and the old one forgotten
SETTINGS = {"minimal_backoff_time": "5s", "maximal_backoff_time": "20s", "queue_run_delay": "5s"}


@dataclass
class Sample:
    """One line of the CSV.  Seconds (latency, wait: milliseconds), bytes, counts; cpu: seconds so far."""

    elapsed: float
    pss: int
    descriptors: int
    processes: int
    cpu: float
    incoming: int
    active: int
    deferred: int
    hold: int
    corrupt: int
    sent: int
    wait_median: float
    wait_99: float
    latency_median: float
    latency_99: float
    faults: int


class Sender(threading.Thread):
    """Sends at a rate until told to stop: SMTP, every 20th message by sendmail."""

    def __init__(self, number: int, rate: float, system: System, ledger: SoakLedger, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._number, self._rate, self._system, self._ledger, self._halt = number, rate, system, ledger, stop
        self._rng = random.Random(number)
        self._stub = install(system.directory / "bin")
        self.sent = 0

    def run(self) -> None:
        count, due = 0, time.monotonic()
        while not self._halt.is_set():
            count += 1
            due = max(due + self._rng.expovariate(self._rate), time.monotonic() - 5)
            self._halt.wait(max(0.0, due - time.monotonic()))
            name = f"m{self._number}-{count}"
            recipients = self._recipients(name, count)
            size = LARGE if count % 200 == 0 else self._rng.choice(SIZES)
            body = f"X-Test-Id: {name}\nSubject: t\n\n" + "0123456789abcdef\n" * (size // 17)
            sender = f"{local_user()}@{DOMAIN}"
            self._ledger.begin(name, time.time())
            begin = time.monotonic()
            with contextlib.suppress(OSError, smtplib.SMTPException, subprocess.SubprocessError):
                if self._submit(count, sender, recipients, body):
                    for recipient in recipients:
                        self._ledger.promise(name, recipient)
                    self.sent += 1
                    self._ledger.waits.append(time.monotonic() - begin)

    def _recipients(self, name: str, count: int) -> list[str]:
        recipients = [f"ok{self._number}@sink.test"]
        if count % 10 == 0:
            recipients.append(f"temp{name}@sink.test")
        if count % 25 == 0:
            recipients.append(f"perm{name}@sink.test")
        if count % 3 == 0:
            recipients.append(f"{local_user()}@{DOMAIN}")
        return recipients

    def _submit(self, count: int, sender: str, recipients: Sequence[str], body: str) -> bool:
        if count % 20 == 0:
            command = [str(self._stub), "-C", str(self._system.etc), "-i", "-f", sender, *recipients]
            done = subprocess.run(command, check=False, input=body.encode(), capture_output=True, timeout=60)
            return done.returncode == 0
        client = smtplib.SMTP(timeout=60)
        try:
            client.connect("127.0.0.1", self._system.port)
            return not client.sendmail(sender, recipients, body)
        finally:
            client.close()


def read_maildir(path: Path, ledger: SoakLedger) -> None:
    """Enter what has come, mail and reports, and remove it."""
    for file in sorted((path / "new").iterdir()) if (path / "new").exists() else ():
        parsed = email.message_from_bytes(file.read_bytes())
        if name := parsed.get("X-Test-Id", "").strip():
            ledger.deliver(name, f"{local_user()}@{DOMAIN}", file.stat().st_mtime)
        else:
            report = parsed.as_string()
            for part in report.split("Final-Recipient: rfc822; ")[1:]:
                ledger.bounce(report.partition("X-Test-Id: ")[2].split()[0], part.split()[0])
        file.unlink()


class Soak:
    """One run in a directory of its own; samples and figures."""

    def __init__(self, directory: Path, rate: float, settings: dict[str, str] | None = None) -> None:
        self.ledger = SoakLedger()
        self.sink = Sink(self.ledger)
        local = {"mail_spool_directory": f"{directory}/mail/", "relayhost": f"[127.0.0.1]:{self.sink.port}"}
        self.system = System(directory, {**SETTINGS, **local, **(settings or {})})
        self.samples: list[Sample] = []
        self.faults = 0
        self._maildir = directory / "mail" / local_user()
        self._stop = threading.Event()
        self._senders = [Sender(i, rate / SENDERS, self.system, self.ledger, self._stop) for i in range(SENDERS)]
        self._begin = 0.0
        self._cpu_before = 0.0

    def run(self, seconds: float, interval: float, faults: Sequence[str], every: float, out: Path) -> list[str]:
        """Do it; return what was wrong."""
        rng = random.Random(len(faults))
        with (out / "soak.csv").open("w", buffering=1, newline="") as file:
            table = csv.writer(file)
            table.writerow(f.name for f in fields(Sample))
            self.system.start()
            self._begin = time.monotonic()
            for sender in self._senders:
                sender.start()
            try:
                jobs = [
                    _Job(interval, lambda: self._sample(table.writerow)),
                    _Job(SETTLE_EVERY, self._keep_house),
                    _Job(DRAW_EVERY, lambda: self.draw(out)),
                ]
                if faults:
                    jobs.append(_Job(every, lambda: self._fault(rng.choice(faults))))
                self._serve(jobs, seconds)
            finally:
                self._stop.set()
                for sender in self._senders:
                    sender.join(90)
                self._finish()
        self.draw(out)
        return self._judge()

    def _serve(self, jobs: "Sequence[_Job]", seconds: float) -> None:
        while (elapsed := time.monotonic() - self._begin) < seconds:
            job = min(jobs, key=lambda j: j.due)
            if job.due > elapsed:
                time.sleep(max(0.0, min(job.due, seconds) - elapsed))
                continue
            job.work()
            job.due = max(job.due + job.every, time.monotonic() - self._begin)

    def _finish(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and any(self.system.queue().values()):
            time.sleep(0.2)
        self.system.stop()
        self.sink.close()
        read_maildir(self._maildir, self.ledger)

    def _judge(self) -> list[str]:
        ledger = self.ledger
        files = self.system.queue()
        queued = {key for found in files.values() for file in found for key in still_promised(file)}
        refused = frozenset(r for _, r in ledger.bounced if r.startswith("perm"))
        left = [f"left in {name}: {found[0].name}" for name in ("hold", "corrupt") for found in [files[name]] if found]
        return ledger.wrong + ledger.verdict(queued, refused) + left

    def _sample(self, write: Callable[[Sequence[object]], object]) -> None:
        read_maildir(self._maildir, self.ledger)
        queues = self.system.queue()
        wait, latency = self.ledger.take(self.ledger.waits), self.ledger.take(self.ledger.latencies)
        pids = processes(self.system)
        incoming, active, deferred, hold, corrupt = (len(queues[q]) for q in QUEUES)
        wait_50, wait_99, latency_50, latency_99 = (
            round(_part(times, part) * 1e3, 1) for times in (wait, latency) for part in (0.5, 0.99)
        )
        sample = Sample(
            round(time.monotonic() - self._begin, 1), pss(self.system), sum(map(_descriptors, pids)), len(pids),
            round(self._cpu_before + cpu(self.system), 2), incoming, active, deferred, hold, corrupt,
            sum(s.sent for s in self._senders), wait_50, wait_99, latency_50, latency_99, self.faults,
        )  # fmt: skip
        self.samples.append(sample)
        write(tuple(asdict(sample).values()))

    def _keep_house(self) -> None:
        self.ledger.settle(time.time())
        process, log = self.system.process, self.system.log
        if process is not None and log.exists() and log.stat().st_size > LOG_LIMIT:
            log.rename(log.with_suffix(".old"))
            os.kill(process.pid, signal.SIGUSR1)

    def _fault(self, kind: str) -> None:
        self.faults += 1
        self._cpu_before += cpu(self.system) if kind != "reload" else 0.0
        if kind == "kill":
            self.ledger.kill(in_flight=True)
            self.system.kill()
            self.system.start()
        elif kind == "restart":
            status = self.system.stop()
            if status:
                self.ledger.wrong.append(f"SIGTERM: exit status {status}")
            self.system.start()
        elif self.system.process is not None:
            self.system.process.send_signal(signal.SIGHUP)

    def draw(self, out: Path) -> None:
        """Write the plot."""
        if not self.samples:
            return
        rows = self.samples
        hours = [s.elapsed / 3600 for s in rows]
        panels = {
            "MB": {"PSS of all processes": [s.pss / 1e6 for s in rows]},
            "descriptors": {"": [float(s.descriptors) for s in rows]},
            "messages in": {q: [float(getattr(s, q)) for s in rows] for q in ("incoming", "active", "deferred")},
            "ms": {"client waits, median": [s.wait_median for s in rows], "250 to delivery, median":
                   [s.latency_median for s in rows], "99 %": [s.latency_99 for s in rows]},
        }  # fmt: skip
        (out / "soak.svg").write_text(curves(hours, panels, f"{rows[-1].sent} messages, {self.faults} faults"))

    def figures(self) -> str:
        """What there is to say; the first fifth of the time is for warming up."""
        rows = self.samples[len(self.samples) // 5 :]
        hours = [s.elapsed / 3600 for s in rows]
        memory = [s.pss / 1e6 for s in rows]
        descriptors = [s.descriptors for s in rows]
        last = rows[-1]
        totals, ledger = self.ledger.totals, self.ledger
        return (
            f"{last.elapsed / 3600:.2f} hours, {last.sent} messages, {self.faults} faults\n"
            f"promised {totals['promised'] + len(ledger.promised)}, "
            f"delivered {totals['delivered'] + len(ledger.delivered)}, "
            f"bounced {totals['bounced'] + len(ledger.bounced)}\n"
            f"PSS {min(memory):.1f} to {max(memory):.1f} MB, {slope(hours, memory):+.2f} MB an hour\n"
            f"descriptors {min(descriptors)} to {max(descriptors)}, "
            f"{slope(hours, [float(d) for d in descriptors]):+.2f} an hour\n"
            f"queue at most {max(s.incoming + s.active + s.deferred for s in rows)} messages\n"
            f"client waits {_part(sorted(s.wait_median for s in rows), 0.5):.1f} ms, 250 to delivery "
            f"{_part(sorted(s.latency_median for s in rows), 0.5):.1f} ms (medians of medians); "
            f"99 % {_part(sorted(s.wait_99 for s in rows), 0.5):.1f} and "
            f"{_part(sorted(s.latency_99 for s in rows), 0.5):.1f} ms\n"
            f"processor time {last.cpu / max(1, last.sent) * 1e3:.2f} ms a message"
        )


@dataclass
class _Job:
    """Something to do again and again; due: seconds after the start."""

    every: float
    work: Callable[[], object]
    due: float = -1.0

    def __post_init__(self) -> None:
        self.due = self.every


QUEUES = ("incoming", "active", "deferred", "hold", "corrupt")


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _part(ordered: Sequence[float], part: float) -> float:
    """A quantile, 0.0 of nothing."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=20.0, help="messages a second")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--faults", default="", help="kill,reload,restart")
    parser.add_argument("--every", type=float, default=300.0, help="seconds between faults")
    parser.add_argument("--out", type=Path, default=Path("var/soak"))
    options = parser.parse_args()
    seconds = options.hours * 3600 + options.minutes * 60
    if seconds <= 0:
        parser.error("--hours or --minutes")
    options.out.mkdir(parents=True, exist_ok=True)
    faults = [name for name in options.faults.split(",") if name]
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/var/tmp") as directory:
        path = Path(directory)
        path.chmod(0o755)
        soak = Soak(path, options.rate)
        wrong = soak.run(seconds, options.interval, faults, options.every, options.out)
    print(soak.figures())
    print(f"violations {len(wrong)}")
    print("\n".join(wrong[:50]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
