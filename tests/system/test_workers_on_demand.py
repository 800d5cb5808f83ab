"""smtpd workers come when a client knocks, and leave when there has been none for smtpd_processes_max_idle."""

import contextlib
import socket
import time

import pytest

from mta.master.worker import CROWD
from tests.crash.system import free_port
from tests.system.support_lifecycle import Client, crowd, instance, started, until
from tests.system.support_system import DOMAIN, local_user, mailbox_of

USER = f"{local_user()}@{DOMAIN}"


def test_a_worker_leaves_when_idle_and_the_next_client_is_served_by_a_new_one() -> None:
    with started(smtpd_processes="2", smtpd_processes_max_idle="2s") as system:
        until(lambda: not system.workers, "both have left")
        for round_ in range(3):
            with Client(system.port) as client:
                assert len(system.workers) == 1, "one for one client"
                assert client.send(USER).startswith("250 2.0.0 Ok: queued")
            until(lambda n=round_: mailbox_of(system).count(b"\nSubject: t") == n + 1, "delivery")
            until(lambda: not system.workers, "no worker")
        system.must("stop")
        assert "process smtpd" not in system.log_text(), "leaving is no failure"


def test_a_crowded_worker_gets_a_sibling_which_leaves_when_the_crowd_has_gone() -> None:
    with started(smtpd_processes="2", smtpd_processes_max_idle="1s") as system:
        until(lambda: not system.workers, "both have left")
        with Client(system.port) as stays:
            (first,) = system.workers
            with crowd(system.port):
                until(lambda: len(system.workers) > 1, "a second one")
            until(lambda: system.workers == [first], "the second has left")
            assert stays.send(USER).startswith("250 2.0.0 Ok: queued")


def test_a_client_has_no_more_connections_with_two_workers_than_with_one() -> None:
    limit = CROWD + 5
    settings = {"smtpd_client_connection_count_limit": str(limit), "smtpd_client_event_limit_exceptions": ""}
    with started(smtpd_processes="2", **settings) as system, contextlib.ExitStack() as stack:
        assert len(system.workers) == 2
        clients: list[Client] = []

        def all_come() -> bool:
            client = stack.enter_context(Client(system.port))
            if client.greeting.startswith("220 "):
                clients.append(client)
            return client.greeting.startswith("421 4.7.0 ")

        until(all_come, "the limit is reached")  # the kernel gives them to whom it likes
        assert len(clients) == limit
        for client in clients[:5]:
            assert client.send(USER).startswith("250 2.0.0 Ok: queued")


@pytest.mark.parametrize("count", ["0", "1", "2"])
def test_a_service_with_limits_of_its_own_counts_for_itself(count: str) -> None:
    general = {
        "smtpd_client_connection_count_limit": "3", "smtpd_client_message_rate_limit": "2",
        "smtpd_client_event_limit_exceptions": "", "anvil_rate_time_unit": "1h",
    }  # fmt: skip
    strict, lifted = free_port(), free_port()
    with instance(smtpd_processes=count, **general) as system, contextlib.ExitStack() as stack:
        with (system.etc / "master.cf").open("a") as file:
            file.write(f"127.0.0.1:{strict} inet n - n - - smtpd -o smtpd_client_connection_count_limit=1\n"
                       " -o smtpd_client_message_rate_limit=1\n"
                       f"127.0.0.1:{lifted} inet n - n - - smtpd -o smtpd_client_connection_count_limit=0\n"
                       " -o smtpd_client_message_rate_limit=0\n")  # fmt: skip
        system.must("start")
        for port, connections, messages in ((strict, 1, 1), (system.port, 3, 2), (lifted, 5, 5)):
            clients = [stack.enter_context(Client(port)) for _ in range(5)]
            taken = [client for client in clients if client.greeting.startswith("220 ")]
            assert len(taken) == connections, [client.greeting for client in clients]
            taken[0].command("EHLO client.test")
            replies = [taken[0].command("MAIL FROM:<>") for _ in range(5) if taken[0].command("RSET")]
            assert [reply[:3] for reply in replies] == ["250"] * messages + ["450"] * (5 - messages)
        with Client(strict) as one_more:
            assert one_more.greeting.startswith("421 4.7.0 ")
        for port in (strict, system.port):
            entry = f"for service 127.0.0.1:{port}\n"
            until(lambda entry=entry: entry in system.log_text(), "the log names the entry in master.cf")


def test_a_client_that_stays_keeps_its_worker() -> None:
    with started(smtpd_processes="1", smtpd_processes_max_idle="1s") as system, Client(system.port) as client:
        until(lambda: len(system.workers) == 1, "its worker alone")  # another one may just be leaving
        (worker,) = system.workers
        for _ in range(3):
            time.sleep(0.8)
            assert client.command("NOOP").startswith("250")
        assert system.workers == [worker]


def test_workers_come_back_after_a_reload() -> None:
    with started(smtpd_processes="1", smtpd_processes_max_idle="1s") as system:
        until(lambda: not system.workers, "no worker")
        system.must("reload")
        with Client(system.port) as client:
            assert client.send(USER).startswith("250 2.0.0 Ok: queued")


def test_an_old_worker_whose_client_stays_after_a_reload_keeps_nobody_else_waiting() -> None:
    with started(smtpd_processes="1") as system, Client(system.port) as stays:
        (old,) = system.workers
        before = system.scheduler
        system.must("reload")
        until(lambda: system.scheduler not in (before, 0), "a new scheduler")
        for _ in range(8):  # the old worker's link to it comes after 0.2 s
            time.sleep(0.25)
            assert stays.command("NOOP").startswith("250")
        with Client(system.port) as client:
            assert client.send(USER).startswith("250 2.0.0 Ok: queued")
            assert old in system.workers
        assert stays.command("NOOP").startswith("250")


def test_clients_are_served_while_a_scheduler_that_was_told_to_reload_ends_its_deliveries() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hop = f"[127.0.0.1]:{silent.getsockname()[1]}"
        with started(smtpd_processes="1", relayhost=hop) as system:
            before, (worker,) = system.scheduler, system.workers
            with Client(system.port) as client:
                assert client.send("user@elsewhere.example").startswith("250 2.0.0 Ok: queued")
            delivery, _ = silent.accept()
            with delivery:
                system.must("reload")
                until(lambda: worker not in system.children(), "the old worker's end")
                with Client(system.port) as client:
                    assert client.command("NOOP").startswith("250")
                    assert before in system.children(), "still under way"
