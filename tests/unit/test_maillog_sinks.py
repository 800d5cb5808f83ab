"""Log lines as datagrams: syslog, and the journal with fields; a reader that is slow or away costs no mail."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.maillog.fields import fields, severity
from mta.maillog.maillog import FileSink, Maillog, MaillogSettings, sink_for
from mta.maillog.sinks import BUFFER_LIMIT, JournalSink, SyslogSink, is_journal

NOW = Clock(lambda: 1795217804.0)
LINE = "Nov 21 00:01:03 postfix/{}[812]: {}"


@contextlib.contextmanager
def reader(path: Path, *, room: int = 0) -> Iterator[socket.socket]:
    """A socket that takes datagrams; room: octets of its buffer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if room:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        sock.bind(str(path))
        sock.setblocking(False)
        yield sock


def received(sock: socket.socket) -> list[bytes]:
    """All datagrams that are there."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(1 << 20))
    return found


def entry(datagram: bytes) -> dict[str, str]:
    """A datagram of the journal's protocol."""
    return dict(line.split("=", 1) for line in datagram.decode().splitlines())


def test_the_journal_gets_postfix_text_and_fields_beside_it(tmp_path: Path) -> None:
    with reader(tmp_path / "j") as sock:
        log = Maillog(MaillogSettings("", "postfix", "h"), NOW, JournalSink(str(tmp_path / "j")))
        text = (
            "4F3A21: to=<x@y.test>, orig_to=<l@y.test>, relay=mx[10.0.0.1]:25, conn_use=2, delay=0.3, "
            "delays=0.1/0/0/0.2, dsn=2.0.0, status=sent (250 2.0.0 Ok: to=<forged@x>, status=bounced (no))"
        )
        log.write("smtp", text)
        log.warning("qmgr", "disk")
        log.close()
        first, second = map(entry, received(sock))
    assert first == {
        "MESSAGE": text, "PRIORITY": "6", "SYSLOG_FACILITY": "2", "SYSLOG_IDENTIFIER": "postfix/smtp",
        "SYSLOG_PID": str(os.getpid()), "QUEUE_ID": "4F3A21", "MTA_TO": "x@y.test", "MTA_ORIG_TO": "l@y.test",
        "MTA_RELAY": "mx[10.0.0.1]:25", "MTA_CONN_USE": "2", "MTA_DELAY": "0.3", "MTA_DELAYS": "0.1/0/0/0.2",
        "MTA_DSN": "2.0.0", "MTA_STATUS": "sent",
    }  # fmt: skip
    assert second["MESSAGE"] == "warning: disk" and second["PRIORITY"] == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4jWXRM61SvzKHls: message-id=<a@b>", {"QUEUE_ID": "4jWXRM61SvzKHls", "MTA_MESSAGE_ID": "<a@b>"}),
        ("4F3A21: uid=1000 from=<alice>", {"QUEUE_ID": "4F3A21", "MTA_UID": "1000", "MTA_FROM": "alice"}),
        ("4F3A21: from=<>, size=281, nrcpt=2 (queue active)",
         {"QUEUE_ID": "4F3A21", "MTA_FROM": "", "MTA_SIZE": "281", "MTA_NRCPT": "2"}),
        ("4F3A21: from=<a@b>, status=expired, returned to sender",
         {"QUEUE_ID": "4F3A21", "MTA_FROM": "a@b", "MTA_STATUS": "expired"}),
        ("4F3A21: client=mx.test[192.0.2.1], sasl_method=PLAIN",
         {"QUEUE_ID": "4F3A21", "MTA_CLIENT": "mx.test[192.0.2.1]"}),
        ("connect from unknown[2001:db8::1]", {"MTA_CLIENT": "unknown[2001:db8::1]"}),
        ("disconnect from a.b[1.2.3.4] ehlo=1 quit=1 commands=2", {"MTA_CLIENT": "a.b[1.2.3.4]"}),
        ("lost connection after RCPT from a.b[1.2.3.4]", {"MTA_CLIENT": "a.b[1.2.3.4]", "MTA_STAGE": "RCPT"}),
        ("NOQUEUE: reject: RCPT from u[1.2.3.4]: 554 5.7.1 <r@x>: Relay access denied; from=<s@y> to=<r@x> proto=ESMTP "
         "helo=<h>",
         {"MTA_ACTION": "reject", "MTA_STAGE": "RCPT", "MTA_CLIENT": "u[1.2.3.4]", "MTA_REPLY": "554",
          "MTA_DSN": "5.7.1", "MTA_FROM": "s@y", "MTA_TO": "r@x", "MTA_PROTO": "ESMTP", "MTA_HELO": "h"}),
        ("4F3A21: sender non-delivery notification: 4F3A22",
         {"QUEUE_ID": "4F3A21", "MTA_NOTICE": "non-delivery", "MTA_CHILD_ID": "4F3A22"}),
        ("4F3A21: removed", {"QUEUE_ID": "4F3A21"}),
        ("warning: 4F3A21: not delivered", {"QUEUE_ID": "4F3A21"}),
        ("daemon started -- version 1", {}),
    ],
)  # fmt: skip
def test_fields_are_read_from_the_text(text: str, expected: dict[str, str]) -> None:
    assert fields(text) == expected


def test_severities_are_those_postfix_gives_and_no_peer_can_raise_one() -> None:
    assert [severity(t) for t in ("x", "warning: x", "error: x", "fatal: x", "panic: x")] == [6, 4, 3, 2, 2]
    assert severity("NOQUEUE: reject: RCPT from u[1.2.3.4]: 554 <a: fatal: b@c>") == 6


