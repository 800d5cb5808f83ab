"""A real Postfix takes our spool over: it delivers every byte, or refuses; and two MTAs never run at once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.peers.host import DATA, LOG, SPOOL, Host, split_mbox
from tests.peers.machine import wait_for
from tests.peers.postfix import MAIN_CF, Postfix, main_cf
from tests.peers.sink import Sink
from tests.peers.spool_fixture import EIGHT_BIT, HEAD, submit

HOLD_ALL = {"smtpd_sender_restrictions": "check_sender_access static:HOLD"}
PLAIN = HEAD + b"Subject: plain\r\nTo: x@sink.test\r\n\r\nline\r\n\r\n.\r\nlast\r\n"


@dataclass(frozen=True, slots=True)
class Takeover:
    """Our stopped MTA and a Postfix configured for its spool."""

    host: Host
    postfix: Postfix
    directory: str

    def content(self, queue_id: str) -> bytes:
        """The content of a queue file as postcat shows it: LF lines."""
        return self.postfix.machine.run("postcat", "-c", self.directory, "-h", "-b", "-q", queue_id).stdout

    def log(self) -> str:
        """Postfix's log of this instance."""
        return self.postfix.machine.read("/var/log/takeover.log")


@pytest.fixture(scope="module")
def takeover(installed: Host, postfix_machine: Postfix, dns: object) -> Iterator[Takeover]:
    """Postfix with the spool as its own queue directory, not yet started."""
    m = postfix_machine.machine
    directory = postfix_machine.tools_on(installed.machine, SPOOL, DATA, "mta")
    settings = {
        **MAIN_CF,
        "myhostname": "mx.host.test",
        "mydestination": "host.test",
        "queue_directory": SPOOL,
        "data_directory": DATA,
        "mail_owner": "mta",
        "maillog_file": "/var/log/takeover.log",
        "smtp_line_length_limit": "0",
        "queue_run_delay": "2s",
    }
    m.write(f"{directory}/main.cf", main_cf(settings))
    services = m.read("/etc/postfix/master.cf").splitlines()
    m.write(
        f"{directory}/master.cf", "\n".join(s for s in services if not s.startswith("smtp ") or " unix " in s) + "\n"
    )
    found = Takeover(installed, postfix_machine, directory)
    yield found
    postfix_machine.stop(directory)
    restore(installed)


def restore(host: Host) -> None:
    """Give the spool back: Postfix has made directories of its own in it."""
    host.stop()
    host.machine.run("sh", "-c", f"rm -rf {SPOOL}/* {DATA}/*")


def held(host: Host, *messages: tuple[str, str, bytes]) -> list[str]:
    """Accept these (sender, recipient, content), hold them, stop; returns the ids."""
    restore(host)
    host.machine.path(LOG).unlink(missing_ok=True)
    host.machine.forget_mail()
    host.restart(HOLD_ALL)
    ids = [submit(host, sender, [recipient], content) for sender, recipient, content in messages]
    host.stop()
    assert {p.name for p in host.files("hold")} == set(ids)
    return ids


def test_a_second_start_is_refused_in_postfixs_words_and_status(takeover: Takeover) -> None:
    restore(takeover.host)
    host, postfix = takeover.host, takeover.postfix
    host.restart()
    theirs = postfix.machine.run("postfix", "-c", takeover.directory, "start", status=None)
    assert theirs.returncode == 1
    again = host.machine.run("mta", "start", status=1)
    host.stop()
    postfix.start(takeover.directory)
    try:
        ours = host.machine.run("mta", "start", status=1)
        assert host.machine.run("mta", "start-fg", status=1).stderr == ours.stderr
        them_again = postfix.machine.run("postfix", "-c", takeover.directory, "start", status=1)
    finally:
        postfix.stop(takeover.directory)
    words = "the Postfix mail system is already running"
    assert words in ours.stderr.decode() and ours.stderr == again.stderr
    assert takeover.log().count(f"fatal: {words}") == 2 or words in (theirs.stderr + them_again.stderr).decode()
    host.start()  # and it can start now


