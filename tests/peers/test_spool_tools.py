"""Postfix's own tools read and change our spool."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.peers.host import DATA, SPOOL, Host
from tests.peers.postfix import Postfix
from tests.peers.spool_fixture import EIGHT_BIT, Filled, fill


@dataclass(frozen=True, slots=True)
class Tools:
    """Postfix's programs on the spool of a stopped MTA."""

    host: Host
    postfix: Postfix
    directory: str
    ids: Filled

    def run(self, *argv: str) -> str:
        """What a tool prints on stdout and stderr."""
        done = self.postfix.machine.run(argv[0], "-c", self.directory, *argv[1:], timeout=60)
        return (done.stdout + done.stderr).decode(errors="surrogateescape")

    def content(self, queue_id: str) -> bytes:
        """The message as postcat shows it."""
        return self.postfix.machine.run("postcat", "-c", self.directory, "-h", "-b", "-q", queue_id).stdout


@pytest.fixture(scope="module")
def tools(installed: Host, postfix_machine: Postfix) -> Iterator[Tools]:
    """A filled spool, the MTA stopped."""
    ids = fill(installed)
    directory = postfix_machine.tools_on(installed.machine, SPOOL, DATA, "mta")
    yield Tools(installed, postfix_machine, directory, ids)
    installed.purge()


def test_postcat_shows_the_envelope_and_every_byte_of_the_content(tools: Tools) -> None:
    for queue_id in tools.ids.all():
        text = tools.run("postcat", "-e", "-q", queue_id)
        assert "warning" not in text and "fatal" not in text
    assert tools.content(tools.ids.eight_bit).endswith(EIGHT_BIT.replace(b"\r\n", b"\n"))
    big = tools.content(tools.ids.big)
    assert big.endswith((b"0123456789" * 7 + b"\n") * 70_000) and len(big) < 5_000_000
    envelope = tools.run("postcat", "-e", "-q", tools.ids.many)
    assert len(re.findall(r"(?m)^recipient: defer", envelope)) == 67
    assert len(re.findall(r"(?m)^done_recipient: take", envelope)) == 133
    assert re.search(r"(?m)^sender: *$", tools.run("postcat", "-e", "-q", tools.ids.null))


def test_our_mailq_and_their_postqueue_print_the_same_lines(tools: Tools) -> None:
    theirs = tools.postfix.machine.run("postqueue", "-c", tools.directory, "-p")
    assert b"Mail system is down -- accessing queue directly" in theirs.stderr
    ours = tools.host.machine.run("mailq")
    assert ours.stdout.decode() == theirs.stdout.decode()
    text = theirs.stdout.decode()
    for queue_id in tools.ids.all():
        assert queue_id in text
    assert f"{tools.ids.hold}!" in text and f"{tools.ids.active}*" in text
    assert "MAILER-DAEMON" in text and "Connection refused" in text and "450 4.2.1 come back later" in text
    assert text.endswith("in 7 Requests.\n")
    listed = tools.postfix.machine.run("postqueue", "-c", tools.directory, "-j").stdout
    assert listed.count(b"\n") == 7


def test_qshape_counts_what_is_deferred_by_domain(tools: Tools) -> None:
    table = tools.run("qshape", "deferred")
    rows = {line.split()[0]: int(line.split()[1]) for line in table.splitlines()[1:]}
    assert rows["TOTAL"] == 67 + 4 and rows["sink.test"] == 67 and rows["alldown.test"] == 3


def test_postsuper_finds_nothing_to_repair_and_deletes_what_it_is_told(tools: Tools) -> None:
    assert tools.run("postsuper", "-s") == ""
    assert {p.name for p in tools.host.all_files()} == set(tools.ids.all())
    told = tools.run("postsuper", "-d", tools.ids.null)
    assert "Deleted: 1 message" in told
    assert tools.ids.null not in {p.name for p in tools.host.all_files()}
    assert tools.ids.null not in {p.name for p in tools.host.files("defer")}
    tools.run("postsuper", "-h", tools.ids.eight_bit)
    assert tools.ids.eight_bit in {p.name for p in tools.host.files("hold")}
    tools.run("postsuper", "-H", tools.ids.eight_bit)


def test_afterwards_our_daemon_goes_on_with_the_spool(tools: Tools) -> None:
    before = {p.name for p in tools.host.all_files()}
    tools.host.start()
    listed = {str(entry["queue_id"]) for entry in tools.host.queue()}
    running = tools.host.machine.run("mailq").stdout.decode()
    tools.host.stop()
    assert listed <= before and {tools.ids.hold, tools.ids.big, tools.ids.many} <= listed
    assert tools.ids.hold in running
    assert tools.host.files("corrupt") == []
