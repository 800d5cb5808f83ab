"""The MTA as processes of the simulated machine: the same objects that master builds, with the world replaced.

Real: store, cleanup, SMTP server, submit server, pickup, queue manager, SMTP and local agents, mailbox engine, bounce
writer.  Simulated: clock, disk, network, DNS answers, user database.  Not simulated: forking, the first process (its
rule "restart what died" is Supervisor), mta-local (the daemon delivers as its own user), the worker link (announcements
between processes arrive after a latency, or are lost with either process).
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import dns.name

from mta.clock import Clock
from mta.config.config import Config
from mta.dns.exchange import Exchange
from mta.dns.mx import MX, DnsNoData, DnsNotFound, DnsTemporary, MXAnswer
from mta.dns.resolver import Resolver, ResolverSettings
from mta.fsio.flusher import Flusher
from mta.fsio.linux_aio import FDSYNC, Done
from mta.lookup.unix import Group, User, UserLookup
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.build import Core, build_anvil, build_core, build_qmgr, build_smtpd
from mta.pickup import Pickup, PickupSettings
from mta.queue.store import StoreSettings, create_spool
from mta.smtpd.server import SMTPServer
from mta.submit.submit import SubmitServer, SubmitSettings
from mta.submit.users import Access
from tests.inline_fsio import InlineFsio
from tests.sim.loop import SimLoop
from tests.sim.net import Net
from tests.sim.plan import USERS
from tests.sim.process import Process
from tests.sim.syscalls import SimOs

P = ParamSpec("P")
T = TypeVar("T")
_PREFIX = re.compile(r"^.{16}postfix/([^[]+)\[\d+\]")  # date, program and our real process number
EPOCH = 1_800_000_000.0
ADDRESS = "192.0.2.1"
SUBMIT = "/spool/public/submit"
UID = 1000


class SimClock(Clock):
    """Wall time is loop time plus what jumps added."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(lambda: EPOCH + loop.time() + self.offset)
        self.loop, self.offset = loop, 0.0

    def block(self, seconds: float) -> None:
        self.loop.pass_time(seconds)


