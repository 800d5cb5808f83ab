"""Mail comes in by the programs people use."""

import email.policy
from email import message_from_string
from functools import partial

from tests.peers.host import Host
from tests.peers.machine import wait_for


def subjects(host: Host, user: str) -> list[str]:
    return [str(message["subject"]) for message in host.messages(user)]


def wait_for_subject(host: Host, user: str, subject: str) -> None:
    wait_for(f"{subject!r} in the mailbox of {user}", lambda: subject in subjects(host, user))


def test_swaks_hands_a_message_to_port_25_and_it_is_in_the_mailbox(host: Host) -> None:
    done = host.machine.run(
        *("swaks", "--server", "127.0.0.1", "--from", "x@src.test", "--to", "alice@host.test,bob@host.test"),
        *("--header", "Subject: by swaks", "--body", ".\nFrom here on\n..\n"),
    )
    assert b"250 2.0.0 Ok: queued as" in done.stdout
    for user in ("alice", "bob"):
        wait_for_subject(host, user, "by swaks")
        (message,) = host.messages(user)
        assert message.get_content().rstrip("\n") == ".\n>From here on\n.."
        assert message["delivered-to"] == f"{user}@host.test"
        assert message["return-path"] == "<x@src.test>"
    host.wait_idle()


def test_swaks_hears_of_an_unknown_user_and_of_relaying_what_postfix_says(host: Host) -> None:
    unknown = host.machine.run("swaks", "--server", "127.0.0.1", "--to", "nosuch@host.test", status=None)
    assert b"550 5.1.1 <nosuch@host.test>: Recipient address rejected: User unknown in local recipient table" in (
        unknown.stdout
    )
    host.restart({"mynetworks": "127.0.0.9/32"})
    relaying = host.machine.run("swaks", "--server", "127.0.0.1", "--to", "a@postfix.test", status=None)
    assert b"454 4.7.1 <a@postfix.test>: Relay access denied" in relaying.stdout


def test_s_nail_sends_through_sendmail_and_through_smtp(host: Host) -> None:
    m = host.machine
    m.run("s-nail", "-s", "by s-nail", "carol@host.test", stdin="Grüße\n".encode(), user="alice")
    wait_for_subject(host, "carol", "by s-nail")
    smtp = ("-S", "v15-compat=yes", "-S", "mta=smtp://127.0.0.1", "-S", "smtp-auth=none", "-S", "from=alice@host.test")
    m.run("s-nail", *smtp, "-s", "by s-nail smtp", "carol@host.test", stdin=b"hello\n", user="alice")
    wait_for_subject(host, "carol", "by s-nail smtp")
    first = host.messages("carol")[0]
    assert str(first["from"]) == '"Alice Q. Tester" <alice@host.test>'
    assert first["message-id"] and first["date"]


def test_bsd_mailx_sends_and_its_bcc_stays_secret(host: Host) -> None:
    host.machine.run("bsd-mailx", "-s", "by mailx", "-b", "carol", "-c", "bob", "alice", stdin=b"hi\n", user="bob")
    for user in ("alice", "bob", "carol"):
        wait_for_subject(host, user, "by mailx")
        (message,) = host.messages(user)
        assert message["bcc"] is None and "carol" not in str(message["to"]) + str(message["cc"])


def test_the_output_of_a_real_cron_job_is_in_the_mailbox(host: Host) -> None:
    m = host.machine
    m.write("/etc/crontab", "PATH=/usr/bin:/bin\n@reboot bob printf 'line one\\n.\\nno newline at the end'\n")
    m.path("/run/crond.reboot").unlink(missing_ok=True)
    cron = m.spawn("cron", "-f")
    try:
        wait_for("mail of cron", lambda: bool(host.messages("bob")), timeout=45)
    finally:
        m.end(cron)
    (message,) = host.messages("bob")
    assert str(message["subject"]).startswith("Cron <bob@")
    assert str(message["to"]) == "bob@host.test"
    assert "\nFrom: root@host.test (Cron Daemon)\n" in m.mailbox("bob")
    assert message.get_content() == "line one\n.\nno newline at the end\n\n"
    assert message["message-id"] and message["date"]


def test_mail_that_is_submitted_while_the_daemon_is_down_arrives_when_it_is_up(host: Host) -> None:
    host.stop()
    host.sendmail("-t", "-i", message="To: alice\nSubject: kept\n\nhi\n", user="bob")
    assert [path.parent.name for path in host.all_files()] == ["maildrop"]
    status = host.machine.run("mta", "status", status=1)
    assert b"maildrop" in status.stderr
    host.start()
    wait_for_subject(host, "alice", "kept")
    host.wait_idle()


def test_an_alias_with_two_members_reaches_both_once(host: Host) -> None:
    host.sendmail("-i", "team", message="Subject: to the team\n\nhi\n", user="alice")
    for user in ("bob", "carol"):
        wait_for("mail for the team", partial(lambda who: subjects(host, who) == ["to the team"], user))
    host.wait_idle()
    assert subjects(host, "bob") == subjects(host, "carol") == ["to the team"]


def test_a_message_is_what_was_typed_with_our_headers_on_top(host: Host) -> None:
    text = "From: Bob <bob>\nTo: alice\nSubject: order\n\nbody\n"
    host.sendmail("-t", message=text, user="bob")
    wait_for_subject(host, "alice", "order")
    stored = host.machine.mailbox("alice").partition("\n")[2]
    names = [name for name, _ in message_from_string(stored, policy=email.policy.compat32).items()]
    assert names == [
        "Return-Path",
        "X-Original-To",
        "Delivered-To",
        "Received",
        "From",
        "To",
        "Subject",
        "Message-Id",
        "Date",
    ]
