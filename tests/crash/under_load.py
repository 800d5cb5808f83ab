"""Ten senders and a system in trouble, until the queue is empty; then a ledger judges.

Senders inject over SMTP messages for a remote site (sink), a local mailbox, a recipient that is greylisted
first and one that is refused.  What trouble there is, is the caller's business (kill9.py, storms.py).
"""

import argparse
import contextlib
import email
import mailbox
import random
import smtplib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.ledger import Ledger
from tests.crash.sink import Sink
from tests.crash.system import System

LOCAL_USER = "games"  # on every Debian; neither root nor mail_owner
SENDERS = 10


@dataclass
class Outcome:
    """What a run found."""

    wrong: list[str]
    promised: int
    delivered: int
    bounced: int
    kills: int
    in_flight: int

    def __str__(self) -> str:
        return (f"promised {self.promised}, delivered {self.delivered}, bounced {self.bounced}, "
                f"kills {self.kills} ({self.in_flight} with work in flight), violations {len(self.wrong)}")  # fmt: skip


class Sender(threading.Thread):
    """Sends one message after the other until told to stop; counts itself busy between DATA and the answer."""

    def __init__(self, number: int, port: int, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.number, self.port, self.ledger, self.stop_event = number, port, ledger, stop
        self.busy = False

    def run(self) -> None:
        count = 0
        while not self.stop_event.is_set():
            count += 1
            try:
                self._send(f"m{self.number}-{count}", count)
            except (OSError, smtplib.SMTPException):
                time.sleep(0.02)
            finally:
                self.busy = False

    def _send(self, name: str, count: int) -> None:
        recipients = [f"ok{self.number}@sink.test"]
        if count % 5 == 0:
            recipients.append(f"temp{name}@sink.test")
        if count % 7 == 0:
            recipients.append(f"perm{name}@sink.test")
        if count % 3 == 0:
            recipients.append(f"{LOCAL_USER}@mx.test.example")
        body = f"X-Test-Id: {name}\r\nSubject: t\r\n\r\n" + "0123456789abcdef\r\n" * (20 if count % 11 else 20000)
        client = smtplib.SMTP(timeout=30)
        try:
            client.connect("127.0.0.1", self.port)
            client.ehlo("client.test")
            client.mail("sender@mx.test.example" if count % 7 else f"{LOCAL_USER}@mx.test.example")
            for recipient in recipients:
                code, text = client.rcpt(recipient)
                if code != 250:
                    raise smtplib.SMTPResponseException(code, text)
            self.ledger.attempt(name)
            self.busy = True
            code, text = client.data(body)
            if code == 250:
                for recipient in recipients:
                    self.ledger.promise(name, recipient)
        finally:
            client.close()


@dataclass
class UnderLoad:
    """What a trouble gets to work with.  wrong, in_flight: what it found, and how often there was work in flight."""

    system: System
    ledger: Ledger
    senders: list[Sender]
    sink: Sink
    wrong: list[str]
    in_flight: int = 0

    def busy_moment(self) -> bool:
        """Wait a little for a commit or a delivery to be in flight: trouble in an idle system shows nothing."""
        for _ in range(100):
            if any(sender.busy for sender in self.senders) or self.sink.busy > 0:
                self.in_flight += 1
                return True
            time.sleep(0.002)
        return False


def run_under_load(
    directory: Path, count: int, trouble: Callable[[UnderLoad], None], settings: dict[str, str] | None = None
) -> Outcome:
    """Cause the trouble `count` times, let the system finish its work, judge; directory must be empty."""
    ledger = Ledger()
    sink = Sink(ledger)
    system = System(directory, {"relayhost": f"[127.0.0.1]:{sink.port}", **(settings or {})})
    system.start()
    stop = threading.Event()
    load = UnderLoad(system, ledger, [Sender(i, system.port, ledger, stop) for i in range(SENDERS)], sink, [])
    for sender in load.senders:
        sender.start()
    try:
        for _ in range(count):
            trouble(load)
        time.sleep(0.5)
        stop.set()
        for sender in load.senders:
            sender.join(60)
        _wait_until_empty(system, 120.0)
        system.stop()
    finally:
        stop.set()
        system.kill()
        sink.close()
    wrong = load.wrong + _judge(system, ledger)
    return Outcome(wrong, len(ledger.promised), len(ledger.delivered), len(ledger.bounced), count, load.in_flight)


def _judge(system: System, ledger: Ledger) -> list[str]:
    read_mailbox(system, ledger)
    queued = {key for files in system.queue().values() for file in files for key in still_promised(file)}
    left = {name: files for name, files in system.queue().items() if files and name in ("hold", "corrupt")}
    refused = frozenset(r for _, r in ledger.bounced if r.startswith("perm"))
    wrong = ledger.verdict(queued, refused)
    log = system.log.read_text(errors="replace").splitlines() if left else []
    said = [line for files in left.values() for f in files[:3] for line in log if f.name in line]
    return wrong + [f"left in {name}: {[f.name for f in files[:5]]}" for name, files in left.items()] + said[-30:]


def read_mailbox(system: System, ledger: Ledger) -> None:
    """Enter local deliveries and bounces into the ledger."""
    path = system.directory / "mail" / LOCAL_USER
    if not path.exists():
        return
    reports = set()  # one that was delivered again (W3) has the same Message-ID and is no second report
    with contextlib.closing(mailbox.mbox(path, create=False)) as box:
        messages = list(box)
    for message in messages:
        parsed = email.message_from_bytes(message.as_bytes())
        name = parsed.get("X-Test-Id", "").strip()
        if name:
            when = time.mktime(time.strptime(message.get_from().split(None, 1)[1].strip()))
            ledger.deliver(name, f"{LOCAL_USER}@mx.test.example", when)
            continue
        if (identity := parsed.get("Message-ID", "")) in reports:
            continue
        reports.add(identity)
        report = parsed.as_string()
        for part in report.split("Final-Recipient: rfc822; ")[1:]:
            recipient = part.split()[0]
            ledger.bounce(report.partition("X-Test-Id: ")[2].split()[0], recipient)


def still_promised(file: Path) -> set[tuple[str, str]]:
    """(message, recipient) for which a queue file, or a report in one, still stands; reads the records itself."""
    data, at, name, addresses = file.read_bytes(), 0, "", []
    while at + 1 < len(data):
        kind, size, shift, at = data[at : at + 1], 0, 0, at + 1
        while at < len(data):
            size |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        record, at = data[at : at + size], at + size
        if kind == b"R":
            addresses.append(record.decode())
        for line in record.split(b"\n") if kind in b"NL" else ():
            if line.startswith(b"X-Test-Id: ") and not name:
                name = line[11:].strip().decode()
            elif line.startswith(b"Final-Recipient: rfc822; "):
                addresses.append(line[25:].strip().decode())
    return {(name, address) for address in addresses}


def _wait_until_empty(system: System, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(system.queue().values()):
        time.sleep(0.2)


def main(about: str | None, what: str, count: int, run: Callable[[Path, int, int], Outcome]) -> int:
    """Command line with --`what` and --seed; prints the figures, exit status 1 on a violation."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{what}", dest="count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}, mailbox {LOCAL_USER}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"{what}-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        outcome = run(path, options.count, options.seed)
    print(str(outcome).replace("kills", what))
    for line in outcome.wrong[:50]:
        print("  " + line)
    return 1 if outcome.wrong else 0
