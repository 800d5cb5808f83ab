"""Messages per second through an MTA: smtp-source -> its port -> the MTA -> smtp-sink, both of Postfix.

accept: until the last 250.  end to end: until the sink has counted every message.  Measure two MTAs in turn,
A B A B, and quote the ratio: on a shared machine an absolute figure means nothing.
"""

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SINK = "127.0.0.1:2599"
LIMIT = 120.0  # seconds after the last 250


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: messages, parallel sessions, bytes per message, recipients per message."""

    messages: int = 2000
    sessions: int = 10
    size: int = 5000
    recipients: int = 1
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages per second; seen: what the sink counted."""

    accept: float
    end_to_end: float
    seen: int

    def __str__(self) -> str:
        return f"accept {self.accept:6.0f}/s  end to end {self.end_to_end:6.0f}/s  ({self.seen} seen)"


def counted(log: Path) -> int:
    """The number in the last mesg= that smtp-sink -c has printed."""
    seen = re.findall(r"mesg=(\d+)", log.read_text()[-400:])
    return int(seen[-1]) if seen else 0


def measure(tools: Path, port: int, load: Load) -> Rate:
    """One run.  tools: a root with Postfix's programs; RuntimeError when a tool fails."""
    with tempfile.NamedTemporaryFile("w+", suffix=".sink") as out:
        log = Path(out.name)
        become = ["setpriv", "--reuid=nobody", "--clear-groups"]
        sink = subprocess.Popen(
            ["chroot", tools, *become, "/usr/sbin/smtp-sink", "-c", SINK, "2000"], stdout=out, stderr=out
        )
        try:
            time.sleep(0.5)
            if sink.poll() is not None:
                raise RuntimeError(f"smtp-sink did not start: {log.read_text()}")
            words = f"-s {load.sessions} -m {load.messages} -l {load.size} -r {load.recipients}".split()
            words += ["-d"] if load.reuse else []
            words += ["-f", "from@src.test", "-t", "to@dst.test", "-M", "src.test"]
            begin = time.monotonic()
            source: list[str | Path] = ["chroot", tools, "/usr/sbin/smtp-source", *words, f"127.0.0.1:{port}"]
            subprocess.run(source, check=True, timeout=300)
            accepted = time.monotonic()
            while counted(log) < load.messages and time.monotonic() < accepted + LIMIT:
                time.sleep(0.02)
            end = time.monotonic()
        finally:
            sink.terminate()
            sink.wait(10)
        seen = counted(log)
    return Rate(load.messages / (accepted - begin), seen / (end - begin), seen)
