"""Mail goes out over real DNS to real servers, and what they answer comes back to people."""

import re
from email.message import EmailMessage
from functools import partial

import pytest

from tests.peers.exim import Exim
from tests.peers.host import Host, parse_mbox
from tests.peers.machine import Machine, wait_for
from tests.peers.postfix import Postfix


def send(host: Host, recipient: str, subject: str) -> None:
    """A message from bob, whose mailbox gets the bounces."""
    host.sendmail("-i", recipient, message=f"To: {recipient}\nSubject: {subject}\n\nGrüße\n", user="bob")


def arrived(machine: Machine, user: str, subject: str) -> int:
    return sum(message["subject"] == subject for message in parse_mbox(machine.mailbox(user).encode()))


def has(machine: Machine, user: str, subject: str) -> bool:
    return arrived(machine, user, subject) > 0


def bounce_of(host: Host) -> EmailMessage:
    """The one notice in bob's mailbox."""
    wait_for("a notice for bob", lambda: bool(host.messages("bob")))
    (notice,) = host.messages("bob")
    return notice


def report(notice: EmailMessage) -> dict[str, str]:
    """The per-recipient part of an RFC 3464 report, as the email package reads it."""
    assert notice.get_content_type() == "multipart/report"
    assert notice.get_param("report-type") == "delivery-status"
    human, status, original = notice.iter_parts()
    assert human.get_content_type() == "text/plain"
    assert status.get_content_type() == "message/delivery-status"
    assert original.get_content_type() in ("message/rfc822", "text/rfc822-headers")
    per_message, per_recipient = status.iter_parts()
    assert per_message["Reporting-MTA"] == "dns; mx.host.test"
    return {name.lower(): str(value) for name, value in per_recipient.items()}


@pytest.mark.parametrize("domain", ["postfix.test", "exim.test", "nomx.test", "alias.test"])
def test_the_mail_exchanger_is_found_even_when_the_preferred_one_is_down(
    host: Host, postfix: Postfix, exim: Exim, domain: str
) -> None:
    peer = (postfix if domain == "postfix.test" else exim).machine
    send(host, f"carol@{domain}", f"for {domain}")
    wait_for(f"delivery to {domain}", partial(has, peer, "carol", f"for {domain}"))
    host.wait_idle()
    assert arrived(peer, "carol", f"for {domain}") == 1
    host.wait_logged(f"to=<carol@{domain}>, relay={'mx.postfix' if domain == 'postfix.test' else ''}")
    if domain in ("postfix.test", "exim.test"):
        host.wait_logged("connect to down.test[192.0.2.13]:25: Connection refused")


def verdict(log: str, recipient: str) -> tuple[str, str, str]:
    """(dsn, status, text) of the last delivery line of a recipient; empty when there is none yet."""
    found = re.findall(rf"to=<{re.escape(recipient)}>.*, dsn=([\d.]+), status=(\w+) \((.*)\)$", log, re.MULTILINE)
    if not found:
        return "", "", ""
    dsn, status, text = found[-1]
    if "nullMX" in text:
        dsn = "5.1.10"  # RFC 7505 s4; Postfix says 5.1.0
    return dsn, status, re.sub(r" type=\w+:", " type=MX:", text)  # Postfix names the last type it asked for


@pytest.mark.parametrize("domain", ["nullmx.test", "nowhere.test", "nodata.test", "mail.broken", "alldown.test"])
def test_what_cannot_be_delivered_has_the_status_and_the_text_that_postfix_gives(
    host: Host, postfix: Postfix, domain: str
) -> None:
    recipient = f"a@{domain}"
    send(host, recipient, "cannot be")
    postfix.machine.run("sendmail", "-i", "-f", "", recipient, stdin=b"Subject: x\n\nx\n")
    wait_for("our verdict", lambda: verdict(host.log(), recipient) != ("", "", ""))
    wait_for("that of Postfix", lambda: verdict(postfix.log(), recipient) != ("", "", ""))
    assert verdict(host.log(), recipient) == verdict(postfix.log(), recipient)
    if verdict(host.log(), recipient)[1] == "bounced":
        fields = report(bounce_of(host))
        assert fields["final-recipient"] == f"rfc822; {recipient}" and fields["action"] == "failed"
        assert fields["status"] == verdict(host.log(), recipient)[0]
        host.wait_idle()
    else:
        wait_for("a second attempt", lambda: host.log().count("status=deferred") >= 2)
        wait_for("it is listed", lambda: len(host.queue()) == 1)  # not while a rename hides it
        assert host.messages("bob") == []


def test_mail_that_would_come_back_to_us_is_bounced(host: Host) -> None:
    send(host, "a@loop.test", "loop")
    assert report(bounce_of(host))["status"] == "5.4.6"
    host.wait_logged("status=bounced (mail for loop.test loops back to myself)")


def test_a_550_of_a_real_postfix_comes_back_as_a_report_that_programs_can_read(host: Host, postfix: Postfix) -> None:
    send(host, "nosuch@postfix.test", "to nobody")
    notice = bounce_of(host)
    assert notice["return-path"] == "<>" and notice["to"] == "bob@host.test"
    assert "MAILER-DAEMON" in str(notice["from"]) and notice["auto-submitted"] == "auto-replied"
    fields = report(notice)
    assert fields["final-recipient"] == "rfc822; nosuch@postfix.test"
    assert fields["action"] == "failed" and fields["status"] == "5.1.1"
    assert fields["remote-mta"] == "dns; mx.postfix.test"
    diagnostic = re.sub(r"\s+", " ", fields["diagnostic-code"])
    assert diagnostic.startswith("smtp; 550 5.1.1 <nosuch@postfix.test>: Recipient address rejected: User unknown")
    original = list(notice.iter_parts())[2]
    assert "Subject: to nobody" in original.as_string()
    host.wait_logged("(in reply to RCPT TO command)")
    host.wait_idle()


def test_a_550_of_a_real_exim_is_reported_too(host: Host, exim: Exim) -> None:
    send(host, "nosuch@exim.test", "to nobody")
    assert report(bounce_of(host))["diagnostic-code"].startswith("smtp; 550")
    host.wait_idle()


def test_greylisting_ends_in_exactly_one_delivery(host: Host, postfix: Postfix) -> None:
    postfix.start_greylisting(delay=2)
    send(host, "alice@grey.test", "patience")
    wait_for("delivery after a 450", lambda: arrived(postfix.machine, "alice", "patience") > 0, timeout=60)
    host.wait_idle()
    assert arrived(postfix.machine, "alice", "patience") == 1
    host.stop()
    log = host.log()
    assert re.search(r"status=deferred \(host mx\.postfix\.test\[192\.0\.2\.11\] said: 450 4\.2\.0 .*Greylisted", log)
    assert log.count("status=sent") == 1 and host.messages("bob") == []
