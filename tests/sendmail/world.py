"""A daemon for tests: real cleanup, store and submit server on a directory, and the real sendmail stub as its client.

Only the name service is a stand-in: it decides which user this test's uid is.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar, get_type_hints

from mta.cleanup.cleanup import Cleanup
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock
from mta.control import Control, guarded
from mta.envelope import Envelope
from mta.fsio.fsio import Fsio
from mta.lookup.context import LookupContext
from mta.lookup.open import open_tables
from mta.lookup.table import Maps
from mta.lookup.unix import User, UserDb
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.pickup import Pickup, PickupSettings
from mta.queue.api import Queue
from mta.queue.store import SpoolStore, StoreSettings, create_spool
from mta.queue.store_admin import Administrator
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.server import SMTPServer
from mta.smtpd.server_settings import ServerSettings
from mta.submit.smtp import LocalDoor, SmtpOnStdin
from mta.submit.submit import SubmitServer, SubmitSettings
from mta.submit.users import Access
from mta.trivial_rewrite import Rewriter, RewriterSettings
from sendmail_compat.install import install

USERS = {
    "alice": ("Alice Q. Tester,Room 1", 1000),
    "bob": ("", 1001),
    "root": ("root", 0),
}
VALUES: dict[str, object] = {
    "myhostname": "host.example.test",
    "mydomain": "example.test",
    "myorigin": "example.test",
    "mydestination": ("host.example.test", "localhost.example.test", "localhost", "example.test"),
    "mail_name": "aiomta",
    "recipient_delimiter": "+",
    "message_size_limit": 10_240_000,
    "header_size_limit": 102_400,
    "hopcount_limit": 50,
    "message_drop_headers": ("bcc", "content-length", "resent-bcc", "return-path"),
    "enable_long_queue_ids": True,
    "detect_8bit_encoding_header": True,
    "propagate_unmatched_extensions": ("canonical", "virtual"),
    "duplicate_filter_limit": 1000,
    "virtual_alias_expansion_limit": 1000,
    "virtual_alias_recursion_limit": 1000,
    "virtual_alias_address_length_limit": 1000,
    "canonical_classes": ("envelope_sender", "envelope_recipient", "header_sender", "header_recipient"),
    "sender_canonical_classes": ("envelope_sender", "header_sender"),
    "recipient_canonical_classes": ("envelope_recipient", "header_recipient"),
    "append_at_myorigin": True,
    "append_dot_mydomain": False,
    "swap_bangpath": True,
    "allow_percent_hack": True,
    "resolve_dequoted_address": True,
    "empty_address_recipient": "MAILER-DAEMON",
    "double_bounce_sender": "double-bounce",
    "local_transport": "retry:4.0.0 captured",
    "virtual_transport": "retry:4.0.0 captured",
    "relay_transport": "retry:4.0.0 captured",
    "default_transport": "retry:4.0.0 captured",
    "authorized_submit_users": ("static:anyone",),
    "hash_queue_names": ("deferred", "defer"),
    "hash_queue_depth": 1,
    "maximal_backoff_time": 4000.0,
    "backwards_bounce_logfile_compatibility": True,
    "smtpd_banner": "host.example.test ESMTP aiomta",
    "smtputf8_enable": True,
    "line_length_limit": 2048,
    "smtpd_recipient_limit": 1000,
    "smtpd_recipient_overshoot_limit": 1000,
    "smtpd_soft_error_limit": 10,
    "smtpd_hard_error_limit": 20,
    "smtpd_junk_command_limit": 100,
    "smtpd_error_sleep_time": 0.0,
    "smtpd_timeout": 300.0,
    "smtpd_min_data_rate": 500,
    "smtpd_forbid_bare_newline": "normalize",
    "default_verp_delimiters": "+=",
    "verp_delimiter_filter": "-=+",
}
T = TypeVar("T")
_EMPTY: dict[object, object] = {str: "", int: 0, float: 0.0, bool: False}


def fill(cls: Callable[..., T], **values: object) -> T:
    """Settings of one class from VALUES and what is given; the rest is empty."""
    hints = get_type_hints(cls)
    known = {**VALUES, **values}
    return cls(**{f.name: known.get(f.name, _EMPTY.get(hints[f.name], ())) for f in fields(cls)})  # type: ignore[arg-type]  # a dataclass


class Names:
    """The name service: one user, who is this uid.  A name that is not known stands for a uid without entry."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def by_uid(self, uid: int) -> User | None:
        if self.name not in USERS:
            return None
        gecos, _ = USERS[self.name]
        return User(self.name, uid, uid, gecos, f"/home/{self.name}", "/bin/sh")

    def __call__(self) -> None: ...


