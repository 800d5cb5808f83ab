"""Memory of the whole system: what it takes idle, for big messages at once, and for clients that do nothing.

PSS counts a page that n processes share as 1/n in each, so the sum over our processes is what the machine pays.
"""

import asyncio
import resource
from collections.abc import Iterator

import pytest

from tests.crash.ledger import Ledger
from tests.crash.sink import Sink
from tests.crash.system import System
from tests.system.support_client import Client, Told, message, persist, send
from tests.system.support_system import (
    DOMAIN,
    ROOT_TESTS,
    local_user,
    mail_system,
    mailbox_of,
    processes,
    pss,
    pss_of_data,
    queued,
    wait_for,
)

MB = 1 << 20
IDLE = 1000  # connections


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for IDLE connections here and in the MTA, which inherits it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 2 * IDLE:
        pytest.skip(f"RLIMIT_NOFILE cannot be raised above {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * IDLE), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_idle_all_processes_take_thirty_nine_megabytes() -> None:
    """As root there are three of them: the first, the one that keeps mta-local, the scheduler.

    Measured alone on a machine: 37.0 MB; other Python processes make it less, because they share the interpreter.
    """
    with mail_system() as system:
        wait_for(lambda: len(processes(system)) == (3 if ROOT_TESTS else 2), "the workers have left")
        wait_for(lambda: pss(system) <= 39_000_000, "in 39 MB")  # the last worker's pages may still be shared
        print(f"idle {pss(system) / 1e6:.1f} MB")


def warm_up(system: System) -> None:
    """One message through everything, so that what is loaded at the first use is not counted as growth."""
    answer = asyncio.run(send(system.port, "a@x.test", [f"{local_user()}@{DOMAIN}", "r@remote.test"], message("warm")))
    assert answer.startswith("250"), answer
    wait_for(lambda: not queued(system), "the first message delivered")


def test_twenty_messages_of_five_megabytes_at_once_take_no_twenty_megabytes() -> None:
    ledger = Ledger()
    sink = Sink(ledger)
    highest = 0

    async def senders(system: System) -> None:
        nonlocal highest
        content, told = message("big", 5 * MB), Told()
        recipients = [f"{local_user()}@{DOMAIN}", "r@remote.test"]
        work = asyncio.gather(*(persist(system.port, "a@x.test", recipients, content, told) for _ in range(20)))
        while not work.done():
            highest = max(highest, await asyncio.to_thread(pss_of_data, system))
            await asyncio.sleep(0.05)
        await work
        assert told.replies == {} and told.lost == 0

    def delivered() -> bool:
        nonlocal highest
        highest = max(highest, pss_of_data(system))
        return not queued(system)

    try:
        with mail_system({"relayhost": f"[127.0.0.1]:{sink.port}", "mailbox_size_limit": "0"}) as system:
            warm_up(system)
            idle = pss_of_data(system)
            asyncio.run(senders(system))
            wait_for(delivered, "all of them delivered")
            grown = highest - idle
            assert mailbox_of(system).count(b"X-Test-Id: big") == 20
            assert len(ledger.delivered["big", "r@remote.test"]) == 20
    finally:
        sink.close()
    print(f"idle {idle / MB:.1f} MB, highest {highest / MB:.1f} MB")
    assert grown < 20 * MB, f"{grown / MB:.1f} MB"


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_idle_clients_cost_four_kilobytes_each_and_the_next_one_is_served() -> None:
    async def crowd(system: System, count: int) -> int:
        clients = [Client(system.port) for _ in range(count)]
        try:
            for i in range(0, count, 50):
                greetings = await asyncio.gather(*(client.connect() for client in clients[i : i + 50]))
                assert all(greeting.startswith("220") for greeting in greetings), greetings
            # Each has said hello: an idle client is one that is between two commands.
            answers = await asyncio.gather(*(client.command("EHLO client.test") for client in clients))
            assert all(answer.startswith("250") for answer in answers)
            used = await asyncio.to_thread(pss_of_data, system)
            answer = await send(system.port, "a@x.test", [f"{local_user()}@{DOMAIN}"], message("late"))
            assert answer.startswith("250"), answer
            return used
        finally:
            for client in clients:
                client.close()

    with mail_system({"relayhost": "[127.0.0.1]:9", "smtpd_client_connection_count_limit": "0"}) as system:
        asyncio.run(crowd(system, 50))  # what the first clients cost once is not the price of each
        wait_for(lambda: mailbox_of(system).count(b"X-Test-Id: late") == 1, "the first message delivered")
        idle = pss_of_data(system)
        used = asyncio.run(crowd(system, IDLE))
        wait_for(lambda: mailbox_of(system).count(b"X-Test-Id: late") == 2, "the late message delivered")
    print(f"idle {idle / MB:.1f} MB, {(used - idle) / IDLE:.0f} bytes per connection")
    assert (used - idle) / IDLE <= 4096
