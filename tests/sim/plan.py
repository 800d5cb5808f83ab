"""What happens in a run, decided by its seed beforehand and written down, so that parts can be taken away.

A plan is data: messages with the behaviour of each recipient, faults with their times.  Random choices made while it
runs (latencies, what a power cut keeps) come from generators of their own, seeded by the plan.
"""

import random
from dataclasses import dataclass, field

DOMAIN = "sim.example"
SENDERS = "ext.example"  # where remote senders get their reports
REMOTE = ("d1.example", "d2.example", "d3.example")
USERS = ("anna", "bert", "cora", "dora")
STATIC_ALIASES = {  # alias -> leaves; the remote leaf's behaviour is fixed by its name
    "team": ("anna@sim.example", "bert@sim.example", "member@d1.example"),
    "list": ("cora@sim.example", "gone@d2.example", "slow@d3.example"),
    "inner": ("dora@sim.example",),
    "outer": ("inner@sim.example", "outside@d2.example"),
    "postmaster": ("dora@sim.example",),
}
LEAVES = {**STATIC_ALIASES, "outer": ("dora@sim.example", "outside@d2.example")}
FIXED_SCRIPTS = {"gone@d2.example": [550], "slow@d3.example": [450, 451, 250]}
SPAN = 40.0  # seconds in which messages are sent
ERRNOS = ("ENOSPC", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EDQUOT", "ESTALE")


@dataclass(slots=True)
class Message:
    """at: seconds.  door: smtp, submit, maildrop.  notify: "" or the value of NOTIFY=.  lines, seed: of the body."""

    number: int
    door: str
    at: float
    sender: str
    recipients: list[str]
    notify: str
    lines: int
    seed: int


@dataclass(slots=True)
class Fault:
    """kind: see tests/sim/world.py.  at: seconds; step: instead, of the process.  seconds: how long.  what: of kind."""

    kind: str
    at: float = 0.0
    step: int = 0
    seconds: float = 0.0
    what: str = ""
    amount: float = 0.0


@dataclass(slots=True)
class Plan:
    """One run."""

    seed: int
    ordered: bool
    separate_home: bool
    maildir: bool
    worker: bool
    delay_warning: bool
    split: float
    messages: list[Message] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    scripts: dict[str, list[int]] = field(default_factory=dict)  # remote address -> replies to RCPT, the last for ever
    dots: dict[str, list[str]] = field(default_factory=dict)  # domain -> what happens at end of data, then "ok"

    def variant(self) -> tuple[bool, ...]:
        """What the configuration depends on."""
        return self.maildir, self.delay_warning


def make(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    plan = Plan(
        seed, ordered=rng.random() < 0.5, separate_home=rng.random() < 0.5, maildir=rng.random() < 0.4,
        worker=rng.random() < 0.3, delay_warning=rng.random() < 0.2, split=rng.choice((0.0, 0.0, 0.3)),
    )  # fmt: skip
    for number in range(rng.choice((1, 2, 2, 3, 3, 4, 5))):
        plan.messages.append(_message(rng, number, plan))
    for domain in (*REMOTE, SENDERS):
        if rng.random() < 0.3:
            choices = ("drop-before", "drop-after", "451", "421", "hang", "ok", "4rcpt")
            plan.dots[domain] = [rng.choice(choices) for _ in range(rng.randint(1, 3))]
    _crashes(rng, plan)
    _windows(rng, plan)
    return plan


def _message(rng: random.Random, number: int, plan: Plan) -> Message:
    door = rng.choice(("smtp", "smtp", "smtp", "submit", "maildrop"))
    local_sender = door != "smtp" or rng.random() < 0.3
    sender = f"anna@{DOMAIN}" if local_sender else f"s{number}@{SENDERS}"
    if door == "smtp" and rng.random() < 0.05:
        sender = ""
    recipients = [_recipient(rng, number, i, plan) for i in range(rng.choice((1, 1, 2, 2, 3, 4)))]
    if not sender:  # its lifetime is bounce_queue_lifetime: five days of retries show nothing
        plan.scripts.update({r: [450, 250] for r in recipients if plan.scripts.get(r) == [450]})
    notify = rng.choice(("", "", "", "", "SUCCESS,FAILURE", "NEVER", "FAILURE,DELAY"))
    lines = rng.choice((0, 1, 3, 10, 60)) if rng.random() < 0.96 else rng.choice((700, 5000))
    at = 0.5 + rng.random() * (SPAN if rng.random() < 0.3 else 2.0)
    return Message(number, door, at, sender, list(dict.fromkeys(recipients)), notify, lines, rng.getrandbits(32))


def _recipient(rng: random.Random, number: int, i: int, plan: Plan) -> str:
    kind = rng.random()
    if kind < 0.35:
        return f"{rng.choice(USERS)}@{DOMAIN}"
    if kind < 0.5:
        return f"{rng.choice(('team', 'list', 'inner', 'outer'))}@{DOMAIN}"
    if kind < 0.55:
        return f"nobody{number}{i}@{DOMAIN}"
    address = f"r{number}{i}@{rng.choice(REMOTE)}"
    plan.scripts[address] = rng.choice(
        ([250], [250], [250], [450, 250], [451, 452, 250], [550], [450, 550], [421, 250], [450] if rng.random() < 0.3
         else [450, 450, 250])
    )  # fmt: skip
    return address


def _crashes(rng: random.Random, plan: Plan) -> None:
    """Cuts and kills, most of them at a step: that is where work is in flight."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        kind = rng.choice(("cut", "cut", "kill", "kill", "stop"))
        fault = Fault(kind, seconds=rng.choice((0.1, 1.0, 5.0)))
        if kind != "stop" and rng.random() < 0.85:
            fault.step = _step(rng)
        else:
            fault.at = rng.choice((rng.uniform(0.5, 4.0), rng.uniform(0.5, SPAN), rng.uniform(300, 310)))
        plan.faults.append(fault)
    if plan.worker and rng.random() < 0.6:
        plan.faults.append(Fault("kill-worker", step=_step(rng) // 2 + 1, seconds=1.0))


def _step(rng: random.Random) -> int:
    """Of the process: small ones hit its recovery, or the first message."""
    return rng.choice((rng.randint(1, 30), rng.randint(1, 100), rng.randint(1, 250)))


def _windows(rng: random.Random, plan: Plan) -> None:
    """Things that go wrong for a while."""
    if rng.random() < 0.4:
        number = rng.choice(ERRNOS)
        calls = rng.choice(("fsync", "fsync", "any", "write"))
        calls = {"ENOSPC": "full", "EMFILE": "open", "ENFILE": "open"}.get(number, calls)
        plan.faults.append(Fault(
            "errno", at=rng.uniform(0.3, 4.0), seconds=rng.choice((0.02, 0.5, 3.0, 90.0)), what=f"{number} {calls}",
            amount=rng.choice((0.1, 0.5, 1.0)),
        ))  # fmt: skip
    if rng.random() < 0.12:
        plan.faults.append(Fault("dns", at=rng.uniform(0.0, 3.0), seconds=rng.choice((2.0, 400.0))))
    if rng.random() < 0.2:
        what = rng.choice((*REMOTE, SENDERS)) + " " + rng.choice(("refused", "silent"))
        plan.faults.append(Fault("down", at=rng.uniform(0.0, 3.0), seconds=rng.choice((2.0, 400.0, 2000.0)), what=what))
    if rng.random() < 0.1:
        amount = rng.choice((-3600.0, 86400.0, 3600.0, -5.0))
        plan.faults.append(Fault("jump", at=rng.uniform(0.5, SPAN), amount=amount))
    if rng.random() < 0.1:
        plan.faults.append(Fault("slow", at=0.0, seconds=60.0, amount=0.5))
