"""One run: a machine with the MTA, the world around it, faults, and two phases.

Safety: until the last fault is over anything may fail, but nothing may be lost, forged, altered or repeated without
a reason.  Liveness: then every client gets its message in, and within a bounded time everything is delivered or
returned and the spool is empty.  (As in TigerBeetle's simulator.)

Kinds of Fault: cut (power), kill (-9, all processes of the MTA), kill-worker, stop (SIGTERM), errno (what = "EIO
fsync": some calls fail for a while), dns, down (a domain's hosts: "refused" or "silent"), jump (of the wall clock),
slow (flushes).
"""

import asyncio
import errno
import gc
import hashlib
import os
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mta.config.config import Config, load
from mta.queue.store import StoreSettings, create_spool
from tests.sim.disk import Disk
from tests.sim.ledger import Ledger
from tests.sim.loop import SimLoop, StuckError
from tests.sim.mta_process import Scheduler, SimClock, SimFsio, Worker, World, Zone
from tests.sim.net import Net
from tests.sim.people import Peer, scripts_of, send
from tests.sim.plan import REMOTE, SENDERS, SPAN, STATIC_ALIASES, USERS, Fault, Plan
from tests.sim.process import Killed, Process
from tests.sim.syscalls import MACHINE, Machine, UnsupportedCall, close

LIFETIME = 4 * 3600.0  # maximal_queue_lifetime
BACKOFF = 1800.0  # maximal_backoff_time
CALM = LIFETIME + 3 * BACKOFF + 3600.0  # seconds after the last fault within which the queue must be empty
SERVES_AGAIN = 12.0  # seconds after the last fault (and restart) until a client is answered
BOOT = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds before a process that died by itself is started again
CALLS = {
    "fsync": {"fsync"}, "open": {"open", "create"}, "write": {"write", "truncate", "create"},
    "any": {"fsync", "open", "create", "write", "truncate", "rename", "unlink", "link", "chmod", "utime"},
}  # fmt: skip
MASTER = "smtp inet n - n - - smtpd\n" + "".join(
    f"{name} unix - - n - - {command}\n"
    for name, command in [("smtp", "smtp"), ("relay", "smtp"), ("local", "local"), ("error", "error"),
                          ("retry", "error"), ("discard", "discard")]
)  # fmt: skip
_CONFIGS: dict[tuple[bool, ...], Config] = {}
_DIRECTORY: list[tempfile.TemporaryDirectory[str]] = []


def configure(variant: tuple[bool, ...]) -> Config:
    """The configuration of a plan; read once per program."""
    found = _CONFIGS.get(variant)
    if found is None:
        if not _DIRECTORY:
            _DIRECTORY.append(tempfile.TemporaryDirectory(prefix="sim-"))
        maildir, delay = variant
        etc = Path(_DIRECTORY[0].name) / f"{maildir:d}{delay:d}"
        etc.mkdir()
        aliases = etc / "aliases"
        aliases.write_text("".join(f"{name}: {', '.join(to)}\n" for name, to in STATIC_ALIASES.items()))
        os.utime(aliases, (1_700_000_000, 1_700_000_000))
        values = {
            "compatibility_level": "3.6", "myhostname": "mx.sim.example", "mydestination": "sim.example",
            "inet_interfaces": "192.0.2.1", "mynetworks": "192.0.2.0/24", "queue_directory": "/spool",
            "data_directory": "/spool", "mail_spool_directory": "/home/mail/" if maildir else "/home/mail",
            "alias_maps": f"texthash:{aliases}", "maillog_file": "", "local_recipient_maps": "",
            "smtp_tls_security_level": "none", "smtpd_peername_lookup": "no", "inet_protocols": "ipv4",
            "maximal_queue_lifetime": "4h", "maximal_backoff_time": "1800s", "deliver_lock_attempts": "3",
            "delay_warning_time": "20m" if delay else "0h", "dns_servers": "192.0.2.53",
            "smtp_connect_timeout": "30s", "message_size_limit": "1000000", "authorized_submit_users": "static:anyone",
        }  # fmt: skip
        (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))
        (etc / "master.cf").write_text(MASTER)
        found = _CONFIGS[variant] = load(str(etc))
    return found


