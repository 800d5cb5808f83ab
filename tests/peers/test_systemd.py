"""The unit files: systemd reads them without complaint, and their sandbox is as tight as promised."""

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.peers.build import ROOT
from tests.peers.host import Host
from tests.peers.machine import Machine

UNITS = ROOT / "systemd"
WHERE = "/etc/systemd/system"


@pytest.fixture(scope="module")
def machine(installed: Host) -> Iterator[Machine]:
    """The machine with our units installed."""
    m = installed.machine
    names = [path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket")]
    for name in names:
        shutil.copyfile(UNITS / name, m.path(f"{WHERE}/{name}"))
    yield m
    for name in names:
        m.path(f"{WHERE}/{name}").unlink()


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    units = [f"{WHERE}/{path.name}" for path in UNITS.iterdir() if path.suffix in (".service", ".socket")]
    done = machine.run("systemd-analyze", "verify", "--man=no", *units, status=None)
    assert (done.stdout + done.stderr).decode() == "" and done.returncode == 0


@pytest.mark.parametrize(("unit", "limit"), [("mta.service", 1.5), ("mta-local.service", 2.5)])
def test_the_exposure_of_a_daemon_stays_low(machine: Machine, unit: str, limit: float) -> None:
    done = machine.run("systemd-analyze", "security", "--offline=true", f"{WHERE}/{unit}", status=None)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout.decode())
    assert found, done.stderr
    assert float(found[1]) <= limit


def test_no_unit_hides_the_users_from_the_daemon() -> None:
    for path in UNITS.glob("*.service"):
        assert not re.search(r"(?m)^PrivateUsers=yes", path.read_text())


def test_the_directories_of_tmpfiles_are_those_that_start_makes() -> None:
    from mta.queue.store_spool import DIRECTORIES

    lines = [line.split() for line in (UNITS / "aiomta.tmpfiles").read_text().splitlines() if line.startswith("d ")]
    made = {path.removeprefix("/var/spool/mta/"): int(mode, 8) for _, path, mode, *_ in lines if "/spool/mta/" in path}
    assert made == DIRECTORIES


def test_sysusers_and_tmpfiles_have_made_account_and_directories(installed: Host) -> None:
    m = installed.machine
    assert m.output("stat", "-c", "%U:%G %a", "/var/spool/mta/maildrop").strip() == "mta:mta 3733"
    assert m.output("stat", "-c", "%U:%G %a", "/var/lib/mta").strip() == "mta:mta 700"
