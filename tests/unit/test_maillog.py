"""Log lines."""

import asyncio
import os
import re
import resource
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.deliver.request import Result
from mta.envelope import Recipient
from mta.maillog.fields import fields
from mta.maillog.maillog import GATHER, Delays, FileSink, Maillog, MaillogSettings, delivery, printable, seconds
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.004, "0"), (0.02, "0.02"), (0.3, "0.3"), (0.999, "1"), (1.14, "1.1"), (9.96, "10"), (330.2, "330"),
     (-1, "0")],
)  # fmt: skip
def test_delays_are_printed_with_two_digits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_a_line_has_postfix_form_and_no_control_character(tmp_path: Path) -> None:
    log = Maillog(MaillogSettings(str(tmp_path / "log"), "postfix", "host.example.test"), Clock(lambda: 1795217804.0))
    log.write("smtpd", "connect from \x1b[31mx\n\u202efake[1.2.3.4]")
    log.warning("qmgr", "x")
    log.close()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(
        rf"[A-Z][a-z]{{2}} [ 0-9]\d \d\d:\d\d:\d\d host postfix/smtpd\[{os.getpid()}\]: "
        r"connect from \?\[31mx\?\?fake\[1\.2\.3\.4\]", first)  # fmt: skip
    assert second.endswith("]: warning: x")


def test_a_delivery_line_is_what_pflogsumm_reads() -> None:
    lines: list[tuple[str, str]] = []
    result = Result(Reply(250, "2.0.0", "Ok"), "250 2.0.0 Ok", "mx[10.0.0.1]:25", conn_use=2)
    delivery(lambda s, t: lines.append((s, t)), "smtp", "4F3", Recipient("x@y.test", "List@y.test"), result,
             Delays(0.02, 0.01, 0.0, 0.0))  # fmt: skip
    assert lines == [
        ("smtp", "4F3: to=<x@y.test>, orig_to=<List@y.test>, relay=mx[10.0.0.1]:25, conn_use=2, delay=0.03, "
                 "delays=0.02/0.01/0/0, dsn=2.0.0, status=sent (250 2.0.0 Ok)")
    ]  # fmt: skip


@pytest.mark.parametrize("forged", ["x>, relay=local, dsn=2.0.0, status=sent (ok)", '"x>, status=sent', "a b", "x\\"])
def test_what_a_stranger_writes_into_an_address_is_no_other_field(forged: str) -> None:
    lines: list[str] = []
    address = f"{forged}@y.test"
    result = Result(Reply(550, "5.1.1", "No"), "550 5.1.1 No", "mx[10.0.0.1]:25")
    delivery(lambda _, t: lines.append(t), "smtp", "4F3A21", Recipient(address, f"1{address}"), result,
             Delays(0.0, 0.0, 0.0, 0.0))  # fmt: skip
    found = fields(lines[0])
    assert found["MTA_STATUS"] == "bounced" and found["MTA_RELAY"] == "mx[10.0.0.1]:25"
    assert found["MTA_TO"] == quote_address(address) and found["MTA_ORIG_TO"] == quote_address(f"1{address}")


async def test_lines_of_one_turn_are_written_together_and_in_order(tmp_path: Path) -> None:
    log = Maillog(MaillogSettings(str(tmp_path / "log"), "postfix", "h"), Clock())
    log.write("a", "1")
    log.write("b", "2")
    assert (tmp_path / "log").read_text() == ""
    log.flush()
    assert [line[-1] for line in (tmp_path / "log").read_text().splitlines()] == ["1", "2"]
    log.close()


def test_after_rotation_lines_go_to_the_new_file(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "log"))
    assert sink.write(["old"])
    (tmp_path / "log").rename(tmp_path / "log.1")
    sink.reopen()
    assert sink.write(["new"])
    sink.close()
    assert (tmp_path / "log").read_text() == "new\n"


def test_printable_keeps_text_and_replaces_the_rest() -> None:
    assert printable("grüße") == "grüße"
    assert printable("a\x00b\x85c\u2028d\udc80") == "a?b?c?d?"