def test_a_real_postfix_delivers_our_files_byte_for_byte_by_smtp_and_locally(takeover: Takeover) -> None:
    takeover.postfix.machine.forget_mail()  # what another test's Postfix has put there
    ids = held(
        takeover.host,
        ("acht@src.test", "x@sink.test", EIGHT_BIT),
        ("plain@src.test", "y@sink.test", PLAIN),
        ("", "z@sink.test", PLAIN),
        ("plain@src.test", "carol@host.test", EIGHT_BIT),
    )
    expected = [takeover.content(queue_id) for queue_id in ids]
    assert expected[0].endswith(EIGHT_BIT.replace(b"\r\n", b"\n")) and expected[1].endswith(
        PLAIN.replace(b"\r\n", b"\n")
    )
    with Sink("192.0.2.21") as sink:
        takeover.postfix.start(takeover.directory)
        try:
            takeover.postfix.machine.run("postsuper", "-c", takeover.directory, "-H", "ALL")
            takeover.postfix.machine.run("postqueue", "-c", takeover.directory, "-f")
            wait_for("Postfix delivers all", lambda: not takeover.host.all_files(), timeout=60)
        finally:
            takeover.postfix.stop(takeover.directory)
        heard = {mail.recipients[0]: mail for mail in sink.mail()}
    for recipient, sender, content in zip(
        ("x@sink.test", "y@sink.test", "z@sink.test"), ("acht@src.test", "plain@src.test", ""), expected, strict=False
    ):
        assert heard[recipient].sender == sender
        assert heard[recipient].content == content.replace(b"\n", b"\r\n")
    (stored,) = split_mbox(takeover.postfix.machine.path("/var/mail/carol").read_bytes())
    quoted = expected[3].replace(b"\nFrom me", b"\n>From me")
    assert stored.endswith(quoted + b"\n")
    head = stored[: -len(quoted) - 1].decode().splitlines()
    assert [line.split(":")[0] for line in head[1:]] == ["Return-Path", "X-Original-To", "Delivered-To"]
    takeover.postfix.machine.forget_mail()


def test_the_same_after_postsuper_has_requeued_them(takeover: Takeover) -> None:
    ids = held(takeover.host, ("acht@src.test", "x@sink.test", EIGHT_BIT), ("p@src.test", "y@sink.test", PLAIN))
    expected = [takeover.content(queue_id) for queue_id in ids]
    with Sink("192.0.2.21") as sink:
        takeover.postfix.start(takeover.directory)
        try:
            takeover.postfix.machine.run("postsuper", "-c", takeover.directory, "-H", "ALL")
            takeover.postfix.machine.run("postsuper", "-c", takeover.directory, "-r", "ALL")
            takeover.postfix.machine.run("postqueue", "-c", takeover.directory, "-f")
            wait_for("Postfix delivers all", lambda: len(sink.mail()) == 2, timeout=90)
        finally:
            takeover.postfix.stop(takeover.directory)
        heard = {mail.recipients[0]: mail.content for mail in sink.mail()}
    for recipient, content in zip(("x@sink.test", "y@sink.test"), expected, strict=True):
        assert heard[recipient].startswith(b"Received: ")
        assert heard[recipient].endswith(content.replace(b"\n", b"\r\n"))


def test_a_large_file_in_blocks_is_refused_and_never_sent_damaged(takeover: Takeover) -> None:
    body = b"Subject: large\r\n\r\n" + (b"y" * 78 + b"\r\n") * 10_000
    (queue_id,) = held(takeover.host, ("big@src.test", "x@sink.test", body))
    with Sink("192.0.2.21") as sink:
        takeover.postfix.start(takeover.directory)
        try:
            takeover.postfix.machine.run("postsuper", "-c", takeover.directory, "-H", "ALL")
            takeover.postfix.machine.run("postqueue", "-c", takeover.directory, "-f")
            wait_for("Postfix refuses it", lambda: bool(takeover.host.files("corrupt")))
        finally:
            takeover.postfix.stop(takeover.directory)
        assert sink.mail() == []
    (refused,) = takeover.host.files("corrupt")
    assert refused.name == queue_id and os.stat(refused).st_size > len(body) // 2
