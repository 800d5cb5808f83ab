"""Handing mail in with sendmail, in every condition the daemon and the caller may be in: exit 0 means durable."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sendmail_compat.install import install
from tests.crash.system import ROOT, System
from tests.system.support_system import (
    DOMAIN,
    WAIT,
    local_user,
    log_of,
    mail_system,
    mailbox_of,
    processes,
    queued,
    spool_of,
    wait_for,
    whole_log,
)

DISCARD = {"mydestination": "", "default_transport": "discard"}
ANYWHERE = ("maildrop", "incoming", "active", "deferred", "hold")


def command(system: System, *argv: str) -> list[str]:
    return [str(install(system.directory)), "-C", str(system.etc), *argv]


def hand_in(
    system: System, name: str, *argv: str, prefix: tuple[str, ...] = (), user: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *command(system, "-i", *(argv or (f"{local_user()}@{DOMAIN}",)))], input=f"Subject: {name}\n\nbody\n",
        capture_output=True, text=True, timeout=60, check=False, user=user, group=user, cwd="/",
    )  # fmt: skip


def delivered(system: System, name: str) -> int:
    return mailbox_of(system).count(b"Subject: %b\n" % name.encode())


def status_of(system: System) -> str:
    line = [sys.executable, "-m", "mta", "-c", str(system.etc), "status"]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60).stderr


def test_without_the_daemon_it_is_durable_said_once_and_seen_by_status_and_mailq() -> None:
    with mail_system() as system:
        system.stop()
        done = hand_in(system, "kept")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == "sendmail: warning: mail system is down; message kept in maildrop until it is back\n"
        if os.access(system.log, os.W_OK):
            assert "mail system is down, message kept until it is back" in log_of(system)
        assert [p.stat().st_mode & 0o777 for p in system.queue()["maildrop"]] == [0o750]
        listed = subprocess.run(command(system, "-bp"), capture_output=True, text=True, check=False, timeout=60)
        waits = "1 message in maildrop wait for the mail system to be started"
        assert listed.stderr.splitlines()[1:] == [f"postqueue: warning: {waits}"] and waits in status_of(system)
        system.start()
        wait_for(lambda: delivered(system, "kept") == 1, "the message")
        wait_for(lambda: not queued(system, *ANYWHERE), "an empty queue")
        assert delivered(system, "kept") == 1


def test_a_frozen_daemon_costs_12_seconds_and_no_mail_and_nothing_twice() -> None:
    with mail_system() as system:
        frozen = processes(system)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            done = hand_in(system, "frozen")
            waited = time.monotonic() - started
            assert done.returncode == 0 and "kept in maildrop" in done.stderr
            assert 11 < waited < 40
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert hand_in(system, "after").returncode == 0
        wait_for(lambda: delivered(system, "frozen") == 1 and delivered(system, "after") == 1, "both messages")
        wait_for(lambda: not queued(system, *ANYWHERE), "an empty queue")
        assert delivered(system, "frozen") == 1


def test_a_daemon_that_starts_with_a_long_queue_answers_soon() -> None:
    with mail_system({**DISCARD, "queue_run_delay": "300s"}, start=False) as system:

        async def fill() -> None:
            with spool_of(system) as spool:
                for _ in range(3000):
                    await spool.accept("someone@far.test")

        asyncio.run(fill())
        system.start()
        done = hand_in(system, "soon", "somebody@far.test")
        assert (done.returncode, done.stderr) == (0, ""), "answered within the 12 s, else it would be in maildrop"
        wait_for(lambda: log_of(system).count("status=sent") >= 3001, "all of the queue")


class Injector:
    """A sendmail that is fed and heard bit by bit, and ends with its test."""

    def __init__(self, system: System, *argv: str) -> None:
        pipe = subprocess.PIPE
        # a test run that ignores SIGHUP, as under nohup(1), would have its children ignore it, too
        line = ["env", "--default-signal=HUP", *command(system, *argv)]
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, cwd="/")
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def __enter__(self) -> "Injector":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


def dialogue(process: Injector, *lines: bytes) -> None:
    """Greeting and replies read, one for each line."""
    assert process.stdout.readline().startswith(b"220 ")
    for line in lines:
        process.stdin.write(line + b"\r\n")
        assert process.stdout.readline()[:1] in b"23", line


@pytest.mark.parametrize("end", ["EOF", "SIGTERM", "SIGPIPE", "SIGHUP"])
def test_an_interrupted_dialogue_queues_nothing(end: str) -> None:
    with mail_system(DISCARD) as system, Injector(system, "-bs") as process:
        dialogue(process, b"HELO x", b"MAIL FROM:<a@s.test>", b"RCPT TO:<b@far.test>", b"DATA")
        process.stdin.write(b"Subject: x\r\n\r\n" + b"line\r\n" * 10_000)
        if end == "EOF":
            process.stdin.close()
        elif end == "SIGPIPE":
            process.stdout.close()
            process.stdin.write(b".\n"[:1])  # half of a dot: the message is still open
            process.stdin.close()
        else:
            process.process.send_signal(getattr(signal, end))
        process.process.wait(WAIT)
        assert hand_in(system, "later", "c@far.test").returncode == 0
        wait_for(lambda: "to=<c@far.test>" in log_of(system), "the message after it")
        wait_for(lambda: "lost connection after DATA" in log_of(system) or end == "SIGPIPE", "the end of the dialogue")
        wait_for(lambda: not queued(system), "an empty queue")
        assert "to=<b@far.test>" not in whole_log(system)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_caller_killed_while_it_writes_queues_nothing(running: bool, number: signal.Signals) -> None:
    with mail_system(DISCARD) as system:
        if not running:
            system.stop()
        with Injector(system, "-i", "b@far.test") as process:
            process.stdin.write(b"Subject: x\n\n" + b"line\n" * 10_000)
            process.process.send_signal(number)
            assert process.process.wait(WAIT) in (-number, 128 + number)
        if running:
            assert hand_in(system, "later", "c@far.test").returncode == 0
            wait_for(lambda: "to=<c@far.test>" in log_of(system), "the message after it")
        wait_for(lambda: not any(system.queue().values()), "nothing in any queue")
        assert "to=<b@far.test>" not in log_of(system)


def test_a_daemon_killed_between_body_and_answer_leaves_one_message_or_an_honest_75() -> None:
    """Killed while the message comes in: the caller cannot know, and says so.

    Nothing is sent before the kill: what was would show in the log alone, whose last lines a kill -9 may take along.
    """
    with mail_system({**DISCARD, "defer_transports": "discard"}) as system:
        path = system.spool / "public" / "submit"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        with Injector(system, "-i", "b@far.test") as process:
            process.stdin.write(b"Subject: x\n\n" + b"line\n" * 100_000)
            process.stdin.close()
            system.kill()
            status = process.process.wait(WAIT)
            said = process.stderr.read().decode()
        assert (status, "may have been queued" in said) in ((75, True), (0, False)), (status, said)
        main = system.etc / "main.cf"
        main.write_text(main.read_text().replace("defer_transports = discard\n", ""))
        system.start()
        if status == 0:
            wait_for(lambda: sent_lines(system, "b"), "the message")
        wait_for(lambda: not queued(system, "maildrop", "incoming", "active", "deferred"), "an empty queue")
        assert hand_in(system, "later", "c@far.test").returncode == 0
        wait_for(lambda: sent_lines(system, "c"), "the message after it, and with it all lines before")
        assert sent_lines(system, "b") == 1 if status == 0 else sent_lines(system, "b") <= 1


def sent_lines(system: System, name: str) -> int:
    """How often the log says that a recipient was sent to."""
    return sum(f"to=<{name}@far.test>" in line and "status=sent" in line for line in log_of(system).splitlines())


def test_a_caller_that_streams_slowly_is_waited_for() -> None:
    with mail_system(DISCARD) as system, Injector(system, "b@far.test") as process:
        process.stdin.write(b"Subject: x\n\n")
        system.stop()
        system.start()  # a restart meanwhile is nothing to it
        for n in range(5):
            process.stdin.write(b"%d\n" % n)
            time.sleep(0.1)
        process.stdin.close()
        assert process.process.wait(WAIT) == 0 and process.stderr.read() == b""
        wait_for(lambda: "to=<b@far.test>" in log_of(system), "the message")


@pytest.mark.needs_root
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    "prefix",
    [
        ("setpriv", "--no-new-privs", "--reuid=54321", "--regid=54321", "--clear-groups"),
        ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"),
        ("unshare", "--user", "--map-root-user"),
        ("env", "-i"),
    ],
    ids=["no-new-privs", "no-capabilities", "user-namespace", "empty-environment"],
)
def test_a_caller_in_a_box_is_served(prefix: tuple[str, ...], running: bool) -> None:
    with mail_system(DISCARD) as system:
        if not running:
            system.stop()
        done = hand_in(system, "boxed", "b@far.test", prefix=prefix)
        assert done.returncode == 0, done
        if not running:
            system.start()
        wait_for(lambda: "to=<b@far.test>" in log_of(system), "the message")