class Lines:
    """A log sink that keeps lines."""

    with_header = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class Permit:
    """Every stage is permitted; VRFY as for a local user."""

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        if stage is Stage.VRFY:
            return Verdict(Reply(252, "2.0.0", facts.etrn_or_vrfy))
        return PERMIT


class NoAnvil:
    """Counts nothing."""

    async def connect(self, address: str) -> Verdict:
        return PERMIT

    async def mail(self, address: str) -> Verdict:
        return PERMIT

    async def rcpt(self, address: str) -> Verdict:
        return PERMIT

    def disconnect(self, address: str) -> None: ...


@dataclass(frozen=True)
class Localhost:
    name: str = "localhost"
    reverse_name: str = "localhost"
    name_status: int = 2
    reverse_status: int = 2


class PeerNames:
    """Everybody is localhost."""

    async def client_name(self, address: str) -> Localhost:
        return Localhost()


@dataclass
class Message:
    """One queued message."""

    queue_id: str
    envelope: Envelope
    headers: list[str]
    body: list[str]
    attributes: dict[str, str] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        return next((h for h in self.headers if h.lower().startswith(name.lower() + ":")), None)


@dataclass
class Done:
    """What a run of sendmail gave."""

    status: int
    stdout: str
    stderr: str


class World:
    """The daemon and its directories; `async with World() as w:`."""

    def __init__(self, user: str = "alice", **values: object) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mta-"))
        self.root.chmod(0o755)
        self.queue = self.root / "q"
        self.config = self.root / "etc"
        self.names = Names(user)
        self.sink = Lines()
        self.values = values
        self.clock = Clock()
        self.stub = install(self.root / "inst")
        self._stack = contextlib.AsyncExitStack()

    @property
    def log(self) -> list[str]:
        """Lines without time and host."""
        self.maillog.flush()
        return [line.split("]: ", 1)[1] if "]: " in line else line for line in self.sink.lines]

    def settings(self, cls: Callable[..., T]) -> T:
        return fill(cls, queue_directory=str(self.queue), **self.values)

    async def __aenter__(self) -> "World":
        self.write_config()
        self.fsio = Fsio()
        create_spool(self.settings(StoreSettings), self.fsio)
        (self.queue / "maildrop").chmod(0o1777)  # without a group of its own
        self.maillog = Maillog(fill(MaillogSettings), self.clock, self.sink)
        self.store = SpoolStore(self.settings(StoreSettings), self.fsio, self.clock, self.maillog)
        users = UserDb(self.fsio, self.clock)
        self.context = LookupContext(self.fsio, self.clock, self.maillog, users)
        rewriter = Rewriter(self.settings(RewriterSettings), self.context)
        self.cleanup = Cleanup(
            self.settings(CleanupSettings), self.store, rewriter, self.tables, self.maillog, self.clock
        )
        self.pickup = Pickup(self.settings(PickupSettings), self.store, self.cleanup, -2, self.maillog, self.clock)
        await self.start()
        return self

    def tables(self, spec: tuple[str, ...]) -> Maps:
        return open_tables(spec, self.context)

    def write_config(self, **values: str) -> None:
        self.config.mkdir(exist_ok=True)
        aliases = self.root / "aliases"
        if not aliases.exists():
            aliases.write_text("postmaster: root\nroot: alice\n")
        limit = self.values.get("message_size_limit", VALUES["message_size_limit"])
        lines = {
            "queue_directory": str(self.queue),
            "message_size_limit": str(limit),
            "alias_maps": f"hash:{aliases}",
            "enable_long_queue_ids": "yes",
            **values,
        }
        (self.config / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in lines.items()))

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        smtp = SMTPServer(
            self.settings(ServerSettings), Permit(), LocalDoor(self.cleanup), NoAnvil(), PeerNames(), self.maillog,
            self.clock,
        )  # fmt: skip
        self.submit = SubmitServer(
            self.settings(SubmitSettings), self.cleanup, self.names, Access(self.names, self.context), self.maillog,
            self.clock, os.urandom(8), serve_smtp=SmtpOnStdin(lambda: smtp).serve, find_key=self.store.submit_keys.get,
        )  # fmt: skip
        control = Control(
            self.store, self.flush, self.pickup.poke, self.clock, self.maillog,
            administrator=Administrator(self.store.spool, self.fsio, self.clock),
        )  # fmt: skip
        public = self.queue / "public"
        self.servers = [await loop.create_unix_server(self.submit.factory, str(public / "submit"))]
        for name, handler in (("showq", control.showq), ("flush", control.flush), ("pickup", control.pickup)):
            serve = guarded(handler, self.maillog)
            self.servers.append(await asyncio.start_unix_server(serve, str(public / name)))
        for name in ("submit", "showq", "flush", "pickup"):
            (public / name).chmod(0o666)

    async def flush(self, ids: Sequence[str] | None) -> int:
        return await self.store.wake(ids)

    async def stop(self) -> None:
        """As if the daemon were stopped; the spool stays."""
        for server in self.servers:
            server.close()
        await self.submit.drain(5)
        await asyncio.sleep(0.01)  # uvloop closes a handle a turn after its connection_lost
        self.servers = []
        for name in ("submit", "showq", "flush", "pickup"):
            (self.queue / "public" / name).unlink(missing_ok=True)

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.fsio.close()
        shutil.rmtree(self.root, ignore_errors=True)

    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes | str = b"",
        *,
        program: str = "sendmail",
        env: Mapping[str, str] | None = None,
        become: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> Done:
        """Run the real stub to its end.  become: uid for it, when this is root.  before: runs in the child."""
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        command = [str(self.stub.parent / program), *argv]
        environment = {"MAIL_CONFIG": str(self.config), "LANG": "C.UTF-8", **(env or {})}

        def call() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                command, input=data, capture_output=True, timeout=30, env=environment, check=False, preexec_fn=before,
                user=become, group=become, extra_groups=None if become is None else [],
            )  # fmt: skip

        done = await asyncio.to_thread(call)
        return Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    async def mta(self, *argv: str) -> Done:
        """Run `mta` with this configuration."""
        command = [sys.executable, "-m", "mta", "-c", str(self.config), *argv]
        environment = {"LANG": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": str(Path(__file__).parents[2])}

        def call() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(command, capture_output=True, timeout=60, env=environment, check=False)

        done = await asyncio.to_thread(call)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def queued(self) -> list[Message]:
        """Claim and read every message in incoming, oldest first; none is left there."""
        found = []
        for queue_id, _ in sorted(await self.store.scan(Queue.INCOMING)):
            job = await self.store.claim(queue_id)
            assert job is not None, queue_id
            content = b"".join([chunk async for chunk in self.store.content(job)])
            found.append(_message(queue_id, job.envelope, content))
            for recipient in job.todo:
                self.store.mark(job, recipient)
            await self.store.flush_marks(job)
            await self.store.finish(job)
        return found


def _message(queue_id: str, envelope: Envelope, content: bytes) -> Message:
    lines = content.decode("utf-8", "surrogateescape").split("\n")[:-1]
    headers: list[str] = []
    while lines:
        line = lines.pop(0)
        if not line:
            break
        if line[0] in " \t" and headers:
            headers[-1] += "\n" + line
        else:
            headers.append(line)
    return Message(queue_id, envelope, headers, lines)


async def world(**values: object) -> AsyncIterator[World]:
    """For fixtures."""
    async with World(**values) as made:  # type: ignore[arg-type]  # user is a str, the rest are settings
        yield made
