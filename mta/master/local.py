"""The mta-local process: puts the delivery helper together and runs it, as root.

It reads main.cf itself, again whenever main.cf or master.cf has changed, and believes no file that mail_owner
could have written: the daemon it serves may be in the hands of an attacker, and then must not decide whose
mailbox is opened.

Entry of mta-local.service: `mta-local -c DIR`, with the listening socket from systemd.  Without systemd the first
process forks it before it gives up root (see mta/master/master.py), under a process that forks it again when it dies.
"""

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from mta.clock import Clock
from mta.config.config import Config, ConfigError, load
from mta.deliver.aliases import AliasProblemError
from mta.deliver.local_plan import Planner, local_settings
from mta.deliver.local_trust import Distrust, UntrustedFileError, check_path, read_trusted
from mta.fsio.fsio import fsync_now
from mta.local_helper import Channel, Doorway, Helper, InlineWorker, Listener, Setup, SetupError
from mta.lookup.context import LookupContext
from mta.lookup.open import files, open_tables
from mta.lookup.table import Maps
from mta.lookup.unix import User, UserDb
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.notify import Notify
from mta.master.owner import OwnerProblemError, find_owner, log_sink
from mta.master.process import EX_SOFTWARE, MAX_PAUSE, YOUNG, die_with_parent, leave_terminal
from mta.master.sockets import inherited, listen_unix
from mta.master.watchdog import feed
from mta.record import dataclass
from mta.trivial_rewrite import Rewriter, RewriterSettings

SOCKET = "private/local"
EX_CONFIG = 78
MAX_IDLE = 100.0  # seconds, as max_idle of postconf(5)


@dataclass(slots=True)
class Reading:
    """Reads the configuration when it has changed.  Every problem is a SetupError: mail waits."""

    directory: str
    users: UserDb
    clock: Clock
    log: Maillog
    _stamp: tuple[object, ...] = ()
    _make: "Callable[[str], Setup] | None" = None

    def __call__(self, transport: str) -> Setup:
        """The setup of a transport as the files stand now."""
        stamp = tuple(_stamp(os.path.join(self.directory, name)) for name in ("main.cf", "master.cf"))
        if self._make is None or stamp != self._stamp:
            self._make = self._read()
            self._stamp = stamp
        return self._make(transport)

    def _read(self) -> Callable[[str], Setup]:
        try:
            config = load(self.directory)
        except ConfigError as error:
            raise SetupError(str(error)) from error
        owner = self.users.now.by_name_now(config.text("mail_owner"))
        if owner is None:
            raise SetupError(f"mail_owner {config.text('mail_owner')}: no such user")
        distrust = Distrust(owner.uid, owner.gid)
        try:
            for name in ("main.cf", "master.cf"):
                check_path(os.path.join(self.directory, name), distrust)
        except UntrustedFileError as error:
            raise SetupError(str(error)) from error
        return self._maker(config, distrust, owner)

    def _maker(self, config: Config, distrust: Distrust, owner: User) -> Callable[[str], Setup]:
        setups: dict[str, Setup] = {}
        context = LookupContext(InlineWorker(), self.clock, self.log, self.users, service="local")
        async def include(path: str) -> bytes:
            try:
                return read_trusted(path, distrust)
            except UntrustedFileError as error:
                raise AliasProblemError(str(error)) from error

        def warn(text: str) -> None:
            self.log.warning("local", text)

        def tables(spec: tuple[str, ...]) -> Maps:
            return open_tables(spec, context)

        def make(transport: str) -> Setup:
            setup = setups.get(transport)
            if setup is None:
                services = [s for s in config.services if s.name == transport and s.command == "local"]
                if not services:
                    raise SetupError(f"master.cf has no service {transport} that runs local")
                own = config.for_service(services[0])
                settings = local_settings(own)
                maps = open_tables(settings.alias_maps, context, aliases=True)
                rewriter = Rewriter(own.fill(RewriterSettings), context, own.own_addresses())
                planner = Planner(settings, transport, maps, rewriter, self.users, include, warn, tables)
                setup = setups[transport] = Setup(settings, planner, owner.uid)
            for path in files(setup.settings.alias_maps):
                if os.path.exists(path):  # one that is missing fails its lookups
                    _check_table(path, distrust)
            return setup

        return make


def _check_table(path: str, distrust: Distrust) -> None:
    try:
        check_path(path, distrust)
    except UntrustedFileError as error:
        raise SetupError(str(error)) from error


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


Opening = Callable[[Callable[[], None]], Doorway]
"""Makes the doorway; is given what reopens the log."""