@dataclass(slots=True)
class Outcome:
    """wrong: broken rules.  events: the log.  digest: of the log.  counts: what really happened."""

    wrong: list[str]
    events: list[str]
    digest: str
    counts: Counter[str] = field(default_factory=Counter)
    turns: int = 0


class Errors:
    """System calls that fail for a while: one window per fault."""

    def __init__(self, host: "Run") -> None:
        self.host = host
        self.active: list[tuple[set[str], int, float]] = []

    def error(self, call: str, path: str) -> OSError | None:
        for calls, number, share in self.active:
            if number == errno.EDQUOT and not path.startswith("/spool"):
                continue  # of a mailbox: that is over quota, 5.2.2, and no temporary error
            if call in calls and self.host.rng.random() < share:
                self.host.count(f"{errno.errorcode[number]} {call}")
                return OSError(number, os.strerror(number), path)
        return None


class Run:
    """Plays one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"run {plan.seed}")
        random.seed(f"shuffle {plan.seed}")
        self.loop = SimLoop()
        self.clock = SimClock(self.loop)
        self.net = Net(self.loop, random.Random(f"net {plan.seed}"), split=plan.split)
        self.counts: Counter[str] = Counter()
        self.events: list[str] = []
        self.calm = False
        self.disks = {"spool": self._disk("spool", 1)}
        self.disks["home"] = self._disk("home", 2) if plan.separate_home else self.disks["spool"]
        self.machine = Machine(self.disks, self.clock.now)
        self.ledger = Ledger(plan, self.loop.time, self.clock.now, self.loop.blocked)
        self.ledger.lifetime = LIFETIME
        self.disks["home"].flushed = self.ledger.flushed
        self.scripts = scripts_of(plan)
        self.errors = Errors(self)
        self.zone = Zone({
            f"mx{n}.{domain}": f"198.51.100.{10 * i + n}"
            for i, domain in enumerate((*REMOTE, SENDERS)) for n in (1, 2)
        })  # fmt: skip
        self.world = World(self.loop, self.net, self.clock, self.zone, self.log)
        self.config = configure(plan.variant())
        self.crashes = [fault for fault in plan.faults if fault.kind in ("cut", "kill") and fault.step]
        self.mta: list[Process] = []
        self.dead: list[Process] = []
        self.scheduler: Scheduler | None = None
        self.deaths = 0  # in a row
        self._pid = 5_000_000
        self._restarting: asyncio.TimerHandle | None = None

    def _disk(self, name: str, device: int) -> Disk:
        return Disk(
            random.Random(f"{name} {self.plan.seed}"), self.clock.now, self.loop.time, ordered=self.plan.ordered,
            device=device,
        )  # fmt: skip

    def log(self, text: str) -> None:
        """One event."""
        self.events.append(f"{self.loop.time():.6f} {text}")

    def count(self, what: str) -> None:
        """For the figures."""
        self.counts[what] += 1

    # -- processes ----------------------------------------------------------------------------------

    def _process(self, name: str) -> Process:
        self._pid += 1
        process = Process(name, self._pid, random.Random(f"{name} {self._pid} {self.plan.seed}"), self.errors)
        self.machine.processes[self._pid] = process
        return process

    def program(self, name: str) -> Process | None:
        """See Host."""
        if self.net.off or (not self.mta and self._restarting is None):
            return None
        return self._process(name)

    def ended(self, process: Process) -> None:
        """See Host."""
        if process.alive:
            process.kill(self.loop, close=close)
        self.dead.append(process)

    def poke(self) -> None:
        """See Host."""
        scheduler = self.scheduler
        if scheduler is not None and scheduler.serving:
            self.loop.call_later(0.001, scheduler.pickup.poke, context=scheduler.process.context)

    def start(self) -> None:
        """Start the MTA; what dies is started again."""
        self._restarting = None
        process = self._process("mta")
        self.mta = [process]
        self._arm(process)
        self.scheduler = Scheduler(self.world, process, self.config, listen=not self.plan.worker)
        self.log(f"start {'with worker' if self.plan.worker else ''}")
        process.context.run(self._begin, process, self.scheduler)
        if self.plan.worker:
            self._start_worker()

    def _begin(self, process: Process, scheduler: Scheduler) -> None:
        def ended(error: BaseException | None) -> None:
            if process.alive:
                self.log(f"the scheduler has ended: {error!r}")
                self.count("scheduler ended by itself")
                self.deaths += 1
                self.crash(Fault("kill", seconds=BOOT[min(self.deaths, len(BOOT)) - 1]), counted=False)

        async def life() -> None:
            try:
                await scheduler.start(ended)
                self.deaths = 0
            except UnsupportedCall:
                raise
            except Exception as error:
                ended(error)

        process.life = self.loop.create_task(life())

    def _arm(self, process: Process) -> None:
        if self.crashes and not self.calm:
            fault = self.crashes.pop(0)
            process.doom = fault.step
            process.doomed = lambda: self.crash(fault)

    def _start_worker(self) -> None:
        process = self._process("smtpd")
        self.mta.append(process)
        for fault in self.plan.faults:
            if fault.kind == "kill-worker" and fault.step and not self.calm:
                process.doom, fault.step = fault.step, 0
                process.doomed = lambda: self._worker_dies(process)
        process.context.run(Worker, self.world, process, self.config, self._announced)

    def _worker_dies(self, process: Process) -> None:
        self.count("kill-worker")
        self._note_crash("kill")
        process.kill(self.loop, close=close)
        self.mta.remove(process)
        self.loop.call_later(1.0, self._restart_worker, context=self.net.context)

    def _restart_worker(self) -> None:
        if len(self.mta) == 1 and not self.net.off:
            self._start_worker()

    def _announced(self, queue_id: str) -> None:
        """The worker link: arrives after a moment, or never."""
        scheduler = self.scheduler
        if scheduler is not None and scheduler.serving:
            self.loop.call_later(0.0005, scheduler.qmgr.arrived, queue_id, context=scheduler.process.context)

    # -- faults -------------------------------------------------------------------------------------

    def _note_crash(self, kind: str) -> None:
        self.log(kind)
        self.ledger.crash(kind)
        busy = any(disk.locks for disk in self.disks.values())
        self.count(kind)
        self.count(f"{kind} in flight" if busy else f"{kind} idle")

    def crash(self, fault: Fault, *, counted: bool = True) -> None:
        """Cut the power, or kill every process of the MTA; start again after a while."""
        if self._restarting is not None or not self.mta:
            return
        if counted:
            self._note_crash(fault.kind)
        else:
            self.ledger.crash(fault.kind)
        cut = fault.kind == "cut"
        self.net.off = cut
        for process in self.machine.processes.values() if cut else list(self.mta):
            process.kill(self.loop, close=None if cut else close)
        self.dead += self.mta
        self.mta, self.scheduler = [], None
        if cut:
            for disk in {id(d): d for d in self.disks.values()}.values():
                disk.cut()
        self._restart(fault.seconds)

    def _restart(self, seconds: float) -> None:
        def boot() -> None:
            self.net.off = False
            self.start()

        self._restarting = self.loop.call_later(seconds, boot, context=self.net.context)

    async def _stop(self, fault: Fault) -> None:
        """SIGTERM, then a new start."""
        if not self.mta or self.scheduler is None or not self.scheduler.serving:
            return
        self.count("stop")
        self.log("stop")
        scheduler, process = self.scheduler, self.mta[0]
        task = process.context.run(lambda: self.loop.create_task(scheduler.stop()))
        while process.alive and not task.done():  # noqa: ASYNC110  nothing tells when a process dies
            await asyncio.sleep(0.05)
        if process.alive:
            if task.exception() is not None:
                self.ledger.complain(f"stop failed: {task.exception()!r}")
            self.ledger.stopped()
            for each in self.mta:
                each.kill(self.loop, close=close)
            self.dead += self.mta
            self.mta, self.scheduler = [], None
            self._restart(fault.seconds)

    async def _fault(self, fault: Fault) -> None:
        """One that has a time."""
        await asyncio.sleep(fault.at)
        match fault.kind:
            case "cut" | "kill":
                self.crash(fault)
            case "stop":
                await self._stop(fault)
            case "errno":
                await self._errno(fault)
            case "dns":
                self.zone.out = True
                await asyncio.sleep(fault.seconds)
                self.zone.out = False
            case "down":
                domain, how = fault.what.split()
                hosts = {a for name, a in self.zone.addresses.items() if name.endswith(domain)}
                chosen = self.net.refusing if how == "refused" else self.net.silent
                chosen |= hosts
                await asyncio.sleep(fault.seconds)
                chosen -= hosts
            case "jump":
                self.clock.offset += fault.amount
                self.count("jump")
            case "slow":
                self.world.slow = fault.amount
                self.count("slow")
                await asyncio.sleep(fault.seconds)
                self.world.slow = 0.0

    async def _errno(self, fault: Fault) -> None:
        name, _, calls = fault.what.partition(" ")
        begin = self.loop.time()
        under_way = (begin, float("inf"))
        self.ledger.disk_errors.append(under_way)
        self.log(f"errors: {fault.what}")
        if calls == "full":
            disks = list({id(d): d for d in self.disks.values()}.values())
            for disk in disks:
                disk.capacity = disk.used + int(fault.amount * 4)
            await asyncio.sleep(fault.seconds)
            for disk in disks:
                disk.capacity = 1 << 20
            self.count("full")
        else:
            window = (CALLS[calls], int(getattr(errno, name)), fault.amount)
            self.errors.active.append(window)
            await asyncio.sleep(fault.seconds)
            self.errors.active.remove(window)
        self.ledger.disk_errors.remove(under_way)
        self.ledger.disk_errors.append((begin, self.loop.time() + 70.0))  # until what waits to be written is
        self.log("errors: over")

    # -- the run ------------------------------------------------------------------------------------

    async def _main(self) -> None:
        plan = self.plan
        self._format()
        for i, domain in enumerate((*REMOTE, SENDERS)):
            for n in (1, 2):
                self.net.listen((f"198.51.100.{10 * i + n}", 25), partial(Peer, self, domain))
        clients = [asyncio.ensure_future(send(self, message)) for message in plan.messages]
        self.start()
        timed = [fault for fault in plan.faults if not fault.step]
        faults = [asyncio.ensure_future(self._fault(fault)) for fault in timed]
        if faults:
            await asyncio.wait(faults)
        await asyncio.sleep(max(0.0, 20.0 - self.loop.time()))
        self._calm_down()
        await self._live(clients)

    def _format(self) -> None:
        """Disks with the directories an installation has."""
        for path in ("/home", "/home/mail", *(f"/home/{user}" for user in USERS)):
            self.disks["home"].create(path, 0o755, 1000, 1000, directory=True)
        installer = self._process("install")
        settings = self.config.fill(StoreSettings)
        installer.context.run(lambda: create_spool(settings, SimFsio(self.rng, lambda: 0.0)))
        self.ended(installer)
        for disk in self.disks.values():
            disk.sync()
        self.disks["spool"].lenient.add(self.disks["spool"].find("/spool/maildrop"))

    def _calm_down(self) -> None:
        """The last fault is over."""
        self.calm = True
        self.crashes.clear()
        for process in self.mta:
            process.doom = -1
        self.log("calm")

    async def _live(self, clients: list[asyncio.Task[None]]) -> None:
        """Everybody is served, everything arrives."""
        began = self.loop.time()
        done, late = await asyncio.wait(clients, timeout=max(0.0, SPAN - began) + BOOT[-1] + SERVES_AGAIN + 30.0)
        for client in done:
            if client.exception() is not None:
                raise RuntimeError("a client failed") from client.exception()
        if late:
            self.ledger.complain(f"I7 {len(late)} clients are not served")
        step = 30.0
        while self._left() and self.loop.time() < began + CALM:
            await asyncio.sleep(step)
            step = min(600.0, step * 1.5)

    def _left(self) -> list[str]:
        """Messages in the spool, as a stranger sees them; what was never finished is none."""
        spool = self.disks["spool"]
        names = ["incoming", "active", "deferred", "hold", "maildrop"]
        found = ((path, inode) for name in names for path, inode in spool.walk(f"/spool/{name}"))
        return [path for path, inode in found if inode.mode & 0o100 and "." not in path]

    def play(self) -> Outcome:
        """Run it and judge."""
        gc.disable()
        MACHINE[:] = [self.machine]
        settled = True
        self.loop.set_exception_handler(self._exception)
        try:
            self.loop.run_until_complete(self._main())
        except StuckError:
            self.ledger.complain("I7 everybody waits for ever")
        met = {"dns out": self.zone.failed, "host silent": self.net.met_silence, "host refuses": self.net.met_refusal}
        self.counts.update(met)
        left = self._left()
        if self.ledger.disk_errors and any(kind == "cut" for _, kind in self.ledger.crashes):
            # what a failed sendmail took back may come back torn, and pickup leaves that to its owner
            left = [path for path in left if not path.startswith("/spool/maildrop/")]
        if left:
            settled = False
            self.ledger.complain(f"I7 left in the spool: {left}")
        self._look_at_disks()
        wrong = self.ledger.verdict(settled=settled)
        self._finish()
        digest = hashlib.sha256("\n".join((*self.events, *wrong)).encode()).hexdigest()
        return Outcome(list(dict.fromkeys(wrong)), self.events, digest, self.counts, self.loop.turns)

    def _exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed):
            return
        if isinstance(error, UnsupportedCall):
            self.ledger.complain(f"not simulated: {error}")
        self.log(f"loop: {context.get('message')}: {error!r}")
        self.count("loop exception")

    def _look_at_disks(self) -> None:
        home = self.disks["home"]
        for user in USERS:
            try:
                box = home.find(f"/home/mail/{user}")
            except FileNotFoundError:
                continue
            if box.is_directory:
                self.ledger.read_maildir(user, [inode for _, inode in home.walk(f"/home/mail/{user}/new")])
            else:
                self.ledger.read_mbox(user, box)
        for path, inode in self.disks["spool"].walk("/spool/corrupt"):
            self.ledger.aside.update(name.decode() for name in re.findall(rb"X-Sim-Id: (m\d+\.\d+)", inode.data))
            self.count("corrupt")
            self.log(f"in corrupt: {path}")

    def _finish(self) -> None:
        """Nothing of this run may do anything any more."""
        for process in self.machine.processes.values():
            process.kill(self.loop, close=None)
        self.loop.call_exception_handler = lambda context: None  # type: ignore[method-assign]
        self.loop.close()


def play(plan: Plan) -> Outcome:
    """Play a plan.  What the dead left unfinished is collected afterwards, in silence: nobody is there to act on it."""
    outcome = Run(plan).play()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, sys.unraisablehook = sys.unraisablehook, lambda _: None
        gc.collect()
        sys.unraisablehook = before
    return outcome
