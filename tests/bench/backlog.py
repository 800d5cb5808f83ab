"""What a long queue costs: messages that wait, beside 1,000 and beside 100,000 of them.

The queue is filled by writing files, not through the mail system.  Compared per message: mail that passes while the
others wait, and the waiting mail itself when the queue is flushed.
"""

import contextlib
import os
import shutil
import subprocess
import time
import zlib
from pathlib import Path

from mta.envelope import Envelope, Recipient
from mta.queue import queue_file, queue_id
from tests.bench.lab import Lab
from tests.bench.receivers import Sink, wait
from tests.bench.run import Figures, Load, measure
from tests.bench.systems import System

FEW, MANY = 1_000, 100_000
PASSING = Load(2000, 10)
FLUSHED = 20_000  # messages of a flush that are waited for; waking the rest is then part of their cost
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


def costs(lab: Lab, system: System, number: int) -> tuple[float, float, float]:
    """ms of processor time per passing and per flushed message, and MB, with so many that wait."""
    system.stop()
    empty(system.spool)
    fill(system.spool, number)
    lab.disk.settle()
    system.start({})
    calm(system)
    memory = system.group.pss() / 1024
    passing = measure(lab, system, PASSING)["cpu"]
    wanted = min(number, FLUSHED)
    sink = Sink(lab, PASSING.size)
    try:
        before = system.group.cpu()
        root, argv, environ = system.sendmail()
        subprocess.run(["chroot", root, *argv, "-q"], env={**os.environ, **environ}, check=True, timeout=300)
        wait(sink, wanted)
        if wanted == number:
            calm(system)
        used = system.group.cpu() - before
        flushed = used * 1000 / sink.messages()
    finally:
        system.stop()
        sink.close()
        empty(system.spool)
        system.start({})
    return passing, flushed, memory


def backlog(lab: Lab, system: System) -> Figures:
    """Costs beside FEW and MANY, and their growth."""
    few, many = costs(lab, system, FEW), costs(lab, system, MANY)
    return {
        "passing_few": few[0],
        "passing_many": many[0],
        "passing_growth": many[0] / few[0],
        "flushed_few": few[1],
        "flushed_many": many[1],
        "flushed_growth": many[1] / few[1],
        "waiting_kib": (many[2] - few[2]) * 1024 / (MANY - FEW),
    }
