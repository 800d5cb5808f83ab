"""What a service manager is told, and what it keeps for us: sd_notify(3), watchdog, file descriptor store."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.master.notify import Notify
from mta.master.watchdog import feed
from tests.crash.system import ROOT, free_port
from tests.system.support_lifecycle import Client, Instance, instance, until
from tests.system.support_load import Load
from tests.system.support_manager import Manager
from tests.system.support_system import queued

PROCESSES = pytest.mark.parametrize("count", ["0", "2"])


@contextlib.contextmanager
def managed(*, watchdog: float = 0.0, **settings: str) -> Iterator[tuple[Instance, Manager]]:
    """An instance under a manager, not started."""
    with instance(**settings) as system:
        manager = Manager(system, watchdog=watchdog)
        try:
            yield system, manager
        finally:
            manager.close()


@PROCESSES
def test_the_manager_hears_of_start_reload_and_of_a_reload_that_was_refused(count: str) -> None:
    with managed(smtpd_processes=count) as (system, manager):
        manager.start()
        assert f"READY=1\nSTATUS=serving\nMAINPID={system.pid}" in manager.heard
        system.must("reload")
        until(lambda: manager.heard[-2:] == ["RELOADING=1", "READY=1\nSTATUS=serving"], "reloaded")
        system.configure(queue_directory="/elsewhere")
        signalled = system.pid
        assert system.process is not None
        system.process.send_signal(signal.SIGHUP)
        until(lambda: "old configuration" in manager.heard[-1], "refused")
        assert manager.heard[-1].startswith("READY=1\n") and system.process.pid == signalled
        assert manager.stop() == 0
        until(lambda: manager.heard[-1].startswith("STOPPING=1\n"), "its last word")
        assert manager.count("STOPPING=1") == 1


@PROCESSES
def test_listeners_that_mta_opened_are_left_with_the_manager_and_taken_back(count: str) -> None:
    with managed(smtpd_processes=count) as (system, manager):
        manager.start()
        until(lambda: set(manager.store) == {f"listen-127.0.0.1_{system.port}"}, "the port is stored")
        other = free_port()
        master = (system.etc / "master.cf").read_text()
        (system.etc / "master.cf").write_text(f"127.0.0.1:{other} inet n - n - - smtpd\n{master}")
        system.must("reload")
        until(lambda: len(manager.store) == 2, "the new port is stored, too")
        assert manager.stop() == 0
        with socket.create_connection(("127.0.0.1", other), 20) as waiting:  # nobody runs, nobody is refused
            manager.start()
            assert waiting.makefile("rb").readline().startswith(b"220 ")
        assert manager.count("FDSTORE=1") == 2
        (system.etc / "master.cf").write_text(master)
        system.must("reload")
        until(lambda: set(manager.store) == {f"listen-127.0.0.1_{system.port}"}, "the old port is forgotten")
        assert manager.stop() == 0


@PROCESSES
def test_a_listener_that_was_left_with_the_manager_gives_way_when_its_port_gets_another_address(count: str) -> None:
    with managed(smtpd_processes=count) as (system, manager):
        manager.start()
        assert manager.stop() == 0
        master = system.etc / "master.cf"
        master.write_text(master.read_text().replace(f"127.0.0.1:{system.port}", f"0.0.0.0:{system.port}"))
        manager.start()
        with Client(system.port, "127.0.0.2") as client:
            assert client.greeting.startswith("220 ")
        until(lambda: set(manager.store) == {f"listen-0.0.0.0_{system.port}"}, "the other address is stored")
        assert manager.stop() == 0


@PROCESSES
def test_restarts_under_load_refuse_nobody_and_lose_nothing(count: str) -> None:
    with managed(smtpd_processes=count, default_transport="discard") as (system, manager):
        manager.start()
        load = Load(system.port, "box@elsewhere.test")
        for _ in range(3):
            before = len(load.accepted)
            until(lambda n=before: len(load.accepted) > n + 20, "mail flows")
            assert manager.stop() == 0
            manager.start()
        load.stop()
        assert load.failures == []
        log = system.log_text
        until(lambda: log().count("status=sent") >= len(load.accepted), "all delivered")
        assert manager.stop() == 0
        assert log().count("status=sent") == len(load.accepted)
        assert not queued(system)


def test_the_watchdog_is_fed_while_the_scheduler_s_loop_turns_and_only_then() -> None:
    with managed(watchdog=1.0) as (_, manager):
        manager.start()
        fed = manager.count("WATCHDOG=1")
        until(lambda: manager.count("WATCHDOG=1") >= fed + 3, "fed again and again")
        assert manager.stop() == 0


async def test_a_loop_that_stands_still_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.setblocking(False)
        notify = Notify({"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"})
        task = asyncio.create_task(feed(notify, Clock()))

        def fed() -> int:
            """How often since the last call."""
            found = 0
            with contextlib.suppress(BlockingIOError):
                while sock.recv(64) == b"WATCHDOG=1":
                    found += 1
            return found

        async with asyncio.timeout(20):
            count = 0
            while (count := count + fed()) < 5:  # noqa: ASYNC110  (datagrams, read as they come)
                await asyncio.sleep(0.02)
            time.sleep(0.5)  # noqa: ASYNC251 (that is the point)
            assert fed() == 0
            while not fed():  # noqa: ASYNC110  (the same)
                await asyncio.sleep(0.02)
        task.cancel()


def test_mta_local_feeds_a_watchdog_of_its_own_and_only_while_its_loop_turns(tmp_path: Path) -> None:
    with instance() as system, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.settimeout(60)
        private = system.spool / "private"
        private.mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
        command = [sys.executable, "-m", "mta.master.local", "-c", str(system.etc)]
        process = subprocess.Popen(command, cwd=ROOT, env=environ)
        try:
            assert sock.recv(64) == b"READY=1\nSTATUS=serving"
            assert [sock.recv(64) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.send_signal(signal.SIGSTOP)
            sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                for _ in range(100):  # what was sent before it stood still
                    sock.recv(64)
            process.send_signal(signal.SIGCONT)
            sock.settimeout(60)
            assert sock.recv(64) == b"WATCHDOG=1"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)


def test_a_worker_whose_loop_stands_still_is_ended_by_the_kernel() -> None:
    code = textwrap.dedent("""
        import asyncio, time
        from mta.clock import Clock
        from mta.master.notify import Notify
        from mta.master.watchdog import guard
        async def main():
            task = asyncio.create_task(guard(Notify({"WATCHDOG_USEC": "2000000"}), Clock()))
            await asyncio.sleep(4.5)  # longer than the alarm: the loop turns, so nothing happens
            print("alive", flush=True)
            time.sleep(60)
        asyncio.run(main())
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"alive\n")


def test_a_worker_that_stands_still_is_replaced_and_the_service_goes_on() -> None:
    with managed(watchdog=1.0, smtpd_processes="1") as (system, manager):
        manager.start()
        with Client(system.port) as client:
            assert client.greeting.startswith("220 ")
            (worker,) = system.workers
            os.kill(worker, signal.SIGSTOP)  # its alarm rings meanwhile
            fed = manager.count("WATCHDOG=1")
            until(lambda: manager.count("WATCHDOG=1") > fed + 8, "two seconds pass for the scheduler")
            os.kill(worker, signal.SIGCONT)
            assert client.reply() == "" or client.command("NOOP") == ""
        with Client(system.port) as client:
            assert client.greeting.startswith("220 ")
        until(lambda: f"pid {worker} exit signal {signal.SIGALRM}" in system.log_text(), "a line about it")
        assert manager.stop() == 0
