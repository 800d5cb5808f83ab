"""The scenarios of the kill matrix: what a client does, and where each message must be in the end.

A story is repeated after the kill by the same client: what was promised is not sent again, all else is.  Names of
recipients at the peer (ok, temp, perm, late) say what it answers: see kill_sink.py.
"""

from dataclasses import dataclass, field

from tests.crash.kill_world import DOMAIN, HungError, World

BODY = b"first\n.dot\n..\nFrom here\n" + b"0123456789abcdef" * 3 + b"\nlast\n"
LARGE = BODY + (b"0123456789abcdef" * 4 + b"\n") * 4700  # more than is kept in memory: written in blocks
SINK = "sink.test"


@dataclass(frozen=True)
class Mail:
    """One message.  door: smtp, or sendmail with the daemon up (socket) or down (maildrop)."""

    name: str
    sender: str
    recipients: tuple[str, ...]
    ends: frozenset[str]
    door: str = "smtp"
    body: bytes = BODY

    def content(self) -> bytes:
        """Header and body."""
        return (
            f"From: <{self.sender}>\nTo: undisclosed-recipients:;\nSubject: t\nX-Test-Id: {self.name}\n\n".encode()
            + self.body
        )

    def give(self, world: World) -> None:
        """One attempt, unless it was promised already."""
        if world.account.promised[self.name]:
            return
        if self.door == "smtp":
            world.send(self.name, self.sender, list(self.recipients), self.content())
        else:
            world.sendmail(self.name, ["-i", "-f", self.sender, *self.recipients], self.content())


def reports(to: str, *failed: str) -> set[str]:
    """Places of the reports on these recipients."""
    return {f"{to} about {address}@{SINK}" for address in failed}


def at_sink(*names: str) -> tuple[str, ...]:
    """Recipients there."""
    return tuple(f"{name}@{SINK}" for name in names)


def mail(name: str, sender: str, recipients: tuple[str, ...], *ends: str, **more: object) -> Mail:
    """A Mail; ends without "sink:" for the recipients at the sink that are delivered."""
    return Mail(name, sender, recipients, frozenset(ends), **more)  # type: ignore[arg-type]  # door and body


@dataclass(frozen=True)
class Scenario:
    """as_user: without root.  down: the daemon is started after the mail was given.  fresh: there is no spool yet."""

    name: str
    mails: tuple[Mail, ...]
    as_user: bool = True
    down: bool = False
    fresh: bool = False
    aliases: str = ""
    settings: dict[str, str] = field(default_factory=dict)

    def world(self) -> World:
        """A world for it."""
        return World(self.as_user, self.settings, self.aliases, self.fresh)

    def begin(self, world: World, n: int) -> None:
        """Empty spool, nothing promised."""
        world.begin(n, {m.name: set(m.ends) for m in self.mails}, {m.name: m.body for m in self.mails})

    def live(self, world: World) -> bool:
        """Start, let clients give their mail, work until nothing is left; False when it was killed on the way."""
        if not self.down and not world.start():
            return False
        for each in self.mails:
            each.give(world)
            if world.dead():
                return False
        if self.down and not world.start():
            return False
        return world.wait_until_settled()

    def after(self, world: World, again: int = 0) -> None:
        """Start again after the kill, then repeat().  again: the second life dies at this step of its own, too."""
        if again and not self._dies_again(world, again):
            return
        if not world.start():
            raise world.hung("the start after a kill")
        self.repeat(world)

    def _dies_again(self, world: World, again: int) -> bool:
        """False when all was done before it came to that."""
        world.arm(again)
        try:
            if world.start():
                self.repeat(world)
                return world.dead()
        except HungError:
            if not world.dead():
                raise
        finally:
            if world.dead():
                world.count_kill()
        return True

    def repeat(self, world: World) -> None:
        """Clients give again what they were not promised; work until nothing is left."""
        for _ in range(20):
            for each in self.mails:
                each.give(world)
            if world.dead():
                return
            if all(world.account.promised[each.name] for each in self.mails):
                break
        else:
            world.account.wrong.append("a client gets no 250 after the kill")
        if not world.wait_until_settled() and not world.dead():
            raise world.hung("a life after the kill")


def scenarios(*, root: bool, user: str) -> list[Scenario]:
    """All of them; user: the one with a mailbox where there is no root."""
    box = "games" if root else user
    sender, here = f"src@{SINK}", f"{box}@{DOMAIN}"
    ok3 = at_sink("ok1", "ok2", "ok3")
    delivered3 = tuple(f"sink:{r}" for r in ok3)
    mix = at_sink("ok1", "temp1", "perm1", "ok2")
    news = ("news@" + DOMAIN,) if root else ()
    in_boxes = (f"mbox:{box}", *(("maildir:news",) if root else ()))
    team = f"team: {box}{', news' if root else ''}, ok1@{SINK}, temp1@{SINK}, perm1@{SINK}\n"
    team_ends = (*in_boxes, f"sink:ok1@{SINK}", f"sink:temp1@{SINK}", *reports(f"sink:{sender}", "perm1"))
    pair = f"pair: ok1@{SINK}, temp1@{SINK}\n"
    found = [
        Scenario("first-start", (mail("a", sender, ok3[:1], *delivered3[:1]),), fresh=True),
        Scenario("accept", (mail("a", sender, ok3, *delivered3),)),
        Scenario("accept-large", (mail("a", sender, ok3, *delivered3, body=LARGE),)),
        Scenario("inject-socket", (mail("a", sender, ok3, *delivered3, door="socket"),)),
        Scenario("inject-maildrop", (mail("a", sender, ok3, *delivered3, door="maildrop"),), down=True),
        Scenario("remote-mix", (mail(
            "a", sender, mix, *(f"sink:{r}" for r in mix if "perm" not in r), *reports(f"sink:{sender}", "perm1")),)),
        Scenario("mailboxes", (mail("a", sender, (here, *news), *in_boxes), mail("b", sender, (here,), in_boxes[0]))),
        Scenario("report", (mail("a", here, at_sink("perm1", "perm2"), *reports(in_boxes[0], "perm1", "perm2")),)),
        Scenario("second-report", (mail(
            "a", f"temp-src@{SINK}", at_sink("perm1", "late1"), *reports(f"sink:temp-src@{SINK}", "perm1", "late1")),)),
        Scenario("forward", (mail("a", sender, (f"pair@{DOMAIN}", *at_sink("ok2")), *(
            f"sink:{r}" for r in at_sink("ok1", "temp1", "ok2"))),), aliases=pair),
        Scenario("alias-leaves", (mail("a", sender, (f"team@{DOMAIN}",), *team_ends),), aliases=team),
    ]  # fmt: skip
    if root:
        helper = ("mailboxes", "alias-leaves")
        found += [Scenario(f"{s.name}-root", s.mails, as_user=False, aliases=s.aliases)
                  for s in found if s.name in helper]  # fmt: skip
    return found
