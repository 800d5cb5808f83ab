"""One MTA that is killed at a step and started again, with its peers, mailboxes and clients, made for speed.

A start is a fork of a warm parent.  Every run begins with an empty spool and empty mailboxes; directories, ports
and the peer stay.  As root the MTA runs as nobody with mta-local beside it, or, `as_user`, wholly as nobody.
"""

import contextlib
import json
import os
import pwd
import select
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import kill_steps
from tests.crash.kill_ledger import Account, Copy, Underway, field_of, identify, ids_of, mbox_messages, recipients_todo
from tests.crash.kill_sink import KeepingSink, Taken
from tests.crash.system import free_port

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = "mx.test.example"
LIMIT = 60.0  # seconds anything may take
SERVICE_LIMIT = 15.0  # seconds from a start to the first 220: I7 says 5, threefold for a busy machine
LEFT_OVER = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt", "defer", "bounce", "trace")
SERVICES = ("smtp smtp", "relay smtp", "local local", "boxes local", "error error", "retry error", "discard discard")


class HungError(AssertionError):
    """Something did not happen in time; str() says what and shows the log."""


@dataclass
class Started:
    """A process of the warm parent.  pid leads its session."""

    pid: int
    pidfd: int

    def ended(self, seconds: float = 0.0) -> bool:
        """Has it ended, within so many seconds?"""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def kill(self) -> None:
        """kill -9 of the whole group; returns when nobody of it is left."""
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(self.pid, signal.SIGKILL)
                time.sleep(0.001)
        self.forget()

    def forget(self) -> None:
        """Close the descriptor."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Zygote:
    """The warm parent; see kill_zygote.py."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.crash.kill_zygote"]
        self._process = subprocess.Popen(command, stdin=theirs.fileno(), cwd=ROOT)
        theirs.close()

    def start(self, **request: object) -> Started:
        """Fork one."""
        self._ours.sendall(json.dumps(request).encode() + b"\n")
        pid, fds, _, _ = socket.recv_fds(self._ours, 32, 1)
        return Started(int(pid), fds[0])

    def close(self) -> None:
        """End it."""
        self._ours.close()
        self._process.kill()  # it may still be importing
        self._process.wait()