def test_syslog_gets_facility_and_severity(tmp_path: Path) -> None:
    with reader(tmp_path / "s") as sock:
        sink = SyslogSink(str(tmp_path / "s"))
        assert sink.write([LINE.format("smtpd", "x"), LINE.format("smtpd", "warning: y")])
        sink.close()
        assert received(sock) == [
            b"<22>Nov 21 00:01:03 postfix/smtpd[812]: x", b"<20>Nov 21 00:01:03 postfix/smtpd[812]: warning: y"
        ]  # fmt: skip


def test_without_the_journal_s_socket_lines_go_to_syslog(tmp_path: Path) -> None:
    with reader(tmp_path / "s") as sock:
        sink = JournalSink(str(tmp_path / "none"), str(tmp_path / "s"))
        sink.write([LINE.format("smtpd", "x")])
        sink.close()
        assert received(sock) == [b"<22>Nov 21 00:01:03 postfix/smtpd[812]: x"]


async def test_a_slow_reader_gets_all_lines_in_order_and_the_loop_goes_on(tmp_path: Path) -> None:
    with reader(tmp_path / "j") as sock:
        sink = JournalSink(str(tmp_path / "j"), str(tmp_path / "none"))
        for n in range(0, 5000, 10):
            sink.write([LINE.format("smtpd", f"line {m}") for m in range(n, n + 10)])
        heard: list[str] = []
        async with asyncio.timeout(20):
            while len(heard) < 5000:
                heard += [entry(data)["MESSAGE"] for data in received(sock)]
                await asyncio.sleep(0)
        assert heard == [f"line {n}" for n in range(5000)]
        sink.close()


async def test_what_a_stopped_reader_cannot_take_is_dropped_and_counted(tmp_path: Path) -> None:
    with reader(tmp_path / "j") as sock:
        sink = JournalSink(str(tmp_path / "j"), str(tmp_path / "none"))
        text = "x" * 1000
        count = 2 * BUFFER_LIMIT // 1000
        for _ in range(count):
            sink.write([LINE.format("smtpd", text)])
        heard: list[dict[str, str]] = []
        async with asyncio.timeout(20):
            while not heard or "lost" not in heard[-1]["MESSAGE"]:
                heard += map(entry, received(sock))
                await asyncio.sleep(0)
        sink.close()
    lost = int(heard[-1]["MESSAGE"].split()[1])
    assert heard[-1] | {"SYSLOG_PID": ""} == {
        "MESSAGE": f"warning: {lost} lines lost", "PRIORITY": "4", "SYSLOG_FACILITY": "2", "SYSLOG_PID": "",
        "SYSLOG_IDENTIFIER": "postfix/log",
    }  # fmt: skip
    assert len(heard) - 1 + lost == count


def test_a_reader_that_comes_back_gets_what_was_kept(tmp_path: Path) -> None:
    sink = JournalSink(str(tmp_path / "j"), str(tmp_path / "none"))
    sink.write([LINE.format("smtpd", "one")])
    with reader(tmp_path / "j") as sock:
        sink.write([LINE.format("smtpd", "two")])
        assert [entry(d)["MESSAGE"] for d in received(sock)] == ["one", "two"]
    (tmp_path / "j").unlink()
    sink.write([LINE.format("smtpd", "three")])  # the old one is gone
    with reader(tmp_path / "j") as sock:
        sink.write([LINE.format("smtpd", "four")])
        assert [entry(d)["MESSAGE"] for d in received(sock)] == ["three", "four"]
    sink.close()


def test_a_line_too_long_for_a_datagram_is_cut(tmp_path: Path) -> None:
    with reader(tmp_path / "j") as sock:
        sink = JournalSink(str(tmp_path / "j"), str(tmp_path / "none"))
        sink.write([LINE.format("smtpd", "x" * (1 << 20))[: BUFFER_LIMIT - 1]])
        sink.write([LINE.format("smtpd", "next")])
        sink.close()
        heard = [entry(d)["MESSAGE"] for d in received(sock)]
    assert heard[-1] == "next"
    assert set(heard[0]) == {"x"} and len(heard[0]) >= 1000


def test_the_journal_is_known_by_the_descriptor_it_gave_us(tmp_path: Path) -> None:
    found = os.fstat(2)
    ours = f"{found.st_dev}:{found.st_ino}"
    assert is_journal({"JOURNAL_STREAM": ours})
    assert not is_journal({"JOURNAL_STREAM": "1:1"}) and not is_journal({})


def test_where_the_log_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "log")

    def kind(maillog_file: str) -> type[object]:
        sink = sink_for(MaillogSettings(maillog_file, "postfix", "h"))
        sink.close()
        return type(sink)

    def connected(fd: int) -> None:
        found = os.fstat(fd)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")

    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert [kind(each) for each in ("", file)] == [SyslogSink, FileSink]
    out, err = (os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in ("out", "err"))
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        connected(2)
        with os.fdopen(1, "w", closefd=False) as stdout:
            monkeypatch.setattr("sys.stdout", stdout)
            assert [kind(each) for each in ("", "/dev/stdout", file)] == [JournalSink, FileSink, FileSink]
        connected(1)
        assert [kind(each) for each in ("", "/dev/stdout", file)] == [JournalSink, JournalSink, FileSink]
    finally:
        for number, fd in enumerate(saved, 1):
            os.dup2(fd, number)
        for fd in (out, err, *saved):
            os.close(fd)
