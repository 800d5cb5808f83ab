"""Start of the mail system: from a usable configuration to running processes.

Order, and what a failure at each step leaves behind:

 1. directories of the spool are made or repaired          (nothing but directories)
 2. the locks are taken; a second start ends here          (nothing)
 3. sockets: inherited from systemd, else bound; as root also ports below 1024
 4. as root: mta-local is forked, which stays root         (dies with us)
 5. privileges are dropped for good to mail_owner
 6. the scheduler and the smtpd workers are forked and watched (master_process.py);
    with smtpd_processes = 0 this process is the scheduler and listens itself

See also: mta/INTERNALS.md "processes", master(8)
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from mta import __version__
from mta.clock import Clock
from mta.config.config import Config, ConfigError, load
from mta.deliver.local_client import HelperConnection, fork_helper, through_channel, to_socket
from mta.fsio import Fsio
from mta.lookup.unix import User, UserLookup
from mta.maillog import Maillog, MaillogSettings
from mta.master_local import serve_channel
from mta.master_lock import ALREADY_RUNNING, AlreadyRunningError, take, write_pid
from mta.master_process import ChildSpec, Supervisor, die_with_parent
from mta.master_scheduler import Sockets, run_scheduler
from mta.master_sockets import (
    Address,
    SocketProblemError,
    address_of,
    has_ipv6,
    inherited,
    listen_tcp,
    listen_unix,
    wanted_addresses,
)
from mta.master_worker import run_worker
from mta.queue.store import StoreSettings, create_spool

EX_CONFIG, EX_OSERR, EX_TEMPFAIL = 78, 71, 75
PUBLIC = ("submit", "showq", "flush", "pickup")
"""Sockets anybody may connect to."""


class StartProblemError(Exception):
    """str() is one line for the administrator, status the exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Master:
    """Everything the first process holds."""

    config: Config
    log: Maillog
    clock: Clock
    owner: User | None  # None: we are not root and stay who we are
    sockets: Sockets
    helper: HelperConnection | None = None
    locks: tuple[int, int] = (-1, -1)
    old: list[Sockets] = field(default_factory=list)

    def specs(self) -> tuple[ChildSpec, ...]:
        """The processes this configuration asks for."""
        count = self.config.integer("smtpd_processes")
        config, sockets, helper = self.config, self.sockets, self.helper
        workers = tuple(
            ChildSpec(f"smtpd{n}", _worker(config, sockets)) for n in range(count) if sockets.tcp
        )
        return (ChildSpec("scheduler", _scheduler(config, sockets, helper)), *workers)

    def reload(self) -> tuple[ChildSpec, ...] | None:
        """Read the configuration again; a broken one is logged and changes nothing."""
        try:
            config = load(self.config.directory)
        except ConfigError as broken:
            for problem in broken.problems:
                self.log.warning("master", str(problem))
            self.log.warning("master", "reload refused: the running instance goes on with the old configuration")
            return None
        if {a for _, a in tcp_services(config)} != {address_of(s) for _, s in self.sockets.tcp}:
            self.log.warning("master", "inet_interfaces or master.cf ports changed: that needs a stop and start")
        self.config = config
        self.log.write("master", f"reload -- version {__version__}, configuration {config.directory}")
        return self.specs()


def _scheduler(config: Config, sockets: Sockets, helper: HelperConnection | None) -> Callable[[], int]:
    return lambda: run_scheduler(config, sockets, helper, listen=False)


def _worker(config: Config, sockets: Sockets) -> Callable[[], int]:
    return lambda: run_worker(config, sockets)


def tcp_services(config: Config) -> list[tuple[str, Address]]:
    """(name of the master.cf service, address) for every inet smtpd service; StartProblemError with file:line."""
    interfaces = config.words("inet_interfaces")
    protocols = config.words("inet_protocols")
    if "all" in protocols and not has_ipv6():
        protocols = ("ipv4",)
    found = []
    for service in config.services:
        if service.type != "inet" or service.command != "smtpd":
            continue
        try:
            found += [(service.name, a) for a in wanted_addresses(service.name, interfaces, protocols)]
        except SocketProblemError as problem:
            raise StartProblemError(f"{service.file}:{service.line}: {problem}", EX_CONFIG) from None
    return found


def open_sockets(config: Config, given: list[socket.socket], log: Maillog) -> Sockets:
    """Take the inherited sockets that are wanted, close the others, open what is missing."""
    by_address: dict[Address | str, socket.socket] = {address_of(s): s for s in given}
    spool = config.text("queue_directory")
    paths = {name: os.path.join(spool, "public", name) for name in PUBLIC}
    paths["submit"] = config.text("submit_socket")
    paths["qmgr"] = os.path.join(spool, "private", "qmgr")
    try:
        tcp = []
        for service, address in tcp_services(config):
            sock = by_address.pop(address) if address in by_address else listen_tcp(address)
            tcp.append((service, sock))
        unix = {}
        for name, path in paths.items():
            mode = 0o600 if name == "qmgr" else 0o666
            unix[name] = by_address.pop(path) if path in by_address else listen_unix(path, mode)
    except SocketProblemError as problem:
        raise StartProblemError(str(problem), EX_OSERR) from None
    for left, sock in by_address.items():
        log.warning("master", f"inherited socket {left} is not in inet_interfaces and master.cf: closed")
        sock.close()
    return Sockets(tcp, unix)


