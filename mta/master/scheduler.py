"""The scheduler process: owns the queue; pickup, delivery, bounces, control sockets, counters of clients.

Life: lock the queue (a predecessor that still drains is waited for) -> repair after a crash -> serve ->
SIGTERM: stop listening, let sessions and deliveries end within DRAIN seconds, give the rest back.
A second SIGTERM, or the end of that time, changes nothing on disk: what is not settled is found at the next
start.  SIGUSR1 reopens the log.
"""

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import field
from functools import partial

from mta.config.config import Config
from mta.control import Control, ControlSettings, guarded
from mta.deliver.local_client import HelperConnection
from mta.linux_sched import stay_in_the_background
from mta.lookup.match_list import DomainList
from mta.master.build import Core, Kept, build_anvil, build_core, build_qmgr, build_smtpd, build_stdin_smtpd
from mta.master.demand import Demand
from mta.master.notify import Notify
from mta.master.sockets import AT_ONCE, BACKLOG
from mta.master.watchdog import feed
from mta.memory import leave_files
from mta.pickup import Pickup, PickupSettings
from mta.queue.store_admin import Administrator
from mta.record import dataclass
from mta.smtpd.ports import Anvil
from mta.smtpd.server import SMTPServer
from mta.submit.limits import UserLimits, UserLimitSettings
from mta.submit.smtp import SmtpOnStdin
from mta.submit.submit import SubmitServer, SubmitSettings
from mta.submit.users import Access
from mta.worker_link import LinkServer
from mta.worker_link_client import LinkClient

DRAIN = 20.0  # seconds for sessions and deliveries in flight at a stop
HANDED_OVER = 4  # turns of the loop from accept(2) to a session


@dataclass(slots=True)
class Sockets:
    """tcp: (name of the master.cf service, listener).  unix: submit, showq, flush, pickup, qmgr.

    ours: names of those unix sockets that were not handed in, and go when we go.
    """

    tcp: list[tuple[str, socket.socket]]
    unix: dict[str, socket.socket]
    ours: frozenset[str] = frozenset()


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the first process is told by a process that serves.

    serving: it serves.  call: a client knocks and there is no smtpd worker.  rotate: SIGUSR1, after the log was
    opened again.  reload: SIGHUP; True = end, in order to be run again with another configuration.  None: SIGHUP
    stays as it is.  stopping: SIGTERM; not called for a reload.
    """

    serving: Callable[[], None] = _nothing
    call: Callable[[], None] = _nothing
    rotate: Callable[[], None] = _nothing
    reload: Callable[[], bool] | None = None
    stopping: Callable[[], None] = _nothing


@dataclass(slots=True)
class Running:
    """What a serving process must end in order."""

    servers: list[asyncio.Server] = field(default_factory=list)
    smtpd: list[SMTPServer] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def session_count(self) -> int:
        """Connections of SMTP clients."""
        return sum(len(server.connections) for server in self.smtpd)

    def accepted(self) -> int:
        """Connections of SMTP clients since the start."""
        return sum(server.accepted for server in self.smtpd)

    def peak(self) -> int:
        """About the most connections at once since this was asked last: each flush lets many go in one moment."""
        most = sum(server.peak for server in self.smtpd)
        for server in self.smtpd:
            server.peak = len(server.connections)
        return most

    async def stop_listening(self) -> None:
        """Refuse new connections; the sockets stay open in the first process.

        What the kernel has handed over gets its session first: asyncio forgets it when the server is closed.
        """
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop):  # uvloop makes the session as it accepts
            for listener in [sock for server in self.servers for sock in server.sockets]:
                loop.remove_reader(listener.fileno())
        for _ in range(HANDED_OVER):
            turn: asyncio.Future[None] = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn
        for server in self.servers:
            server.close()

    async def drain_sessions(self, limit: float) -> None:
        """Let SMTP transactions end."""
        await asyncio.gather(*(server.drain(limit) for server in self.smtpd))
        for server in self.smtpd:
            server.close()

    async def cancel(self) -> None:
        """End background tasks."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def listen_smtp(
    running: Running, core: Core, anvil: Anvil | LinkClient, sockets: Sockets, kept: Kept | None = None
) -> None:
    """Serve every inet service of master.cf in this process; kept: see build_smtpd()."""
    loop = asyncio.get_running_loop()
    services = {service.name: service for service in core.config.services if service.type == "inet"}
    for name, sock in sockets.tcp:
        config = core.config.for_service(services[name])
        server = build_smtpd(core, config, anvil, "smtpd", kept)
        running.smtpd.append(server)
        running.servers.append(await _accept(partial(loop.create_server, server.factory), sock))


