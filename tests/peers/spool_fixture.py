"""A spool that holds every kind of message, for programs that read it."""

import os
import smtplib
import socket
from dataclasses import dataclass

from tests.peers.host import SPOOL, Host
from tests.peers.machine import wait_for
from tests.peers.sink import Sink

SETTINGS = {
    "smtpd_sender_restrictions": "check_sender_access inline:{hold@src.test=HOLD, incoming@src.test=HOLD}",
    "minimal_backoff_time": "1000s",
    "maximal_backoff_time": "1000s",
    "queue_run_delay": "300s",
    "smtp_helo_timeout": "300s",
}
# a whole header, so that nothing is added to it
HEAD = b"From: x@src.test\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\nMessage-Id: <1@src.test>\r\n"
EIGHT_BIT = (
    HEAD
    + b"Subject: acht Bit\r\n\r\nGr\xfc\xdfe und \xe2\x82\xac\r\n.\r\n..zwei\r\n>From me\r\nFrom me\r\n"
    + b"x" * 5000
    + b"\r\n"
)


@dataclass(frozen=True, slots=True)
class Filled:
    """Queue ids by what is special about the message."""

    big: str
    many: str
    null: str
    eight_bit: str
    active: str
    incoming: str
    hold: str

    def all(self) -> tuple[str, ...]:
        """Every id."""
        return (self.big, self.many, self.null, self.eight_bit, self.active, self.incoming, self.hold)


def submit(host: Host, sender: str, recipients: list[str], content: bytes) -> str:
    """Send by SMTP; returns the queue id that the 250 names."""
    with smtplib.SMTP(host.machine.address, 25, timeout=60) as client:
        client.ehlo("client.test")
        code, text = client.mail(sender, ["body=8bitmime", f"size={len(content)}"])
        assert code == 250, text
        for recipient in recipients:
            code, text = client.rcpt(recipient)
            assert code == 250, text
        code, text = client.data(content)
        assert code == 250, text
        return text.decode().rpartition(" ")[2]


def fill(host: Host) -> Filled:
    """Fill the spool of a host and leave the MTA stopped as by a crash, so that one message stays active."""
    host.purge()
    host.restart(SETTINGS)
    body = b"Subject: five megabytes\r\n\r\n" + (b"0123456789" * 7 + b"\r\n") * 70_000
    many = [f"{'defer' if n % 3 == 0 else 'take'}{n}@sink.test" for n in range(200)]
    with Sink("192.0.2.21") as sink, socket.create_server(("192.0.2.22", 25)):
        ids = {
            "big": submit(host, "big@src.test", ["a@alldown.test"], body),
            "many": submit(host, "many@src.test", many, b"Subject: many\r\n\r\nhello\r\n"),
            "null": submit(host, "", ["b@alldown.test"], b"Subject: no sender\r\n\r\nhello\r\n"),
            "eight_bit": submit(host, "acht@src.test", ["c@alldown.test", "d@broken"], EIGHT_BIT),
            "active": submit(host, "active@src.test", ["e@hang.test"], b"Subject: hangs\r\n\r\nhello\r\n"),
            "incoming": submit(host, "incoming@src.test", ["f@sink.test", "carol@host.test"], EIGHT_BIT),
            "hold": submit(host, "hold@src.test", ["g@sink.test"], b"Subject: held\r\n\r\nhello\r\n"),
        }
        filled = Filled(**ids)
        deferred = {filled.big, filled.many, filled.null, filled.eight_bit}
        wait_for("all but one are done", lambda: {p.name for p in host.files("deferred")} == deferred, timeout=60)
        wait_for("the recipients in between have it", lambda: sum(len(h.recipients) for h in sink.mail()) == 133)
        wait_for("one is active", lambda: [p.name for p in host.files("active")] == [filled.active])
        host.machine.run("mta", "abort")
    # what a crash between commit and claim leaves
    spool = host.machine.path(SPOOL)
    os.rename(spool / "hold" / filled.incoming, spool / "incoming" / filled.incoming)
    return filled
