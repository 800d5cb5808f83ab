"""One MTA in this process, on virtual time, whose n-th call of a kind fails, and the story it lives through.

Three messages come in over SMTP (to a peer that says 250, 450 and 550; to an mbox, a Maildir and an alias; a large
one), one lies in maildrop.  Clients try again each second until they hear 250, as real ones do in minutes.
When the fault is over one more message comes: how long it takes to be accepted is the time the service was away.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import mta.deliver.local
import mta.deliver.mailbox
import mta.deliver.maildir
import mta.deliver.mbox
import mta.deliver.mbox_lock
import mta.master.build
from mta.config.config import Config, load
from mta.envelope import Envelope, Recipient
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.build import build_anvil, build_core, build_qmgr, build_smtpd
from mta.pickup import Pickup, PickupSettings
from mta.queue.store import StoreSettings, create_spool
from sendmail_compat.maildrop import LineRecords, envelope_records, record
from tests.crash.errno_faults import HOLD, Faults, FaultyFsio, FaultyNet, FaultyOs, VirtualClock
from tests.crash.kill_ledger import Account, Copy, identify, mbox_messages
from tests.crash.kill_scenarios import BODY, LARGE, Mail, at_sink, mail, reports
from tests.crash.kill_sink import Taken
from tests.crash.kill_world import DOMAIN, LEFT_OVER
from tests.memory_net import MemoryTransport
from tests.virtual_time import EPOCH, VirtualLoop

US, PEER = ("192.0.2.10", 25), ("192.0.2.20", 25)
PATIENCE = 7200.0  # virtual seconds until all is delivered, the longest back-off of a settlement and of retries in it
BACK = 5.0  # seconds from the end of the fault to a 250 (I7)
UNREADABLE = ("open", "pread", "read")
SRC = "src@sink.test"
SETTINGS = {
    "compatibility_level": "3.6", "myhostname": DOMAIN, "mydestination": DOMAIN, "inet_interfaces": US[0],
    "mynetworks": "192.0.2.0/24", "maillog_file": "", "local_recipient_maps": "", "disable_dns_lookups": "yes",
    "smtp_tls_security_level": "none", "smtpd_peername_lookup": "no", "inet_protocols": "ipv4",
    "relayhost": f"[{PEER[0]}]", "transport_maps": f"inline:{{news@{DOMAIN}=boxes:}}", "hash_queue_names": "",
    "minimal_backoff_time": "10s", "maximal_backoff_time": "60s", "queue_run_delay": "10s",
}  # fmt: skip
SERVICES = ("smtp smtp", "relay smtp", "local local", "error error", "retry error", "discard discard")


def mails() -> list[Mail]:
    """The story's messages; the last one comes after the fault."""
    here = f"games@{DOMAIN}"
    mix = at_sink("ok1", "temp1", "perm1")
    return [
        mail("mix", here, mix, *(f"sink:{r}" for r in mix if "perm" not in r), *reports("mbox:games", "perm1")),
        mail("boxes", SRC, (here, f"news@{DOMAIN}", f"team@{DOMAIN}"),
             "mbox:games", "maildir:news", *(f"sink:{r}" for r in at_sink("ok2", "ok3"))),
        mail("large", SRC, at_sink("ok4"), "sink:ok4@sink.test", body=LARGE),
        mail("drop", SRC, at_sink("ok5"), "sink:ok5@sink.test", door="maildrop", body=BODY),
        mail("after", SRC, at_sink("ok6"), "sink:ok6@sink.test"),
    ]  # fmt: skip


@dataclass
class Outcome:
    """wrong: sentences.  back: seconds from the end of the fault to the next 250.  done: virtual end of all work."""

    wrong: list[str]
    counts: Counter[str]
    hits: int
    back: float = 0.0
    done: float = 0.0
    duplicates: int = 0
    log: str = ""


class ListSink:
    """The log, in memory."""

    with_header = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None:
        return

    def close(self) -> None:
        return


