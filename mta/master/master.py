"""Start of the mail system: from a usable configuration to running processes.

Order, and what a failure at each step leaves behind:

 1. directories of the spool are made or repaired          (nothing but directories)
 2. the locks are taken; a second start ends here; the queue of another mail_owner is given to this one
 3. `start` only: fork; the parent waits until 7.          (nothing)
 4. sockets: inherited from systemd, else bound; as root also ports below 1024
 5. as root: mta-local is forked, which stays root         (dies with us)
 6. privileges are dropped for good to mail_owner
 7. the scheduler and the smtpd workers are forked and watched (mta/master/process.py); when they all serve, `start`
    ends with 0.  With smtpd_processes = 0 this process is the scheduler and listens itself.

Until 7. every failure is a line on standard error and an exit status other than 0.

See also: mta/INTERNALS.md "processes", master(8)
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial

from mta import __version__
from mta.clock import Clock
from mta.config.config import Config, ConfigError, load
from mta.deliver.local_client import HelperConnection, fork_helper, through_channel, to_socket
from mta.fsio.fsio import Fsio
from mta.lookup.table import TableError
from mta.lookup.unix import User, UserLookup
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.build import certificates, rehearse
from mta.master.check import check_services
from mta.master.listen import open_sockets, refreshed
from mta.master.local import serve_channel
from mta.master.lock import ALREADY_RUNNING, AlreadyRunningError, take, write_pid
from mta.master.notify import Keeper, Notify
from mta.master.owner import OwnerProblemError, drop_privileges, find_owner, take_over
from mta.master.process import ChildSpec, Parent, Supervisor, die_with_parent, leave_terminal
from mta.master.scheduler import RELOAD, TOLD, Hooks, Sockets, loop_factory, run_scheduler
from mta.master.sockets import SocketProblemError, close_unix, inherited
from mta.master.worker import run_worker
from mta.memory import leave_files
from mta.queue.store import StoreSettings, create_spool
from mta.record import dataclass
from mta.tls import small_buffers

EX_OSERR, EX_TEMPFAIL, EX_CONFIG = 71, 75, 78
START_LIMIT = 300.0  # seconds `mta start` waits for the mail system to serve (a large queue is looked through)
FIXED = ("queue_directory", "data_directory", "mail_owner", "submit_socket")
"""A running instance cannot change these."""
HELPER_LIMIT = 10.0  # seconds; then the kernel kills it with us
SERVING = "serving"  # for systemctl status
LOCK_TRIES, LOCK_PAUSE = 5, 0.05  # `mta status` holds the lock for a moment, too


class StartProblemError(Exception):
    """str() is one line for the administrator, status the exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Master:
    """Everything the first process holds.  overrides: settings that win over main.cf, now and after a reload."""

    config: Config
    overrides: Mapping[str, str]
    log: Maillog
    clock: Clock
    sockets: Sockets
    notify: Notify
    keeper: Keeper
    helper: HelperConnection | None = None
    channel: socket.socket | None = None
    locks: tuple[int, int] = (-1, -1)
    started: list[Callable[[], None]] = field(default_factory=list)

    def specs(self) -> tuple[ChildSpec, ...]:
        """The processes this configuration asks for."""
        config, sockets, helper = self.config, self.sockets, self.helper
        count = config.integer("smtpd_processes") if sockets.tcp else 0
        kept = certificates(config, [name for name, _ in sockets.tcp]) if count else {}

        def schedule(parent: Parent) -> int:
            kept.clear()  # no keys in a process that has no use for them
            return run_scheduler(config, sockets, helper, Hooks(parent.serving, parent.call), listen=False)

        workers = (
            ChildSpec(
                f"smtpd{n}", partial(run_worker, config, sockets, kept, first=n == 0), signal.SIGHUP, when_called=True
            )
            for n in range(count)
        )
        return (ChildSpec("scheduler", schedule), *workers)

    def reread(self) -> bool:
        """Read the configuration again; a broken one, or one that needs a new start, is logged and changes nothing."""
        self.notify.send("RELOADING=1")
        done = self._reread()
        self.log.flush()  # the loop that would do it later is about to end
        self.notify.send(f"READY=1\nSTATUS={SERVING if done else 'serving, with the old configuration: see the log'}")
        return done

    def _reread(self) -> bool:
        try:
            config = load(self.config.directory, overrides=self.overrides)
            problems = [*config.problems, *check_services(config, running=True)]
        except ConfigError as broken:
            problems = broken.problems
        refused = any(problem.fatal for problem in problems)
        for problem in problems:
            self.log.write("master", f"{'fatal' if problem.fatal else 'warning'}: {problem}")
        if not refused:
            fixed = [name for name in FIXED if config.text(name) != self.config.text(name)]
            if (config.integer("smtpd_processes") == 0) != (self.config.integer("smtpd_processes") == 0):
                fixed.append("smtpd_processes (from or to 0)")
            for name in fixed:
                self.log.warning("master", f"{config.origin(name)}: to change {name}, stop and start")
            refused = bool(fixed)
        if refused:
            self.log.warning("master", "reload refused: the running instance goes on with the old configuration")
            return False
        self.sockets = refreshed(self.sockets, config, self.log)
        self.keeper.hold(sock for _, sock in self.sockets.tcp)
        self.config = config
        self.log.write("master", f"reload -- version {__version__}, configuration {config.directory}")
        return True

    def reload(self) -> tuple[ChildSpec, ...] | None:
        """For the supervisor."""
        return self.specs() if self.reread() else None

    def rotate(self) -> None:
        """Tell mta-local, which we cannot signal, to open its log again."""
        if self.channel is not None:
            with contextlib.suppress(OSError):
                self.channel.send(b"r")

    def rotate_all(self) -> None:
        """The same where this process is the scheduler, whose log is another."""
        self.log.reopen()
        self.rotate()

    def ready(self) -> None:
        """The mail system serves."""
        while self.started:
            self.started.pop()()
        leave_files()


