"""The .deb on a booted Debian: systemctl, real callers, sandboxes, an upgrade under load, and purge.

One container for the whole file, so the tests are in the order of a package's life.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.package.container import Container
from tests.package.docs import block
from tests.peers.host import parse_mbox
from tests.peers.machine import wait_for
from tests.sendmail.test_fast_path import LOADED, listing

SPOOL = "/var/spool/mta"
UNITS = ("mta.service", "mta-smtp.socket", "mta-submit.socket", "mta-local.socket")
VOLATILE = ("/proc/", "/sys/", "/dev/", "/run/", "/tmp/", "/root/", "/home/", "/var/log/", "/var/cache/", "/var/mail/",
            "/srv/", "/var/tmp/",
            "/var/lib/dpkg/", "/var/lib/apt/", "/var/lib/systemd/", "/var/spool/cron/")  # fmt: skip
NOISE = ("/etc/.pwd.lock", "/etc/machine-id", "/var/lib/private", "/etc/passwd-", "/etc/group-", "/etc/shadow-",
         "/etc/gshadow-")  # fmt: skip
SANDBOXES = {
    "dynamic": ("DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict"),
    "strict": ("User=bob", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=yes"),
    "read-only-root": ("User=bob", "ReadOnlyPaths=/", "PrivateDevices=yes"),
    "user-namespace": ("User=bob", "PrivateUsers=yes"),
    "no-capabilities": ("CapabilityBoundingSet=", "NoNewPrivileges=yes", "PrivateNetwork=yes"),
}


def file_list(box: Container) -> set[str]:
    """Every path that a package could have made."""
    found = set()
    top = str(box.root)
    for directory, names, files in os.walk(top):
        inside = directory[len(top) :] + "/"
        names[:] = [n for n in names if not f"{inside}{n}/".startswith(VOLATILE)]
        found |= {f"{inside}{n}" for n in (*names, *files) if not f"{inside}{n}".startswith(NOISE)}
    return {path for path in found if "__pycache__" not in path or "/aiomta/" in path}


@pytest.fixture(scope="module")
def empty(run_directory: Path) -> Iterator[Container]:
    """A booted Debian with all the callers, and an empty package in the place of a mail system."""
    box = Container("booted", "system", run_directory)
    box.write("/etc/mailname", "example.test\n")
    yield box
    box.close()


@pytest.fixture(scope="module")
def before(empty: Container) -> set[str]:
    return file_list(empty)


@pytest.fixture(scope="module")
def box(empty: Container, before: set[str], old_deb: Path) -> Container:
    """The same with our package, in a lower version than the checkout's."""
    empty.install(old_deb)
    return empty


def send(box: Container, *argv: str, subject: str, user: str = "bob", **headers: str) -> None:
    """sendmail, as a user."""
    text = "".join(f"{name}: {value}\n" for name, value in headers.items())
    box.run("/usr/sbin/sendmail", *argv, stdin=f"{text}Subject: {subject}\n\nbody\n", user=user)


def arrived(box: Container, subject: str, user: str = "alice") -> EmailMessage:
    """The message with this subject, once it is in the mailbox."""

    def found() -> list[EmailMessage]:
        messages = parse_mbox(box.mailbox(user).encode(errors="surrogateescape"))
        return [m for m in messages if subject in str(m["Subject"])]

    try:
        wait_for(f"{subject!r} in the mailbox of {user}", lambda: bool(found()))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{box.log()}") from None
    (message,) = found()
    return message


def text(message: EmailMessage) -> str:
    """The body, without the blank line that ends a message in an mbox."""
    return str(message.get_content()).removesuffix("\n")


def pid(box: Container) -> str:
    return box.output("systemctl", "show", "-P", "MainPID", "mta.service")


# Installed


def test_the_package_has_started_everything_and_taken_the_place_of_the_other(box: Container) -> None:
    for unit in UNITS:
        assert box.output("systemctl", "is-active", unit) == "active"
        assert box.output("systemctl", "is-enabled", unit) == "enabled"
    assert box.run("dpkg-query", "--status", "local-mta", status=1)
    assert box.output("dpkg", "--audit") == "" and box.output("systemctl", "--failed", "--quiet", "--no-legend") == ""
    assert box.output("dpkg", "--verify", "aiomta") == ""
    assert box.run("mta", "check").stderr.decode() == ""
    fast = "/usr/share/aiomta/sendmail_compat/__pycache__/fast.cpython-311.pyc"
    assert box.path(fast).exists(), "not compiled"


