"""The laboratory itself: what the other tests rely on."""

import smtplib
from functools import partial

from tests.peers.exim import Exim
from tests.peers.machine import Machine, wait_for
from tests.peers.postfix import Postfix


def has_mail(machine: Machine, user: str, subject: str) -> bool:
    return f"Subject: {subject}\n" in machine.mailbox(user)


def test_the_two_peers_deliver_to_a_mailbox_over_real_dns(postfix: Postfix, exim: Exim) -> None:
    for peer, domain in ((postfix.machine, "postfix.test"), (exim.machine, "exim.test")):
        with smtplib.SMTP(peer.address, 25, timeout=20) as client:
            client.sendmail("a@src.test", [f"alice@{domain}"], f"Subject: hello {domain}\r\n\r\nhi\r\n")
        wait_for(f"mail at {domain}", partial(has_mail, peer, "alice", f"hello {domain}"))
    postfix.machine.run("sendmail", "-t", "-i", stdin=b"To: bob@exim.test\nSubject: across\n\nhi\n", user="alice")
    wait_for("Postfix finds Exim behind a host that is down", lambda: "Subject: across" in exim.machine.mailbox("bob"))
    refused = "connect to down.test[192.0.2.13]:25: Connection refused"
    wait_for("its log says so", lambda: refused in postfix.log())


def test_the_peers_refuse_unknown_users_at_once(postfix: Postfix, exim: Exim) -> None:
    for peer, domain in ((postfix.machine, "postfix.test"), (exim.machine, "exim.test")):
        with smtplib.SMTP(peer.address, 25, timeout=20) as client:
            client.ehlo()
            client.mail("a@src.test")
            assert client.rcpt(f"nosuch@{domain}")[0] == 550


def test_greylisting_says_450_first(postfix: Postfix) -> None:
    postfix.start_greylisting(delay=2)
    with smtplib.SMTP(postfix.machine.address, 25, timeout=20) as client:
        client.ehlo()
        client.mail("lab@src.test")
        assert client.rcpt("alice@grey.test")[0] == 450