class SimFlusher:
    """Each flush takes its time; the group is done with its last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fsio: "SimFsio") -> None:
        self._loop, self._fsio = loop, fsio

    def begin(self, fd: int) -> None:
        return

    def submit(self, fds: Sequence[int], op: int, done: Done) -> None:
        results: list[OSError | None] = [None] * len(fds)
        left = len(fds)

        def flush(i: int, fd: int) -> None:
            nonlocal left
            try:
                SIM_OS.fsync(fd, data_only=op == FDSYNC)
            except OSError as error:
                results[i] = error
            left -= 1
            if not left:
                done(results)

        for i, fd in enumerate(fds):
            self._loop.call_later(self._fsio.flush_time(), flush, i, fd)

    def close(self) -> None:
        return


SIM_OS = SimOs()


class SimFsio(InlineFsio):
    """Blocking calls take a moment now and then, before or after they did their work."""

    def __init__(self, rng: random.Random, slow: Callable[[], float]) -> None:
        super().__init__(aio=False)
        self._rng, self._slow = rng, slow

    def flush_time(self) -> float:
        """Seconds of one flush."""
        return self._rng.choice((0.0002, 0.001, 0.005)) + self._slow()

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        chance = self._rng.random()
        if chance < 0.15:
            await asyncio.sleep(0.0005)
        result = fn(*args, **kwargs)
        if chance > 0.85:
            await asyncio.sleep(0.0005)
        return result

    def flusher(self, loop: asyncio.AbstractEventLoop) -> Flusher:
        return SimFlusher(loop, self)


class SimNames:
    """The user database."""

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]:
        text = name.decode()
        return 0, User(text, UID, UID, "", f"/home/{text}", "/bin/sh") if text in USERS else None

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]:
        return 0, User(USERS[0], UID, UID, "", f"/home/{USERS[0]}", "/bin/sh")

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]:
        return 0, None

    def group_list(self, name: bytes, gid: int) -> list[int]:
        return [gid]


class SimResolver(Resolver):
    """The real cache and single flight, before a name server of ours."""

    def __init__(self, config: Config, core: Core, zone: "Zone") -> None:
        super().__init__(
            config.fill(ResolverSettings), core.connector, core.clock, core.log, resolv_conf="/nonexistent",
            hosts="/nonexistent",
        )  # fmt: skip
        self._exchange = SimExchange(self._servers, core.connector, core.clock)
        self._exchange.zone = zone


class SimExchange(Exchange):
    """Asks no server."""

    zone: "Zone"

    async def ask(self, name: dns.name.Name, kind: str) -> Any:
        """See Exchange."""
        return await self.zone.answer(name.to_text(omit_final_dot=True).lower(), kind)


class Zone:
    """What DNS says: each domain has two MX hosts, of one address each."""

    def __init__(self, addresses: dict[str, str]) -> None:
        """addresses: of mx1.DOMAIN and mx2.DOMAIN by name."""
        self.addresses = addresses
        self.out = False
        self.failed = 0

    async def answer(self, name: str, kind: str) -> tuple[Any, float]:
        await asyncio.sleep(0.002)
        if self.out:
            self.failed += 1
            await asyncio.sleep(10.0)
            raise DnsTemporary(name, kind)
        if kind == "MX" and f"mx1.{name}" in self.addresses:
            return MXAnswer((MX(10, f"mx1.{name}"), MX(20, f"mx2.{name}"))), 300.0
        if kind == "A" and name in self.addresses:
            return (self.addresses[name],), 300.0
        known = name in self.addresses or f"mx1.{name}" in self.addresses
        return (DnsNoData if known else DnsNotFound), 60.0


class Sink:
    """Where the log goes: into the event log of the run."""

    with_header = False

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def write(self, lines: list[str]) -> bool:
        for line in lines:
            self._write(line)
        return True

    def reopen(self) -> None:
        return

    def close(self) -> None:
        return


class World:
    """What a process of the MTA is started with."""

    def __init__(self, loop: SimLoop, net: Net, clock: SimClock, zone: Zone, log: Callable[[str], None]) -> None:
        self.loop, self.net, self.clock, self.zone, self.log = loop, net, clock, zone, log
        self.slow = 0.0


def _core(world: World, process: Process, config: Config, *, owner: bool) -> Core:
    fsio = SimFsio(process.rng, lambda: world.slow)
    name = process.name
    log = Maillog(
        MaillogSettings("", "postfix", "mx"), world.clock,
        Sink(lambda line: world.log(name + " " + _PREFIX.sub(r"\1", line))),
    )  # fmt: skip
    core = build_core(config, owner=owner, clock=world.clock, fsio=fsio, connector=world.net, log=log)
    core.users.now = UserLookup(SimNames())
    core.resolver = SimResolver(config, core, world.zone)
    return core


class Scheduler:
    """The process that owns the queue, and serves SMTP too unless there is a worker."""

    def __init__(self, world: World, process: Process, config: Config, *, listen: bool) -> None:
        self.world, self.process, self.config, self.listen = world, process, config, listen
        self.tasks: list[asyncio.Future[Any]] = []
        self.serving = False
        self.server: SMTPServer | None = None

    async def start(self, ended: Callable[[BaseException | None], None]) -> None:
        """Recover and serve; ended: called when a service that must not end has ended."""
        world, config = self.world, self.config
        self.core = core = _core(world, self.process, config, owner=True)
        create_spool(config.fill(StoreSettings), core.fsio)
        anvil = build_anvil(core)
        self.qmgr = build_qmgr(core, None)
        self.pickup = Pickup(config.fill(PickupSettings), core.store, core.cleanup, UID, core.log, core.clock)
        await core.store.recover()
        access = Access(core.users, core.context)
        self.submit = SubmitServer(
            config.fill(SubmitSettings), core.cleanup, core.users, access, core.log, core.clock,
            core.fsio.entropy(8), find_key=core.store.submit_keys.get,
        )  # fmt: skip
        world.net.listen(SUBMIT, self.submit.factory)
        if self.listen:
            self.server = build_smtpd(core, config, anvil, "smtpd")
            world.net.listen((ADDRESS, 25), self.server.factory)
        for work in (self.qmgr.run(), self.pickup.run()):
            self.tasks.append(_watched(work, ended))
        self.serving = True

    async def stop(self) -> None:
        """SIGTERM: as in mta/master/scheduler.py."""
        self.world.net.listeners.pop(SUBMIT, None)
        work = [self.submit.drain(20.0), self.qmgr.drain(20.0)]
        if self.server is not None:
            self.world.net.listeners.pop((ADDRESS, 25), None)
            work.append(_drain(self.server))
        await asyncio.gather(*work)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.core.close()


class Worker:
    """An smtpd worker: drafts and commits, and tells the scheduler."""

    def __init__(self, world: World, process: Process, config: Config, announce: Callable[[str], None]) -> None:
        core = _core(world, process, config, owner=False)
        core.store.arrived = lambda queue_id, _: announce(queue_id)
        self.server = build_smtpd(core, config, build_anvil(core), "smtpd")
        world.net.listen((ADDRESS, 25), self.server.factory)


async def _drain(server: SMTPServer) -> None:
    await server.drain(20.0)
    server.close()


def _watched(work: Awaitable[None], ended: Callable[[BaseException | None], None]) -> asyncio.Future[Any]:
    task = asyncio.ensure_future(work)

    def done(task: asyncio.Future[Any]) -> None:
        if not task.cancelled():
            ended(task.exception())

    task.add_done_callback(done)
    return task
