"""A whole MTA on disks whose power can be cut, with users, a next hop and clients outside it.

Needs root and a mount namespace of its own (tests/powercut/__main__.py makes one).
"""

import contextlib
import mailbox
import os
import shutil
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.system import ROOT, System
from tests.powercut.disk import Cut, Disk
from tests.powercut.judge import Promises
from tests.powercut.message import Copy, compose, read
from tests.powercut.sink import Sink
from tests.powercut.steps import Steps

HERE = "mx.test.example"
MBOX_USER, MAILDIR_USER = "mboxer", "mdirer"
LEAVES = ("ok-leaf@sink.test", "temp-leaf@sink.test", "perm-leaf@sink.test")  # of the alias `list`
QUEUES = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "defer", "bounce", "trace")
WORKING = QUEUES[:4]
EMPTY_LIMIT = 60.0  # seconds for the queue to be worked off


@dataclass
class World:
    """directory: empty, on a tmpfs.  kind: of the file system; two: mailboxes have a disk of their own."""

    directory: Path
    kind: str
    two: bool
    promises: Promises = field(default_factory=Promises)

    def __post_init__(self) -> None:
        names = ("disk", "disk2") if self.two else ("disk",)
        self.disks = [Disk(self.kind, self.directory / f"{n}.img", self.directory / n) for n in names]
        for disk in self.disks:
            disk.make()
        self.steps = Steps(self.directory / "control")
        self.sink = Sink()
        self.homes = self.disks[-1].mountpoint / "home"
        self.mail = self.disks[-1].mountpoint / "mail"
        self._users()
        self.system = self._system()
        self.restart_seconds = 0.0
        self._dark = False
        self._injector: subprocess.Popen[bytes] | None = None

    def _users(self) -> None:
        """Two users with homes on the disk, known in this mount namespace only."""
        self.mail.mkdir(mode=0o1777)
        self.mail.chmod(0o1777)
        self.homes.mkdir()
        lines = Path("/etc/passwd").read_text()
        for uid, name in enumerate((MBOX_USER, MAILDIR_USER), 64801):
            (self.homes / name).mkdir()
            os.chown(self.homes / name, uid, 65534)
            lines += f"{name}:x:{uid}:65534::{self.homes / name}:/bin/false\n"
        (self.directory / "passwd").write_text(lines)
        subprocess.run(["mount", "--bind", self.directory / "passwd", "/etc/passwd"], check=True)

    def _system(self) -> System:
        tables = self.directory / "tables"
        tables.mkdir()
        (tables / "aliases").write_text(f"list: {', '.join(LEAVES)}\n")
        spool = self.disks[0].mountpoint / "spool"
        settings = {
            "queue_directory": str(spool),
            "mail_spool_directory": str(self.mail),
            "relayhost": f"[127.0.0.1]:{self.sink.port}",
            "alias_maps": f"hash:{tables}/aliases",
            "transport_maps": f"inline:{{ {{ {MAILDIR_USER}@{HERE} = maildir: }} }}",
        }
        launch = ("-m", "tests.powercut.launch", str(self.steps.directory), "mta")
        system = System(self.directory / "mta", settings, program=launch)
        system.spool = spool
        with (system.etc / "master.cf").open("a") as file:
            file.write("maildir unix - - n - - local -o home_mailbox=Maildir/\n")
        for name in ("mta", "mta/etc"):
            (self.directory / name).chmod(0o755)
        away = self.directory / "away"  # for a sendmail that finds no daemon
        shutil.copytree(system.etc, away)
        with (away / "main.cf").open("a") as file:
            file.write(f"submit_socket = {away}/nobody\n")
        return system

    # -- clients ------------------------------------------------------------------------------------------

    def smtp(self, letters: Sequence[tuple[str, str, Sequence[str], int]]) -> None:
        """Send (name, sender, recipients, size) over one connection; a promise when 250 was read."""
        client = smtplib.SMTP(timeout=30)
        with contextlib.suppress(OSError, smtplib.SMTPException), contextlib.closing(client):
            client.connect("127.0.0.1", self.system.port)
            client.ehlo("client.test")
            for name, sender, recipients, size in letters:
                self.promises.given[name] = _leaves(recipients)
                client.mail(sender)
                for recipient in recipients:
                    code, text = client.rcpt(recipient)
                    if code != 250:
                        raise smtplib.SMTPResponseException(code, text)
                if client.data(compose(name, size))[0] == 250:
                    self.promises.kept.add(name)

    def sendmail(self, name: str, sender: str, recipients: Sequence[str], size: int, *, away: bool = False) -> None:
        """Inject one message; a promise when the program ended with 0.  away: as if no daemon were there."""
        self.promises.given[name] = _leaves(recipients)
        config = self.directory / "away" if away else self.system.etc
        launch = [sys.executable, "-m", "tests.powercut.launch", str(self.steps.directory), "sendmail"]
        self._injector = subprocess.Popen(
            [*launch, "-i", "-f", sender, *recipients], cwd=ROOT, env={**os.environ, "MAIL_CONFIG": str(config)},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._injector.communicate(compose(name, size).replace(b"\r\n", b"\n"), 60)
        if self._injector.returncode == 0:
            self.promises.kept.add(name)

    # -- what happens to it -------------------------------------------------------------------------------

    def power_cut(self, how: Cut) -> None:
        """All disks stop, then all processes."""
        self._dark = True
        for disk in self.disks:
            disk.cut(how)
        if self._injector is not None:
            self._injector.kill()
        self.system.kill()

    def power_on(self) -> None:
        """Mount again and start; how long it took until it served is restart_seconds."""
        for disk in self.disks:
            disk.power_on()
        self._dark = False
        begin = time.monotonic()
        self.system.start()
        self.restart_seconds = time.monotonic() - begin

    def empty(self) -> bool:
        """Is there nothing left to do?  Looks twice: a file can move to a directory that was just looked at."""
        return not any(not unfinished(path) for name in (*WORKING, *WORKING) for path in self.files(name))

    def files(self, queue: str) -> Iterator[Path]:
        """Files of a queue directory."""
        for directory, _, names in os.walk(self.system.spool / queue):
            yield from (Path(directory) / name for name in names)

    def wait_empty(self) -> bool:
        """Until the queue is empty, or too long, or the power is gone."""
        deadline = time.monotonic() + EMPTY_LIMIT
        while not self.empty() and not self._dark:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def copies(self) -> list[Copy]:
        """What arrived of the messages of this run, everywhere."""
        ours = self.promises.given
        found = [c for c in self.sink.copies() if c.name in ours or any(r[0] in ours for r in c.reports)]
        recipient = f"{MBOX_USER}@{HERE}"
        if (self.mail / MBOX_USER).exists():
            with contextlib.closing(mailbox.mbox(self.mail / MBOX_USER, create=False)) as box:
                found += [read(box.get_bytes(key), recipient, 0.0) for key in box.keys()]  # noqa: SIM118  not a dict
        maildir = self.homes / MAILDIR_USER / "Maildir"
        for name in ("new", "cur"):
            for path in (maildir / name).glob("*"):
                found.append(read(path.read_bytes(), f"{MAILDIR_USER}@{HERE}", 0.0))
        return found

    def clean(self) -> None:
        """Make room for the next run; the MTA is idle."""
        self.promises = Promises()
        (self.mail / MBOX_USER).unlink(missing_ok=True)
        shutil.rmtree(self.homes / MAILDIR_USER / "Maildir", ignore_errors=True)
        for queue in ("hold", "corrupt", "maildrop"):
            for path in list(self.files(queue)):
                path.unlink()
        for disk in self.disks:
            disk.sync()

    def close(self) -> None:
        """Stop everything."""
        self.system.kill()
        self.sink.close()
        self.steps.close()
        for disk in self.disks:
            disk.umount()
        subprocess.run(["umount", "/etc/passwd"], check=True)


def unfinished(path: Path) -> bool:
    """A file in maildrop that sendmail was writing: removed after an hour, or, torn under its last name, left alone.

    Nobody was promised anything, and nobody takes it.
    """
    if path.parent.name != "maildrop":
        return False
    with contextlib.suppress(FileNotFoundError):
        return "." in path.name or not path.read_bytes().endswith(b"E\0")
    return False


def _leaves(recipients: Sequence[str]) -> tuple[str, ...]:
    return tuple(leaf for r in recipients for leaf in (LEAVES if r == f"list@{HERE}" else (r,)))
