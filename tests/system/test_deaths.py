"""What a mail system does when a process of it dies, and when it is told to stop in the middle of work."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta.linux_sched import BACKGROUND, slice_of
from tests.system.support_lifecycle import Client, Instance, instance, started, until
from tests.system.support_system import DOMAIN, local_user, mailbox_of, queued

USER = f"{local_user()}@{DOMAIN}"


def delivered(system: Instance) -> int:
    return mailbox_of(system).count(b"\nSubject: t")


def kill(pid: int) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


# -- kill -9 of one process -----------------------------------------------------------------------


def test_a_scheduler_that_dies_is_replaced_and_mail_that_arrives_meanwhile_does_not_wait_for_a_scan() -> None:
    with started(smtpd_processes="2") as system:
        with Client(system.port) as before:
            for round_ in range(3):
                dead = system.scheduler
                kill(dead)
                assert before.send(USER).startswith("250 2.0.0 Ok: queued")
                with Client(system.port) as client:
                    assert client.send(USER).startswith("250 2.0.0 Ok: queued")
                until(lambda dead=dead: system.scheduler not in (0, dead), "another scheduler")
                until(lambda n=round_: delivered(system) == 2 * n + 2, "delivery")  # queue_run_delay is 300 s
                until(lambda: not queued(system), "an empty queue")  # the next kill finds nothing half done
        until(lambda: system.log_text().count("process scheduler pid") == 3, "a line for each")


def test_a_worker_that_dies_is_replaced() -> None:
    with started(smtpd_processes="1") as system:
        (dead,) = system.workers
        with Client(system.port) as client:
            client.begin(USER)
            kill(dead)
            with contextlib.suppress(OSError):
                assert client.finish() == ""
        with Client(system.port) as client:
            assert client.send(USER).startswith("250 2.0.0 Ok: queued")
        assert dead not in system.workers
        until(lambda: delivered(system) == 1, "one message delivered, not two")


@pytest.mark.needs_root
def test_mta_local_is_forked_again_when_it_dies() -> None:
    with started(smtpd_processes="1") as system:
        (keeper,) = system.root_children
        assert system.children(keeper) == [], "without work there is none"
        for round_ in range(3):
            with Client(system.port) as client:
                client.send(USER)
            until(lambda n=round_: delivered(system) == n + 1, "delivery")
            until(lambda: not queued(system), "an empty queue")  # the kill finds nothing half done
            (dead,) = system.children(keeper)
            kill(dead)
        system.must("stop")
        until(lambda: system.all_processes() == [], "no process")


@pytest.mark.needs_root
def test_mta_local_says_what_is_wrong_with_a_main_cf_that_was_broken_before_it_was_forked() -> None:
    with started(smtpd_processes="1") as system:
        whole = (system.etc / "main.cf").read_text()
        system.configure(hash_queue_depth="0")
        with Client(system.port) as client:
            client.send(USER)
        until(lambda: "status=deferred" in system.log_text(), "the delivery is put off")
        assert "main.cf:" in system.log_text() and "hash_queue_depth = 0: too small" in system.log_text()
        (system.etc / "main.cf").write_text(whole)
        system.must("flush")
        until(lambda: delivered(system) == 1, "delivery")


@pytest.mark.parametrize("count", ["0", "1", "2"])
def test_when_the_first_process_dies_all_are_gone_within_a_second(count: str) -> None:
    with started(smtpd_processes=count) as system:
        with Client(system.port) as client:
            client.send(USER)
        kill(system.pid)
        until(lambda: not system.all_processes(), "children gone", 1.0)
        system.must("start")
        until(lambda: delivered(system) >= 1, "delivery")  # twice when its mark was not yet written
        system.must("stop")


# -- counters of clients --------------------------------------------------------------------------


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(port)) for _ in range(count)]


def welcome(found: list[Client]) -> int:
    assert all(c.greeting.startswith(("220 ", "421 4.7.0 mx.test.example Error: too many conn")) for c in found)
    return sum(c.greeting.startswith("220 ") for c in found)


def test_the_connection_limit_holds_over_all_workers_and_over_their_deaths() -> None:
    limit = {"smtpd_client_connection_count_limit": "3", "smtpd_client_event_limit_exceptions": ""}
    with started(smtpd_processes="2", **limit) as system:

        def all_free() -> bool:
            with clients(system.port, 3) as found:
                return welcome(found) == 3

        def limited() -> bool:
            """Of 12 three; fewer for a moment after others have gone."""
            with clients(system.port, 12) as found:
                assert welcome(found) <= 3
                return welcome(found) == 3

        until(all_free, "the links are up")
        until(limited, "three of twelve")
        until(all_free, "released by their ends")
        with contextlib.ExitStack() as held:
            while len(held_clients(held, system.port)) < 3:
                held.close()
            dead = system.scheduler
            kill(dead)
            until(lambda: system.scheduler not in (0, dead), "another scheduler")
            until(lambda: refused(system.port), "the new one knows who is connected")
            for worker in system.workers:
                kill(worker)
            until(all_free, "released by the workers' deaths")


def held_clients(stack: contextlib.ExitStack, port: int) -> list[Client]:
    """Those of three new clients that are welcome."""
    found = [stack.enter_context(Client(port)) for _ in range(3)]
    return [client for client in found if client.greeting.startswith("220 ")]


def refused(port: int) -> bool:
    with Client(port) as client:
        return client.greeting.startswith("421 ")


def test_the_scheduler_leaves_the_processor_to_those_who_wake_and_workers_do_not() -> None:
    with started(smtpd_processes="1") as system:
        try:
            usual = slice_of(os.getpid())
        except OSError as error:
            pytest.skip(f"sched_getattr: {error}")
        if not usual:
            pytest.skip("before Linux 6.12 nobody has slices of his own")
        until(lambda: slice_of(system.scheduler) == BACKGROUND, "long slices")
        assert [slice_of(worker) for worker in system.workers] == [usual]


def test_clients_are_served_while_nobody_counts_them() -> None:
    with started(smtpd_processes="1", smtpd_client_connection_count_limit="3") as system:
        os.kill(system.scheduler, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with Client(system.port) as client:
                assert client.send(USER).startswith("250 2.0.0 Ok: queued")
            assert time.monotonic() - begun < 15
        finally:
            os.kill(system.scheduler, signal.SIGCONT)
        until(lambda: delivered(system) == 1, "delivery")


# -- stop in the middle of work -------------------------------------------------------------------


class SlowSink(threading.Thread):
    """A host that takes `pause` seconds over the end of data; counts what it has promised."""

    def __init__(self, pause: float) -> None:
        super().__init__(daemon=True)
        self.pause, self.received = pause, 0
        self.in_data = threading.Event()
        self.gone = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                with sock, contextlib.suppress(OSError):
                    self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        file = sock.makefile("rb")
        sock.sendall(b"220 slow ESMTP\r\n")
        while line := file.readline():
            if line.upper().startswith(b"DATA"):
                sock.sendall(b"354 go\r\n")
                while file.readline() not in (b".\r\n", b""):
                    pass
                self.in_data.set()
                self.gone.wait(self.pause)
                self.received += 1
            sock.sendall(b"250 2.0.0 fine\r\n")

    def close(self) -> None:
        self.gone.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.mark.parametrize("count", ["0", "1"])
def test_stop_lets_a_transaction_and_a_delivery_end(count: str) -> None:
    sink = SlowSink(1.5)
    with started(smtpd_processes=count, relayhost=f"[127.0.0.1]:{sink.port}") as system:
        with Client(system.port) as client:
            client.send("a@elsewhere.example", f"b@{DOMAIN}")
        assert sink.in_data.wait(30)
        with Client(system.port) as client, Client(system.port) as idle:
            client.begin(USER)
            pid = system.pid
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.3)
            os.kill(pid, signal.SIGTERM)
            assert idle.reply().startswith("421 4.3.2 ")
            assert client.finish().startswith("250 2.0.0 Ok: queued")
        until(lambda: not system.all_processes(), "the end")
        assert sink.received == 1
        assert "status=sent (250 2.0.0 fine)" in system.log_text()
        left = queued(system)
        system.must("start")
        until(lambda: delivered(system) == 1, f"what was accepted last ({left})")
        until(lambda: not queued(system), "an empty queue")
        assert sink.received == 1
    sink.close()


@pytest.mark.parametrize("verb", ["stop", "reload"])
def test_a_delivery_that_does_not_end_is_given_back_and_the_success_of_others_reported(verb: str) -> None:
    sink = SlowSink(300)
    with started(smtpd_processes="1", relayhost=f"[127.0.0.1]:{sink.port}") as system:
        with Client(system.port) as client:
            client.command("EHLO client.test")
            client.command(f"MAIL FROM:<{USER}>")
            for recipient in (USER, "a@elsewhere.example"):
                client.command(f"RCPT TO:<{recipient}> NOTIFY=SUCCESS,FAILURE")
            client.command("DATA")
            client.finish()
        assert sink.in_data.wait(30)
        until(lambda: delivered(system) == 1, "the other recipient's copy")
        begun = time.monotonic()
        system.must(verb)
        if verb == "stop":
            assert time.monotonic() - begun < 40
            assert len(queued(system)) == 2, "the message and the report"
            system.must("start")
        until(lambda: b"Subject: Successful Mail Delivery Report" in mailbox_of(system), "the report")
        until(lambda: len(queued(system)) == 1, "the message alone")
        sink.close()
        assert mailbox_of(system).count(b"Subject: Successful Mail Delivery Report") == 1
        assert delivered(system) == 2, "its header is in the report"
        assert "Traceback" not in system.log_text()


def test_a_reply_that_came_while_the_scheduler_stood_still_counts_though_its_time_is_over() -> None:
    """Stopped (SIGSTOP, docker pause, a machine that sleeps) it finds the 250 and the end of its patience together."""
    sink = SlowSink(1.0)
    with started(relayhost=f"[127.0.0.1]:{sink.port}", smtp_data_done_timeout="2s") as system:
        with Client(system.port) as client:
            client.send("a@elsewhere.example", f"b@{DOMAIN}")
        assert sink.in_data.wait(30)
        scheduler = system.scheduler
        os.kill(scheduler, signal.SIGSTOP)
        until(lambda: sink.received == 1, "the reply")
        time.sleep(2.0)
        os.kill(scheduler, signal.SIGCONT)
        until(lambda: "status=" in system.log_text(), "a result")
        assert "status=sent (250 2.0.0 fine)" in system.log_text(), "and not deferred (timed out)"
    sink.close()


# -- figures --------------------------------------------------------------------------------------


def test_idle_it_is_small_and_it_starts_quickly() -> None:
    with instance(smtpd_processes="1") as system:
        begun = time.monotonic()
        system.must("start")
        with Client(system.port) as client:
            assert client.greeting.startswith("220 ")
        took = time.monotonic() - begun
        sizes = {}
        for pid in system.all_processes():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            sizes[pid] = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        print(f"start to first 220: {took:.2f} s; idle PSS {sizes}: {sum(sizes.values()) / 1024:.1f} MiB")
        assert took < 15