async def _accept(
    create: Callable[..., Awaitable[asyncio.Server]], sock: socket.socket
) -> asyncio.Server:
    """Serve a listener.  Event loops set its backlog to what they accept per turn, so it is set back."""
    server = await create(sock=sock.dup(), backlog=AT_ONCE)
    sock.listen(BACKLOG)
    return server


def run_scheduler(
    config: Config, sockets: Sockets, helper: HelperConnection | None, hooks: Hooks, *, listen: bool
) -> int:
    """The process's whole life; returns its exit status.  listen: SMTP too (smtpd_processes = 0)."""
    if not listen:
        stay_in_the_background()
    lock = _lock_queue(config)
    try:
        crashed = not listen and _predecessor_crashed(lock)
        status = run_loop(
            lambda stop: _serve(config, sockets, helper, stop, hooks, listen=listen, crashed=crashed),
            hooks.reload, hooks.stopping,
        )  # fmt: skip
        os.ftruncate(lock, 0)
        return status
    finally:
        os.close(lock)


TOLD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
RELOAD = -1
"""Instead of an exit status: run it again."""


def run_loop(
    main: Callable[[asyncio.Event], Coroutine[None, None, int]],
    reload: Callable[[], bool] | None = None,
    stopping: Callable[[], None] = _nothing,
) -> int:
    """Run main on the configured event loop; SIGTERM and SIGINT set its stop event.

    reload: called for SIGHUP; when it says True, main is stopped and RELOAD is returned.  stopping: called once for
    the others, before main is stopped.  Afterwards those signals are blocked, so that one that comes late cannot
    change the exit status, and one between two runs is not lost.
    """

    async def wrapped() -> int:
        stop, again, ended = asyncio.Event(), False, list[bool]()
        loop = asyncio.get_running_loop()

        def end() -> None:
            nonlocal again
            again = False
            if not ended:
                ended.append(True)
                stopping()
            stop.set()
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def hang_up() -> None:
            nonlocal again
            if reload is not None and reload():
                again = True
                stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        if reload is not None:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            status = await main(stop)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
        return RELOAD if again else status

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(wrapped())


def on_rotate(core: Core, also: Callable[[], None] = _nothing) -> None:
    """From now on SIGUSR1, blocked until now, opens the log again."""

    def rotate() -> None:
        core.log.reopen()
        also()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, rotate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it is installed, else asyncio's own."""
    try:
        import uvloop  # an extra: everything works without
    except ImportError:
        return asyncio.new_event_loop
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


def _lock_queue(config: Config) -> int:
    """Wait until a predecessor (before a reload) has let go of the queue; the lock ends with the descriptor."""
    path = os.path.join(config.text("queue_directory"), "pid", "unix.qmgr")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _predecessor_crashed(lock: int) -> bool:
    """Did a scheduler of the same first process end without saying so?  The lock file names who forked us.

    When all processes died together (kill -9 of everybody, a power cut) the first process is another one.
    """
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            stamp = b"%d %b\n" % (parent, file.read().rpartition(b")")[2].split()[19])  # and when it began
    except OSError:  # /proc with hidepid: after it has dropped root even its children may not look
        return False
    crashed = os.pread(lock, 100, 0) == stamp
    os.ftruncate(lock, 0)
    os.pwrite(lock, stamp, 0)
    return crashed