async def test_lines_wait_a_moment_for_others_and_close_loses_none(tmp_path: Path) -> None:
    log = Maillog(MaillogSettings(str(tmp_path / "log"), "postfix", "h"), Clock())
    log.write("a", "1")
    await asyncio.sleep(0)
    assert (tmp_path / "log").read_text() == ""
    await asyncio.sleep(2 * GATHER)
    assert (tmp_path / "log").read_text().endswith(": 1\n")
    log.write("a", "2")
    log.close()
    assert [line[-1] for line in (tmp_path / "log").read_text().splitlines()] == ["1", "2"]


def test_a_line_that_waited_in_a_loop_that_ended_keeps_no_later_one_back(tmp_path: Path) -> None:
    log = Maillog(MaillogSettings(str(tmp_path / "log"), "postfix", "h"), Clock())

    async def write(text: str, wait: float) -> None:
        log.write("a", text)
        await asyncio.sleep(wait)

    asyncio.run(write("1", 0))
    asyncio.run(write("2", 5 * GATHER))
    assert [line[-1] for line in (tmp_path / "log").read_text().splitlines()] == ["1", "2"]
    log.close()


@pytest.mark.needs_root
def test_root_follows_only_its_own_links(tmp_path: Path) -> None:
    directory, secret, link = tmp_path / "log", tmp_path / "secret", tmp_path / "log/mail.log"
    directory.mkdir()
    secret.write_text("x\n")
    link.symlink_to("../secret")
    assert FileSink(str(link)).write(["by root's link"])
    os.chown(link, 65534, 65534, follow_symlinks=False)
    (tmp_path / "other").symlink_to(directory)
    (tmp_path / "theirs").symlink_to(directory)
    os.chown(tmp_path / "theirs", 65534, 65534, follow_symlinks=False)
    for path in (link, tmp_path / "theirs/new"):
        assert "not root's" in FileSink(str(path)).problem
    assert secret.read_text() == "x\nby root's link\n" and not (directory / "new").exists()
    (directory / "root").symlink_to("/")
    assert FileSink(str(directory / "root")).problem == "Is a directory"
    assert FileSink(str(tmp_path / "other/new")).write(["y"]) and (directory / "new").read_text() == "y\n"


def test_only_a_file_changes_its_owner(tmp_path: Path) -> None:
    before = os.stat("/dev/null")
    sink = FileSink("/dev/null")
    sink.give_to(os.getuid(), 65534)
    sink.close()
    assert (os.stat("/dev/null").st_gid, os.stat("/dev/null").st_uid) == (before.st_gid, before.st_uid)


def test_without_its_file_the_log_goes_elsewhere_and_says_why_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.maillog.maillog.DEV_LOG", str(tmp_path / "none"))
    path = tmp_path / "later/log"
    log = Maillog(MaillogSettings(str(path), "postfix", "h"), Clock())
    log.write("smtpd", "one")
    log.write("smtpd", "two")
    told = capfd.readouterr().err.splitlines()
    assert [line.partition("]: ")[2] for line in told] == [
        f"warning: maillog_file: open {path}: No such file or directory; the log is here now", "one", "two",
    ]  # fmt: skip
    path.parent.mkdir()
    log.write("smtpd", "three")
    log.close()
    assert path.read_text().endswith("]: three\n") and path.read_text().count("\n") == 1


def test_a_log_that_cannot_be_opened_again_goes_on_in_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Maillog(MaillogSettings(str(path), "postfix", "h"), Clock())
    log.write("smtpd", "one")
    path.rename(tmp_path / "old")
    path.mkdir()
    log.reopen()
    log.write("smtpd", "two")
    log.close()
    texts = [line.partition("]: ")[2] for line in (tmp_path / "old").read_text().splitlines()]
    assert texts == ["one", "warning: maillog_file cannot be opened again: Is a directory", "two"]


def test_a_line_that_the_disk_took_in_part_is_not_run_together_with_the_next(tmp_path: Path) -> None:
    """A limit of the file's size cuts a write off where a full disk does."""
    path = tmp_path / "log"
    sink = FileSink(str(path))
    assert sink.write(["first", "second"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4, before[1]))
    try:
        assert not sink.write(["third is lost", "fourth, too"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sink.write(["fifth"])
    assert sink.write(["sixth"])
    sink.close()
    assert path.read_text().splitlines() == ["first", "second", "thir", "fifth", "sixth"]