def start(config: Config, *, foreground: bool, overrides: Mapping[str, str] | None = None) -> int:
    """Start the mail system; in the foreground, and in the daemon, this returns when it has stopped."""
    try:
        return _start(config, foreground=foreground, overrides=overrides or {})
    except OwnerProblemError as error:
        print(f"mta: fatal: {error.problem}", file=sys.stderr)
        return EX_CONFIG
    except TableError as error:
        print(f"mta: fatal: mail_owner: {error}", file=sys.stderr)
        return EX_TEMPFAIL
    except SocketProblemError as problem:
        print(f"mta: fatal: {problem}", file=sys.stderr)
        return EX_OSERR
    except StartProblemError as problem:
        print(f"mta: fatal: {problem}", file=sys.stderr)
        return problem.status
    except AlreadyRunningError:
        print(f"postfix/postfix-script: fatal: {ALREADY_RUNNING}", file=sys.stderr)
        return 1


def _start(config: Config, *, foreground: bool, overrides: Mapping[str, str]) -> int:
    clock = Clock()
    os.umask(0o022)
    small_buffers()
    loop_factory()  # what it imports is then shared by all processes
    settings = config.fill(MaillogSettings)
    if not foreground and settings.maillog_file == "/dev/stdout":
        where = config.origin("maillog_file")
        raise StartProblemError(f"{where}: maillog_file = /dev/stdout needs start-fg", EX_CONFIG)
    owner = find_owner(config, UserLookup())
    given = inherited(os.environ, os.getpid())
    try:
        create_spool(config.fill(StoreSettings), Fsio(aio=False), owner=(owner.uid, owner.gid) if owner else None)
        make_data_directory(config.text("data_directory"), owner)
        locks = lock(config, clock)
        take_over(config.text("queue_directory"), owner)
    except OSError as error:
        raise StartProblemError(f"{error.filename or 'spool'}: {error.strerror}", EX_OSERR) from None
    tell = None if foreground else daemonize(locks[0])
    log = Maillog(settings, clock)
    if log.problem:
        where = config.origin("maillog_file")
        raise StartProblemError(f"{where}: maillog_file = {settings.maillog_file}: {log.problem}", EX_CONFIG)
    notify = Notify(os.environ)
    keeper = Keeper(notify, os.environ, given)
    sockets = open_sockets(config, given, log, keeper.stored)
    master = Master(config, overrides, log, clock, sockets, notify, keeper, locks=locks)
    keeper.hold(sock for _, sock in master.sockets.tcp)
    master.started.append(partial(notify.send, f"READY=1\nSTATUS={SERVING}\nMAINPID={os.getpid()}"))
    rehearse(config, [name for name, _ in master.sockets.tcp])
    if tell is not None:
        master.started.append(partial(tell_parent, tell))
    if owner:
        hand_over(master, owner)
        become_owner(master, owner, detach=not foreground)
    elif path := os.environ.get("MTA_LOCAL_SOCKET", ""):  # set by our unit: mta-local is a service of its own
        master.helper = HelperConnection(to_socket(path), clock, config.seconds("command_time_limit"))
    log.write("master", f"daemon started -- version {__version__}, configuration {config.directory}")
    try:
        return serve(master, detach=not foreground)
    finally:
        for name, sock in master.sockets.unix.items():
            close_unix(sock, remove=name in master.sockets.ours)


