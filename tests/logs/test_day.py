"""pflogsumm, fail2ban and logwatch read the log of a simulated day and count what clients and peers saw.

More than 2,000 messages and as many kinds of trouble as fit into a day, made by the real server, queue manager
and agents in half a minute of virtual time.
"""

import re

import pytest

from tests.logs import tools
from tests.logs.day import Day, simulate
from tests.logs.events import PLAN

LINE = re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d mx postfix/[\w/-]+\[\d+\]: \S")
RELAYED = {"relay", "unknown user", "rbl", "helo", "sender domain", "client access"}
"""Refusals that fail2ban's mode normal looks for; the others are temporary, or about one message."""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    found = simulate(tmp_path_factory.mktemp("day"), PLAN)
    assert found.ledger.received > 2000
    return found


@pytest.fixture(scope="module")
def _tools() -> None:
    if why := tools.missing():
        pytest.skip(why)
    tools.prepare()


def test_every_line_is_one_of_postfix_s(day: Day) -> None:
    for line in day.log.read_text().splitlines():
        assert LINE.match(line), line


@pytest.mark.usefixtures("_tools")
def test_pflogsumm_counts_what_the_ledger_counts(day: Day) -> None:
    ledger, books = day.ledger, day.books
    report = tools.pflogsumm(day.log)
    found = {}
    for number, unit, name in re.findall(r"(?m)^ +(\d+)([km]?) +([a-z/]+(?: [a-z/]+)*)", report.partition("Per-")[0]):
        found[name] = int(number) * {"": 1, "k": 1024, "m": 1024**2}[unit]
    deferrals = re.search(r"\((\d+)  deferrals\)", report)
    assert deferrals
    assert {**found, "deferrals": int(deferrals[1])} == {
        "received": ledger.received + ledger.events["lost in text"],  # it counts transactions that were begun
        "delivered": len(books.accepted) + day.postmarks(),
        "forwarded": ledger.forwarded,
        "deferred": len(ledger.deferred),
        "deferrals": len(books.deferred) + day.refused_connections,
        "bounced": len(books.refused) + ledger.unknown_domains + ledger.unknown_users,
        "rejected": ledger.refused.total(),
        "reject warnings": ledger.warned,
        "held": ledger.held,
        "discarded": ledger.discarded,
        "senders": len(ledger.senders),
        "recipients": len(day.delivered_to),
        "recipient hosts/domains": len({address.partition("@")[2] for address in day.delivered_to}),
        **{name: found[name] for name in ("bytes received", "bytes delivered", "sending hosts/domains")},
    }
    hours = re.findall(r"(?m)^    \d{4}-\d{4} +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)", report)
    assert len(hours) == 24
    assert [sum(map(int, column)) for column in zip(*hours, strict=True)] == [
        found["received"], found["delivered"], int(deferrals[1]), found["bounced"],
        found["rejected"] + ledger.warned + ledger.held + ledger.discarded,
    ]  # fmt: skip




@pytest.mark.usefixtures("_tools")
@pytest.mark.parametrize("mode", ["normal", "more", "extra", "rbl", "errors", "ddos", "auth", "aggressive"])
def test_fail2ban_matches_what_the_ledger_counts(day: Day, mode: str) -> None:
    events = day.ledger.events
    normal = sum(n for kind, n in day.ledger.refused.items() if kind in RELAYED)
    normal += events["pipelining"] + events["too many errors"]
    ddos = events["lost"] + events["auth"]
    matched, dated = tools.fail2ban(day.log, mode)
    assert matched == {
        "normal": normal, "more": normal, "extra": normal, "rbl": day.ledger.refused["rbl"],
        "errors": events["too many errors"], "ddos": ddos, "auth": 0, "aggressive": normal + ddos,
    }[mode]  # fmt: skip
    assert dated == len(day.log.read_text().splitlines())


@pytest.mark.usefixtures("_tools")
def test_logwatch_counts_what_the_ledger_counts_and_understands_every_line(day: Day) -> None:
    ledger, books, refused, events = day.ledger, day.books, day.ledger.refused, day.ledger.events
    report = tools.logwatch(day.log)
    assert "Unmatched" not in report
    summary = report.partition("Summary")[2].partition("Detail")[0]
    found = {name: int(number) for number, name in re.findall(r"(?m)^ +(\d+)   (\S.*?)   ", summary)}
    notices = day.postmarks("MAILER-DAEMON ") + sum(not sender for sender, _ in books.accepted)
    denied = {
        "5xx Reject relay denied": refused["relay"],
        "5xx Reject HELO/EHLO": refused["helo"],
        "5xx Reject unknown user": refused["unknown user"],
        "5xx Reject sender address": refused["sender access"],
        "5xx Reject client host": refused["client access"],
        "5xx Reject RBL": refused["rbl"],
        "5xx Reject message size": refused["size"],
    }
    accepted = ledger.received + events["lost in text"]
    later = {
        "4xx Reject recipient address": refused["greylisted"], "4xx Reject sender address": refused["sender domain"],
    }  # fmt: skip
    assert found == {
        **denied, **later,
        "Total 5xx Rejects": sum(denied.values()),
        "Total 4xx Rejects": sum(later.values()),
        "Warn Reject sender address": ledger.warned,
        "Total Warn Rejects": ledger.warned,
        "Reject warnings (warn_if_reject)": ledger.warned,
        "Accepted": accepted,
        "Rejected": sum(denied.values()),
        "Total": accepted + sum(denied.values()),
        "Placed on hold": ledger.held,
        "Discarded": ledger.discarded,
        "Connections": ledger.connections,
        "Disconnections": ledger.connections,
        "Connections lost (inbound)": events["lost"] + events["lost in text"],
        "Timeouts (inbound)": events["timeout"],
        "*Warning: Anvil limit reached": events["rate"],
        "SMTP dialog errors": events["non-SMTP"],
        "SMTP protocol violations": events["pipelining"] + events["too many errors"],
        "Delivered": day.postmarks(),
        "Sent via SMTP": len(books.accepted),
        "Forwarded": ledger.forwarded,
        "Deferred": len(ledger.deferred),
        "Deferrals": len(books.deferred) + day.refused_connections,
        "Connection failures (outbound)": day.refused_connections,
        "Bounced (local)": ledger.unknown_domains + ledger.unknown_users,
        "Bounced (remote)": len(books.refused),
        "Expired and returned to sender": ledger.expired,
        "Notifications sent": notices,
        "Removed from queue": ledger.received - ledger.held + ledger.forwarded + notices,
    }  # fmt: skip
