"""`mta install` and `mta uninstall` beside a real Postfix and a real Exim: one mail system at every step, and back."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.package.chroot import Chroot
from tests.peers.machine import wait_for

PREFIX = "/opt/aiomta"
MTA = f"{PREFIX}/bin/mta"
# what belongs to package tools, and what programs leave behind by running
SKIP = ("/proc/", "/dev/", "/var/cache/", "/var/log/", "/root/", "/tmp/", "/opt/")
OTHERS = ("postfix", "exim")
NAMES = ("mailq", "newaliases", "rmail", "sendmail", "runq", "rsmtp", "makemap")
Make = Callable[[str], Chroot]


def beside(chroot: Make, layer: str, opt_aiomta: Path) -> Chroot:
    """A root with another mail system, and us below PREFIX but not in its place."""
    root = chroot(layer)
    root.path("/opt").mkdir(exist_ok=True)
    shutil.copytree(opt_aiomta, root.path(PREFIX), symlinks=True)
    return root


def snapshot(root: Chroot) -> dict[str, str]:
    """Every file's size and mode, every link's target."""
    found = {}
    top = str(root.root)
    for directory, names, files in os.walk(top):
        inside = directory[len(top) :] + "/"
        names[:] = [n for n in names if not f"{inside}{n}/".startswith(SKIP)]
        for name in (*names, *files):
            info = os.lstat(f"{directory}/{name}")
            if os.path.islink(f"{directory}/{name}"):
                found[f"{inside}{name}"] = os.readlink(f"{directory}/{name}")
            else:
                found[f"{inside}{name}"] = f"{info.st_mode:o} {info.st_uid} {info.st_size if name not in names else 0}"
    return found


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Paths that are not as they were, but for backups and locks that package tools leave."""
    changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    tools = r"/var/lib/dpkg/(diversions|alternatives)(-old)?$|/var/lib/dpkg/lock.*|/etc/(passwd|group|shadow|gshadow)-$"
    return sorted(p for p in changed if not re.match(tools, p) and p != "/etc/.pwd.lock")


def choices(root: Chroot) -> dict[str, dict[str, str]]:
    """Path of each choice -> its slaves, as --query tells."""
    found: dict[str, dict[str, str]] = {}
    slaves: dict[str, str] | None = None
    for line in root.output("update-alternatives", "--query", "mta").split("\n\n", 1)[1].splitlines():
        if line.startswith("Alternative: "):
            slaves = found.setdefault(line.split()[1], {})
        elif line.startswith(" ") and slaves is not None:
            name, path = line.split()
            slaves[name] = path
    return found


@pytest.mark.parametrize("other", OTHERS)
def test_two_choices_of_one_group_and_one_mail_system_at_every_step(
    chroot: Make, opt_aiomta: Path, other: str
) -> None:
    root = beside(chroot, other, opt_aiomta)
    before = snapshot(root)
    assert root.owners() == {other}
    plan = root.output(MTA, "install", "--alternatives", "--dry-run")
    assert "dpkg-divert /usr/sbin/sendmail to /usr/sbin/sendmail." + other in plan
    assert snapshot(root) == before, "--dry-run has changed something"

    root.run(MTA, "install", "--alternatives")
    assert root.owners() == {"ours"}
    assert root.path(f"/usr/sbin/sendmail.{other}").exists()
    theirs, ours = f"/usr/sbin/sendmail.{other}", f"{PREFIX}/bin/sendmail"
    found = choices(root)
    assert list(found) == [theirs, ours] or set(found) == {theirs, ours}
    assert {f"mta-{name}" for name in NAMES} <= set(found[ours])
    assert {"mta-mailq", "mta-newaliases", "mta-sendmail"} <= set(found[theirs])
    display = root.output("update-alternatives", "--display", "mta")
    assert all(f"mta-{name}" in display for name in NAMES) and f"link currently points to {ours}" in display
    for command in ("/usr/bin/rmail", "/usr/lib/sendmail", "/usr/sbin/makemap"):
        assert root.owner(command) == "ours"

    root.run("update-alternatives", "--set", "mta", theirs)
    assert root.owners() == {other}
    root.run("newaliases")
    root.run("update-alternatives", "--set", "mta", ours)
    assert root.owners() == {"ours"}
    root.run("update-alternatives", "--auto", "mta")
    assert root.owners() == {"postfix" if other == "postfix" else "ours"}  # 60 and 10, we have 20

    said = root.run(MTA, "uninstall").stderr.decode()
    assert "uninstalled" in said and "kept" not in said
    assert root.owners() == {other}
    assert difference(before, snapshot(root)) == []
    assert root.run("update-alternatives", "--query", "mta", status=None).returncode != 0
    assert not root.path(f"{PREFIX}/share/aiomta/installed.jsonl").exists()


@pytest.mark.parametrize("other", OTHERS)
def test_divert_puts_plain_links_in_place_and_uninstall_puts_everything_back(
    chroot: Make, opt_aiomta: Path, other: str
) -> None:
    root = beside(chroot, other, opt_aiomta)
    before = snapshot(root)
    root.run(MTA, "install", "--divert")
    assert root.owners() == {"ours"}
    assert os.readlink(root.path("/usr/sbin/sendmail")) == f"{PREFIX}/bin/sendmail"
    assert root.run(MTA, "install", "--divert", status=1).stderr.decode().count("installed already") == 1
    root.run(MTA, "uninstall")
    assert root.owners() == {other}
    assert difference(before, snapshot(root)) == []


