"""What the documentation tells people to type, typed."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.package.chroot import Chroot
from tests.package.docs import block, names
from tests.peers.build import ROOT
from tests.peers.machine import wait_for

RUN_HERE = {"deb-build", "rpm-build", "deb-install", "prefix-install", "prefix-uninstall", "smarthost",
            "from-postfix-before", "from-postfix", "from-exim", "from-nullmailer"}  # fmt: skip
RUN_BOOTED = {"check", "sockets"}  # in test_booted.py
Make = Callable[[str], Chroot]


def type_in(root: Chroot, text: str) -> str:
    """Run commands as root types them, in /root; all must succeed."""
    root.write("/etc/apt/apt.conf.d/99test", 'APT::Get::Assume-Yes "true";\nAPT::Sandbox::User "root";\n')
    root.write("/root/typed", f"cd /root\n{text}")
    done = root.run("sh", "-e", "/root/typed", timeout=180, environ={"DEBIAN_FRONTEND": "noninteractive"})
    return (done.stdout + done.stderr).decode(errors="replace")


def with_deb(root: Chroot, deb: Path) -> Chroot:
    """Installed as install.md says."""
    root.write(f"/root/{deb.name}", deb.read_bytes())
    type_in(root, block("install.md", "deb-install"))
    return root


def test_every_command_that_promises_a_test_has_one() -> None:
    assert names() == RUN_HERE | RUN_BOOTED


def test_make_deb_and_make_rpm_are_what_the_other_tests_run() -> None:
    for name, module in (("deb-build", "scripts.build_deb"), ("rpm-build", "scripts.build_rpm")):
        command = [*block("install.md", name).split(), "-n"]
        assert module in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_below_a_prefix_and_away_again(chroot: Make, opt_aiomta: Path, run_directory: Path) -> None:
    root = chroot("postfix")
    (wheel,) = (run_directory / "wheel").glob("*.whl")
    root.write(f"/root/{wheel.name}", wheel.read_bytes())
    said = type_in(root, block("install.md", "prefix-install"))
    assert "dpkg-divert /usr/sbin/sendmail to /usr/sbin/sendmail.postfix" in said
    assert root.owners() == {"ours"}
    assert root.run("mta", "version").stdout.startswith(b"mail_version")
    root.path(f"/root/{wheel.name}").unlink()
    type_in(root, block("install.md", "prefix-uninstall"))
    assert root.owners() == {"postfix"} and not root.path("/opt/aiomta").exists()


def test_all_mail_through_one_server(chroot: Make, deb: Path) -> None:
    root = with_deb(chroot("python"), deb)
    settings = block("smarthost.md", "smarthost")
    assert settings.count("\n") == 5
    main = re.sub(r"(?m)^(inet_interfaces|mydestination|myorigin) =.*\n", "", root.read("/etc/mta/main.cf"))
    root.write("/etc/mta/main.cf", main + settings)
    assert root.output("sh", "-c", "mta check 2>&1") == ""
    tested = root.output("sh", "-c", "mta start && echo root | sendmail -bt; mta stop")
    assert "smtp.example.net" in tested and "root@example.org" in tested


def test_from_postfix_with_its_own_settings(chroot: Make, deb: Path) -> None:
    root = chroot("postfix")
    type_in(root, block("coming-from.md", "from-postfix-before"))
    with_deb(root, deb)
    said = type_in(root, block("coming-from.md", "from-postfix"))
    assert "fatal" not in said
    type_in(root, "mta start\nprintf 'Subject: taken over\\n\\nx\\n' | sendmail -i alice\n")
    wait_for("the message", lambda: "Subject: taken over\n" in root.mailbox("alice"))
    type_in(root, "mta stop\n")


def test_from_exim(chroot: Make, deb: Path) -> None:
    root = chroot("exim")
    assert type_in(root, block("coming-from.md", "from-exim")).strip().endswith("0")
    with_deb(root, deb)
    assert root.owners() == {"ours"}


def test_from_nullmailer(chroot: Make, deb: Path) -> None:
    root = with_deb(chroot("python"), deb)
    root.write("/etc/nullmailer/remotes", "smtp.example.net smtp --port=25\n")
    root.write("/etc/nullmailer/me", "host.example.net\n")
    assert "fatal" not in type_in(root, block("coming-from.md", "from-nullmailer"))
    assert "relayhost = [smtp.example.net]\nmyhostname = host.example.net\n" in root.read("/etc/mta/main.cf")
