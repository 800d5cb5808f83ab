"""postqueue, postsuper, postcat, qshape, postlog, postkick, postdrop: texts and exit statuses of the real ones."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendmail_compat.install import install
from sendmail_compat.queue_tools import format_row
from sendmail_compat.tool import LogLine, configuration
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
        (whole.replace(record(b"S", b"alice"), b""), "status\0001\0reason\0\0\0postdrop: fatal: uid="),
        (whole.replace(b"alice", b"al\1ce"), "control character in an address"),
        (record(b"A", b"notify_flags=x") + whole, "not a number"), (record(b"n", b"x") + whole, "not a number"),
        (record(b"A", b"ret_flags=x") + whole, "not a number"),
    ):  # fmt: skip
        status, text = tools.run("postdrop", stdin=bad)
        assert status == (1 if what else 0) and what in text
        assert set(maildrop.iterdir()) == before


def test_postdrop_takes_the_records_of_dsn_and_ignores_attributes_it_does_not_know(tools: Tools) -> None:
    asyncio.run(make(tools.queue))
    before = set((tools.queue / "maildrop").iterdir())
    records = [
        (b"i", b"id"), (b"S", b"a"), (b"A", b"\xff\xfe=bar"), (b"n", b"4"), (b"R", b"b"), (b"M", b""), (b"N", b""),
        (b"X", b""), (b"E", b""),
    ]  # fmt: skip
    status, text = tools.run("postdrop", stdin=b"".join(kind + bytes([len(data)]) + data for kind, data in records))
    assert status == 0 and "ignoring attribute record" in text and "status\0000\0" in text
    (new,) = set((tools.queue / "maildrop").iterdir()) - before
    assert b"A\x0eenvelope_id=idS\x01aA\x0enotify_flags=4R\x01b" in new.read_bytes()


def test_postlog_writes_to_the_log_file(tools: Tools) -> None:
    assert tools.run("postlog", "-p", "warn", "a\nb\x1b[0m") == (0, "")
    assert tools.run("postlog", "-t", "tag", stdin=b"one\ntwo") == (0, "")
    lines = [line.partition(" host ")[2] for line in tools.log.read_text().splitlines()]
    assert [re.sub(r"\[\d+\]", "", line) for line in lines] == [
        "postfix/postlog: warning: a?b?[0m", "tag: one", "tag: two",
    ]  # fmt: skip


def test_options_of_postsuper_are_obeyed_in_their_order(tools: Tools) -> None:
    ids = asyncio.run(make(tools.queue))
    a, b, c = ids["A"], ids["B"], ids["C"]
    assert tools.run("postsuper", "-h", b, "-d", b)[1].splitlines() == [
        f"postsuper: {b}: placed on hold", f"postsuper: {b}: removed", "postsuper: Deleted: 1 message",
        "postsuper: Placed on hold: 1 message",
    ]  # fmt: skip
    assert f": {b}: removed\n" in tools.log.read_text()
    assert tools.run("postsuper", "-h", "-", stdin=f"{a}\n{c}\n\xff\n".encode("latin-1"))[0] == 0
    shown = tools.run("postsuper", "-r", "ALL", "-d", "ALL", "hold")[1]
    assert shown == "postsuper: Requeued: 2 messages\npostsuper: Deleted: 0 messages\n"
    assert sorted(path.name for path in (tools.queue / "maildrop").iterdir()) == sorted([a, c])


def test_postcat_names_records_as_postfix_does(tools: Tools) -> None:
    names = {
        "W": "warning_message_time: Fri Jan 15 08:00:00 2027", "c": "queue_file_create_time: 1800000000",
        "I": "content_inspector: 1800000000", "K": "killed_record: 1800000000", ">": "redirect_to: 1800000000",
        "<": "dsn_return_flags: 1800000000", "o": "dsn_original_recipient: 1800000000",
        "d": "unknown_record_type: 1800000000", "m": "unknown_record_type: 1800000000",
    }  # fmt: skip
    records = "".join(f"{letter}\x0a1800000000" for letter in (*names, "w"))
    (tools.root / "file").write_bytes(f"T\x0a1800000000{records}M\0X\0E\0".encode())
    shown = tools.run("postcat", str(tools.root / "file"))[1].splitlines()
    assert shown[2:-3] == list(names.values())


def test_the_word_all_among_the_ids_on_stdin_is_an_id(tools: Tools) -> None:
    ids = asyncio.run(make(tools.queue))
    status, text = tools.run("postsuper", "-d", "-", stdin=b"ALL\n*\n")
    assert status == 0
    assert text == "postsuper: warning: invalid mail queue id: *\npostsuper: Deleted: 0 messages\n"
    assert tools.run("postsuper", "-d", "*")[1].endswith("Deleted: 0 messages\n")
    assert {path.name for path in tools.queue.rglob("*") if path.is_file()} >= set(ids.values())


def test_postcat_fails_when_a_file_ends_in_a_record_or_points_nowhere(tools: Tools) -> None:
    damaged = tools.root / "damaged"
    for data in (b"T\x0a1795", b"C\xff\xff\xff\xff\xff\xff\xff\x7f", b"T\x011p\x02-5M\0", b"T\x011p\x011p\x013"):
        damaged.write_bytes(data)
        status, text = tools.run("postcat", str(damaged))
        assert status == 1 and text.endswith("postcat: fatal: record read error\n"), data
    damaged.write_bytes(b"T\x14" + b"9" * 20 + b"A\x20create_time=" + b"9" * 20 + b"E\0")
    status, text = tools.run("postcat", str(damaged))
    assert status == 0 and text.count("time: 99999999999999999999\n") == 2


def test_postcat_shows_the_message_whatever_lies_in_maildrop_under_its_id(tools: Tools) -> None:
    queue_id = asyncio.run(make(tools.queue))["A"]
    genuine = tools.run("postcat", "-q", queue_id)
    assert genuine[0] == 0 and "maildrop" not in genuine[1]
    left = tools.queue / "maildrop" / queue_id
    left.write_bytes(b"S\x01xM\x00N\x05forgeX\x00E\x00")
    assert tools.run("postcat", "-q", queue_id) == genuine
    left.rename(tools.queue / "maildrop" / "ABCDEF1234")
    with (tools.queue / "maildrop" / "ABCDEF1235").open("wb") as huge:
        huge.truncate(1 << 40)
    os.mkfifo(tools.queue / "maildrop" / "ABCDEF1236", 0o700)
    (tools.queue / "maildrop" / "ABCDEF1237").symlink_to("ABCDEF1234")
    assert "regular_text" not in tools.run("postcat", "-q", "ABCDEF1234")[1]
    for name, why in (("5", "File too large"), ("6", "No such file"), ("7", "Too many levels of symbolic links")):
        status, text = tools.run("postcat", "-q", f"ABCDEF123{name}")
        assert status == 1 and f"postcat: fatal: open queue file ABCDEF123{name}: {why}" in text


ROW = (
    '{"queue_name": "deferred", "queue_id": "4FAB", "arrival_time": 1, "message_size": 5, "forced_expire": false, '
    '"sender": "a@b.test", "recipients": [{"address": "\u2603@x.test"}]}\n'
).encode()


@contextlib.contextmanager
def showq(tools: Tools, *answers: bytes) -> Iterator[None]:
    """A daemon whose showq socket gives these answers."""
    (tools.queue / "public").mkdir(parents=True, exist_ok=True)
    path = tools.queue / "public" / "showq"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                client, _ = listener.accept()
                with client:
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(60)
    path.unlink()


@pytest.mark.parametrize("answer", [b"", ROW, ROW + ROW[:40], ROW[:40]])
def test_a_listing_that_was_cut_off_is_not_taken_for_the_whole_queue(tools: Tools, answer: bytes) -> None:
    with showq(tools, *3 * [answer]):
        for argv in (["postqueue", "-p"], ["postqueue", "-j"], ["mailq"]):
            status, text = tools.run(*argv)
            assert status == 69 and "fatal: Queue report incomplete - connection closed\n" in text
            assert "Request" not in text and "empty" not in text


def test_what_could_not_be_read_is_said_and_the_queue_is_not_called_empty(tools: Tools) -> None:
    with showq(tools, b"warning deferred/4FAB: Permission denied\n0 end\n", b"0 end\n"):
        assert tools.run("mailq") == (0, "postqueue: warning: deferred/4FAB: Permission denied\n")
        assert tools.run("mailq") == (0, "Mail queue is empty\n")


def test_addresses_are_printed_in_every_locale(tools: Tools) -> None:
    code = "import sys; from sendmail_compat.slow import run; sys.exit(run(sys.argv[1:], sys.argv[0], None))"
    with showq(tools, *2 * [ROW + b"0 end\n"]):
        for argv in (["postqueue", "-p"], ["postqueue", "-j"]):
            done = subprocess.run(
                [sys.executable, "-c", code, *argv], capture_output=True, check=False, timeout=60,
                env={"MAIL_CONFIG": str(tools.config), "PYTHONIOENCODING": "latin-1"},
            )  # fmt: skip
            assert done.returncode == 0 and "\u2603@x.test".encode() in done.stdout, done.stderr


def test_recipients_without_a_reason_do_not_stand_under_that_of_another() -> None:
    row = json.loads(ROW)
    row["recipients"] = [{"address": "b@x"}, {"address": "a@x", "delay_reason": "no"}, {"address": "c@x"}]
    lines = format_row(row, wide=False).split("\n")[1:]
    assert [line.strip() for line in lines] == ["(no)", "a@x", "(reason unavailable)", "b@x", "c@x", ""]


@pytest.mark.parametrize(("now", "stamp"), [
    ((2026, 11, 22, 9, 14, 16, 6, 326, 0), "Nov 22 09:14:16 "), ((2026, 11, 2, 9, 4, 6, 0, 306, 0), "Nov  2 09:04:06 "),
])  # fmt: skip
def test_only_the_day_of_a_time_stamp_is_padded_with_a_blank(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, now: tuple[int, ...], stamp: str
) -> None:
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time(now))
    assert LogLine(configuration([("c", str(tools.config))]), "postfix/postlog").write("hello")
    assert tools.log.read_text().startswith(stamp)


@pytest.mark.needs_root
def test_files_and_directories_of_somebody_else_hide_nothing(tools: Tools) -> None:
    ids = asyncio.run(make(tools.queue))
    for path in (tools.queue, *tools.queue.rglob("*")):
        os.chown(path, 65534, 65534)
    nest = [tools.queue / "maildrop" / Path(*"a" * (n + 1)) for n in range(1200)]
    for path in nest:
        path.mkdir(mode=0o700)
    os.chown(nest[0], 12345, 12345)
    try:
        os.chown(tools.queue / "incoming" / ids["B"], 12345, 12345)
        status, text = tools.run("postqueue", "-p", user=65534)
        assert status == 0 and ids["A"] in text and ids["C"] in text and text.endswith("in 2 Requests.\n")
        assert "warning: maildrop/a: Permission denied\n" in text
        assert f"warning: incoming/{ids['B']}: Permission denied\n" in text
        assert tools.run("qshape", "maildrop")[0] == 0
        assert tools.run("postsuper", "-d", "ALL", "maildrop") == (0, "postsuper: Deleted: 0 messages\n")
        status, text = tools.run("postsuper", "-h", "ALL")
        assert (status, text) == (
            1, f"postsuper: warning: {ids['B']}: Permission denied\npostsuper: Placed on hold: 2 messages\n",
        )  # fmt: skip
    finally:
        for path in reversed(nest):
            path.rmdir()


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


@pytest.mark.needs_root
def test_a_users_file_in_another_maildrop_stays_the_users_when_it_is_taken_over(tools: Tools) -> None:
    other = tools.root / "other"
    for queue, owner in ((tools.queue, 65534), (other, 65533)):
        with spooled(queue):
            pass
        for path in (queue, *queue.rglob("*")):
            os.chown(path, owner, owner)
    for name, owner in (("ABCDEF12", 12345), ("ABCDEF34", 65533)):
        path = other / "maildrop" / name
        path.write_bytes(b"L\x0asmtp:evil.S\x01aR\x01bM\x00N\x04" + name[-4:].encode() + b"X\x00E\x00")
        path.chmod(0o750)
        os.chown(path, owner, 65533)
    assert "2 messages taken over" in tools.run("sendmail", f"-oQ{other}", "-q")[1]
    taken = {path.read_bytes()[-8:-4]: path.stat().st_uid for path in (tools.queue / "maildrop").iterdir()}
    assert taken == {b"EF12": 12345, b"EF34": 65534}
    assert list((other / "maildrop").iterdir()) == []
