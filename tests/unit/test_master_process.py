"""The first process, run for real in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import os, signal, sys
from mta.clock import Clock
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.process import ChildSpec, Supervisor
log = Maillog(MaillogSettings("/dev/stdout", "postfix", "host"), Clock())

def say(text):
    os.write(1, (text + "\\n").encode())

def wait(parent):
    parent.serving()
    say(f"serving {os.getpid()}")
    signal.sigwait({signal.SIGTERM, signal.SIGHUP})
    say("ends")
    return 0
"""


def run(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str], start: str) -> str:
    """The next line of output that contains start."""
    assert process.stdout is not None
    for text in process.stdout:
        if start in text:
            return text.rstrip()
    raise AssertionError(f"ended without {start}: {process.stderr.read() if process.stderr else ''}")


def finish(process: subprocess.Popen[str], status: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, (out, err)
    return out, err


BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})"


def test_ready_is_called_once_when_all_serve_and_a_child_that_dies_is_forked_again() -> None:
    process = run("""
        def slow(parent):
            Clock().block(0.2)
            say("slow")
            return wait(parent)
        specs = (ChildSpec("a", wait), ChildSpec("b", slow))
        sys.exit(Supervisor(specs, lambda: None, log, Clock(), ready=lambda: say("ready")).run())
    """)
    first = int(line(process, "serving").split()[1])
    line(process, "slow")
    line(process, "ready")
    os.kill(first, signal.SIGKILL)
    assert f"process a pid {first} exit signal 9" in line(process, "warning: process a")
    assert int(line(process, "serving").split()[1]) != first
    process.terminate()
    out, err = finish(process, 0)
    assert (out.count("ready"), err) == (0, "")


def test_a_child_that_fails_before_all_serve_ends_everything_with_its_status() -> None:
    process = run("""
        specs = (ChildSpec("a", wait), ChildSpec("b", lambda parent: 78))
        sys.exit(Supervisor(specs, lambda: None, log, Clock(), ready=lambda: say("ready")).run())
    """)
    out, err = finish(process, 78)
    assert "ready" not in out
    assert err == "mta: fatal: process b: exit status 78; not started\n"


def test_a_reload_that_refuses_or_fails_leaves_the_children_alone() -> None:
    process = run("""
        answers = [None, RuntimeError("bug"), (ChildSpec("new", wait, signal.SIGHUP),)]
        def reload():
            answer = answers.pop(0)
            say("asked")
            if isinstance(answer, Exception):
                raise answer
            return answer
        specs = (ChildSpec("old", wait, signal.SIGHUP),)
        sys.exit(Supervisor(specs, reload, log, Clock(), ready=lambda: say("ready")).run())
    """)
    line(process, "ready")
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        line(process, "asked")
    line(process, "reload failed: RuntimeError: bug")
    process.send_signal(signal.SIGHUP)
    line(process, "ends")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    finish(process, 0)


def test_a_child_that_does_not_listen_to_sigterm_is_killed_after_the_limit() -> None:
    process = run(f"""
        def deaf(parent):
            {BLOCK}
            parent.serving()
            while True:
                Clock().block(1)
        specs = (ChildSpec("deaf", deaf),)
        sys.exit(Supervisor(specs, lambda: None, log, Clock(), 0.3, ready=lambda: say("ready")).run())
    """)
    line(process, "ready")
    process.terminate()
    finish(process, 0)


def test_a_clock_that_is_set_back_keeps_no_child_from_being_forked_again() -> None:
    process = run("""
        times, births = iter(range(10**9, 0, -3600)), os.memfd_create("births")
        def child(parent):
            os.write(births, b"x")
            parent.serving()
            if os.fstat(births).st_size == 1:
                return 1
            os.kill(os.getppid(), signal.SIGTERM)
            return 0
        supervisor = Supervisor((ChildSpec("a", child),), lambda: None, log, Clock(lambda: next(times)))
        sys.exit(supervisor.run())
    """)
    out, _ = finish(process, 0)
    assert "exit status 1" in out


def test_a_child_that_waits_to_be_called_comes_once_per_call_and_may_leave() -> None:
    process = run("""
        def caller(parent):
            parent.serving()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            while True:
                signal.sigwait({signal.SIGHUP})
                parent.call()
        def called(parent):
            parent.serving()
            say(f"called {os.getpid()}")
            return 0
        specs = (ChildSpec("a", caller), ChildSpec("b", called, when_called=True))
        supervisor = Supervisor(specs, lambda: None, log, Clock(), ready=lambda: say("ready"))
        sys.exit(supervisor.run())
    """)
    line(process, "ready")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    seen = set()
    for _ in range(3):
        (caller,) = [int(pid) for pid in children.read_text().split()]
        os.kill(caller, signal.SIGHUP)
        seen.add(line(process, "called"))
        while len(children.read_text().split()) > 1:
            pass
    assert len(seen) == 3
    process.terminate()
    out, _ = finish(process, 0)
    assert "warning" not in out, "leaving is no failure"


def test_a_child_that_is_leaving_has_a_successor_at_the_next_call() -> None:
    process = run("""
        def caller(parent):
            parent.serving()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            while True:
                signal.sigwait({signal.SIGHUP})
                parent.call()
        def called(parent):
            parent.serving()
            parent.leaving()
            say("called")
            while True:
                Clock().block(1)
        specs = (ChildSpec("a", caller), ChildSpec("b", called, when_called=True))
        supervisor = Supervisor(specs, lambda: None, log, Clock(), ready=lambda: say("ready"))
        sys.exit(supervisor.run())
    """)
    line(process, "ready")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    (caller,) = [int(pid) for pid in children.read_text().split()]
    for _ in range(2):
        os.kill(caller, signal.SIGHUP)
        line(process, "called")
    assert len(children.read_text().split()) == 3
    process.terminate()
    finish(process, 0)
