"""postqueue, postsuper, postcat, qshape, postlog, postkick, postdrop: texts and exit statuses of the real ones."""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendmail_compat.install import install
from tests.queue_support import spooled
from tests.sendmail.tool_steps import STEPS, make, neutral

GOLDEN = Path(__file__).parent / "golden" / "postfix_tools.txt"


class Tools:
    """The programs, a configuration, a spool."""

    def __init__(self, root: Path) -> None:
        self.root, self.queue, self.config = root, root / "q", root / "etc"
        self.config.mkdir()
        self.log = root / "maillog"
        self.log.touch()
        text = f"queue_directory = {self.queue}\nmaillog_file = {self.log}\nmyhostname = host.example.test\n"
        (self.config / "main.cf").write_text(text)
        self.stub = install(root)

    def run(self, *argv: str, stdin: bytes = b"", user: int | None = None) -> tuple[int, str]:
        """Exit status, and stdout with stderr as they came."""
        environment = {"MAIL_CONFIG": str(self.config), "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [str(self.stub.parent / argv[0]), *argv[1:]], input=stdin, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=environment, check=False, timeout=60, user=user, group=user,
        )  # fmt: skip
        return done.returncode, done.stdout.decode("utf-8", "replace")


@pytest.fixture
def tools() -> Iterator[Tools]:
    root = Path(tempfile.mkdtemp(prefix="mta-", dir="/tmp"))
    root.chmod(0o755)
    yield Tools(root)
    shutil.rmtree(root)


def test_every_step_prints_what_postfix_prints(tools: Tools) -> None:
    ids = asyncio.run(make(tools.queue))
    wanted = GOLDEN.read_text()
    shown = ""
    for argv, stdin in STEPS:
        status, text = tools.run(*(word.format(**ids) for word in argv), stdin=stdin.format(**ids).encode())
        shown += f"$ {' '.join(argv)}\n{neutral(text, ids)}rc={status}\n"
    assert shown.split("$ ") == wanted.split("$ ")
    assert f"{ids['A']}: requeued" in tools.log.read_text()
    assert [p for p in tools.queue.rglob("*") if p.is_file() and p.parent.name != "pid"] == []


def test_qshape_counts_by_domain_and_age(tools: Tools) -> None:
    async def fill() -> None:
        with spooled(tools.queue) as spool:
            for age, people in ((0, ("a@one.test", "b@one.test")), (7, ("c@two.test",)), (300, ("d@sub.two.test",))):
                spool.now = time.time() - 60 * age - 5
                await spool.accept(*people, sender="" if age else "s@src.test")

    asyncio.run(fill())
    heads = "  T  5 10 20 40 80 160 320 640 1280 1280+"
    rows = [
        ("TOTAL", "4  2  1  0  0  0   0   1   0    0     0"), ("one.test", "2  2  0  0  0  0   0   0   0    0     0"),
        ("two.test", "1  0  1  0  0  0   0   0   0    0     0"),
        ("sub.two.test", "1  0  0  0  0  0   0   1   0    0     0"),
    ]  # fmt: skip
    wanted = [f"{'':39}{heads}", *(f"{name:>39}  {counts}" for name, counts in rows)]
    assert tools.run("qshape") == (0, "\n".join(wanted) + "\n")
    status, text = tools.run("qshape", "-s", "-p", "-m", "1", "-l", "-b", "2", "incoming")
    assert status == 0
    assert [line.split() for line in text.splitlines()] == [
        ["T", "5", "5+"], ["TOTAL", "3", "1", "2"], ["MAILER-DAEMON", "2", "0", "2"], ["src.test", "1", "1", "0"],
    ]  # fmt: skip
    status, text = tools.run("qshape", "-x")
    assert status == 255 and "Unknown option: x\nUsage: " in text


def test_postdrop_keeps_a_whole_message_and_nothing_else(tools: Tools) -> None:
    asyncio.run(make(tools.queue))
    maildrop = tools.queue / "maildrop"
    before = set(maildrop.iterdir())

    def record(kind: bytes, data: bytes = b"") -> bytes:
        return kind + bytes([len(data)]) + data

    head = record(b"A", b"rewrite_context=local") + record(b"S", b"alice") + record(b"R", b"bob@r.test")
    whole = head + record(b"M") + record(b"N", b"Subject: x") + record(b"X") + record(b"E")
    status, text = tools.run("postdrop", stdin=whole)
    (new,) = set(maildrop.iterdir()) - before
    assert (status, text) == (0, f"protocol\0postdrop_protocol\0queue_id\0{new.name}\0\0status\0000\0reason\0\0\0")
    assert new.read_bytes().endswith(whole)
    new.unlink()
    for bad, what in (
        (whole[:-2], ""), (record(b"C", b"1") + whole, "unexpected record type: 67"),
        (record(b"T", b"1 2") + whole, "unexpected record type: 84"), (whole[:9], "malformed input"),
        (record(b"S", b"a") + record(b"M") + record(b"X") + record(b"E"), "no recipients specified"),
    ):  # fmt: skip
        status, text = tools.run("postdrop", stdin=bad)
        assert status == (1 if what else 0) and what in text
        assert set(maildrop.iterdir()) == before


def test_postlog_writes_to_the_log_file(tools: Tools) -> None:
    assert tools.run("postlog", "-p", "warn", "a\nb\x1b[0m") == (0, "")
    assert tools.run("postlog", "-t", "tag", stdin=b"one\ntwo") == (0, "")
    lines = [line.partition(" host ")[2] for line in tools.log.read_text().splitlines()]
    assert [re.sub(r"\[\d+\]", "", line) for line in lines] == [
        "postfix/postlog: warning: a?b?[0m", "tag: one", "tag: two",
    ]  # fmt: skip


@pytest.mark.needs_root
def test_a_stranger_may_not_touch_the_queue_and_root_leaves_nothing_of_its_own(tools: Tools) -> None:
    ids = asyncio.run(make(tools.queue))
    for path in (tools.queue, *tools.queue.rglob("*")):
        os.chown(path, 65534, 65534)
    reserved = (1, "postsuper: fatal: use of this command is reserved for the superuser\n")
    assert tools.run("postsuper", "-d", "ALL", user=12345) == reserved
    status, text = tools.run("postcat", "-q", ids["A"], user=12345)
    assert (status, text) == (1, f"postcat: fatal: open queue file {ids['A']}: Permission denied\n")
    status, text = tools.run("postqueue", "-p", user=12345)
    assert status == 69 and "Queue report unavailable - mail system is down" in text
    assert tools.run("postsuper", "-h", "ALL")[0] == 0
    assert tools.run("postsuper")[0] == 0
    assert all(path.stat().st_uid == 65534 for path in tools.queue.rglob("*"))
