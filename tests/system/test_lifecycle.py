"""start, stop, reload and their kin on a real mail system, as root and as any user."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mta.master.owner import OURS
from tests.crash.system import ROOT, free_port
from tests.system.support_lifecycle import Client, Instance, hold_lock, instance, knocking, started, until
from tests.system.support_system import DOMAIN, local_user, mailbox_of

USER = f"{local_user()}@{DOMAIN}"
ALREADY = "postfix/postfix-script: fatal: the Postfix mail system is already running\n"
NOT = "the Postfix mail system is not running\n"
AS_ROOT = os.getuid() == 0
PROCESSES = pytest.mark.parametrize("count", ["0", "1", "2"])


def sockets_left(system: Instance) -> list[str]:
    return [p.name for name in ("public", "private") for p in (system.spool / name).iterdir()]


# -- start and stop -------------------------------------------------------------------------------


@PROCESSES
def test_start_ends_when_the_system_serves_and_stop_when_nothing_of_it_is_left(count: str) -> None:
    with instance(smtpd_processes=count) as system:
        system.must("start")
        with Client(system.port) as client:
            assert client.greeting.startswith("220 ")
            assert client.send(f"{local_user()}@{DOMAIN}").startswith("250 2.0.0 Ok: queued as ")
        pid = system.pid
        until(lambda: mailbox_of(system), "delivery")
        assert system.mta("status").stderr == (
            f"postfix/postfix-script: the Postfix mail system is running: PID: {pid}\n"
        )
        assert all(os.readlink(f"/proc/{p}/fd/2") == "/dev/null" for p in system.all_processes())
        if AS_ROOT:
            assert Path(f"/proc/{pid}").stat().st_uid != 0, "the first process is mail_owner's"
        for verb in ("start", "start-fg"):
            again = system.mta(verb)
            assert (again.returncode, again.stderr) == (1, ALREADY)
        system.must("stop")
        assert system.all_processes() == []
        assert sockets_left(system) == []
        stopped = system.mta("status")
        assert (stopped.returncode, stopped.stderr) == (1, f"postfix/postfix-script: {NOT}")
        for verb in ("stop", "abort", "reload", "flush"):
            refused = system.mta(verb)
            assert (refused.returncode, refused.stderr) == (1, f"postfix/postfix-script: fatal: {NOT}")
        system.must("start")
        system.must("abort")
        assert system.all_processes() == []
        assert system.log_text().count("terminating on signal 15") == 1


def test_start_fg_ends_with_0_at_sigterm_and_a_second_one_changes_nothing() -> None:
    with instance(smtpd_processes="1") as system:
        system.start()
        assert system.process is not None
        assert system.process.pid == system.pid
        system.process.terminate()
        system.process.terminate()
        assert system.process.wait(60) == 0
        system.process = None


@pytest.mark.parametrize("path", ["data/master.lock", "spool/pid/master.pid"])
def test_another_mail_system_with_either_lock_excludes_a_start(path: str) -> None:
    with instance() as system:
        fd = hold_lock(system.directory / path)
        try:
            for verb in ("start", "start-fg"):
                done = system.mta(verb)
                assert (done.returncode, done.stderr) == (1, ALREADY)
        finally:
            os.close(fd)
        (system.directory / path).unlink()


def test_the_configuration_is_found_through_mail_config_and_a_broken_one_does_not_prevent_a_stop() -> None:
    with started() as system:
        system.configure(maximal_backoff_time="5x")
        status = system.mta("status")
        assert status.returncode == 0
        assert "1 error; see `mta check`" in status.stderr
        env = {"MAIL_CONFIG": str(system.etc)}
        done = subprocess.run([sys.executable, "-m", "mta", "stop"], cwd=ROOT, env={**os.environ, **env}, timeout=60,
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert system.all_processes() == []


def test_maildrop_is_counted_by_status_while_nobody_runs() -> None:
    with started() as system:
        system.must("stop")
        (system.spool / "maildrop" / ("0" * 32)).touch()
        status = system.mta("status")
        assert status.returncode == 1
        assert "1 message in maildrop wait" in status.stderr


# -- what prevents a start ------------------------------------------------------------------------


def broken_main(system: Instance) -> None:
    system.configure(maximal_backoff_time="5x", message_size_limit="much")


def broken_restriction(system: Instance) -> None:
    (system.etc / "master.cf").write_text(
        f"# first line\n127.0.0.1:{system.port} inet n - n - - smtpd\n  -o smtpd_client_restrictions=reject_nonsense\n"
    )


def broken_class(system: Instance) -> None:
    system.configure(smtpd_restriction_classes="mine", mine="permit, nonsense", smtpd_helo_restrictions="mine")


def broken_name_server(system: Instance) -> None:
    system.configure(dns_servers="localhost")


def no_master(system: Instance) -> None:
    (system.etc / "master.cf").unlink()


def broken_port(system: Instance) -> None:
    (system.etc / "master.cf").write_text("nosuchport inet n - n - - smtpd\n")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (broken_main, ["main.cf:20: maximal_backoff_time = 5x", "main.cf:21: message_size_limit = much", "2 errors"]),
        (broken_restriction, ["master.cf:2: smtpd_client_restrictions: unknown smtpd restriction: reject_nonsense"]),
        (broken_class, ["main.cf:21: mine: unknown smtpd restriction: nonsense"]),
        (broken_name_server, ["main.cf:20: dns_servers = localhost: localhost: expected address"]),
        (no_master, ["master.cf: open: No such file or directory"]),
        (broken_port, ["master.cf:1: unknown service name: nosuchport"]),
    ],
)
def test_a_broken_configuration_starts_nothing_and_every_error_has_its_place(
    damage: "object", expected: list[str]
) -> None:
    assert callable(damage)
    with instance() as system:
        lines = len((system.etc / "main.cf").read_text().splitlines())
        damage(system)
        for verb in ("start", "start-fg", "check"):
            done = system.mta(verb)
            assert done.returncode == 78, done.stderr
            for text in expected:
                shifted = text.replace(":20:", f":{lines + 1}:").replace(":21:", f":{lines + 2}:")
                assert shifted in done.stderr, done.stderr
        assert not system.spool.exists()


def test_a_certificate_that_cannot_be_read_is_a_warning_at_the_start_and_stops_a_reload() -> None:
    gone = {"smtpd_tls_security_level": "may", "smtpd_tls_cert_file": "/nonexistent/cert.pem"}
    with instance(**gone) as system:
        done = system.mta("start")
        assert done.returncode == 0, done.stderr
        assert (
            "cannot use certificate /nonexistent/cert.pem" in done.stderr and "STARTTLS is not offered" in done.stderr
        )
        system.configure(maximal_queue_lifetime="4d")
        os.kill(system.pid, signal.SIGHUP)
        until(lambda: "reload refused" in system.log_text(), "the running instance keeps what it has")


@pytest.mark.needs_root
@pytest.mark.parametrize(("name", "text"), [("nosuchuser-x", "no such user"), ("root", "must not be root")])
def test_root_needs_a_mail_owner(name: str, text: str) -> None:
    with instance(mail_owner=name) as system:
        done = system.mta("start")
        assert done.returncode == 78
        assert f"mail_owner = {name}: {text}" in done.stderr
        assert "main.cf:" in done.stderr


def _owners(system: Instance) -> dict[str, str]:
    return {str(p.relative_to(system.spool)): p.owner() for p in system.spool.rglob("*") if not p.is_socket()}


@pytest.mark.needs_root
@pytest.mark.parametrize("how", ["mail_owner", "chown"])
def test_a_queue_of_another_owner_is_named_and_taken_over_at_the_start(how: str, tmp_path: Path) -> None:
    with instance(defer_transports="local", smtpd_processes="1") as system:
        system.must("start")
        for _ in range(3):
            with Client(system.port) as client:
                client.send(USER)
        until(lambda: len(list((system.spool / "deferred").rglob("?*"))) >= 16 + 3, "deferred mail")
        system.must("stop")
        users_file, elsewhere = system.spool / "maildrop" / "ABCDEF", tmp_path / "elsewhere"
        users_file.write_text("not for this test")
        users_file.chmod(0o600)
        shutil.chown(users_file, local_user(), "nogroup" if how == "mail_owner" else "daemon")
        if how == "mail_owner":
            system.configure(mail_owner="daemon")
            before, after = "nobody", "daemon"
        else:
            subprocess.run(["chown", "-R", "daemon", *OURS, "pid"], cwd=system.spool, check=True)
            before, after = "daemon", "nobody"
        elsewhere.write_text("a file elsewhere")
        os.chmod(tmp_path, 0o755)
        shutil.chown(elsewhere, before)
        (system.spool / "hold" / "link").symlink_to(elsewhere)
        os.link(elsewhere, system.spool / "hold" / "second-name")
        checked = system.mta("check")
        assert checked.returncode == 78 and "pid/unix.qmgr is owned by uid" in checked.stderr
        system.must("start")
        assert elsewhere.owner() == before, "neither a link nor another name of a file leads root there"
        assert users_file.owner() == local_user()
        for name in ("link", "second-name"):
            (system.spool / "hold" / name).unlink()
        wrong = {path: who for path, who in _owners(system).items() if who != after and path != "maildrop/ABCDEF"}
        assert wrong == {}
        users_file.unlink()
        assert system.mta("check").returncode == 0
        system.must("stop")
        system.configure(defer_transports="")
        system.must("start")
        system.must("flush")
        until(lambda: mailbox_of(system).count(b"Subject: t") == 3, "delivery")
        assert "Traceback" not in system.log_text()


@pytest.mark.needs_root
def test_a_message_of_another_owner_is_named_with_the_command_that_gives_it_back() -> None:
    with instance() as system:
        system.must("start")
        system.must("stop")
        lost = system.spool / "deferred" / "lost"
        lost.write_text("")
        done = system.mta("check")
        assert done.returncode == 78
        command = re.search(r"stop, then (find .*)", done.stderr)
        assert command and f"1 file in {system.spool}/deferred not owned" in done.stderr
        subprocess.run(command[1], shell=True, check=True)  # noqa: S602  (as the administrator does)
        assert lost.owner() == "nobody" and system.mta("check").returncode == 0


def test_a_link_in_the_queue_does_not_lead_the_start_elsewhere(tmp_path: Path) -> None:
    with instance() as system:
        system.must("start")
        system.must("stop")
        tmp_path.chmod(0o755)
        (system.spool / "bounce").rmdir()
        (system.spool / "bounce").symlink_to(tmp_path)
        done = system.mta("start")
        assert (done.returncode, done.stderr) == (71, f"mta: fatal: {system.spool}/bounce: Not a directory\n")
        assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("verb", ["start", "start-fg"])
def test_a_busy_port_is_one_line_and_leaves_nothing(verb: str) -> None:
    with instance() as system, socket.socket() as other:
        other.bind(("127.0.0.1", system.port))
        other.listen()
        done = system.mta(verb)
        assert done.returncode == 71
        assert done.stderr == (
            f"mta: fatal: {system.etc}/master.cf:1: bind 127.0.0.1:{system.port}: Address already in use\n"
        )
        assert sockets_left(system) == []
        other.close()
        system.must("start")


def test_a_path_too_long_for_a_socket_is_reported() -> None:
    with instance() as system:
        system.configure(submit_socket=str(system.directory / ("s" * 100)))
        done = system.mta("start")
        assert done.returncode == 71
        assert "too long for a socket (107 bytes)" in done.stderr
        assert sockets_left(system) == []


def test_a_process_that_cannot_serve_ends_the_start_with_its_reason() -> None:
    with instance(smtpd_processes="1") as system:
        (system.spool / "pid" / "unix.qmgr").mkdir(parents=True)
        system.spool.chmod(0o755)
        done = system.mta("start")
        assert done.returncode == 70
        assert "Is a directory" in done.stderr
        assert "process scheduler: exit status 70; not started" in done.stderr
        until(lambda: not system.all_processes(), "nothing left")
        assert system.mta("status").returncode == 1


# -- listening ------------------------------------------------------------------------------------


def test_ipv6_and_ipv4_are_both_served() -> None:
    with instance(inet_protocols="all") as system:
        (system.etc / "master.cf").write_text(f"{system.port} inet n - n - - smtpd\n")
        system.must("start")
        for host in ("127.0.0.1", "::1"):
            with Client(system.port, host) as client:
                assert client.greeting.startswith("220 ")


def test_inherited_sockets_are_used_and_a_foreign_one_is_closed_with_an_error() -> None:
    with instance() as system, socket.socket() as wanted, socket.socket() as foreign:
        for sock, port in ((wanted, system.port), (foreign, 0)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen()
        inode = os.fstat(wanted.fileno()).st_ino
        fds = [os.dup(s.fileno()) for s in (wanted, foreign)]
        code = (
            "import os, sys\n"
            "given = [int(n) for n in sys.argv[1:3]]\n"
            "a, b = (os.dup2(n, 100 + i, inheritable=False) for i, n in enumerate(given))\n"
            "for n in given: os.close(n)\n"
            "os.dup2(a, 3); os.dup2(b, 4)\n"
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2'}\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'mta', '-c', sys.argv[3], 'start-fg'])"
        )
        system.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, fds), str(system.etc)], cwd=ROOT, pass_fds=fds,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in fds:
            os.close(fd)
        with Client(system.port) as client:
            assert client.greeting.startswith("220 ")
        port = foreign.getsockname()[1]
        foreign_line = f"error: inherited socket 127.0.0.1:{port} is not in inet_interfaces"
        until(lambda: foreign_line in system.log_text(), "the error")
        links = {os.readlink(fd) for fd in Path(f"/proc/{system.pid}/fd").iterdir()}
        assert f"socket:[{inode}]" in links
        assert f"socket:[{os.fstat(foreign.fileno()).st_ino}]" not in links
        assert system.stop() == 0


# -- reload ---------------------------------------------------------------------------------------


@PROCESSES
def test_reload_brings_new_settings_and_refuses_a_broken_file(count: str) -> None:
    with started(smtpd_processes=count, message_size_limit="1000000") as system:
        pid = system.pid

        def size() -> str:
            with Client(system.port) as client:
                return client.command("EHLO x").partition("SIZE ")[2].split()[0]

        assert size() == "1000000"
        before = (system.etc / "main.cf").read_text()
        system.configure(message_size_limit="2000000")
        system.must("reload")
        until(lambda: size() == "2000000", "the new setting")
        until(lambda: "reload -- version" in system.log_text(), "the log says so", 20.0)
        line = len((system.etc / "main.cf").read_text().splitlines()) + 1
        system.configure(maximal_backoff_time="5x")
        done = system.mta("reload")
        assert done.returncode == 78
        assert f"main.cf:{line}: maximal_backoff_time = 5x" in done.stderr
        os.kill(pid, signal.SIGHUP)
        until(lambda: "reload refused: the running instance goes on" in system.log_text(), "refusal")
        until(lambda: f"main.cf:{line}: maximal_backoff_time = 5x" in system.log_text(), "and its reason")
        assert size() == "2000000"
        (system.etc / "main.cf").write_text(before.replace(str(system.spool), str(system.spool) + "2"))
        os.kill(pid, signal.SIGHUP)
        until(lambda: "to change queue_directory, stop and start" in system.log_text(), "refusal")
        (system.etc / "main.cf").write_text(before)
        system.must("reload")
        until(lambda: size() == "1000000", "the old setting again")
        assert system.pid == pid
        system.must("stop")


@PROCESSES
def test_ports_come_and_go_with_a_reload(count: str) -> None:
    with started(smtpd_processes=count) as system:
        master, second = system.etc / "master.cf", free_port()
        text = master.read_text()
        master.write_text(f"127.0.0.1:{second} inet n - n - - smtpd\n{text}")
        system.must("reload")
        until(lambda: answers(second), "the new port")
        assert answers(system.port)
        master.write_text(text)
        system.must("reload")
        until(lambda: not answers(second), "the port is gone")
        assert answers(system.port)


@PROCESSES
def test_a_port_stays_open_when_a_reload_cannot_open_it_at_another_address(count: str) -> None:
    with started(smtpd_processes=count) as system:
        master = system.etc / "master.cf"
        text = master.read_text()
        master.write_text(text.replace(f"127.0.0.1:{system.port}", f"0.0.0.0:{system.port}"))
        for times in (1, 2):
            system.must("reload")
            until(lambda n=times: system.log_text().count("reload -- version") == n, "reloaded")
            assert answers(system.port)
        assert f"bind 0.0.0.0:{system.port}: Address already in use; not listening there" in system.log_text()
        assert f"still listening on 127.0.0.1:{system.port}, until stop and start" in system.log_text()
        system.must("stop")
        system.must("start")
        with Client(system.port, "127.0.0.2") as client:
            assert client.greeting.startswith("220 ")


def answers(port: int) -> bool:
    try:
        with Client(port) as client:
            return client.greeting.startswith("220 ")
    except OSError:
        return False


@pytest.mark.parametrize("count", ["1", "2"])
def test_no_client_is_refused_and_no_transaction_lost_during_reloads(count: str) -> None:
    with started(smtpd_processes=count) as system:
        with Client(system.port) as in_data, Client(system.port) as idle, knocking(system.port) as wrong:
            in_data.begin(f"{local_user()}@{DOMAIN}")
            idle.command("EHLO idle")
            for _ in range(5):
                system.must("reload")
                time.sleep(0.3)
            assert in_data.finish().startswith("250 2.0.0 Ok: queued")
            assert in_data.command("NOOP").startswith("250"), "a session goes on after a reload"
            assert idle.send(f"{local_user()}@{DOMAIN}").startswith("250 2.0.0 Ok: queued")
        assert wrong == []
        until(lambda: mailbox_of(system).count(b"\nSubject: t") == 2, "both delivered")
        until(lambda: len(system.workers) == 1, "the old workers are gone")
        system.must("stop")
        assert system.all_processes() == []


def test_the_only_process_finishes_a_transaction_before_it_reloads() -> None:
    with started(smtpd_processes="0") as system, Client(system.port) as client:
        client.begin(f"{local_user()}@{DOMAIN}")
        system.must("reload")
        until(lambda: "reload -- version" in system.log_text(), "reload")
        assert client.finish().startswith("250 2.0.0 Ok: queued")
        until(lambda: answers(system.port), "service")
        until(lambda: mailbox_of(system), "delivery")


# -- logrotate, flush -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["0", "2"])
def test_logrotate_gives_every_process_a_new_file(count: str) -> None:
    with started(smtpd_processes=count) as system:
        old = system.log.stat()
        system.must("logrotate")
        rotated = [p for p in system.directory.iterdir() if p.name.startswith("maillog.")]
        assert [p.stat().st_ino for p in rotated] == [old.st_ino]
        new = system.log.stat()
        assert (new.st_uid, new.st_mode, new.st_ino != old.st_ino) == (old.st_uid, old.st_mode, True)

        def holders(name: Path) -> list[int]:
            found = []
            for pid in system.all_processes():
                with contextlib.suppress(OSError):
                    if any(os.readlink(fd) == str(name) for fd in Path(f"/proc/{pid}/fd").iterdir()):
                        found.append(pid)
            return found

        until(lambda: not holders(rotated[0]), "nobody holds the old one")
        assert len(holders(system.log)) >= max(1, int(count)), "they hold the new one"
        with Client(system.port) as client:
            client.send(f"{local_user()}@{DOMAIN}")
        until(lambda: "status=sent" in system.log_text(), "the new log")


def test_a_log_that_logrotate_8_has_renamed_already_is_opened_again() -> None:
    with started(smtpd_processes="1") as system:
        system.log.rename(system.directory / "maillog.1")
        system.must("logrotate")
        system.must("reload")
        until(lambda: "reload -- version" in system.log_text(), "the new file is written")
        assert "reload -- version" not in (system.directory / "maillog.1").read_text()


def test_flush_tries_deferred_mail_now() -> None:
    later = {"minimal_backoff_time": "1000s", "maximal_backoff_time": "2000s"}
    with started(**later, smtpd_processes="1") as system, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        system.configure(relayhost=f"[127.0.0.1]:{refusing.getsockname()[1]}")
        system.must("reload")
        until(lambda: system.log_text().count("reload -- ") == 1, "reload")
        with Client(system.port) as client:
            client.send("somebody@elsewhere.example", f"a@{DOMAIN}")
        until(lambda: "status=deferred" in system.log_text(), "deferral")
        until(lambda: system.queue()["deferred"], "the file is there")
        system.must("flush")
        until(lambda: system.log_text().count("status=deferred") == 2, "second attempt")
        system.must("stop")
        assert "status=bounced" not in system.log_text()


@pytest.mark.parametrize("name", ["nosuch/mail.log", "."])
def test_a_log_that_cannot_be_opened_is_one_line_and_starts_nothing(name: str) -> None:
    with instance() as system:
        system.configure(maillog_file=str(system.directory / name))
        for verb in ("start", "start-fg", "check"):
            done = system.mta(verb)
            assert done.returncode == 78, done.stderr
            assert "maillog_file = " in done.stderr and "Traceback" not in done.stderr
