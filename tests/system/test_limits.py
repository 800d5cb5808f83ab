"""The whole system at its limits: 64 descriptors, hundreds of clients, thousands of waiting messages.

The rule is the same everywhere: who has to wait is told 4xx or waits, nobody hears 5xx, nothing is lost or spins.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from mta import descriptors
from mta.lookup.table import TableError
from mta.lookup.unix import UserLookup
from tests.crash.ledger import Ledger
from tests.crash.sink import Sink
from tests.crash.system import System
from tests.queue_support import Spooled
from tests.system.support_client import Client, Told, message, persist, send
from tests.system.support_system import (
    DOMAIN,
    cpu,
    directory,
    local_user,
    mail_system,
    mailbox_of,
    mailq,
    processes,
    queued,
    spool_of,
    wait_for,
    whole_log,
)

CLIENTS = 200
FEW = ("prlimit", "--nofile=64:64")
WAITING = 2000  # deferred messages
TOGETHER = 200  # written by one test at the same time


@pytest.fixture
def loops() -> Iterator[Callable[[str], tuple[str, ...]]]:
    """loops(name): a prefix for a system on this event loop."""
    with directory() as hidden:
        (hidden / "uvloop.py").write_text("raise ImportError\n")

        def prefix(name: str) -> tuple[str, ...]:
            if name == "uvloop":
                pytest.importorskip("uvloop")
                return ()
            return ("env", f"PYTHONPATH={hidden}")

        yield prefix


def storm(system: System, count: int = CLIENTS) -> Told:
    """All at once, each for a user who exists and a relayed address, until it is taken."""
    told = Told()

    async def everybody() -> None:
        async with asyncio.timeout(120):
            user = f"{local_user()}@{DOMAIN}"
            await asyncio.gather(*(
                persist(system.port, "a@x.test", [user, f"r{i}@remote.test"], message(f"m{i}"), told)
                for i in range(count)
            ))  # fmt: skip

    asyncio.run(everybody())
    return told


def spins(system: System) -> bool:
    """Does it never stop using a processor while nothing happens?  What is left to do may take a few seconds."""

    def busy_second() -> bool:
        before = cpu(system)
        time.sleep(1.0)
        return cpu(system) - before > 0.2  # of a spinning one, even when others want both processors, too

    return all(busy_second() for _ in range(10))


@pytest.mark.parametrize(("loop", "processes"), [("uvloop", 1), ("uvloop", 0), ("asyncio", 1)])
def test_with_64_descriptors_200_clients_are_all_served_and_none_hears_5xx(
    loop: str, processes: int, loops: Callable[[str], tuple[str, ...]]
) -> None:
    ledger = Ledger()
    sink = Sink(ledger)
    settings = {"relayhost": f"[127.0.0.1]:{sink.port}", "smtpd_processes": str(processes)}
    try:
        with mail_system(settings, prefix=(*loops(loop), *FEW)) as system:
            told = storm(system)
            assert told.with_code("5") == []
            answer = asyncio.run(send(system.port, "a@x.test", [f"{local_user()}@{DOMAIN}"], message("late")))
            assert answer.startswith("250"), answer
            wait_for(lambda: not queued(system), "everything delivered")
            content = mailbox_of(system)
            for i in range(CLIENTS):
                assert content.count(b"X-Test-Id: m%d\n" % i) == 1
                assert len(ledger.delivered[f"m{i}", f"r{i}@remote.test"]) == 1
            assert not spins(system)
            assert "status=bounced" not in whole_log(system)
    finally:
        sink.close()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_idle_clients_hold_all_places_and_it_neither_spins_nor_forgets_the_next(
    loop: str, loops: Callable[[str], tuple[str, ...]]
) -> None:
    async def crowd(system: System) -> list[str]:
        clients = [Client(system.port) for _ in range(80)]
        try:
            said = await asyncio.gather(*(client.connect() for client in clients), return_exceptions=True)
            assert not await asyncio.to_thread(spins, system)
            return [text if isinstance(text, str) else "lost" for text in said]
        finally:
            for client in clients:
                client.close()

    with mail_system({"relayhost": "[127.0.0.1]:9"}, prefix=(*loops(loop), *FEW)) as system:
        said = asyncio.run(crowd(system))
        assert any(text.startswith("220 ") for text in said)
        assert {text[:3] for text in said} <= {"220", "421", "los"}, said

        def taken() -> bool:
            answer = asyncio.run(send(system.port, "a@x.test", [f"{local_user()}@{DOMAIN}"], message("next")))
            assert not answer.startswith("5"), answer
            return answer.startswith("250")

        wait_for(taken, "a place: they become free as the server sees the clients go")
        wait_for(lambda: mailbox_of(system).count(b"X-Test-Id: next") == 1, "delivered")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_crowd_that_comes_while_nobody_accepts_is_let_in_by_the_kernel_and_greeted_later(
    loop: str, loops: Callable[[str], tuple[str, ...]]
) -> None:
    with mail_system(prefix=loops(loop)) as system, contextlib.ExitStack() as crowd:
        frozen = processes(system)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            address = ("127.0.0.1", system.port)
            clients = [crowd.enter_context(socket.create_connection(address, 60)) for _ in range(300)]
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert {client.recv(4) for client in clients} <= {b"220 ", b"421 "}


@pytest.fixture
def fill() -> Iterator[Callable[[int], None]]:
    """fill(n): open descriptors until only n are left, under a limit of this process that is put back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []

    def filler(left: int) -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # whatever this test process has open already
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, before[1]))
        try:
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for _ in range(left):
                os.close(opened.pop())

    yield filler
    for fd in opened:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("left", [0, 1, 2, 3, 7])