def test_aliases_are_made_when_missing_and_mailname_is_respected(box: Container) -> None:
    assert "postmaster:" in box.read("/etc/aliases")
    assert box.read("/etc/mailname") == "example.test\n"
    send(box, "-i", "alice", subject="qualified")
    message = arrived(box, "qualified")
    assert message["From"] == "bob@example.test" and message["Return-Path"] == "<bob@example.test>"
    box.write("/etc/aliases", box.read("/etc/aliases") + "root: alice\n")
    box.run("newaliases")


def test_no_program_is_set_uid_or_set_gid(box: Container) -> None:
    listed = box.output("dpkg", "-L", "aiomta").split()
    assert not [p for p in listed if box.path(p).is_file() and box.path(p).lstat().st_mode & 0o6000]


# systemctl


def test_one_sendmail_call_starts_a_daemon_that_is_stopped(box: Container) -> None:
    box.run("systemctl", "stop", "mta.service")
    assert box.run("systemctl", "is-active", "mta.service", status=3).stdout.strip() == b"inactive"
    assert box.output("systemctl", "show", "-P", "Result", "mta.service") == "success"
    send(box, "-i", "alice", subject="knocked")
    arrived(box, "knocked")
    assert box.output("systemctl", "is-active", "mta.service") == "active"


def test_reload_keeps_the_process_and_restart_makes_a_new_one(box: Container) -> None:
    first = pid(box)
    box.run("systemctl", "reload", "mta.service")
    send(box, "-i", "alice", subject="after reload")
    arrived(box, "after reload")
    assert pid(box) == first
    box.run("systemctl", "restart", "mta.service")
    assert pid(box) != first
    send(box, "-i", "alice", subject="after restart")
    arrived(box, "after restart")


def test_the_commands_of_the_documentation(box: Container) -> None:
    said = box.output("sh", "-ec", block("install.md", "check") + "journalctl -u mta | tail -n 5")
    assert "running: PID" in box.run("mta", "status").stderr.decode() and said
    arrived(box, "test")


def test_with_all_units_stopped_the_message_waits_in_maildrop(box: Container) -> None:
    box.run("systemctl", "stop", *UNITS)
    done = box.run("/usr/sbin/sendmail", "-i", "alice", stdin="Subject: waited\n\nx\n", user="bob")
    assert b"maildrop" in done.stderr
    assert len(list(box.path(f"{SPOOL}/maildrop").iterdir())) == 1
    box.run("systemctl", "start", *UNITS)
    arrived(box, "waited")


def test_the_sockets_follow_master_cf(box: Container) -> None:
    master = box.read("/etc/mta/master.cf")
    box.write("/etc/mta/master.cf", master + "127.0.0.1:submission inet n - n - - smtpd\n")
    told = box.output("sh", "-ec", block("install.md", "sockets"))
    box.run("sh", "-ec", told.replace("then: ", ""))
    try:
        connect = "import socket; print(socket.create_connection(('127.0.0.1', 587)).recv(99))"
        assert "220 " in box.output("python3", "-c", connect)
    finally:
        box.write("/etc/mta/master.cf", master)
        told = box.output("mta", "install", "--sockets")
        box.run("sh", "-ec", told.replace("then: ", ""))
    assert box.run("systemctl", "is-active", "mta-submission.socket", status=None).stdout.strip() == b"inactive"
    box.run("sh", "-c", "rm -r /etc/systemd/system/mta-*.socket.d; systemctl daemon-reload")


# Callers


def test_cron(box: Container) -> None:
    box.run("crontab", "-u", "bob", "-", stdin="@reboot echo cron-job-output\n")
    box.run("sh", "-c", "systemctl stop cron; rm -f /run/crond.reboot; systemctl start cron")
    message = arrived(box, "echo cron-job-output", "bob")
    assert message["From"] == "root@example.test" and message["To"] == "bob@example.test"
    assert message["Return-Path"] == "<bob@example.test>" or message["Return-Path"] == "<root@example.test>"
    assert message["X-Cron-Env"] and message["Message-Id"] and message["Date"]
    assert text(message) == "cron-job-output\n"


