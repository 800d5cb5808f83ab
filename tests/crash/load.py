"""A start with a deep queue: python -m tests.crash.load [--messages 100000] [--directory /var/tmp] [--processes N]

The same system is started with 1,000 and with --messages deferred messages, and measured from outside:

- seconds from the start to the first 250 after end of data;
- the scan: until a due message, put among those that are not, has arrived; seconds, and processor time beyond that
  of the other start, as a part of the seconds that the goal allows;
- memory: what all processes together (PSS) take more, for each message;
- processor time of all processes for each of --new new messages, and how much more it is with the deep queue.

Exit 1 when a goal is missed by more than the factor --slack.
"""

import argparse
import contextlib
import os
import pwd
import shutil
import smtplib
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mta.envelope import Envelope, Recipient
from mta.queue import queue_file
from mta.queue import queue_id as ids
from mta.queue.api import Reason
from mta.queue.reasons import encode_reasons
from tests.crash.ledger import Ledger
from tests.crash.sink import Sink
from tests.crash.system import System
from tests.system.support_system import cpu, log_of, pss

FIRST_250 = 2.0  # seconds after the start
SCAN = 30.0  # seconds ...
SCAN_CPU = 0.5  # ... and the part of them that the processor may be busy with it
MEMORY = 600  # bytes for each message
SLOWER = 1.2  # processor time of a new message with a deep queue against the same with a small one
FEW = 1000  # messages of the small queue
PAUSE = 0.2  # seconds for what follows the last 250: marks, unlinks
LATER = 3000.0  # seconds until the first of the deferred is due: not while we measure
SETTINGS = {"minimal_backoff_time": "300s", "maximal_backoff_time": "4000s", "queue_run_delay": "300s",
            "smtpd_client_connection_count_limit": "0"}  # fmt: skip
TEXT = b"".join(b"Header-%d: some text that a header may have\n" % i for i in range(12)) + b"\n" + b"a line\n" * 60
ROUNDS = 5  # of new messages; the one that took least counts, others were disturbed by the machine


@dataclass
class Figures:
    """Of one start; seconds and bytes.  scan_cpu, new_cpu: processor seconds; new_cpu of one new message."""

    messages: int
    fill: float
    first_250: float
    scan: float
    scan_cpu: float
    memory: int
    new_cpu: float
    new_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.messages} deferred (made in {self.fill:.1f} s): first 250 after {self.first_250:.2f} s, scan "
            f"{self.scan:.2f} s, {self.scan_cpu:.2f} s of processor time so far, PSS {self.memory / 1e6:.1f} MB, "
            f"new message {self.new_cpu * 1e3:.2f} ms of processor time, {1 / self.new_seconds:.0f} a second"
        )


def fill(system: System, count: int) -> None:
    """Deferred messages with their reasons, as the store writes them; nothing is flushed."""
    owner = _owner()
    for queue in ("deferred", "defer"):
        for digit in ("", *"0123456789ABCDEF"):
            path = system.spool / queue / digit
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chown(path, owner.pw_uid, owner.pw_gid)
    now = int(time.time())
    for i in range(count):
        _one(system.spool, f"r{i}@site{i % 5000}.test", now - 600, i * 9973 % 1_000_000, now + LATER + i % 900, owner)


def _owner() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


def _one(spool: Path, recipient: str, arrival: int, usec: int, due: float, owner: pwd.struct_passwd) -> str:
    head = queue_file.encode_head(Envelope("s@origin.test", [Recipient(recipient)], arrival + usec / 1e6))
    lines = queue_file.encode_lines(TEXT)
    size = queue_file.encode_size(head, len(lines), blocks=False)
    tail = queue_file.encode_tail(head, size, uid=os.urandom(16).hex(), content_crc=zlib.crc32(TEXT))
    new = f"{spool}/deferred/new"
    fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o700)
    try:
        os.write(fd, size + head.data[queue_file.SIZE_RECORD :] + lines + tail)
        queue_id = ids.make(arrival, usec, os.fstat(fd).st_ino, long=False)
        os.utime(fd, (due, due))
        if os.getuid() == 0:
            os.fchown(fd, owner.pw_uid, owner.pw_gid)
    finally:
        os.close(fd)
    hashed = ids.hash_directories(queue_id, 1)
    os.rename(new, f"{spool}/deferred/{hashed}{queue_id}")
    why = Reason("4.4.1", f"connect to mx.{recipient.partition('@')[2]}[192.0.2.7]:25: Connection refused")
    log = Path(f"{spool}/defer/{hashed}{queue_id}")
    log.write_bytes(encode_reasons([(Recipient(recipient, offset=head.recipients[0]), why)], compatible=True))
    if os.getuid() == 0:
        os.chown(log, owner.pw_uid, owner.pw_gid)
    return queue_id