def serve(
    directory: str,
    opening: Opening,
    overrides: Mapping[str, str] | None = None,
    *,
    max_idle: float | None = None,
    notify: Notify | None = None,
    before: tuple[Config, User | None] | None = None,
) -> int:
    """Serve until the doorway ends, SIGTERM, or max_idle seconds without a request; returns the exit status.

    notify: of a service manager that watches this very process.  before: what the mail system was started with, for
    the log while main.cf is broken, in which each delivery says what is wrong.
    """
    clock = Clock()
    users = UserDb(InlineWorker(), clock)
    try:
        config = load(directory, overrides=overrides)
        owner = find_owner(config, users.now)
    except (ConfigError, OwnerProblemError) as broken:
        if before is None:
            print(broken, file=sys.stderr)
            return EX_CONFIG
        config, owner = before
    settings = config.fill(MaillogSettings)
    log = Maillog(settings, clock, log_sink(settings, owner))
    doorway = opening(log.reopen)
    helper = Helper(doorway, Reading(directory, users, clock, log), users, clock, log, fsync_now)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, helper.stop)
        loop.add_signal_handler(signal.SIGUSR1, log.reopen)
        beside = [] if max_idle is None else [loop.create_task(helper.stop_when_idle(max_idle))]
        if notify is not None:
            notify.send("READY=1\nSTATUS=serving")
            if notify.watchdog:
                beside.append(loop.create_task(feed(notify, clock)))
        await helper.run()
        for task in beside:
            task.cancel()

    asyncio.run(run())
    log.close()
    return 0


def serve_channel(
    config: Config, owner: User, overrides: Mapping[str, str], *, detach: bool
) -> Callable[[socket.socket], int]:
    """For fork_helper: a process that stays root and does nothing but keep one that serves the channel.

    The first process cannot fork mta-local again once it has dropped root, so this one does: when something is in
    the channel, which it keeps open too.  After MAX_IDLE seconds without work there is none, which saves 10 MB.
    """

    def run(sock: socket.socket) -> int:
        if detach:
            leave_terminal()
        gc.freeze()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # of a terminal: the channel says when to end
            signal.signal(number, signal.SIG_IGN)

        def serve_once() -> int:
            return serve(
                config.directory, lambda rotate: Channel(sock, rotate), overrides,
                max_idle=MAX_IDLE, before=(config, owner),
            )  # fmt: skip

        return keep(sock, serve_once, Clock())

    return run


def keep(sock: socket.socket, run: Callable[[], int], clock: Clock) -> int:
    """Fork a child that runs when the channel has something for it, until the other end is closed."""
    pause = 0.0
    while not _closed(sock):
        born = clock.seconds()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = EX_SOFTWARE
            with contextlib.suppress(BaseException):
                die_with_parent(parent)
                status = run()
            os._exit(status)
        _, status = os.waitpid(pid, 0)
        if _closed(sock, wait=False):
            break
        pause = min(MAX_PAUSE, pause * 2 or 1.0) if status and clock.seconds() - born < YOUNG else 0.0
        _hung_up(sock, pause)
    return 0


def _hung_up(sock: socket.socket, seconds: float) -> None:
    """Wait so long, or until the other end is closed."""
    poll = select.poll()
    poll.register(sock, 0)
    poll.poll(seconds * 1000)


def _closed(sock: socket.socket, *, wait: bool = True) -> bool:
    """Has the other end been closed?  wait: until it has, or something is there to be read."""
    select.select([sock], [], [], None if wait else 0)
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """`mta-local [-c DIR]`: serve the socket that systemd passed, or $queue_directory/private/local."""
    args = list(sys.argv[1:] if argv is None else argv)
    directory = args[1] if len(args) == 2 and args[0] == "-c" else os.environ.get("MAIL_CONFIG", "/etc/mta")
    given = inherited(os.environ, os.getpid())
    try:
        config = load(directory)
        owner = UserDb(InlineWorker(), Clock()).now.by_name_now(config.text("mail_owner"))
    except ConfigError as broken:
        print(broken, file=sys.stderr)
        return EX_CONFIG
    if owner is None:
        print("mta-local: mail_owner: no such user", file=sys.stderr)
        return EX_CONFIG
    uid = owner.uid
    sock = given[0] if given else listen_unix(os.path.join(config.text("queue_directory"), SOCKET), 0o600)
    notify = Notify(os.environ)
    return serve(directory, lambda _rotate: Listener(sock, lambda peer: peer in (0, uid)), notify=notify)


if __name__ == "__main__":
    sys.exit(main())