async def _serve(
    config: Config, sockets: Sockets, helper: HelperConnection | None, stop: asyncio.Event, hooks: Hooks, *,
    listen: bool, crashed: bool,
) -> int:  # fmt: skip
    core = build_core(config, owner=True)
    core.clock.bind()
    core.store.handler_crashed = crashed
    notify = Notify(os.environ)
    on_rotate(core, hooks.rotate)
    running = Running()
    if notify.watchdog:
        running.tasks.append(_background(core, feed(notify, core.clock)))
    anvil = build_anvil(core)
    qmgr = build_qmgr(core, helper)
    access = Access(core.users, core.context, owner=os.getuid())
    limits = UserLimits(config.fill(UserLimitSettings), core.clock, core.store.space.free_percent, os.getuid())
    pickup = Pickup(
        config.fill(PickupSettings), core.store, core.cleanup, os.getuid(), core.log, core.clock,
        access=access, limits=limits,
    )  # fmt: skip
    demand = Demand([] if listen else [sock for _, sock in sockets.tcp], hooks.call, core.clock)
    demand.start()  # a worker can take mail before the queue has been looked through
    await core.store.recover()

    def on_stdin() -> SMTPServer:
        server = build_stdin_smtpd(core)
        server.draining = stop.is_set()
        running.smtpd.append(server)
        return server

    submit = SubmitServer(
        config.fill(SubmitSettings), core.cleanup, core.users, access, core.log, core.clock,
        core.fsio.entropy(8), serve_smtp=SmtpOnStdin(on_stdin).serve, find_key=core.store.submit_keys.get,
        limits=limits, results=True,
    )  # fmt: skip
    control_settings = config.fill(ControlSettings)
    control = Control(
        core.store, qmgr.flush, pickup.poke, core.clock, core.log, control_settings, access,
        Administrator(core.store.spool, core.fsio, core.clock),
        DomainList("fast_flush_domains", control_settings.fast_flush_domains, core.context, parents=True),
    )  # fmt: skip

    def announced(queue_id: str, named: int) -> None:
        core.fsio.soon.durable(named)
        qmgr.arrived(queue_id)

    link = LinkServer(anvil, announced, core.log, demand.linked)
    await _listen_unix(running, core, sockets, control, submit, link)
    if listen:
        await listen_smtp(running, core, anvil, sockets)
    running.tasks += [_background(core, qmgr.run()), _background(core, pickup.run())]
    hooks.serving()
    leave_files()
    await stop.wait()
    await running.stop_listening()
    await asyncio.gather(running.drain_sessions(DRAIN), submit.drain(DRAIN), qmgr.drain(DRAIN))
    demand.stop()  # at a reload the successor does not watch before we are gone
    await running.cancel()
    await core.close()
    return 0


async def _listen_unix(
    running: Running, core: Core, sockets: Sockets, control: Control, submit: SubmitServer, link: LinkServer
) -> None:
    loop = asyncio.get_running_loop()
    handlers = {
        "showq": guarded(control.showq, core.log),
        "flush": guarded(control.flush, core.log),
        "pickup": guarded(control.pickup, core.log),
    }
    for name, handler in handlers.items():
        running.servers.append(await _accept(partial(asyncio.start_unix_server, handler), sockets.unix[name]))
    for name, factory in (("submit", submit.factory), ("qmgr", link.factory)):
        running.servers.append(await _accept(partial(loop.create_unix_server, factory), sockets.unix[name]))


def _background(core: Core, work: Awaitable[None]) -> asyncio.Task[None]:
    """A task that must not end: if it does, the process ends with it and is started again."""

    async def guarded_work() -> None:
        await work

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            core.log.warning("master", f"a service of the scheduler has ended: {type(error).__name__}: {error}")
            core.log.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.get_running_loop().create_task(guarded_work())
    task.add_done_callback(ended)
    return task
