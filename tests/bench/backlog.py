"""What a long queue costs: messages that wait, beside 1,000 and beside 100,000 of them.

The queue is filled by writing files, not through the mail system.  Compared per message: mail that passes while the
others wait, and the waiting mail itself when the queue is flushed.

What a run costs differs by a fifth from the next one on a machine that is not alone on its hardware, which is as much
as what is looked for.  So each figure is the median of several runs after one that does not count, the short ones
before and after the long one, and the case is repeated in each round.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import time
import zlib
from pathlib import Path

from mta.envelope import Envelope, Recipient
from mta.queue import queue_file, queue_id
from tests.bench.lab import Lab
from tests.bench.receivers import Sink, wait
from tests.bench.run import Figures, Load, measure
from tests.bench.systems import Aiomta, System

FEW, MANY = 1_000, 100_000
PASSING, FIRST = Load(2000, 10), Load(300, 10)
RUNS = 3  # of each that is short
AGE, AHEAD = 3600, 1800  # seconds: since they came, until they are due
CALM = 0.05  # seconds of processor time in one second, at most: nothing goes on any more
TEXT = b"Received: from src.test\nSubject: waits\n\n" + (b"0123456789abcdef" * 4 + b"\n") * 14


def fill(spool: Path, number: int) -> None:
    """Write deferred messages as the mail system that owns the directory would have left them."""
    deferred = spool / "deferred"
    owner = deferred.stat()
    for digit in "0123456789ABCDEF":
        path = deferred / digit
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, owner.st_uid, owner.st_gid)
    now = int(time.time())
    content = queue_file.encode_lines(TEXT)
    for n in range(number):
        usec = n * 7919 % 1_000_000
        envelope = Envelope("from@src.test", arrival=now - AGE + n / 1_000_000, recipients=[Recipient("to@dst.test")])
        head = queue_file.encode_head(envelope)
        size = queue_file.encode_size(head, len(content), blocks=False)
        tail = queue_file.encode_tail(head, size, uid=f"{n:032x}", content_crc=zlib.crc32(TEXT))
        path = deferred / "new"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o700)
        os.write(fd, size + head.data[queue_file.SIZE_RECORD :] + content + tail)
        os.fchown(fd, owner.st_uid, owner.st_gid)
        name = queue_id.make(now, usec, os.fstat(fd).st_ino, long=False)
        os.utime(fd, (now + AHEAD, now + AHEAD))
        os.close(fd)
        path.rename(deferred / queue_id.hash_directories(name, 1) / name)


def empty(spool: Path) -> None:
    """Remove everything that waits."""
    for name in ("incoming", "active", "deferred", "defer"):
        for entry in os.scandir(spool / name):
            if entry.is_dir():
                shutil.rmtree(entry.path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def calm(system: System) -> None:
    """Wait until the mail system has looked through its queue."""
    before = -1.0
    while (now := system.group.cpu()) > before + CALM:
        before = now
        time.sleep(1.0)


def refill(lab: Lab, system: System, number: int) -> None:
    """Start it on a queue of so many."""
    system.stop()
    empty(system.spool)
    fill(system.spool, number)
    lab.disk.settle()
    system.start({})
    calm(system)


def flush(lab: Lab, system: System, number: int) -> float:
    """ms of processor time for each message that waited, all delivered at once."""
    sink = Sink(lab, PASSING.size)
    before = system.group.cpu()
    root, argv, environ = system.sendmail()
    subprocess.run(["chroot", root, *argv, "-q"], env={**os.environ, **environ}, check=True, timeout=300)
    wait(sink, number)
    calm(system)
    return (system.group.cpu() - before) * 1000 / number


def beside(lab: Lab, system: System, number: int) -> tuple[list[float], list[float], int]:
    """What mail costs that passes beside so many, and what their flush costs (only ours, it takes a minute); PSS."""
    refill(lab, system, number)
    memory = system.group.pss()
    measure(lab, system, FIRST)
    passing = [measure(lab, system, PASSING)["cpu"] for _ in range(RUNS)]
    flushed = [flush(lab, system, number)] if isinstance(system, Aiomta) else []
    for _ in range(RUNS - 1 if flushed and number == FEW else 0):
        refill(lab, system, number)
        flushed.append(flush(lab, system, number))
    return passing, flushed, memory


def backlog(lab: Lab, system: System) -> Figures:
    """Costs beside FEW, MANY, and FEW again; and their growth."""
    before, many, after = (beside(lab, system, number) for number in (FEW, MANY, FEW))
    figures: Figures = {}
    for what, few, most in (("passing", before[0] + after[0], many[0]), ("flushed", before[1] + after[1], many[1])):
        if few:
            figures[f"{what}_few"], figures[f"{what}_many"] = statistics.median(few), statistics.median(most)
            figures[f"{what}_growth"] = figures[f"{what}_many"] / figures[f"{what}_few"]
    figures["waiting_kib"] = (many[2] - before[2]) / (MANY - FEW)
    system.stop()
    empty(system.spool)
    system.start({})
    return figures
