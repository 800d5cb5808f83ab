"""The .rpm: what it registers with `alternatives`, run for real in a scratch root."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.package.chroot import Chroot
from tests.peers.build import ROOT

MAN = "/usr/share/man"
TABLE = {  # name of the slave -> link, as Fedora's mail systems have agreed
    "mta-mailq": "/usr/bin/mailq",
    "mta-newaliases": "/usr/bin/newaliases",
    "mta-rmail": "/usr/bin/rmail",
    "mta-sendmail": "/usr/lib/sendmail",
    "mta-pam": "/etc/pam.d/smtp",
    "mta-makemap": "/usr/sbin/makemap",
    "mta-runq": "/usr/bin/runq",
    "mta-rsmtp": "/usr/bin/rsmtp",
    "mta-mailqman": f"{MAN}/man1/mailq.1.gz",
    "mta-newaliasesman": f"{MAN}/man1/newaliases.1.gz",
    "mta-sendmailman": f"{MAN}/man8/sendmail.8.gz",
    "mta-aliasesman": f"{MAN}/man5/aliases.5.gz",
    "mta-rmailman": f"{MAN}/man8/rmail.8.gz",
    "mta-makemapman": f"{MAN}/man8/makemap.8.gz",
}
OURS = "/usr/sbin/sendmail.aiomta"
# Writes its arguments down, then does what Debian's tool of the same family does, which knows no --initscript.
RECORDER = """\
#!/bin/sh
printf '%s\\n' "$*" >> /root/recorded
exec update-alternatives $(printf '%s\\n' "$*" | sed 's/--initscript mta//')
"""


@pytest.fixture(scope="module")
def rpm(run_directory: Path) -> Path:
    """make rpm."""
    command = [sys.executable, "-m", "scripts.build_rpm", "--directory", str(run_directory / "rpm")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    return Path(done.stdout.strip())


def scripts(rpm: Path) -> dict[str, str]:
    """Scriptlets by name, as `rpm -qp --scripts` prints them."""
    text = subprocess.run(["rpm", "-qp", "--scripts", rpm], check=True, capture_output=True, text=True).stdout
    parts = re.split(r"(?m)^(\w+) scriptlet \(using /bin/sh\):\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def root(chroot: Callable[[str], Chroot], rpm: Path) -> Chroot:
    """A scratch root with the files of the package and a recorder in the place of `alternatives`."""
    made = chroot("python")
    archive = rpm.with_suffix(".tgz")
    if not archive.exists():
        subprocess.run(["rpm2archive", rpm], check=True, capture_output=True)
        (found,) = rpm.parent.glob("*.tgz")
        found.rename(archive)
    subprocess.run(["tar", "-xzf", archive, "-C", made.root, "--keep-directory-symlink"], check=True)
    made.write("/usr/sbin/alternatives", RECORDER, 0o755)
    return made


def recorded(root: Chroot) -> list[list[str]]:
    return [line.split() for line in root.read("/root/recorded").splitlines()]


def run_script(root: Chroot, rpm: Path, name: str, count: int) -> None:
    root.write("/root/script", scripts(rpm)[name])
    root.run("sh", "/root/script", str(count))


def test_the_arguments_are_those_of_the_table(root: Chroot, rpm: Path) -> None:
    run_script(root, rpm, "preinstall", 1)
    assert "mta" in root.output("getent", "passwd", "mta")
    run_script(root, rpm, "postinstall", 1)
    (call,) = recorded(root)
    assert call[:5] == ["--install", "/usr/sbin/sendmail", "mta", OURS, "20"]
    assert call[-2:] == ["--initscript", "mta"]
    slaves = call[5:-2]
    assert set(slaves[0::4]) == {"--slave"}
    assert dict(zip(slaves[2::4], slaves[1::4], strict=True)) == TABLE
    for path in slaves[3::4]:
        assert root.path(path).is_symlink() or root.path(path).is_file(), f"{path} is not in the package"
        assert "aiomta" in path


def test_the_names_lead_to_us_when_we_are_chosen_and_to_nobody_when_we_are_removed(root: Chroot, rpm: Path) -> None:
    run_script(root, rpm, "preinstall", 1)
    run_script(root, rpm, "postinstall", 1)
    assert root.owners() == {"ours"}
    assert b"mail_version" in root.run("mta", "version").stdout
    for name, link in TABLE.items():
        assert root.path(link).is_symlink(), name
    # another mail system of the group, of higher priority
    root.write("/usr/sbin/sendmail.postfix", "#!/bin/sh\n", 0o755)
    slaves = [w for n, p in (("mta-mailq", "/usr/bin/mailq"), ("mta-newaliases", "/usr/bin/newaliases"))
              for w in ("--slave", p, n, "/usr/sbin/sendmail.postfix")]  # fmt: skip
    postfix = ("update-alternatives", "--install", "/usr/sbin/sendmail", "mta", "/usr/sbin/sendmail.postfix", "60")
    root.run(*postfix, *slaves)
    assert root.owners() == {"postfix"}
    root.run("update-alternatives", "--set", "mta", OURS)
    assert root.owners() == {"ours"}
    run_script(root, rpm, "postuninstall", 1)  # an upgrade keeps the choice
    assert recorded(root)[-1] == ["--set", "mta", OURS]
    run_script(root, rpm, "preuninstall", 0)
    assert recorded(root)[-1] == ["--remove", "mta", OURS]
    assert root.owners() == {"postfix"}


def test_it_needs_what_fedora_and_el10_have_and_provides_what_they_ask_for(rpm: Path) -> None:
    def ask(what: str) -> str:
        return subprocess.run(["rpm", "-qp", what, rpm], check=True, capture_output=True, text=True).stdout

    for need in ("python3 >= 3.11", "python3-aiosmtpd", "python3-dns", "python3-aiofiles", "/usr/sbin/alternatives"):
        assert need in ask("--requires")
    assert {"/usr/sbin/sendmail", "smtpdaemon", "server(smtp)", "MTA"} <= set(ask("--provides").split())
    assert set(ask("--configfiles").split()) == {"/etc/mta/main.cf", "/etc/mta/master.cf", "/etc/pam.d/smtp.aiomta"}
    shared = {line for line in ask("--list").splitlines() if line in {*TABLE.values(), "/usr/sbin/sendmail"}}
    assert shared == set(), "these belong to alternatives"
