"""A real systemd runs our units, sandbox and all."""

import json
import re
import shutil
import smtplib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.peers.booted import Booted
from tests.peers.build import ROOT
from tests.peers.host import Host
from tests.peers.machine import Machine, wait_for
from tests.system.support_load import Load

SOCKETS = ("mta-smtp.socket", "mta-submit.socket", "mta-local.socket")


@pytest.fixture(scope="module")
def host(run_directory: Path, dns: Machine, installed: Host) -> Iterator[Host]:
    """A machine of its own with our package and units, not started; the other one leaves its port to it."""
    installed.stop()
    machine = Machine("booted", "127.0.0.1", "host", run_directory)
    found = Host(machine)
    found.configure({"maillog_file": "", "inet_interfaces": "loopback-only", "inet_protocols": "all"})
    for path in (ROOT / "systemd").iterdir():
        if path.suffix in (".service", ".socket"):
            shutil.copyfile(path, machine.path(f"/etc/systemd/system/{path.name}"))
    yield found
    machine.close()


@pytest.fixture(scope="module")
def booted(host: Host) -> Iterator[Booted]:
    """The machine, booted, with sockets and service started as `systemctl enable --now` does."""
    found = Booted(host.machine)
    try:
        found.run("systemctl", "start", *SOCKETS, "mta.service")
        yield found
    finally:
        found.close()


def arrived(host: Host, subject: str) -> bool:
    return f"Subject: {subject}\n" in host.machine.mailbox("alice")


def pid(booted: Booted) -> str:
    return booted.run("systemctl", "show", "-P", "MainPID", "mta.service")[1].strip()


def test_the_service_is_ready_and_runs_as_mta_without_any_capability(booted: Booted) -> None:
    assert booted.run("systemctl", "is-active", "mta.service")[1].strip() == "active"
    status = booted.run("cat", f"/proc/{pid(booted)}/status")[1]
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [booted.run("id", "-u", "mta")[1].strip()] * 4
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"


def test_mail_from_port_25_and_from_sendmail_reaches_a_mailbox(host: Host, booted: Booted) -> None:
    with smtplib.SMTP("127.0.0.1", 25, timeout=60) as client:
        client.sendmail("x@src.test", ["alice@host.test"], "Subject: by port\r\n\r\nhi\r\n")
    host.sendmail("-i", "alice", message="Subject: by program\n\nhi\n", user="bob")
    for subject in ("by port", "by program"):
        wait_for(subject, lambda s=subject: arrived(host, s))  # type: ignore[misc]  # mypy #12557
    assert host.machine.output("stat", "-c", "%U", "/var/mail/alice").strip() == "alice"
    uid = host.machine.output("id", "-u", "bob").strip()
    wait_for("a line of pickup", lambda: f"uid={uid} from=<bob>" in booted.log())


def test_the_journal_has_fields_beside_the_text(host: Host, booted: Booted) -> None:
    with smtplib.SMTP("127.0.0.1", 25, timeout=60) as client:
        client.sendmail("x@src.test", ["alice@host.test"], "Subject: fields\r\n\r\nhi\r\n")
    wait_for("mail", lambda: arrived(host, "fields"))

    def entries(*match: str) -> list[dict[str, str]]:
        out = booted.run("journalctl", "-o", "json", "--no-pager", *match, status=None)[1]
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    wait_for("its first lines", lambda: bool(entries("MTA_FROM=x@src.test")))
    received = entries("MTA_FROM=x@src.test")[-1]
    queue_id = received["QUEUE_ID"]
    mine = f"QUEUE_ID={queue_id}"
    wait_for("all lines of it", lambda: any(e["MESSAGE"].endswith(": removed") for e in entries(mine)))
    found = entries(mine)
    sent = next(e for e in found if "MTA_STATUS" in e)
    assert sent["MTA_TO"] == "alice@host.test" and sent["MTA_STATUS"] == "sent" and sent["PRIORITY"] == "6"
    assert sent["SYSLOG_IDENTIFIER"] == "postfix/local" and sent["_SYSTEMD_UNIT"] == "mta.service"
    assert sent["_TRANSPORT"] == "journal" and sent["SYSLOG_FACILITY"] == "2"
    assert {e["SYSLOG_IDENTIFIER"] for e in found} >= {"postfix/smtpd", "postfix/cleanup", "postfix/qmgr"}
    short = booted.run("journalctl", "-o", "short", "--no-pager", mine)[1]
    booted.run("sh", "-c", "journalctl -u mta.service -o short --no-pager > /root/journal")
    lines = re.findall(r"(?:smtpd|pickup)\[\d+\]: \w+: (?:client|uid)=", host.machine.read("/root/journal"))
    assert re.search(rf"(?m)^ +{len(lines)}   received$", booted.run("pflogsumm", "/root/journal")[1])
    assert re.search(rf" postfix/local\[\d+\]: {queue_id}: to=<alice@host.test>, relay=local, ", short)


def test_the_submission_ports_are_served_when_their_sockets_are_started(host: Host, booted: Booted) -> None:
    master = host.machine.read("/etc/mta/master.cf")
    extra = "submission inet n - n - - smtpd\n  -o syslog_name=postfix/submission\n"
    host.machine.write("/etc/mta/master.cf", f"{master}\n{extra}")
    booted.run("systemctl", "stop", "mta.service")
    booted.run("systemctl", "start", "mta-submission.socket")
    with smtplib.SMTP("127.0.0.1", 587, timeout=30) as client:
        client.sendmail("x@src.test", ["alice@host.test"], "Subject: at 587\r\n\r\nhi\r\n")
    wait_for("mail", lambda: arrived(host, "at 587"))
    booted.run("systemctl", "stop", "mta-submission.socket", "mta.service")
    wait_for("the end of its log", lambda: "terminating on signal 15" in booted.log())
    assert "error: inherited socket" not in booted.log()
    host.machine.write("/etc/mta/master.cf", master)
    booted.run("systemctl", "start", "mta.service")