def find_owner(config: Config, users: UserLookup) -> User | None:
    """mail_owner's account when we are root; None when we are not."""
    if os.geteuid() != 0:
        return None
    name = config.text("mail_owner")
    owner = users.by_name_now(name)
    if owner is None:
        raise StartProblemError(f"{config.origin('mail_owner')}: mail_owner = {name}: no such user", EX_CONFIG)
    if owner.uid == 0:
        raise StartProblemError(f"{config.origin('mail_owner')}: mail_owner = {name}: must not be root", EX_CONFIG)
    return owner


def drop_privileges(owner: User) -> None:
    """Become mail_owner for good; RuntimeError when any way back is left."""
    os.initgroups(owner.name, owner.gid)
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise RuntimeError("privileges were not dropped")


def start(config: Config, *, foreground: bool) -> int:
    """Start the mail system; in the foreground this returns when it has stopped."""
    try:
        return _start(config, foreground=foreground)
    except StartProblemError as problem:
        print(f"mta: fatal: {problem}", file=sys.stderr)
        return problem.status
    except AlreadyRunningError:
        print(f"postfix/postfix-script: fatal: {ALREADY_RUNNING}", file=sys.stderr)
        return 1


def _start(config: Config, *, foreground: bool) -> int:
    clock = Clock()
    settings = config.fill(MaillogSettings)
    if foreground and not settings.maillog_file:
        settings = MaillogSettings("/dev/stdout", settings.syslog_name, settings.myhostname)
    owner = find_owner(config, UserLookup())
    given = inherited(os.environ, os.getpid())
    try:
        create_spool(config.fill(StoreSettings), Fsio(aio=False), owner=(owner.uid, owner.gid) if owner else None)
        make_data_directory(config.text("data_directory"), owner)
        locks = take(config.text("queue_directory"), config.text("data_directory"))
    except OSError as error:
        raise StartProblemError(f"{error.filename}: {error.strerror}", EX_OSERR) from None
    ready = None if foreground else daemonize(locks[0])
    log = Maillog(settings, clock)
    master = Master(config, log, clock, owner, open_sockets(config, given, log), locks=locks)
    if owner:
        limit = config.seconds("command_time_limit")
        channel = fork_helper(serve_channel(config.directory), die_with_parent)
        master.helper = HelperConnection(through_channel(channel), clock, limit)
        hand_over(master, owner, settings.maillog_file)
        drop_privileges(owner)
    elif path := os.environ.get("MTA_LOCAL_SOCKET", ""):  # set by our unit: mta-local is a service of its own
        master.helper = HelperConnection(to_socket(path), clock, config.seconds("command_time_limit"))
    log.write("master", f"daemon started -- version {__version__}, configuration {config.directory}")
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    return serve(master)


def serve(master: Master) -> int:
    """Run until told to stop."""
    if master.config.integer("smtpd_processes") == 0:
        status = run_scheduler(master.config, master.sockets, master.helper, listen=True)
    else:
        supervisor = Supervisor(master.specs(), master.reload, master.log, master.clock)
        status = supervisor.run()
    master.log.write("master", "terminating on signal 15")
    master.log.close()
    for name, sock in master.sockets.unix.items():
        if name in PUBLIC and "LISTEN_FDS" not in os.environ:
            with contextlib.suppress(OSError):
                os.unlink(sock.getsockname())
    return status


def make_data_directory(path: str, owner: User | None) -> None:
    """data_directory belongs to mail_owner, 0700."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    if owner:
        os.chown(path, owner.uid, owner.gid)


def hand_over(master: Master, owner: User, maillog_file: str) -> None:
    """Give mail_owner what root has made: sockets and the log file."""
    for sock in master.sockets.unix.values():
        os.chown(sock.getsockname(), owner.uid, owner.gid)
    for fd in master.locks:
        os.fchown(fd, owner.uid, owner.gid)
    if maillog_file.startswith("/") and maillog_file != "/dev/stdout":
        os.chown(maillog_file, owner.uid, owner.gid)


def daemonize(pid_fd: int) -> int:
    """Leave the terminal; the parent waits for the byte written to the returned descriptor and exits."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        status = 0 if os.read(reader, 1) else EX_TEMPFAIL
        os._exit(status)
    os.close(reader)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    write_pid(pid_fd)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return writer
