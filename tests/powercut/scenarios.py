"""What is going on when the power fails.  Each scenario gets a world and the name of its run."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.powercut.world import HERE, MAILDIR_USER, MBOX_USER, World

SMALL, LARGE = 900, 300_000  # bytes: a file of lines, a file of blocks
MBOX, MAILDIR, LIST = (f"{name}@{HERE}" for name in (MBOX_USER, MAILDIR_USER, "list"))


@dataclass(frozen=True, slots=True)
class Scenario:
    """delay: seconds that each flush of marks takes.  two: mailboxes on a disk of their own.  least: steps it has."""

    about: str
    run: Callable[[World, str], None]
    least: int
    delay: float = 0.0
    two: bool = False


def _accept(world: World, name: str) -> None:
    recipients = [f"ok{n}@sink.test" for n in (1, 2, 3)]
    world.smtp([(f"{name}-a", "back@sink.test", recipients, SMALL), (f"{name}-b", "back@sink.test", recipients, LARGE)])


def _inject(world: World, name: str) -> None:
    world.sendmail(name, "back@sink.test", ["ok1@sink.test", "ok2@sink.test"], SMALL)


def _maildrop(world: World, name: str) -> None:
    world.sendmail(name, "back@sink.test", ["ok1@sink.test", "ok2@sink.test"], SMALL, away=True)


def _remote(world: World, name: str) -> None:
    recipients = ["ok@sink.test", "temp@sink.test", "perm@sink.test"]
    world.smtp([(name, f"back-{name}@sink.test", recipients, SMALL)])


def _mailboxes(world: World, name: str) -> None:
    """The first message makes the mailboxes, the second finds them."""
    for part in ("a", "b"):
        world.smtp([(f"{name}-{part}", "back@sink.test", [MBOX, MAILDIR], SMALL)])
        world.wait_empty()


def _dsn(world: World, name: str) -> None:
    recipients = ["perm1@sink.test", "ok@sink.test", "perm2@sink.test"]
    world.smtp([(name, f"temp-{name}@sink.test", recipients, SMALL)])  # the report is deferred once, too


def _early_child(world: World, name: str) -> None:
    """Children of both kinds, while the marks of their parents take long to be flushed."""
    world.smtp([(f"{name}-a", f"back-{name}@sink.test", ["perm@sink.test", "ok@sink.test"], SMALL),
                (f"{name}-b", f"list-{name}@sink.test", [LIST], SMALL)])  # fmt: skip


def _second_failure(world: World, name: str) -> None:
    """perm fails at once and its report waits; late fails at the second attempt and needs a report of its own."""
    world.smtp([(name, f"slow-{name}@sink.test", ["perm@sink.test", "late@sink.test"], SMALL)])


def _procession(world: World, name: str) -> None:
    """Each is delivered while the next one is accepted, and its removal is durable with that."""
    world.smtp([(f"{name}-{n}", "back@sink.test", ["ok@sink.test"], SMALL) for n in range(6)])


def _alias(world: World, name: str) -> None:
    """One leaf is delivered, one deferred, one refused."""
    world.smtp([(name, f"back-{name}@sink.test", [LIST, "ok@sink.test"], SMALL)])


SCENARIOS = {
    "accept": Scenario("SMTP, 3 recipients, 1 KB and 300 KB", _accept, 30),
    "inject": Scenario("sendmail to the daemon", _inject, 15),
    "maildrop": Scenario("sendmail without the daemon, picked up later", _maildrop, 20),
    "remote": Scenario("250, 450 and 550 from the next hop", _remote, 40),
    "mailboxes": Scenario("mbox and Maildir, made and appended to", _mailboxes, 60),
    "dsn": Scenario("two refused, one report, deferred once", _dsn, 40),
    "early-child": Scenario("report and alias while marks are slow", _early_child, 50, delay=0.15),
    "second-failure": Scenario("one fails while the other's report waits", _second_failure, 50),
    "alias": Scenario("an alias whose leaves half succeed", _alias, 40),
    "procession": Scenario("six messages one after the other", _procession, 60),
    "two-disks": Scenario("as mailboxes, spool and homes on two disks", _mailboxes, 60, two=True),
}
