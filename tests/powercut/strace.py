"""What a server flushes between the end of data and its 250, by strace(1): a second opinion without a power cut."""

import re
import shutil
import smtplib
import subprocess
import tempfile
import time
from pathlib import Path

from tests.powercut.message import compose
from tests.powercut.servers import Server, everybody, kill_everybody, wait_greeting

_CALLS = "fsync,fdatasync,syncfs,sync_file_range,io_submit,rename,renameat,renameat2,link,linkat"
_TALK = "write,writev,sendto,sendmsg"
_SYNC = re.compile(r"(fsync|fdatasync|syncfs|sync_file_range)\(\d+<([^>]*)>")
_SUBMITTED = re.compile(r"IOCB_CMD_(F|FD)SYNC, aio_fildes=\d+<([^>]*)>")
_MOVED = re.compile(r"(rename|link)(?:at2?)?\(")


def before_the_answer(server: Server) -> str:
    """The flushes of one message in words; "?" without strace."""
    if shutil.which("strace") is None:
        return "? (no strace)"
    server.start()
    try:
        wait_greeting(server.port)
        _send(server.port, "warm")
        with tempfile.NamedTemporaryFile("r", suffix=".strace") as out:
            tracer = _attach(Path(out.name))
            _send(server.port, "traced")
            time.sleep(0.3)
            tracer.terminate()
            tracer.wait(20)
            return _in_words(out.read().splitlines(), server)
    finally:
        kill_everybody()


def _attach(out: Path) -> "subprocess.Popen[bytes]":
    pids = [word for pid in everybody() for word in ("-p", str(pid))]
    trace = f"trace={_CALLS},{_TALK}"
    argv = ["strace", "-f", "-ttt", "-y", "-s", "24", "-e", trace, "-o", str(out), *pids]
    tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.5)  # it says nothing that could be waited for
    return tracer


def _send(port: int, name: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.test", timeout=30) as client:
        client.ehlo()
        client.sendmail("back@sink.test", ["ok@sink.test"], compose(name, 5000))


def _in_words(lines: list[str], server: Server) -> str:
    """From the 354 to the next reply that begins with 250."""
    stamped = sorted((float(parts[1]), parts[2]) for line in lines if len(parts := line.split(None, 2)) == 3)
    calls = [text for _, text in stamped]
    begin = next((i for i, text in enumerate(calls) if '"354' in text), None)
    if begin is None:
        return "? (no 354 seen)"
    end = next((i for i in range(begin, len(calls)) if '"250' in calls[i]), None)
    if end is None:
        return "? (no 250 seen)"
    words = []
    for text in calls[begin:end]:
        flushed = (*_SYNC.finditer(text), *_SUBMITTED.finditer(text))
        words += ["fsync of " + _kind(match[2], server) for match in flushed]
        if moved := _MOVED.match(text):
            words.append(moved[1])
    return ", ".join(words) or "nothing flushed"


def _kind(path: str, server: Server) -> str:
    """A file or a directory?"""
    inside = "/" + path.lstrip("/")
    root = str(server.spool).partition("/root/")[0] + "/root" if "/root/" in str(server.spool) else ""
    return "directory" if Path(inside).is_dir() or Path(root + inside).is_dir() else "file"