@dataclass
class World:
    """as_user: no root anywhere.  settings: main.cf lines besides the usual ones; aliases: the alias file.

    fresh: each run makes its spool; otherwise its directories stay, and runs begin with the first message.
    trouble: one of kill_troubles.py.
    """

    as_user: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    aliases: str = ""
    fresh: bool = False
    trouble: str = ""
    kill_at: int = 0
    process: Started | None = None
    runs: int = 0
    next_flush: float = 0.0

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="aiomta-kill-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.spool, self.mail = self.directory / "spool", self.directory / "mail"
        self.counter, self.log = self.directory / "counter", self.directory / "maillog"
        self.zygote, self.sink, self.port = Zygote(), KeepingSink(), free_port()
        self.sink.arriving = self._child_arrives
        self.user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        self.drops_root = self.as_user and os.getuid() == 0
        self.boxes = ("games", "news") if os.getuid() == 0 else (self.user.pw_name,)
        self.account = Account({}, {})
        self.slowest_start = 0.0
        self._configure()

    def _configure(self) -> None:
        etc = self.directory / "etc"
        etc.mkdir()
        (etc / "aliases").write_text(self.aliases)
        main_cf = {
            "compatibility_level": "3.6", "myhostname": DOMAIN, "mydestination": "$myhostname",
            "mynetworks": "127.0.0.0/8", "inet_interfaces": "loopback-only", "inet_protocols": "ipv4",
            "queue_directory": str(self.spool), "data_directory": str(self.directory / "data"),
            "mail_spool_directory": str(self.mail), "maillog_file": str(self.log), "maillog_file_prefixes": "/",
            "mail_owner": self.user.pw_name, "alias_maps": f"texthash:{etc}/aliases" if self.aliases else "",
            "smtp_tls_security_level": "none", "smtpd_peername_lookup": "no",
            "relayhost": f"[127.0.0.1]:{self.sink.port}",
            "minimal_backoff_time": "1s", "maximal_backoff_time": "1s", "queue_run_delay": "1s", "smtpd_processes": "1",
            "transport_maps": f"inline:{{news@{DOMAIN}=boxes:}}", "message_size_limit": "1000000", **self.settings,
        }  # fmt: skip
        (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in main_cf.items()))
        unix = "".join("{} unix - - n - - {}\n".format(*service.split()) for service in SERVICES)
        boxes = f"boxes unix - - n - - local -o mail_spool_directory={self.mail}/\n"
        unix = unix.replace("boxes unix - - n - - local\n", boxes)
        (etc / "master.cf").write_text(f"127.0.0.1:{self.port} inet n - n - - smtpd\n{unix}")

    # -- life of a run ------------------------------------------------------------------------------

    def begin(self, kill_at: int, places: dict[str, set[str]], bodies: dict[str, bytes]) -> None:
        """A new run, which is to die at a step; places and bodies: see Account."""
        self.runs += 1
        self.kill_at = kill_at
        for path in (self.mail, *((self.spool,) if self.fresh else ())):
            shutil.rmtree(path, ignore_errors=True)
        for file in list(self.queue_files()):
            file.unlink()
        for path in (self.spool, self.mail, self.directory / "data"):
            path.mkdir(exist_ok=True)
            if self.drops_root:
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self.mail.chmod(0o1777)
        for path in (self.log, self.counter):
            path.unlink(missing_ok=True)
            path.touch(0o666)
            path.chmod(0o666)
        self.sink.forget()
        self.account = Account(places, bodies)

    def arm(self, kill_at: int) -> None:
        """The next life is to die at this step of its own."""
        self.counter.write_bytes(b"")
        self.kill_at = kill_at

    def start(self, *, wait: bool = True) -> bool:
        """Start the MTA; False when it died before it served, which it may when it is to die."""
        armed: dict[str, object] = {}
        if self.kill_at >= 0:
            armed = {"counter": str(self.counter), "die_at": self.kill_at}
        armed |= {"trouble": self.trouble} if self.trouble else {}
        user = {"uid": self.user.pw_uid, "gid": self.user.pw_gid} if self.drops_root else {}
        began = time.monotonic()
        self.process = self.zygote.start(
            etc=str(self.directory / "etc"), out=str(self.directory / "stdout"), **armed, **user
        )
        while wait and not self.greets():
            if self.process.ended():
                return False
            if time.monotonic() - began > LIMIT:
                raise self.hung("a start")
            time.sleep(0.003)
        self.slowest_start = max(self.slowest_start, time.monotonic() - began)
        return True

    def greets(self) -> bool:
        """Does an SMTP server answer?"""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as s:
            s.settimeout(SERVICE_LIMIT)
            return s.recv(4) == b"220 "
        return False

    def dead(self) -> bool:
        """Has step N been reached?"""
        return 0 < self.kill_at <= len(self.steps())

    def steps(self) -> list[str]:
        """What was counted in this run."""
        return kill_steps.taken(str(self.counter))

    def count_kill(self) -> None:
        """Everybody is dead: make sure of that, and note what was where."""
        self.stop()
        self.note_kill()

    def note_kill(self, *, helper_lives: bool = False) -> None:
        """Note what is where; nothing is to die in this run any more.

        helper_lives: what mta-local is just delivering will be in its mailbox, whoever asked for it is dead or not.
        """
        copies = self.copies()
        self.account.at_kills.append(Underway(copies) if helper_lives else copies)
        claimed = (file for file in self.queue_files() if file.parent.name in ("active", "incoming"))
        self.account.todo_at_kills.append({file.name: recipients_todo(file) for file in claimed})
        self.kill_at = -1

    def stop(self) -> None:
        """kill -9, or what is left of it."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def close(self) -> None:
        """Remove everything."""
        self.stop()
        self.zygote.close()
        self.sink.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def hung(self, what: str) -> HungError:
        """For what did not happen in time."""
        files = [str(p.relative_to(self.spool)) for p in self.queue_files()]
        tail = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
        out = (self.directory / "stdout").read_text(errors="replace")[-2000:]
        return HungError(f"not within {LIMIT} s: {what}; queue {files}\n{out}\n{tail}")

    # -- clients ------------------------------------------------------------------------------------

    def send(self, name: str, sender: str, recipients: list[str], content: bytes) -> bool:
        """One attempt over SMTP: True when there was a 250, which is then a promise."""
        self.account.attempts[name] += 1
        client = smtplib.SMTP(timeout=LIMIT)
        try:
            client.connect("127.0.0.1", self.port)
            client.ehlo("client.test")
            codes = [client.mail(sender)[0], *(client.rcpt(r)[0] for r in recipients)]
            if all(code == 250 for code in codes):
                codes.append(client.data(content.replace(b"\n", b"\r\n"))[0])
                if codes[-1] == 250:
                    self.account.promised[name] += 1
                    return True
            self._no_5xx(name, codes)
        except smtplib.SMTPResponseException as refused:
            if refused.smtp_code > 0:  # -1: the connection was lost
                self._no_5xx(name, [refused.smtp_code])
        except (OSError, smtplib.SMTPException):
            pass
        finally:
            client.close()
        return False

    def _no_5xx(self, name: str, codes: list[int]) -> None:
        if any(code >= 500 for code in codes):
            self.account.wrong.append(f"refused for good: {name}: {codes}")

    def sendmail(self, name: str, arguments: list[str], content: bytes) -> bool:
        """One call of sendmail: True when it ended with 0, which is a promise."""
        self.account.attempts[name] += 1
        message, result = self.directory / "message", self.directory / "data" / "status"
        message.write_bytes(content)
        result.unlink(missing_ok=True)
        armed = {"counter": str(self.counter), "die_at": self.kill_at} if self.kill_at >= 0 else {}
        user = {"uid": self.user.pw_uid, "gid": self.user.pw_gid} if self.drops_root else {}
        argv = ["sendmail", "-C", str(self.directory / "etc"), *arguments]
        process = self.zygote.start(
            argv=argv, stdin=str(message), result=str(result), out=str(self.directory / "stdout"), **armed, **user
        )
        deadline = time.monotonic() + LIMIT
        while not process.ended(0.01) and not self.dead():
            if time.monotonic() > deadline:
                raise self.hung("sendmail")
        process.kill()
        status = int(result.read_text()) if result.exists() else -9
        if status not in (0, 75, -9):
            self.account.wrong.append(f"sendmail ended with {status}: {name}")
        self.account.promised[name] += status == 0
        return status == 0

    def flush(self) -> None:
        """As postqueue -f."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
            s.settimeout(1)
            s.connect(str(self.spool / "public" / "flush"))
            s.sendall(b"flush\n")
            s.recv(100)

    def _child_arrives(self, taken: Taken) -> None:
        """A child goes out only when its parent has no recipient left that the child answers for."""
        header = taken.content.partition(b"\n\n")[0]
        way = ids_of(header + b"\n")
        alias = field_of(header, b"Delivered-To")
        for file in self.queue_files() if len(way) > 1 and alias else ():
            if file.name == way[-2] and alias in recipients_todo(file):
                self.account.wrong.append(f"child {way[-1]} delivered before {alias} of {way[-2]} was marked")

    # -- what is where ------------------------------------------------------------------------------

    def queue_files(self) -> Iterator[Path]:
        """Everything that stands for mail, or is left of it; not what a dead process began, which stays an hour."""
        for name in LEFT_OVER:
            for directory, _, files in os.walk(self.spool / name):
                for file in files:
                    _, dot, pid = file.partition(".")
                    begun = dot and (name == "maildrop" or (name == "incoming" and not Path("/proc", pid).exists()))
                    if not begun:
                        yield Path(directory, file)

    def copies(self) -> Counter[Copy]:
        """Every copy at peers and in mailboxes; torn ones are judged here: one per kill."""
        found: Counter[Copy] = Counter()
        torn = 0
        self.account.altered.clear()
        for where, content in self._messages():
            copies = identify(where, content, self.account)
            torn += copies is None
            found.update(copies or [])
        if torn > self.account.kills:
            self.account.altered.append(f"{torn} unreadable messages, {self.account.kills} kills")
        return found

    def _messages(self) -> Iterator[tuple[str, bytes]]:
        for taken in list(self.sink.taken):
            yield f"sink:{taken.recipient}", taken.content
        for user in self.boxes:
            box = self.mail / user
            if box.is_file():
                yield from ((f"mbox:{user}", message) for message in mbox_messages(box.read_bytes()))
            for file in (box / "new").glob("*") if box.is_dir() else ():
                yield f"maildir:{user}", file.read_bytes()

    def flush_deferred(self) -> None:
        """As an administrator who cannot wait: each tenth of a second, when there is something deferred."""
        now = time.monotonic()
        if now > self.next_flush and any(file.parent.parent.name == "deferred" for file in self.queue_files()):
            self.flush()
            self.next_flush = now + 0.1

    def settled(self) -> bool:
        """Nothing is left to do, seen twice: a rename may hide a file from one look."""
        return not any(any(True for _ in self.queue_files()) for _ in range(2))

    def wait_until_settled(self) -> bool:
        """Let it work; deferred mail is tried at once.  False when it died meanwhile."""
        deadline, pause = time.monotonic() + LIMIT, 0.002
        while not self.settled():
            if self.process is not None and self.process.ended():
                return False
            if time.monotonic() > deadline:
                raise self.hung("the end of all work")
            self.flush_deferred()
            time.sleep(pause)
            pause = min(0.02, pause * 1.2)
        return not (self.process is not None and self.process.ended())