def test_a_message_queued_while_we_were_in_place_is_kept_when_we_go(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    root.run(MTA, "install")
    done = root.run("/usr/sbin/sendmail", "-i", "alice", stdin=b"Subject: kept\n\nbody\n", user="bob")
    assert b"maildrop" in done.stderr  # no daemon here: it says so, and exits 0
    said = root.run(MTA, "uninstall").stderr.decode()
    found = re.search(r"1 message kept in (\S+)", said)
    assert found, said
    (file,) = root.path(f"{found[1]}/maildrop").iterdir()
    assert b"Subject: kept" in file.read_bytes()
    assert root.path(found[1]).stat().st_mode & 0o777 == 0o700
    assert "account mta: kept" in said


def test_the_account_takes_a_group_of_its_name_that_is_there(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    root.run("groupadd", "--gid", "2525", "mta")
    root.run(MTA, "install")
    assert root.output("getent", "passwd", "mta").split(":")[3] == "2525"


def test_what_the_administrator_has_changed_stays(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    root.run(MTA, "install")
    root.write("/etc/mta/main.cf", "myhostname = mine.example.test\n")
    root.write("/etc/mta/transport", "x\n")
    said = root.run(MTA, "uninstall").stderr.decode()
    assert "/etc/mta/main.cf: changed since it was installed: kept" in said
    assert root.read("/etc/mta/main.cf") == "myhostname = mine.example.test\n"
    assert not root.path("/etc/mta/master.cf").exists()


@pytest.mark.parametrize("at", ["dpkg-divert", "update-alternatives"])
def test_a_step_that_fails_half_way_undoes_all_that_was_done(chroot: Make, opt_aiomta: Path, at: str) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    before = snapshot(root)
    real = root.output("sh", "-c", f"command -v {at}").strip()
    # the fourth call of the tool that changes something fails
    counter = (
        'case "$*" in *--add*|*--install*|*--set*) echo x >> /tmp/calls; '
        'if [ "$(wc -l < /tmp/calls)" = "$(cat /tmp/fail)" ]; then echo "no, not this time" >&2; exit 2; fi;; esac\n'
    )
    root.write("/usr/local/sbin/" + at, f'#!/bin/sh\n{counter}exec {real} "$@"\n', 0o755)
    root.write("/tmp/fail", "2\n")
    done = root.run(MTA, "install", status=1)
    said = done.stderr.decode()
    assert "no, not this time" in said and "undoing what was done" in said
    root.path("/usr/local/sbin/" + at).unlink()
    assert root.owners() == {"postfix"}
    assert difference(before, snapshot(root)) == []


def test_a_link_that_alternatives_leaves_alone_is_noticed_and_everything_undone(
    chroot: Make, opt_aiomta: Path
) -> None:
    """update-alternatives never replaces a real file, and exits 0 all the same."""
    root = beside(chroot, "postfix", opt_aiomta)
    root.path("/usr/bin/mailq").unlink()
    root.write("/usr/bin/mailq", '#!/bin/sh\nexec sendmail -bp "$@"\n', 0o755)  # a real file, not Debian's link
    before = snapshot(root)
    # a diversion that is said to be done, and is not
    root.write("/usr/local/sbin/dpkg-divert", '#!/bin/sh\ncase "$*" in *"--add /usr/bin/mailq") exit 0;; esac\n'
               'exec /usr/bin/dpkg-divert "$@"\n', 0o755)  # fmt: skip
    said = root.run(MTA, "install", status=1).stderr.decode()
    assert "do not lead to one mail system: /usr/bin/mailq" in said
    root.path("/usr/local/sbin/dpkg-divert").unlink()
    assert root.owners() == {"postfix"}
    assert difference(before, snapshot(root)) == []


@pytest.mark.parametrize("way", ["kill", "term"])
def test_an_interrupted_installation_is_undone(chroot: Make, opt_aiomta: Path, way: str) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    before = snapshot(root)
    # stops in the middle of the diversions, until it is killed
    root.write("/usr/local/sbin/dpkg-divert", '#!/bin/sh\ncase "$*" in *"--add /usr/bin/newaliases") '
               'echo > /tmp/stopped; exec sleep 60;; esac\nexec /usr/bin/dpkg-divert "$@"\n', 0o755)  # fmt: skip
    process = root.spawn(MTA, "install")
    wait_for("it is in the middle", root.path("/tmp/stopped").exists)
    process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGTERM)
    process.wait(60)
    root.path("/usr/local/sbin/dpkg-divert").unlink()
    if way == "kill":
        root.run(MTA, "uninstall")
    assert root.owners() == {"postfix"}
    assert difference(before, snapshot(root)) == []


def test_a_record_that_is_not_roots_alone_is_not_believed(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    root.run(MTA, "install")
    root.path(f"{PREFIX}/share/aiomta/installed.jsonl").chmod(0o666)
    said = root.run(MTA, "uninstall", status=1).stderr.decode()
    assert "not root's alone" in said and root.owners() == {"ours"}


def test_only_root_installs_and_bad_words_are_usage_errors(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    assert b"root" in root.run(MTA, "install", user="bob", status=77).stderr
    root.run(MTA, "install", "--dry-run", user="bob")
    for words in (("--divert", "--alternatives"), ("--prefix",), ("now",), ("--sockets", "--divert")):
        root.run(MTA, "install", *words, status=64)
    root.run(MTA, "uninstall", "--divert", status=64)
    assert "ours" not in root.owners(), "none of them has changed anything"


def test_a_package_upgrade_of_the_other_mail_system_leaves_ours_in_place(chroot: Make, opt_aiomta: Path) -> None:
    root = beside(chroot, "postfix", opt_aiomta)
    root.run(MTA, "install")
    root.apt("install", "--reinstall", "postfix")
    assert root.owners() == {"ours"}
    root.run("update-alternatives", "--set", "mta", "/usr/sbin/sendmail.postfix")
    assert root.owners() == {"postfix"}

