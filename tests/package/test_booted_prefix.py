"""`mta install` below a prefix on a booted Debian: systemd runs what it wrote, and uninstall takes it away."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package.container import Container
from tests.package.test_booted import arrived, file_list, send
from tests.peers.machine import wait_for

MTA = "/opt/aiomta/bin/mta"
SOCKETS = ("mta-smtp.socket", "mta-submit.socket", "mta-local.socket")


@pytest.fixture
def box(run_directory: Path, opt_aiomta: Path) -> Iterator[Container]:
    """No mail system but our files in /opt/aiomta."""
    found = Container("prefix", "system", run_directory)
    shutil.copytree(opt_aiomta, found.path("/opt/aiomta"), symlinks=True)
    yield found
    found.close()


def test_systemd_runs_what_mta_install_wrote_and_uninstall_takes_it_away(box: Container) -> None:
    before = file_list(box)
    box.run(MTA, "install")
    for unit in ("mta.service", *SOCKETS):
        assert box.output("systemctl", "is-enabled", unit) == "enabled"
    box.run("systemctl", "start", *SOCKETS)
    send(box, "-i", "alice", subject="wakes the daemon")
    arrived(box, "wakes the daemon")
    assert box.output("systemctl", "show", "-P", "ExecStart", "mta.service").count("/opt/aiomta/bin/mta") >= 1
    assert "250" in box.output("python3", "-c", "import smtplib; print(smtplib.SMTP('127.0.0.1').ehlo())")
    wait_for("the queue is empty", lambda: "Mail queue is empty" in box.output("mailq"))

    said = box.run(MTA, "uninstall").stderr.decode()
    assert "uninstalled" in said and "kept" not in said
    assert box.run("systemctl", "is-active", "mta.service", *SOCKETS, status=None).stdout.split() == [b"inactive"] * 4
    assert box.run("systemctl", "list-unit-files", "--no-legend", "mta*", status=None).stdout == b""
    assert {p for p in file_list(box) ^ before if not p.startswith("/opt/")} == set()
    assert box.run("getent", "passwd", "mta", status=None).returncode == 2