def stored(booted: Booted) -> str:
    """How many descriptors systemd keeps for the service."""
    return booted.run("systemctl", "show", "-P", "NFileDescriptorStore", "mta.service")[1].strip()


def flows(load: Load, number: int) -> bool:
    return len(load.accepted) > number


def test_a_restart_under_load_loses_no_connection(host: Host, booted: Booted) -> None:
    """Port 25 is held by a socket unit, port 2525 by the daemon itself, and in between by systemd's store."""
    master = host.machine.read("/etc/mta/master.cf")
    host.machine.write("/etc/mta/master.cf", f"{master}\n2525 inet n - n - - smtpd\n")
    booted.run("systemctl", "reload", "mta.service")
    wait_for("two listeners in the store", lambda: stored(booted) == "2")
    before = len(host.messages("carol"))
    loads = [Load(25, "carol@host.test", 2), Load(2525, "carol@host.test", 2)]
    for _ in range(2):
        known = [len(load.accepted) for load in loads]
        booted.run("systemctl", "restart", "mta.service")
        for load, number in zip(loads, known, strict=True):
            wait_for("mail flows again", partial(flows, load, number + 5))
    for load in loads:
        load.stop()
        assert load.failures == []
    count = sum(len(load.accepted) for load in loads)
    wait_for("all delivered", lambda: len(host.messages("carol")) - before >= count, timeout=60)
    assert len(host.messages("carol")) - before == count
    host.machine.write("/etc/mta/master.cf", master)
    booted.run("systemctl", "restart", "mta.service")
    wait_for("nothing in the store", lambda: stored(booted) == "0")


def test_a_scheduler_that_stands_still_is_restarted_by_the_watchdog(host: Host, booted: Booted) -> None:
    drop_in = "/run/systemd/system/mta.service.d/watchdog.conf"
    write = f"mkdir -p $(dirname {drop_in}) && printf '[Service]\\nWatchdogSec=2\\n' > {drop_in}"
    booted.run("sh", "-c", write)
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "restart", "mta.service")
    first = pid(booted)
    children = booted.run("cat", f"/proc/{first}/task/{first}/children")[1].split()
    booted.run("kill", "-STOP", *children)
    wait_for("a new first process", lambda: pid(booted) not in (first, "0"), timeout=60)
    assert booted.run("systemctl", "show", "-P", "NRestarts", "mta")[1].strip() == "1"
    wait_for("served again", lambda: booted.run("systemctl", "is-active", "mta", status=None)[1].strip() == "active")
    with socket.create_connection(("127.0.0.1", 25), 20) as client:
        assert client.recv(512).startswith(b"220 ")
    assert booted.run("systemctl", "show", "-P", "StatusText", "mta")[1].strip() == "serving"
    booted.run("rm", drop_in)
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "restart", "mta.service")


def test_reload_keeps_the_process_and_the_service_goes_on(host: Host, booted: Booted) -> None:
    before = pid(booted)
    booted.run("systemctl", "reload", "mta.service")
    host.sendmail("-i", "alice", message="Subject: after reload\n\nhi\n", user="bob")
    wait_for("mail after a reload", lambda: arrived(host, "after reload"))
    assert pid(booted) == before


def test_a_reload_of_a_broken_configuration_fails_and_the_service_goes_on(host: Host, booted: Booted) -> None:
    main = host.machine.read("/etc/mta/main.cf")
    host.machine.write("/etc/mta/main.cf", f"{main}queue_run_delay = soon\n")
    before = pid(booted)
    assert booted.run("systemctl", "reload", "mta.service", status=None)[0] != 0
    wait_for("the reason", lambda: "queue_run_delay = soon: expected a time" in booted.log())
    host.machine.write("/etc/mta/main.cf", main)
    booted.run("systemctl", "reload", "mta.service")
    host.sendmail("-i", "alice", message="Subject: unimpressed\n\nhi\n", user="bob")
    wait_for("mail after that", lambda: arrived(host, "unimpressed"))
    assert pid(booted) == before


def test_a_client_that_connects_while_the_daemon_restarts_is_served(host: Host, booted: Booted) -> None:
    booted.run("systemctl", "stop", "mta.service")
    assert booted.run("systemctl", "show", "-P", "Result", "mta.service")[1].strip() == "success"
    with smtplib.SMTP("127.0.0.1", 25, timeout=30) as client:  # systemd starts it for this connection
        client.sendmail("x@src.test", ["alice@host.test"], "Subject: woke it\r\n\r\nhi\r\n")
    wait_for("mail for which the daemon was started", lambda: arrived(host, "woke it"))


def test_sendmail_starts_a_daemon_that_is_down(host: Host, booted: Booted) -> None:
    booted.run("systemctl", "stop", "mta.service")
    host.sendmail("-i", "alice", message="Subject: knocked\n\nhi\n", user="bob")
    wait_for("mail for which the daemon was started", lambda: arrived(host, "knocked"))
    assert booted.run("systemctl", "is-active", "mta.service")[1].strip() == "active"