def test_at(box: Container) -> None:
    box.run("at", "now", stdin="echo at-job-output\n", user="bob")
    message = arrived(box, "Output from your job", "bob")
    assert "at-job-output" in message.get_content()
    assert message["To"] == "bob@example.test"


def test_bsd_mailx(box: Container) -> None:
    box.run("bsd-mailx", "-s", "from bsd-mailx", "-c", "carol", "alice", stdin="text\n.\nmore\n", user="bob")
    message = arrived(box, "from bsd-mailx")
    assert message["From"] == "bob@example.test" and message["Cc"] == "carol@example.test"
    assert arrived(box, "from bsd-mailx", "carol")["Message-Id"] == message["Message-Id"]


def test_s_nail(box: Container) -> None:
    box.run("s-nail", "-s", "from s-nail", "-r", "bob@example.test", "alice", stdin="text\n", user="bob")
    message = arrived(box, "from s-nail")
    assert message["Return-Path"] == "<bob@example.test>" and text(message) == "text\n"


def test_mutt(box: Container) -> None:
    box.run("mutt", "-s", "from mutt", "-b", "carol", "alice", stdin="text\n", user="bob")
    message = arrived(box, "from mutt")
    assert "bob" in message["From"] and message["Bcc"] is None
    assert arrived(box, "from mutt", "carol")["To"] == message["To"]


def test_php_mail(box: Container) -> None:
    headers, body = r"X-Here: yes\r\nFrom: w@example.test", r"line\nline2\n"
    script = f'var_dump(mail("alice@example.test", "from php", "{body}", "{headers}", "-fw@example.test"));'
    assert "bool(true)" in box.output("php", "-r", script, user="bob")
    message = arrived(box, "from php")
    assert message["X-Here"] == "yes" and message["Return-Path"] == "<w@example.test>"
    assert text(message) == "line\nline2\n\n"  # and the end of line that PHP adds


def test_git_send_email(box: Container) -> None:
    commands = ("cd && git init -q r && cd r && git config user.name Bob && git config user.email bob@example.test && "
                "echo x > f && git add f && git commit -q -m 'from git' && "
                "git send-email --quiet --confirm=never --to alice@example.test -1")  # fmt: skip
    box.run("sh", "-ec", commands, user="bob")
    message = arrived(box, "[PATCH] from git")
    assert message["From"] == "Bob <bob@example.test>" and message["Return-Path"] == "<bob@example.test>"
    assert "+++ b/f" in message.get_content()


def test_mdadm_style_and_logwatch_style_calls(box: Container) -> None:
    mdadm = "From: host.example.test monitoring <root@host.example.test>\nTo: root\nSubject: DegradedArray\n\nmd0\n"
    box.run("/usr/sbin/sendmail", "-t", stdin=mdadm)
    message = arrived(box, "DegradedArray")
    assert "\nFrom: host.example.test monitoring <root@host.example.test>\n" in box.mailbox("alice")
    assert message["Return-Path"] == "<root@example.test>" and message["To"] == "root@example.test"
    logwatch = "To: alice\nTo: carol\nFrom: root\nSubject: Logwatch for host\n\nreport\n"
    box.run("/usr/lib/sendmail", "-t", stdin=logwatch)
    assert arrived(box, "Logwatch for host")["From"] == "root@example.test"
    arrived(box, "Logwatch for host", "carol")


# Sandboxes


@pytest.mark.parametrize("name", SANDBOXES)
def test_injection_from_a_sandboxed_service(box: Container, name: str) -> None:
    properties = [word for item in SANDBOXES[name] for word in ("-p", item)]
    box.run("systemd-run", "--wait", "--pipe", "--quiet", *properties, "/usr/sbin/sendmail", "-t", "-i",
            stdin=f"To: alice\nSubject: sandbox {name}\n\nx\n")  # fmt: skip
    message = arrived(box, f"sandbox {name}")
    assert message["To"] == "alice@example.test" and message["Message-Id"]
    if "User=bob" in SANDBOXES[name]:
        assert message["Return-Path"] == "<bob@example.test>"


def test_sendmail_of_the_package_loads_nothing_but_this_list(box: Container) -> None:
    box.write("/srv/probe", listing(box.read("/usr/sbin/sendmail"), "/srv/modules"), 0o755)
    box.run("/srv/probe", "-t", "-i", stdin="To: alice\nSubject: probe\n\nx\n", status=-9)
    assert set(box.read("/srv/modules").split()) == LOADED
    arrived(box, "probe")


