"""The .deb as a file, and in the place of a real Postfix or Exim, which can come back."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.package.chroot import Chroot
from tests.package.conftest import build_deb
from tests.peers.build import ROOT
from tests.peers.machine import wait_for

PACKAGES = {"postfix": "postfix", "exim": "exim4-daemon-light"}


def fields(deb: Path) -> str:
    return subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout


def test_the_same_tree_gives_the_same_bytes_whatever_the_umask(deb: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = build_deb(tmp_path)
    finally:
        os.umask(before)
    assert again.read_bytes() == deb.read_bytes()


def test_source_date_epoch_is_every_time_stamp_in_the_package(run_directory: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "86400"}
    command = [sys.executable, "-m", "scripts.build_deb", "--directory", str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout.strip()
    listed = subprocess.run(["dpkg-deb", "--contents", made], check=True, capture_output=True, text=True).stdout
    assert {line.split()[3] for line in listed.splitlines()} == {"1970-01-02"}


def test_it_provides_and_conflicts_with_a_mail_transport_agent_and_asks_nothing(deb: Path) -> None:
    text = fields(deb)
    for name in ("Provides", "Conflicts", "Replaces"):
        assert f"\n{name}: mail-transport-agent\n" in text
    assert "debconf" not in text
    control = subprocess.run(["dpkg-deb", "--info", deb], check=True, capture_output=True, text=True).stdout
    assert "conffiles" in control and " config " not in control and "templates" not in control


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    done = subprocess.run(["lintian", "--allow-root", deb], capture_output=True, text=True, timeout=120)
    assert re.sub(r"(?m)^running with root.*\n", "", done.stdout + done.stderr) == ""


def status(root: Chroot, package: str) -> str:
    """dpkg's word for a package: installed, config-files, ... or "none"."""
    done = root.run("dpkg-query", "-W", "-f", "${db:Status-Status}", package, status=None)
    return done.stdout.decode() if done.returncode == 0 else "none"


@pytest.mark.parametrize("other", list(PACKAGES))
def test_it_replaces_the_other_mail_system_which_can_be_installed_again(
    chroot: Callable[[str], Chroot], deb: Path, other: str
) -> None:
    root = chroot(other)
    assert root.owners() == {other}
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    assert root.owners() == {"ours"}
    assert status(root, PACKAGES[other]) != "installed" and status(root, "aiomta") == "installed"
    # no systemd here: the init script, and mail by the daemon
    root.run("/etc/init.d/mta", "start")
    root.run("/etc/init.d/mta", "status")
    root.run("/usr/sbin/sendmail", "-i", "alice", stdin=b"Subject: here now\n\nx\n", user="bob")
    root.run("/etc/init.d/mta", "restart")
    wait_for("the message", lambda: "Subject: here now\n" in root.mailbox("alice"))
    root.run("/etc/init.d/mta", "stop")

    root.apt("install", PACKAGES[other])
    assert root.owners() == {other}
    assert status(root, "aiomta") == "config-files"
    assert root.path("/etc/mta/main.cf").exists(), "removed, not purged: the configuration stays"
    root.run("dpkg", "--purge", "aiomta")
    assert root.owners() == {other}
    assert not root.path("/etc/mta").exists() and not root.path("/var/spool/mta").exists()
    assert root.path("/etc/aliases").exists()


def test_purge_leaves_names_and_aliases_to_the_mail_system_that_came_after(
    chroot: Callable[[str], Chroot], deb: Path
) -> None:
    root = chroot("python")
    assert not root.path("/etc/mailname").exists() and not root.path("/etc/aliases").exists()
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    root.apt("install", "postfix")
    root.apt("purge", "aiomta")
    assert status(root, "aiomta") == "none" and root.owners() == {"postfix"}
    root.run("/usr/sbin/sendmail", "-i", "root", stdin=b"Subject: x\n\nx\n")  # myorigin = /etc/mailname
    root.run("newaliases")


def test_a_daemon_that_policy_lets_run_ends_with_the_package(chroot: Callable[[str], Chroot], deb: Path) -> None:
    root = chroot("python")  # with the policy-rc.d of container images
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    root.run("mta", "start")
    with socket.create_connection(("127.0.0.1", 25)):
        root.run("dpkg", "--purge", "aiomta", timeout=120)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 25))
    assert not root.path("/var/spool/mta").exists()


def test_a_group_of_the_name_that_is_there_already_is_the_accounts(chroot: Callable[[str], Chroot], deb: Path) -> None:
    root = chroot("python")
    root.run("groupadd", "--gid", "2525", "mta")
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    assert status(root, "aiomta") == "installed"
    assert root.output("getent", "passwd", "mta").split(":")[3] == "2525"


def test_purge_counts_the_mail_of_a_queue_that_lies_elsewhere(chroot: Callable[[str], Chroot], deb: Path) -> None:
    root = chroot("python")
    root.write(f"/root/{deb.name}", deb.read_bytes())
    root.apt("install", f"/root/{deb.name}")
    root.run("sh", "-c", "mv /var/spool/mta /srv/mta && ln -s /srv/mta /var/spool/mta")
    root.run("/usr/sbin/sendmail", "-i", "root", stdin=b"Subject: x\n\nx\n")
    said = root.run("dpkg", "--purge", "aiomta").stderr
    assert b"1 message(s) kept in /var/spool/mta.saved-" in said