def send(port: int, count: int) -> None:
    """Messages on one connection."""
    client = smtplib.SMTP("127.0.0.1", port, timeout=60)
    try:
        for i in range(count):
            client.sendmail("s@mx.test.example", [f"new{i}@sink.test"], b"X-Test-Id: new\r\n\r\n" + b"text\r\n" * 100)
    finally:
        client.close()


def measure(directory: Path, count: int, new: int, settings: dict[str, str]) -> Figures:
    """Make a queue of `count`, start, measure, stop."""
    ledger = Ledger()
    sink = Sink(ledger)
    system = System(directory, {**SETTINGS, "relayhost": f"[127.0.0.1]:{sink.port}", **settings})
    try:
        begin = time.monotonic()
        fill(system, count)
        _one(system.spool, "canary@sink.test", int(time.time()) - 600, 999_999, time.time() - 1, _owner())
        filled = time.monotonic() - begin
        started = time.monotonic()
        system.start()
        send(system.port, 1)
        first = time.monotonic() - started
        while not any(recipient == "canary@sink.test" for _, recipient in list(ledger.delivered)):
            if time.monotonic() - started > 10 * SCAN:
                raise RuntimeError(f"the due message never came: {log_of(system)[-2000:]}")
            time.sleep(0.01)
        scanned, scan_cpu = time.monotonic() - started, cpu(system)
        _many(system, ledger, 200)  # what is loaded at the first use is not the queue's
        memory = pss(system)
        rounds = [_round(system, ledger, new // ROUNDS) for _ in range(ROUNDS)]
        deadline = time.monotonic() + 60
        while (left := sum(len(files) for files in system.queue().values())) != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{left} messages in the queue instead of {count}")
            time.sleep(0.1)
        return Figures(count, filled, first, scanned, scan_cpu, memory, *map(min, zip(*rounds, strict=True)))
    finally:
        system.kill()
        sink.close()


def _round(system: System, ledger: Ledger, count: int) -> tuple[float, float]:
    """Processor seconds and seconds of one new message."""
    begin, before = time.monotonic(), cpu(system)
    _many(system, ledger, count)
    return (cpu(system) - before) / count, (time.monotonic() - begin - PAUSE) / count


def _many(system: System, ledger: Ledger, count: int) -> None:
    """Send on four connections, and wait until all of it has arrived."""
    with ledger.lock:
        ledger.delivered.clear()
    threads = [threading.Thread(target=send, args=(system.port, count // 4)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 60
    while sum(map(len, list(ledger.delivered.values()))) < count // 4 * 4:
        if time.monotonic() > deadline:
            raise RuntimeError("new messages do not arrive")
        time.sleep(0.01)
    time.sleep(PAUSE)


@contextlib.contextmanager
def scratch(parent: str) -> Iterator[Path]:
    """A directory that the daemon can reach, removed in the end."""
    path = Path(tempfile.mkdtemp(prefix="aiomta-load-", dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compare(messages: int, new: int, parent: str, settings: dict[str, str], slack: float) -> tuple[list[str], str]:
    """Both starts; (goals missed by more than the factor, all figures as text)."""
    with scratch(parent) as directory:
        few = measure(directory / "few", FEW, new, settings)
        many = measure(directory / "many", messages, new, settings)
    each = (many.memory - few.memory) / (messages - FEW)
    scan_cpu = many.scan_cpu - few.scan_cpu
    ratio = many.new_cpu / few.new_cpu
    text = (f"{few}\n{many}\n{each:.0f} bytes for each deferred message, scan {scan_cpu:.2f} s of processor time "
            f"({scan_cpu / SCAN:.0%} of {SCAN:.0f} s), new message x{ratio:.2f}")  # fmt: skip
    goals = {
        "first 250": many.first_250 / FIRST_250,
        "scan": many.scan / SCAN,
        "processor time of the scan": scan_cpu / (SCAN * SCAN_CPU),
        "memory": each / MEMORY,
        "new messages": ratio / SLOWER,
    }
    return [f"{name}: {part:.2f} of what is allowed" for name, part in goals.items() if part > slack], text


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=4000)
    parser.add_argument("--directory", default="/var/tmp")  # a disk: /tmp may be memory
    parser.add_argument("--processes", default="", help="smtpd_processes")
    parser.add_argument("--slack", type=float, default=1.0)
    options = parser.parse_args()
    settings = {"smtpd_processes": options.processes} if options.processes else {}
    missed, text = compare(options.messages, options.new, options.directory, settings, options.slack)
    print(text)
    print("\n".join(f"MISSED: {line}" for line in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
