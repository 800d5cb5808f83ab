"""A configuration, tables and users for tests of local delivery."""

import os
from collections.abc import Callable
from pathlib import Path

from mta.clock import Clock
from mta.config.config import Config, load
from mta.config.host import HostFacts
from mta.deliver.local_plan import LocalSettings, Planner, local_settings
from mta.lookup.open import open_tables
from mta.lookup.table import Maps
from mta.lookup.unix import Group, User
from mta.trivial_rewrite import Rewriter, RewriterSettings
from tests.unit.lookup_fixture import World

MAIN_CF = """\
compatibility_level = 3.6
myhostname = mx.test
myorigin = mx.test
mydestination = mx.test, localhost
recipient_delimiter = +
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mail_owner = mta
alias_maps = hash:{directory}/aliases
mail_spool_directory = {directory}/mail
queue_directory = {directory}/spool
data_directory = {directory}/data
deliver_lock_attempts = 2
"""
MASTER_CF = "local unix - n n - - local\n"


class Accounts:
    """A name service: name -> (uid, home); code = error number of a broken one."""

    def __init__(self, home: Path, **uids: int) -> None:
        self.home, self.uids, self.code = home, uids, 0

    def passwd_by_name(self, name: bytes) -> tuple[int, User | None]:
        uid = self.uids.get(os.fsdecode(name))
        if self.code or uid is None:
            return self.code, None
        text = os.fsdecode(name)
        return 0, User(text, uid, uid, "", f"{self.home}/{text}", "/bin/sh")

    def passwd_by_uid(self, uid: int) -> tuple[int, User | None]:
        return self.code, None

    def group_by_name(self, name: bytes) -> tuple[int, Group | None]:
        return self.code, None

    def group_list(self, name: bytes, gid: int) -> list[int]:
        return [gid]


class Site:
    """One mail host under a directory; `aliases` is written as given."""

    def __init__(self, directory: Path, aliases: str = "", *, main_cf: str = "", **uids: int) -> None:
        self.directory = directory
        for name in ("mail", "home", "data", "spool"):
            (directory / name).mkdir(exist_ok=True)
        (directory / "aliases").write_text(aliases)
        os.utime(directory / "aliases", (0, 0))  # nobody is at it
        (directory / "main.cf").write_text(MAIN_CF.format(directory=directory) + main_cf)
        (directory / "master.cf").write_text(MASTER_CF)
        self.config: Config = load(str(directory), host=HostFacts("mx.test"))
        self.settings: LocalSettings = local_settings(self.config)
        self.accounts = Accounts(directory / "home", **({"alice": os.geteuid(), "bob": os.geteuid()} | uids))
        self.world = World(clock=Clock())
        self.users = self.world.context.users
        self.users.now._service = self.accounts
        self.router = Rewriter(self.config.fill(RewriterSettings), self.world.context, ("127.0.0.1",))
        self.warnings: list[str] = []

    def planner(self, include: Callable[[str], bytes] | None = None) -> Planner:
        async def read(path: str) -> bytes:
            return (include or (lambda p: Path(p).read_bytes()))(path)

        def tables(spec: tuple[str, ...]) -> Maps:
            return open_tables(spec, self.world.context)

        maps = open_tables(self.settings.alias_maps, self.world.context, aliases=True)
        return Planner(self.settings, "local", maps, self.router, self.users, read, self.warnings.append, tables)