# Upgrade, purge


def test_an_upgrade_under_load_loses_nothing(box: Container, deb: Path) -> None:
    box.write("/srv/load.py", Path(__file__).with_name("load.py").read_bytes())
    become_bob = "setpriv --reuid=bob --regid=bob --init-groups"
    load = "python3 /srv/load.py /srv/ledger /srv/stop alice@example.test"
    box.run("sh", "-c", f"rm -f /var/mail/alice; >/srv/ledger; chown bob /srv/ledger; "
            f"{become_bob} {load} </dev/null >/srv/load.out 2>&1 &")  # fmt: skip
    wait_for("some mail", lambda: box.read("/srv/ledger").count("\n") > 40, 120)
    first = pid(box)
    box.install(deb)
    assert box.output("dpkg-query", "-W", "-f", "${Version}", "aiomta") != "0.0.1"
    assert pid(box) != first
    count = box.read("/srv/ledger").count("\n")
    wait_for("mail after the upgrade", lambda: box.read("/srv/ledger").count("\n") > count + 40, 120)
    box.write("/srv/stop", "")
    wait_for("the senders have ended", lambda: box.run("pgrep", "-f", "/srv/load.py", status=None).returncode != 0, 120)
    acknowledged = box.read("/srv/ledger").split()
    wait_for("an empty queue", lambda: not queued(box) and not queued(box), 120)  # twice: a rename may hide a file
    delivered = Counter(re.findall(r"(?m)^Subject: (\S+-end)$", box.mailbox("alice")))
    assert not set(acknowledged) - set(delivered), "acknowledged and lost"
    assert {token: n for token, n in delivered.items() if n > 1} == {}, "delivered more than once"
    unacknowledged = len(delivered) - len(acknowledged)
    assert 0 <= unacknowledged <= 4, "at most one per sender whose answer was lost"
    assert box.read("/srv/load.out") == ""
    print(f"\nupgrade under load: {len(acknowledged)} acknowledged, {len(delivered)} delivered")


def queued(box: Container) -> list[str]:
    names = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
    return [str(p) for n in names for p in box.path(f"{SPOOL}/{n}").rglob("*") if p.is_file()]


def test_purge_keeps_a_queue_that_is_not_empty_and_says_so(box: Container, before: set[str]) -> None:
    send(box, "-i", "nobody@unreachable.invalid", subject="undeliverable for now")
    wait_for("it is deferred", lambda: "/deferred/" in str(queued(box)))
    done = box.run("dpkg", "--purge", "--force-depends", "aiomta")
    said = re.search(rf"1 message\(s\) kept in ({SPOOL}\.saved-20\d{{6}})\b", done.stderr.decode())
    assert said, done.stderr
    saved = box.path(said[1])
    assert saved.stat().st_mode & 0o777 == 0o700 and saved.stat().st_uid == 0
    (message,) = (p for p in (saved / "deferred").rglob("*") if p.is_file())
    assert b"undeliverable for now" in message.read_bytes()
    left = {p for p in file_list(box) - before if not p.startswith(f"{SPOOL}.saved-")}
    assert left == {"/etc/aliases"}, "which somebody has edited"
    assert before - file_list(box) == set()
    assert box.output("systemctl", "--failed", "--quiet", "--no-legend") == ""
    assert box.output("getent", "passwd", "mta").startswith("mta:")


def test_purge_of_an_empty_queue_leaves_the_machine_as_it_was(box: Container, before: set[str], deb: Path) -> None:
    box.run("sh", "-c", f"rm -rf {SPOOL}.saved-* /etc/mailname /etc/aliases")
    box.write("/srv/aiomta.deb", deb.read_bytes())
    box.run("dpkg", "--install", "/srv/aiomta.deb")
    assert box.read("/etc/mailname") == "host.example.test\n"
    send(box, "-i", "alice", subject="once more")
    arrived(box, "once more")
    done = box.run("dpkg", "--purge", "--force-depends", "aiomta")
    assert b"kept" not in done.stderr
    assert file_list(box) ^ before == {"/etc/mailname"}  # was the administrator's
    assert box.run("getent", "passwd", "mta", status=None).returncode == 2
    assert box.run("getent", "group", "mta", status=None).returncode == 2
