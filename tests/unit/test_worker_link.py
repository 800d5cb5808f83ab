"""The link between worker and scheduler: nothing announced is lost, nobody is counted twice."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from typing import cast

import pytest

from mta import worker_link_client
from mta.clock import Clock
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.smtpd.anvil import Anvil, AnvilSettings
from mta.smtpd.facts import PERMIT, Verdict
from mta.worker_link import LinkServer
from mta.worker_link_client import LinkClient
from tests.unit.test_resolver import Lines

IP = "192.0.2.1"


def counters(kind: type[Anvil] = Anvil) -> Anvil:
    """A client may have two connections."""
    return kind(AnvilSettings("mx.test", 2, 0, 0, 0, 60.0), Clock())


class Deaf(asyncio.Protocol):
    """Greets, and never answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(b"H\n")


class Ends:
    """A scheduler's end that can be replaced, and workers."""

    def __init__(self, path: str) -> None:
        self.path, self.sink = path, Lines()
        self.log = Maillog(MaillogSettings("", "postfix", "host"), Clock(), self.sink)
        self.arrived: list[tuple[str, int]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.server: asyncio.Server | None = None
        self.ends: list[asyncio.Protocol] = []
        self.deaf = False
        self.listening = 0
        self.anvil = counters()

    async def scheduler(self) -> None:
        """A new one, which knows nothing."""
        self.anvil = counters()

        def linked(change: int) -> None:
            self.listening += change

        link = LinkServer(self.anvil, lambda queue_id, named: self.arrived.append((queue_id, named)), self.log, linked)

        def factory() -> asyncio.Protocol:
            end = Deaf() if self.deaf else link.factory()
            self.ends.append(end)
            return end

        self.server = await asyncio.get_running_loop().create_unix_server(factory, self.path)

    async def kill_scheduler(self) -> None:
        assert self.server is not None
        self.server.close()
        for end in self.ends:
            transport = getattr(end, "transport", None)
            if transport is not None:
                transport.abort()
        self.ends.clear()
        await asyncio.sleep(0.02)

    def worker(self, own: Anvil | None = None) -> LinkClient:
        client = LinkClient(self.path, Clock(), self.log, own)
        self.tasks.append(asyncio.get_running_loop().create_task(client.run()))
        return client


async def until(condition: "object") -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (of any kind of condition)
            await asyncio.sleep(0.01)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    with tempfile.TemporaryDirectory(prefix="link-", dir="/tmp") as directory:
        made = Ends(f"{directory}/qmgr")
        yield made
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        if made.server is not None:
            await made.kill_scheduler()


async def test_what_is_announced_while_nobody_listens_is_announced_later(ends: Ends) -> None:
    worker = ends.worker()
    worker.arrived("4FA1", 1)
    await ends.scheduler()
    await until(lambda: ends.arrived == [("4FA1", 1)])
    worker.arrived("4FA2", 2)
    await until(lambda: ends.arrived == [("4FA1", 1), ("4FA2", 2)])
    await worker.settled(10)
    await ends.kill_scheduler()
    await until(lambda: not worker.up)
    worker.arrived("4FA3", 3)
    await ends.scheduler()
    await until(lambda: ends.arrived[2:] == [("4FA3", 3)])


async def test_an_announcement_without_an_answer_is_repeated_to_the_next_scheduler(ends: Ends) -> None:
    ends.deaf = True
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    worker.arrived("4FA1", 1)
    await asyncio.sleep(0.05)
    await ends.kill_scheduler()
    ends.deaf = False
    await ends.scheduler()
    await until(lambda: ends.arrived == [("4FA1", 1)])


async def test_workers_share_their_counters_and_a_lost_worker_holds_nothing(ends: Ends) -> None:
    await ends.scheduler()
    one, two = ends.worker(), ends.worker()
    await until(lambda: one.up and two.up)
    assert await one.connect(IP) is PERMIT
    assert await two.connect(IP) is PERMIT
    refused = await one.connect(IP)
    assert refused.reply is not None
    assert str(refused.reply) == f"421 4.7.0 mx.test Error: too many connections from {IP}"
    assert refused.log == ("Connection concurrency limit exceeded: 3",)
    assert refused.close
    one.disconnect(IP)
    one.disconnect(IP)
    assert await one.mail(IP) is PERMIT
    assert await two.connect(IP) is PERMIT
    ends.tasks[1].cancel()  # two dies with both of its clients
    await asyncio.sleep(0.05)
    assert await one.connect(IP) is PERMIT
    assert await one.connect(IP) is PERMIT
    assert (await one.connect(IP)).reply is not None


async def refused(worker: LinkClient) -> bool:
    """Is one connection more refused?"""
    verdict = await worker.connect(IP)
    worker.disconnect(IP)
    return verdict.reply is not None


async def soon_refused(worker: LinkClient) -> None:
    """The others have said whom they hold."""
    async with asyncio.timeout(10):
        while not await refused(worker):  # noqa: ASYNC110  (there is nothing to wait for)
            await asyncio.sleep(0.01)


async def test_a_worker_without_siblings_counts_itself_and_tells_what_it_holds_when_there_is_one(ends: Ends) -> None:
    await ends.scheduler()
    one = ends.worker(counters())
    await until(lambda: one.up)
    assert [await one.connect(IP), await one.connect(IP)] == [PERMIT, PERMIT]
    assert await refused(one)
    assert len(ends.anvil) == 0, "the scheduler was not asked"
    two = ends.worker(counters())
    await until(lambda: two.up and one.shared and two.shared)
    await soon_refused(two)
    one.disconnect(IP)
    assert not await refused(one), "and the scheduler has heard of it"
    assert await two.connect(IP) is PERMIT
    assert await refused(one) and await refused(two)
    two.leaving()
    assert await refused(one), "it has its clients still"


async def test_the_last_worker_counts_itself_again_and_a_third_one_hears_of_what_it_holds(ends: Ends) -> None:
    await ends.scheduler()
    one, two = ends.worker(counters()), ends.worker(counters())
    await until(lambda: one.up and one.shared and two.shared)
    assert [await one.connect(IP), await two.connect(IP)] == [PERMIT, PERMIT]
    assert await refused(one)
    ends.tasks[1].cancel()
    await until(lambda: not one.shared)
    assert not await refused(one), "the clients of the dead are gone"
    assert await one.connect(IP) is PERMIT
    assert await refused(one)
    three = ends.worker(counters())
    await until(lambda: three.up and three.shared and one.shared)
    await soon_refused(three)
    one.disconnect(IP)
    one.disconnect(IP)
    assert not await refused(one)
    assert [await three.connect(IP), await three.connect(IP)] == [PERMIT, PERMIT]
    assert await refused(one), "held by one worker only, and once"


class Slow(Anvil):
    """Takes time to count."""

    found: asyncio.Event

    async def connect(self, address: str) -> Verdict:
        verdict = await super().connect(address)
        await self.found.wait()
        return verdict


async def test_a_client_that_comes_while_a_worker_gets_a_sibling_is_counted_once(ends: Ends) -> None:
    await ends.scheduler()
    own = counters(Slow)
    assert isinstance(own, Slow)
    own.found = asyncio.Event()
    one = ends.worker(own)
    await until(lambda: one.up)
    coming = asyncio.ensure_future(one.connect(IP))
    await asyncio.sleep(0)
    two = ends.worker(counters())
    await until(lambda: one.shared and two.shared)
    own.found.set()
    assert await coming is PERMIT
    one.disconnect(IP)
    assert not await refused(one), "and the scheduler has heard of it"
    assert [await two.connect(IP), await two.connect(IP)] == [PERMIT, PERMIT]


async def test_a_client_that_goes_while_it_is_looked_up_takes_no_other_client_with_it(ends: Ends) -> None:
    await ends.scheduler()
    own = counters(Slow)
    assert isinstance(own, Slow)
    own.found = asyncio.Event()
    own.found.set()
    one, two = ends.worker(own), ends.worker(counters())
    await until(lambda: one.up and one.shared and two.shared)
    assert await one.connect(IP) is PERMIT
    own.found.clear()
    coming = asyncio.ensure_future(one.connect(IP))
    await asyncio.sleep(0)
    coming.cancel()
    await asyncio.wait([coming])
    one.disconnect(IP)
    own.found.set()
    assert await one.mail(IP) is PERMIT  # the scheduler has read all that
    assert await two.connect(IP) is PERMIT
    assert await refused(two), "the first one is there still"
    own.found.clear()
    coming = asyncio.ensure_future(one.connect(IP))
    await asyncio.sleep(0)
    assert await one.mail(IP) is PERMIT
    own.found.set()
    assert (await coming).reply is not None, "an answer that came meanwhile counts"
    assert not one._asked


async def test_a_worker_whose_scheduler_is_gone_counts_itself_until_the_next_one_shares(ends: Ends) -> None:
    await ends.scheduler()
    one, two = ends.worker(counters()), ends.worker(counters())
    await until(lambda: one.shared and two.shared)
    assert [await one.connect(IP), await two.connect(IP)] == [PERMIT, PERMIT]
    await ends.kill_scheduler()
    await until(lambda: not one.up and not two.up)
    assert not await refused(one), "the other's is not known"
    assert await one.connect(IP) is PERMIT
    assert await refused(one)
    one.disconnect(IP)
    await ends.scheduler()
    await until(lambda: one.up and two.up and one.shared and two.shared)
    await soon_refused(one)
    await soon_refused(two)


async def test_a_new_scheduler_is_told_who_is_connected(ends: Ends) -> None:
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    for _ in range(2):
        assert await worker.connect(IP) is PERMIT
    await ends.kill_scheduler()
    await until(lambda: not worker.up)
    worker.disconnect(IP)
    assert await worker.connect(IP) is PERMIT, "uncounted"
    await ends.scheduler()
    await until(lambda: worker.up)
    assert (await worker.connect(IP)).reply is not None
    worker.disconnect(IP)
    worker.disconnect(IP)
    assert await worker.connect(IP) is PERMIT


async def test_a_scheduler_that_does_not_answer_delays_nobody_for_long(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link_client, "ANSWER", 0.1)
    ends.deaf = True
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    assert await worker.connect(IP) is PERMIT
    assert await worker.rcpt("unknown peer") is PERMIT


async def test_rubbish_ends_one_link_only(ends: Ends) -> None:
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    for rubbish in (b"X 1 2\n", b"\xff" * 200_000, b"Q\n"):
        reader, writer = await asyncio.open_unix_connection(ends.path)
        writer.write(rubbish)
        with contextlib.suppress(ConnectionError):
            assert (await reader.read()).startswith(b"H\n")
        writer.close()
    assert worker.up
    assert await worker.connect(IP) is PERMIT


async def test_a_worker_that_listens_no_more_does_not_count_as_one_now_or_after_a_reconnect(ends: Ends) -> None:
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    assert ends.listening == 1
    worker.leaving()
    await until(lambda: ends.listening == 0)
    await ends.kill_scheduler()
    assert ends.listening == 0
    await ends.scheduler()
    await until(lambda: worker.up)
    await until(lambda: ends.listening == 0)
    await ends.kill_scheduler()
    assert ends.listening == 0, "counted down once"


async def test_what_the_log_says_of_a_message_is_written_before_the_message_is_announced(ends: Ends) -> None:
    known = list[str]()

    class Asking(list[tuple[str, int]]):
        def append(self, message: tuple[str, int]) -> None:
            known.extend(line for line in ends.sink.lines if message[0] in line)
            super().append(message)

    ends.arrived = Asking()
    await ends.scheduler()
    worker = ends.worker()
    await until(lambda: worker.up)
    for queue_id in ("4FA1", "4FA2"):
        worker.log.write("smtpd", f"{queue_id}: client=c.example[192.0.2.1]")
        worker.arrived(queue_id, 1)
    assert not any("4FA" in line for line in ends.sink.lines), "the client is answered first"
    await until(lambda: len(ends.arrived) == 2)
    assert [line[-33:] for line in known] == [f"{name}: client=c.example[192.0.2.1]" for name in ("4FA1", "4FA2")]


async def test_what_is_announced_in_the_turn_in_which_a_scheduler_greets_is_said_once(ends: Ends) -> None:
    await ends.scheduler()
    worker = ends.worker()
    greeted = worker.greeted

    def just_then(end: worker_link_client._SchedulerEnd) -> None:
        worker.arrived("4FA1", 1)
        greeted(end)

    worker.greeted = just_then  # type: ignore[method-assign]
    await until(lambda: ends.arrived)
    await worker.settled(10)
    worker.arrived("4FA2", 2)
    await until(lambda: len(ends.arrived) == 2)
    assert ends.arrived == [("4FA1", 1), ("4FA2", 2)]


async def test_a_scheduler_that_was_away_while_much_came_is_told_of_it_in_one_go_beside_more(ends: Ends) -> None:
    worker = ends.worker()
    moment = Clock().moment()
    for number in range(100_000):
        worker.arrived(f"4YzKpL1w{number:06}z2Bc1", moment)
    await ends.scheduler()
    for number in range(100):
        worker.arrived(f"4YzKpL2w{number:06}z2Bc1", moment)
        await asyncio.sleep(0.005)
    await until(lambda: not worker._unacknowledged)
    assert len(ends.ends) == 1, "one connection"
    assert len({queue_id for queue_id, _ in ends.arrived[-1000:]}) == 1000