@dataclass
class MemoryPeer:
    """The next hop; answers by name, as kill_sink.KeepingSink."""

    taken: list[Taken] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    busy: bool = False

    def answer(self, address: str) -> str:
        """450 for those that are `busy`, too."""
        again = address in self.tried
        self.tried.add(address)
        if address.startswith("perm"):
            return "550 5.1.1 no such user"
        return "450 4.2.0 greylisted" if address.startswith("temp") and (self.busy or not again) else "250 2.1.5 Ok"


class PeerProtocol(asyncio.Protocol):
    """One connection to it."""

    def __init__(self, peer: MemoryPeer) -> None:
        self._peer, self._rest, self._sender = peer, b"", ""
        self._recipients: list[str] = []
        self._lines: list[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: MemoryTransport = transport  # type: ignore[assignment]  # nothing else is made
        self._say("220 sink ESMTP")

    def _say(self, text: str) -> None:
        self._transport.write(text.encode() + b"\r\n")

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            if self._lines is None:
                self._command(line.decode())
            elif line == b".":
                self._end()
            else:
                self._lines.append(line[1:] if line.startswith(b".") else line)

    def _end(self) -> None:
        content = b"".join(line + b"\n" for line in self._lines or [])
        self._peer.taken += [Taken(self._sender, r, content) for r in self._recipients]
        self._lines = None
        self._say("250 2.0.0 taken")

    def _command(self, line: str) -> None:
        address = line.partition("<")[2].partition(">")[0]
        match line[:4].upper():
            case "EHLO":
                self._say("250-sink\r\n250-PIPELINING\r\n250 8BITMIME")
            case "MAIL":
                self._sender, self._recipients = address, []
                self._say("250 2.1.0 Ok")
            case "RCPT":
                answer = self._peer.answer(address)
                self._recipients += [address] if answer.startswith("250") else []
                self._say(answer)
            case "DATA" if self._recipients:
                self._lines = []
                self._say("354 go")
            case "DATA":
                self._say("554 5.5.1 no valid recipients")
            case "QUIT":
                self._say("221 bye")
                self._transport.close()
            case _:
                self._say("250 ok")


class Client(asyncio.Protocol):
    """Collects replies."""

    def __init__(self) -> None:
        self._rest = b""
        self._codes: asyncio.Queue[int] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            if line[3:4] != b"-":
                self._codes.put_nowait(int(line[:3]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._codes.put_nowait(0)

    async def code(self) -> int:
        """The next one; 0: the connection is gone."""
        async with asyncio.timeout(400):
            return await self._codes.get()


class World:
    """One spool directory that many lives use in turn."""

    def __init__(self, root: Path) -> None:
        self.root = root
        etc = root / "etc"
        etc.mkdir(parents=True)
        paths = {
            "queue_directory": root / "spool",
            "data_directory": root / "data",
            "mail_spool_directory": root / "mail",
        }
        (etc / "aliases").write_text(f"team: {', '.join(at_sink('ok2', 'ok3'))}\n")
        settings = SETTINGS | {k: str(v) for k, v in paths.items()} | {"alias_maps": f"texthash:{etc}/aliases"}
        (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in settings.items()))
        (etc / "master.cf").write_text(
            "smtp inet n - n - - smtpd\n" + "".join("{} unix - - n - - {}\n".format(*s.split()) for s in SERVICES)
            + f"boxes unix - - n - - local\n  -o mail_spool_directory={root}/mail/\n"
        )  # fmt: skip
        self.config: Config = load(str(etc))
        self.mails = mails()

    def live(self, faults: Faults) -> Outcome:
        """One life with this fault."""
        for name in ("spool", "mail", "data"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        (self.root / "mail").mkdir()
        (self.root / "data").mkdir()
        loop = VirtualLoop(0.0)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(Life(self, faults, loop).run())

    def files(self) -> Iterator[Path]:
        """What stands for mail, or is left of it."""
        for name in LEFT_OVER:
            for directory, _, files in os.walk(self.root / "spool" / name):
                yield from (Path(directory, file) for file in files)


class Life:
    """From the start to the verdict."""

    def __init__(self, world: World, faults: Faults, loop: VirtualLoop) -> None:
        self.world, self.faults, self.loop = world, faults, loop
        self.jump = 0.0  # seconds that the wall clock has been set forward
        self.clock = VirtualClock(lambda: EPOCH + loop.time() + self.jump, self._skip)
        self.net, self.peer, self.log = FaultyNet(faults), MemoryPeer(), ListSink()
        self.account = Account({m.name: set(m.ends) for m in world.mails}, {m.name: m.body for m in world.mails})
        self.back = 0.0

    def _skip(self, seconds: float) -> None:
        self.loop._jumping.offset += seconds

    async def run(self) -> Outcome:
        """All of it."""
        calls = FaultyOs(self.faults)
        with (
            mock.patch.object(mta.deliver.mailbox, "os", calls),
            mock.patch.object(mta.deliver.maildir, "os", calls),
            mock.patch.object(mta.deliver.mbox, "os", calls),
            mock.patch.object(mta.deliver.mbox_lock, "os", calls),
            mock.patch.object(mta.deliver.local, "os", calls),
            mock.patch.object(mta.master.build, "fsync_now", calls.fsync),
        ):
            return await self._run()

    async def _run(self) -> Outcome:
        config, clock = self.world.config, self.clock
        self.net.listeners[PEER] = lambda: PeerProtocol(self.peer)
        fsio = FaultyFsio(self.faults)
        create_spool(config.fill(StoreSettings), fsio)
        self._drop()
        self.faults.asleep = False
        log = Maillog(MaillogSettings("", "postfix", DOMAIN), clock, self.log)
        core = build_core(config, owner=True, clock=clock, fsio=fsio, connector=self.net, log=log)
        qmgr = build_qmgr(core, None)
        server = build_smtpd(core, config, build_anvil(core), "smtpd")
        pickup = Pickup(config.fill(PickupSettings), core.store, core.cleanup, -1, log, clock)
        await self._recover(core.store.recover)
        self.net.listeners[US] = server.factory
        tasks = [asyncio.ensure_future(work) for work in (qmgr.run(), pickup.run())]
        try:
            await self._story()
            await self._settled()
        finally:
            ended = [task.exception() for task in tasks if task.done() and not task.cancelled()]
            self.net.listeners.pop(US)
            self.faults.armed = False
            await server.drain(5.0)
            server.close()
            await qmgr.drain(5.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            core.store.close()
            await core.close()
        self.account.wrong += [f"a service has ended: {error!r}" for error in ended]
        return self._verdict()

    async def _recover(self, recover: object) -> None:
        """As the first process does: a scheduler that cannot start is started again."""
        for _ in range(60):
            try:
                await recover()  # type: ignore[operator]  # SpoolStore.recover
                return
            except OSError:
                await self.clock.sleep(1)
        self.account.wrong.append("does not start")

    async def _story(self) -> None:
        *first, last = self.world.mails
        await asyncio.gather(*(self._give(each) for each in first if each.door == "smtp"))
        while self.faults.hits and self.faults.cleared < 0:
            await self.clock.sleep(0.5)
        began = self.loop.time()
        await self._give(last)
        self.back = self.loop.time() - max(began, self.faults.cleared)

    async def _give(self, each: Mail) -> None:
        """Until 250."""
        for _ in range(300):
            self.account.attempts[each.name] += 1
            if await self._attempt(each):
                self.account.promised[each.name] += 1
                return
            await self.clock.sleep(1)
        self.account.wrong.append(f"{each.name} is never accepted")

    async def _attempt(self, each: Mail) -> bool:
        try:
            transport, client = self.net.join(Client, *US)
        except OSError:
            return False
        try:
            steps = [b"", b"EHLO client.test", f"MAIL FROM:<{each.sender}>".encode()]
            steps += [f"RCPT TO:<{r}>".encode() for r in each.recipients] + [b"DATA"]
            text = each.content().replace(b"\n.", b"\n..").replace(b"\n", b"\r\n") + b".\r\n"
            for step in steps:
                if step:
                    transport.write(step + b"\r\n")
                if not await self._expect(client, each, 354 if step == b"DATA" else 250, greeting=not step):
                    return False
            for at in range(0, len(text), 50_000):
                transport.write(text[at : at + 50_000])
            return await self._expect(client, each, 250)
        finally:
            transport.close()

    async def _expect(self, client: Client, each: Mail, wanted: int, *, greeting: bool = False) -> bool:
        try:
            code = await client.code()
        except TimeoutError:
            self.account.wrong.append(f"{each.name}: no answer")
            return False
        if code >= 500:
            self.account.wrong.append(f"{each.name}: refused for good with {code}")
        return code == (220 if greeting else wanted)

    def _drop(self) -> None:
        """What sendmail leaves while the daemon is down."""
        (each,) = [m for m in self.world.mails if m.door == "maildrop"]
        envelope = Envelope(each.sender, [Recipient(r) for r in each.recipients], EPOCH)
        before, after = envelope_records(envelope, len(envelope.recipients))
        lines = LineRecords()
        data = before + lines.feed(each.content()) + lines.end() + record(b"X", b"") + after + record(b"E", b"")
        path = self.world.root / "spool" / "maildrop" / ("0123456789abcdef" * 2)
        path.write_bytes(data)
        path.chmod(0o750)
        self.account.attempts[each.name] = self.account.promised[each.name] = 1

    async def _settled(self) -> None:
        while any(True for file in self.world.files() if not self._given_up(file)):
            if self.loop.time() > PATIENCE:
                left = [str(path.relative_to(self.world.root / "spool")) for path in self.world.files()]
                self.account.wrong.append(f"still there after {PATIENCE:.0f} s: {left}")
                return
            await self.clock.sleep(2)

    def _given_up(self, file: Path) -> bool:
        """What could not be removed has the mode of an unfinished file, until the next start."""
        return self.faults.kind == "unlink" and file.stat().st_mode & 0o777 == 0o600

    def _put_aside(self) -> set[str]:
        """Messages in corrupt/: what cannot be read (EIO) is put there, and waits for an administrator."""
        texts = [file.read_bytes() for file in (self.world.root / "spool" / "corrupt").iterdir()]
        names = [each.name for each in self.world.mails]
        return {name for name in names if any(f"X-Test-Id: {name}".encode() in text for text in texts)}

    def _copies(self) -> Counter[Copy]:
        found: Counter[Copy] = Counter()
        box, new = self.world.root / "mail" / "games", self.world.root / "mail" / "news" / "new"
        where = [(f"sink:{taken.recipient}", taken.content) for taken in self.peer.taken]
        where += [("mbox:games", each) for each in (mbox_messages(box.read_bytes()) if box.exists() else [])]
        where += [("maildir:news", path.read_bytes()) for path in (new.iterdir() if new.exists() else [])]
        for place, content in where:
            copies = identify(place, content, self.account)
            if copies is None:
                self.account.altered.append(f"torn: {content[:80]!r} in {place}")
            found.update(copies or [])
        return found

    def _verdict(self) -> Outcome:
        """Nothing was killed, so nothing may be there twice; but a peer's answer may have been lost on the way."""
        faults, found = self.faults, self._copies()
        if faults.kind in ("net-recv-client", "net-send-client"):
            self.account.at_kills = [Counter({copy: n + 1 for copy in found}) for n in range(faults.hits)]
        wrong = self.account.verdict(found)
        unreadable = faults.number == errno.EIO and faults.kind in UNREADABLE
        if unreadable:
            aside = self._put_aside()
            wrong = [text for text in wrong if text.split()[1] not in aside and "corrupt/" not in text]
        if self.back > BACK:
            wrong.append(f"the service is back only {self.back:.1f} s after the fault")
        wrong += [f"flushed again after an error: {path}" for path in faults.lied]
        twice = sum(count - 1 for count in found.values())
        log = "\n".join(self.log.lines)
        if not unreadable and any("Traceback" in line for line in self.log.lines):
            wrong.append("a traceback in the log")
        return Outcome(wrong, faults.counts, faults.hits, self.back, self.loop.time(), twice, log)


@contextlib.contextmanager
def world(root: Path) -> Iterator[World]:
    """A World in a new directory below root."""
    yield World(root)


__all__ = ["BACK", "HOLD", "Outcome", "World", "world"]
