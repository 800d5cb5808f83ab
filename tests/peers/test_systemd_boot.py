"""A real systemd runs our units, sandbox and all."""

import shutil
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.booted import Booted
from tests.peers.build import ROOT
from tests.peers.host import Host
from tests.peers.machine import Machine, wait_for

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
    with smtplib.SMTP("127.0.0.1", 25, timeout=20) as client:
        client.sendmail("x@src.test", ["alice@host.test"], "Subject: by port\r\n\r\nhi\r\n")
    host.sendmail("-i", "alice", message="Subject: by program\n\nhi\n", user="bob")
    for subject in ("by port", "by program"):
        wait_for(f"{subject}: {booted.log()}", lambda s=subject: arrived(host, s))  # type: ignore[misc]  # mypy #12557
    assert host.machine.output("stat", "-c", "%U", "/var/mail/alice").strip() == "alice"
    uid = host.machine.output("id", "-u", "bob").strip()
    assert f"uid={uid} from=<bob>" in booted.log()


def test_reload_keeps_the_process_and_the_service_goes_on(host: Host, booted: Booted) -> None:
    before = pid(booted)
    booted.run("systemctl", "reload", "mta.service")
    host.sendmail("-i", "alice", message="Subject: after reload\n\nhi\n", user="bob")
    wait_for("mail after a reload", lambda: arrived(host, "after reload"))
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
