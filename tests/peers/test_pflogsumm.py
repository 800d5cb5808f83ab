"""pflogsumm (Debian's) reads our log and counts what a ledger counts."""

import re
import smtplib
from dataclasses import dataclass, field

from tests.peers.host import LOG, Host
from tests.peers.machine import wait_for
from tests.peers.sink import Sink


@dataclass
class Ledger:
    """What the outside saw."""

    received: int = 0
    delivered: int = 0
    deferred: set[str] = field(default_factory=set)
    bounced: int = 0
    rejected: int = 0
    sent: list[tuple[int, list[str]]] = field(default_factory=list)


def grand_totals(text: str) -> dict[str, int]:
    """The numbers of pflogsumm's first table; `4096k` is 4096 * 1024."""
    found = {}
    for number, unit, name in re.findall(r"(?m)^ +(\d+)([km]?) +([a-z]+(?: [a-z]+)*)", text.partition("Per-")[0]):
        found[name] = int(number) * {"": 1, "k": 1024, "m": 1024**2}[unit]
    return found


def test_for_two_hundred_messages_the_numbers_are_those_of_the_ledger(host: Host) -> None:
    host.restart({"minimal_backoff_time": "1000s", "maximal_backoff_time": "1000s"})
    ledger = Ledger()
    with Sink("192.0.2.21") as sink:
        for start in range(0, 210, 15):
            with smtplib.SMTP("127.0.0.1", 25, timeout=30) as client:
                for n in range(start, start + 15):
                    one(client, n, ledger)
        wait_for("nothing left but the deferred", lambda: settled(host, ledger), timeout=60)
        heard = sum(len(mail.recipients) for mail in sink.mail())
    host.stop()
    assert heard + len(host.messages("alice")) == ledger.delivered
    notices = host.messages("bob")
    assert len(notices) == ledger.bounced
    totals = grand_totals(host.machine.output("pflogsumm", LOG))
    assert totals["received"] == ledger.received  # pflogsumm counts what came by smtpd or pickup
    assert totals["delivered"] == ledger.delivered + len(notices)
    assert totals["deferred"] == len(ledger.deferred)
    assert totals["bounced"] == ledger.bounced
    assert totals["rejected"] == ledger.rejected
    sizes = dict(re.findall(r"qmgr\[\d+\]: (\w+): from=<[^>]*>, size=(\d+)", host.log()))
    delivered = re.findall(r": (\w+): to=<[^>]*>.* status=sent", host.log())
    taken_in = set(re.findall(r"(?:smtpd|pickup)\[\d+\]: (\w+): (?:client|uid)=", host.log()))
    assert totals["bytes received"] == kilo(sum(int(sizes[queue_id]) for queue_id in taken_in))
    assert totals["bytes delivered"] == kilo(sum(int(sizes[queue_id]) for queue_id in delivered))


def kilo(number: int) -> int:
    """As pflogsumm rounds above 512 k."""
    return number if number <= 524288 else int(number / 1024 + 0.5) * 1024


def one(client: smtplib.SMTP, n: int, ledger: Ledger) -> None:
    """The n-th message: delivered to one or two, deferred, bounced, or refused."""
    recipients = {0: [f"defer{n}@sink.test"], 1: [f"refuse{n}@sink.test"], 2: ["nosuch@host.test"]}.get(
        n % 10, ["alice@host.test"] if n % 2 else [f"a{n}@sink.test", f"b{n}@sink.test"]
    )
    try:
        client.sendmail("bob@host.test", recipients, f"Subject: {n}\r\n\r\n{'x' * (10 * n)}\r\n")
    except smtplib.SMTPRecipientsRefused:
        ledger.rejected += 1
        return
    ledger.received += 1
    match n % 10:
        case 0:
            ledger.deferred.add(recipients[0])
        case 1:
            ledger.bounced += 1
        case _:
            ledger.delivered += len(recipients)


def settled(host: Host, ledger: Ledger) -> bool:
    """True when each message has had its attempt; looks twice: a notice is made while its message goes."""
    return all(len(host.all_files()) == len(ledger.deferred) == len(host.files("deferred")) for _ in range(2))