def test_no_such_user_is_not_believed_while_descriptors_are_scarce(fill: Callable[[int], None], left: int) -> None:
    users = UserLookup()
    fill(left)
    assert descriptors.scarce()
    with pytest.raises(TableError):
        users.by_name_now("no-such-user")
    with pytest.raises(TableError):
        users.group_by_name_now("no-such-group")


def test_a_user_who_is_found_is_believed_and_with_enough_descriptors_so_is_no_such_user(
    fill: Callable[[int], None],
) -> None:
    users = UserLookup()
    assert not descriptors.scarce()
    assert users.by_name_now("no-such-user") is None
    fill(16)  # what is left when clients have all that they may have, under a limit of 64
    assert users.by_name_now("no-such-user") is None
    assert users.by_name_now("root") is not None
    assert users.group_by_name_now("no-such-group") is None


def test_what_is_planned_fits_into_the_limit(fill: Callable[[int], None]) -> None:
    most = descriptors.jobs() * descriptors.PER_JOB + descriptors.deliveries() * descriptors.PER_DELIVERY
    assert most <= descriptors.limit()
    fill(0)
    assert (descriptors.jobs(), descriptors.deliveries()) == (1, 1)


def test_with_2000_deferred_messages_it_greets_at_once_and_mailq_lists_them() -> None:
    async def accept(spool: Spooled) -> None:
        for first in range(0, WAITING, TOGETHER):  # each has its file open, and a shell gives 1,024 descriptors
            await asyncio.gather(*(spool.accept(f"r{i}@remote.test") for i in range(first, first + TOGETHER)))

    settings = {"relayhost": "[127.0.0.1]:9", "minimal_backoff_time": "300s", "maximal_backoff_time": "4000s"}
    with mail_system(settings, start=False) as system:
        with spool_of(system) as spool:
            asyncio.run(accept(spool))
            for name in spool.names("incoming"):
                path = spool.path("incoming", name)
                spool.store.spool.move(str(path), "deferred", name)
                os.utime(spool.path("deferred", name), (time.time() + 3000,) * 2)
        begin = time.monotonic()
        system.start()
        took = time.monotonic() - begin
        listing = mailq(system)
        assert listing.count("@remote.test") == WAITING
        assert listing.rstrip().endswith(f"{WAITING} Requests.")
        assert len(queued(system, "deferred")) == WAITING
    print(f"first 220 after {took:.2f} s")
    assert took < 20