def lock(config: Config, clock: Clock) -> tuple[int, int]:
    """Take the locks; somebody who only looks at them is waited for."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(AlreadyRunningError):
            return take(config.text("queue_directory"), config.text("data_directory"))
        clock.block(LOCK_PAUSE)
    return take(config.text("queue_directory"), config.text("data_directory"))


def serve(master: Master, *, detach: bool) -> int:
    """Run until told to stop."""
    stopping = partial(master.notify.send, "STOPPING=1\nSTATUS=letting sessions and deliveries end")
    if master.config.integer("smtpd_processes"):
        supervisor = Supervisor(
            master.specs(), master.reload, master.log, master.clock, rotate=master.rotate, ready=master.ready,
            stopping=stopping, detach=detach,
        )  # fmt: skip
        status = supervisor.run()
    else:
        hooks = Hooks(master.ready, rotate=master.rotate_all, reload=master.reread, stopping=stopping)
        signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
        gc.freeze()
        status = RELOAD
        while status == RELOAD:
            status = run_scheduler(master.config, master.sockets, master.helper, hooks, listen=True)
    end_helper(master)
    master.log.write("master", "terminating on signal 15" if not status else f"terminating with status {status}")
    master.log.close()
    return status


def end_helper(master: Master) -> None:
    """Close the channel to mta-local and wait for its processes, whose last deliveries may be under way."""
    if master.channel is None:
        return
    master.channel.close()
    deadline = master.clock.seconds() + HELPER_LIMIT
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) == (0, 0) and master.clock.seconds() < deadline:
            master.clock.block(0.01)


def become_owner(master: Master, owner: User, *, detach: bool) -> None:
    """Leave mta-local behind as root, and go on as mail_owner."""
    gc.freeze()
    run = serve_channel(master.config, owner, master.overrides, detach=detach)
    master.channel = fork_helper(run, partial(die_with_parent, os.getpid()))
    limit = master.config.seconds("command_time_limit")
    master.helper = HelperConnection(through_channel(master.channel), master.clock, limit)
    drop_privileges(owner)


def make_data_directory(path: str, owner: User | None) -> None:
    """data_directory belongs to mail_owner, 0700."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if owner:
        os.chown(path, owner.uid, owner.gid)


def hand_over(master: Master, owner: User) -> None:
    """Give mail_owner what root has made: sockets, locks, the log file."""
    for name, sock in master.sockets.unix.items():
        if name in master.sockets.ours:
            os.chown(sock.getsockname(), owner.uid, owner.gid, follow_symlinks=False)
    for fd in master.locks:
        os.fchown(fd, owner.uid, owner.gid)
    master.log.give_to(owner.uid, owner.gid)


def daemonize(pid_fd: int) -> int:
    """Leave the terminal's session; the parent waits for a byte in the returned descriptor, or for our end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writer)
        os._exit(_wait_for_start(reader, child))
    os.close(reader)
    os.setsid()
    os.chdir("/")
    write_pid(pid_fd)
    return writer


def _wait_for_start(reader: int, child: int) -> int:
    """Exit status of `mta start`."""
    if not select.select([reader], [], [], START_LIMIT)[0]:
        print(f"mta: fatal: not serving after {START_LIMIT:.0f} s; see the log", file=sys.stderr)
        return EX_TEMPFAIL
    if os.read(reader, 1):
        return 0
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        print(f"mta: fatal: ended by signal {-status} before it served", file=sys.stderr)
    return status if status > 0 else EX_TEMPFAIL


def tell_parent(writer: int) -> None:
    """Let go of the terminal, and of the parent."""
    leave_terminal()
    with contextlib.suppress(OSError):  # somebody has ended the parent
        os.write(writer, b"1")
    os.close(writer)
