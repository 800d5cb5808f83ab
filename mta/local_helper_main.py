"""mta-local as a program: reads the configuration, believes only what mail_owner cannot have written, serves.

main.cf, master.cf and the files of alias_maps are looked at once a second and read again when they change.

    mta-local [-c DIR]      on the socket that systemd hands over (LISTEN_FDS)

See also: mta/local_helper.py
"""

import asyncio
import functools
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from mta.clock import Clock
from mta.config.config import Config, ConfigError, load
from mta.deliver.aliases import AliasProblemError
from mta.deliver.local_plan import Planner, local_settings
from mta.deliver.local_trust import Distrust, UntrustedFileError, check_path, read_trusted
from mta.local_helper import SERVICE, Channel, Doorway, Helper, InlineWorker, Listener, Setup, SetupError
from mta.lookup.context import LookupContext
from mta.lookup.open import open_tables
from mta.lookup.table import TableError
from mta.lookup.unix import UserDb
from mta.maillog import Maillog, MaillogSettings
from mta.trivial_rewrite import Rewriter, RewriterSettings

LOOK_AGAIN = 1.0  # seconds between two looks at the configuration
FIRST_INHERITED = 3  # sd_listen_fds(3)
EX_USAGE, EX_CONFIG = 64, 78
_Signature = tuple[tuple[int, int, int], ...]


class ReadSetup:
    """Callable: transport name -> Setup, from a configuration directory."""

    def __init__(self, directory: str, users: UserDb, clock: Clock, log: Maillog) -> None:
        self._directory, self._users, self._clock, self._log = directory, users, clock, log
        self._signature: _Signature | None = None
        self._next_look = float("-inf")
        self._config: Config | None = None
        self._distrust = Distrust(-1, -1)
        self._setups: dict[str, Setup] = {}

    def __call__(self, transport: str) -> Setup:
        """The setup as the files are now; SetupError."""
        if self._clock.monotonic() >= self._next_look or self._config is None:
            self._look()
            self._next_look = self._clock.monotonic() + LOOK_AGAIN
        setup = self._setups.get(transport)
        if setup is None:
            setup = self._setups[transport] = self._make(transport)
        return setup

    def _look(self) -> None:
        files = [os.path.join(self._directory, name) for name in ("main.cf", "master.cf")]
        try:
            signature = tuple((s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, files))
            if signature != self._signature or self._config is None:
                self._forget()
                config = load(self._directory)
                self._distrust = self._owner(config)
                self._config = config
                self._signature = signature
            for path in (*files, *_alias_files(self._config)):
                check_path(path, self._distrust)
        except ConfigError as error:
            self._forget()
            raise SetupError(str(error).partition("\n")[0]) from error
        except (OSError, TableError, UntrustedFileError) as error:
            self._forget()
            raise SetupError(str(error)) from error

    def _forget(self) -> None:
        self._config, self._signature = None, None
        self._setups.clear()

    def _owner(self, config: Config) -> Distrust:
        name = config.text("mail_owner")
        user = self._users.now.by_name_now(name)
        if user is None:
            raise SetupError(f"mail_owner = {name}: there is no such user")
        return Distrust(user.uid, user.gid)

    def _make(self, transport: str) -> Setup:
        base = self._config
        if base is None:
            raise SetupError("no configuration")
        services = [s for s in base.services if s.name == transport and s.command == "local"]
        if not services:
            raise SetupError(f"master.cf has no service {transport} that runs local")
        config = base.for_service(services[0])
        settings, distrust = local_settings(config), self._distrust
        context = LookupContext(InlineWorker(), self._clock, self._log, self._users, SERVICE)
        maps = open_tables(settings.alias_maps, context, aliases=True)
        rewriter = Rewriter(config.fill(RewriterSettings), context, config.own_addresses())

        async def include(path: str) -> bytes:
            try:
                return read_trusted(path, distrust)
            except UntrustedFileError as error:
                raise AliasProblemError(str(error)) from error

        planner = Planner(settings, transport, maps, rewriter, self._users, include, self._warn)
        return Setup(settings, planner, distrust.uid)

    def _warn(self, text: str) -> None:
        self._log.warning(SERVICE, text)


def _alias_files(config: Config) -> list[str]:
    """Files behind alias_maps that exist; one that is missing fails its lookups, which is another matter."""
    paths = [word.partition(":")[2] for word in config.words("alias_maps")]
    return [path for path in paths if path.startswith("/") and os.path.exists(path)]


def serve(directory: str, doorway: Callable[[Callable[[int], bool]], Doorway], fsync: Callable[[int], None]) -> int:
    """Serve until the doorway ends or SIGTERM comes; return the exit status.

    doorway: gets the test which peers (by uid) may connect.  fsync: fsio's synchronous flush.
    """
    clock = Clock()
    try:
        config = load(directory)
    except ConfigError:
        log = Maillog(MaillogSettings("", "postfix", "localhost"), clock)
        log.warning(SERVICE, f"mta-local: {directory}: not a usable configuration, see `mta check`")
        log.close()
        return EX_CONFIG
    log = Maillog(config.fill(MaillogSettings), clock)
    users = UserDb(InlineWorker(), clock)
    setup = ReadSetup(directory, users, clock, log)
    owner = users.now.by_name_now(config.text("mail_owner"))
    allowed = {0, os.geteuid(), *([owner.uid] if owner else [])}

    async def main() -> None:
        helper = Helper(doorway(allowed.__contains__), setup, users, clock, log, fsync)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, helper.stop)
        await helper.run()

    asyncio.run(main())
    log.close()
    return 0


def serve_channel(directory: str, fsync: Callable[[int], None], channel: socket.socket) -> int:
    """Serve the daemon that forked us; see fork_helper in mta/deliver/local_client.py."""
    return serve(directory, lambda _: Channel(channel), fsync)


def main(argv: Sequence[str], environ: Mapping[str, str], fsync: Callable[[int], None]) -> int:
    """The program of mta-local.service."""
    directory = environ.get("MAIL_CONFIG", "/etc/mta")
    if len(argv) == 3 and argv[1] == "-c":
        directory = argv[2]
    elif len(argv) != 1:
        os.write(2, b"usage: mta-local [-c config_directory]\n")
        return EX_USAGE
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS") != "1":
        os.write(2, b"mta-local: needs one listening socket from systemd (LISTEN_FDS)\n")
        return EX_USAGE
    listener = socket.socket(fileno=FIRST_INHERITED)
    return serve(directory, functools.partial(Listener, listener), fsync)
