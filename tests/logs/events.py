"""What happens on the simulated day, and how often: each event tells the ledger what it saw."""

from tests.logs.day import (
    DENIED,
    GREEDY,
    LISTED,
    NAMELESS,
    RATE,
    Event,
    World,
    remote,
    stranger,
    user,
)
from tests.logs.world import Peer

INSIDE = "10.0.0.7"


def ok(replies: list[str]) -> None:
    assert all(reply.startswith(("250", "354")) for reply in replies), replies


# -- mail that is taken ---------------------------------------------------------------------------


async def inbound(world: World, n: int) -> None:
    """From outside to one to three mailboxes."""
    address, name, sender = stranger(n)
    ok(await world.mail(address, sender, [user(n + k) for k in range(1 + n % 3)], helo=name))


async def virtual(world: World, n: int) -> None:
    """To a virtual alias."""
    address, name, sender = stranger(n)
    ok(await world.mail(address, sender, ["sales@day.test"], helo=name))


async def aliased(world: World, n: int) -> None:
    """To an alias: of three users, or of somebody elsewhere."""
    address, name, sender = stranger(n)
    ok(await world.mail(address, sender, ["team@day.test" if n % 2 else "away@day.test"], helo=name))
    world.ledger.forwarded += 1


async def outbound(world: World, n: int) -> None:
    """From a machine of ours to one or two domains."""
    ok(await world.mail(INSIDE, user(n), [remote(n), remote(n + 1, f"b{n % 3}")][: 1 + n % 2], helo="pc.day.test"))


async def program(world: World, n: int) -> None:
    """cron and the like."""
    await world.sendmail("games", user(n), [remote(n) if n % 2 else user(n)])


async def later(world: World, n: int) -> None:
    """A peer that says 450 once, twice or thrice."""
    recipient = remote(n, f"later-{1 + n % 3}+{n}")
    ok(await world.mail(INSIDE, user(n), [recipient], helo="pc.day.test"))
    world.ledger.deferred.add(recipient)


async def down(world: World, n: int) -> None:
    """A peer that comes up after half an hour."""
    recipient, address = f"x@down{n}.test", f"198.18.{n // 200}.{n % 200 + 1}"
    ok(await world.mail(INSIDE, user(n), [recipient], helo="pc.day.test"))
    world.ledger.deferred.add(recipient)
    await world.clock.sleep(1800)
    world.net.listeners[address, 25] = lambda: Peer(world.books)


async def expiring(world: World, n: int) -> None:
    """A peer that says 450 until the message is returned."""
    recipient = remote(n, f"never+{n}")
    ok(await world.mail(INSIDE, user(n), [recipient], helo="pc.day.test"))
    world.ledger.deferred.add(recipient)
    world.ledger.expired += 1


async def refused_by_peer(world: World, n: int) -> None:
    """A peer that says 550: a report comes back, to one of ours or to a user elsewhere, or nobody."""
    await world.sendmail("games", user(n) if n % 4 else "", [remote(n, f"gone+{n}")])


async def no_such_domain(world: World, n: int) -> None:
    """A domain that does not exist."""
    ok(await world.mail(INSIDE, user(n), [f"x@nowhere{n}.test"], helo="pc.day.test"))
    world.ledger.unknown_domains += 1


async def no_such_user(world: World, n: int) -> None:
    """A local user who does not exist, found out by the delivery agent."""
    await world.sendmail("games", user(n), [f"nobody{n}@day.test"])
    world.ledger.unknown_users += 1


async def hold(world: World, n: int) -> None:
    """An access table says HOLD."""
    address, name, sender = stranger(n)
    ok(await world.mail(address, sender, ["irc@day.test"], helo=name))
    world.ledger.held += 1


async def discard(world: World, n: int) -> None:
    """An access table says DISCARD: taken, and gone."""
    address, name, sender = stranger(n)
    ok(await world.mail(address, sender, ["list@day.test"], helo=name))
    world.ledger.discarded += 1


async def warned(world: World, n: int) -> None:
    """warn_if_reject."""
    ok(await world.mail("203.0.113.2", "odd@src2.test", [user(n)], helo="mail2.src2.test"))
    world.ledger.warned += 1


# -- mail that is refused -------------------------------------------------------------------------


async def _refused(world: World, kind: str, start: str, replies: list[str]) -> None:
    """One recipient, and the reply to it."""
    assert replies[0].startswith(start), (kind, replies)
    world.ledger.refused[kind] += 1


async def relay(world: World, n: int) -> None:
    address, name, sender = stranger(n)
    await _refused(world, "relay", "554 5.7.1 ", await world.mail(address, sender, [remote(n)], helo=name))


async def unknown_user(world: World, n: int) -> None:
    address, name, sender = stranger(n)
    replies = await world.mail(address, sender, [f"no{n}@day.test"], helo=name)
    await _refused(world, "unknown user", "550 5.1.1 ", replies)


async def listed(world: World, n: int) -> None:
    replies = await world.mail(LISTED, "a@src3.test", [user(n)], helo="mail.listed.test")
    await _refused(world, "rbl", "554 5.7.1 Service unavailable; Client host", replies)


async def bad_helo(world: World, n: int) -> None:
    address, _, sender = stranger(n)
    await _refused(world, "helo", "504 5.5.2 ", await world.mail(address, sender, [user(n)], helo="localhost"))


async def bad_sender_domain(world: World, n: int) -> None:
    address, name, _ = stranger(n)
    replies = await world.mail(address, f"x@gone{n}.test", [user(n)], helo=name)
    await _refused(world, "sender domain", "450 4.1.8 ", replies)


async def bad_sender(world: World, n: int) -> None:
    replies = await world.mail("203.0.113.1", "spam@src1.test", [user(n)], helo="mail1.src1.test")
    await _refused(world, "sender access", "554 5.7.1 <spam@src1.test>: Sender address rejected", replies)


async def bad_client(world: World, n: int) -> None:
    replies = await world.mail(DENIED, "a@src3.test", [user(n)], helo="mail.denied.test")
    await _refused(world, "client access", "554 5.7.1 <mail.denied.test[", replies)


async def greylisted(world: World, n: int) -> None:
    address, name, sender = stranger(n)
    replies = await world.mail(address, sender, ["backup@day.test"], helo=name)
    await _refused(world, "greylisted", "450 4.2.0 ", replies)


async def too_big(world: World, n: int) -> None:
    address, name, sender = stranger(n)
    mail = f"MAIL FROM:<{sender}> SIZE=999999".encode()
    replies = await world.talk(address, f"EHLO {name}".encode(), mail)
    assert replies[2].startswith("552 5.3.4 "), replies
    world.ledger.refused["size"] += 1


# -- clients that misbehave -----------------------------------------------------------------------


async def dictionary(world: World, n: int) -> None:
    """A client that tries names until it is thrown out."""
    rcpt = [f"RCPT TO:<guess{n}-{k}@day.test>".encode() for k in range(30)]
    replies = await world.talk(NAMELESS, b"EHLO mail.bot.test", b"MAIL FROM:<a@src3.test>", *rcpt)
    world.ledger.refused["unknown user"] += sum(r.startswith("550 5.1.1 ") for r in replies)
    assert "421 4.7.0 mx.day.test Error: too many errors" in "".join(replies), replies
    world.ledger.events["too many errors"] += 1


async def http(world: World, n: int) -> None:
    """A web browser."""
    replies = await world.talk(NAMELESS, b"GET / HTTP/1.1", end="drop")
    assert replies[1].startswith("221 2.7.0 "), replies
    world.ledger.events["non-SMTP"] += 1


async def pipelining(world: World, n: int) -> None:
    """A client that does not wait for the answer to HELO."""
    replies = await world.talk(NAMELESS, b"HELO mail.bot.test\r\nMAIL FROM:<a@src3.test>", end="drop")
    assert "554" in replies[1] or "503" in replies[1] or "421" in replies[1] or "521" in replies[1], replies
    world.ledger.events["pipelining"] += 1


async def lost(world: World, n: int) -> None:
    """A client that goes away after EHLO, MAIL or RCPT."""
    steps = (b"EHLO mail.bot.test", b"MAIL FROM:<a@src3.test>", b"RCPT TO:<games@day.test>")[: 1 + n % 3]
    ok((await world.talk(NAMELESS, *steps, end="drop"))[1:])
    world.ledger.events["lost"] += 1


async def lost_in_text(world: World, n: int) -> None:
    """A client that goes away in the middle of its message."""
    steps = (b"EHLO mail.bot.test", b"MAIL FROM:<a@src3.test>", b"RCPT TO:<games@day.test>", b"DATA")
    ok((await world.talk(NAMELESS, *steps, end="drop"))[1:])
    world.ledger.events["lost in text"] += 1


async def idle(world: World, n: int) -> None:
    """A client that says nothing more."""
    replies = await world.talk(NAMELESS, b"EHLO mail.bot.test", end="wait")
    assert replies[-1].startswith("421 4.4.2 "), replies
    world.ledger.events["timeout"] += 1


async def guess_password(world: World, n: int) -> None:
    """A client that asks for AUTH, which is not offered."""
    replies = await world.talk(NAMELESS, b"EHLO mail.bot.test", b"AUTH LOGIN", b"AUTH PLAIN")
    assert all(reply.startswith("503") for reply in replies[2:]), replies
    world.ledger.events["auth"] += 1


async def greedy(world: World, n: int) -> None:
    """A client that connects too often; the last ones are turned away."""
    for _ in range(RATE + 3):
        replies = await world.talk(GREEDY, end="drop")
        if not replies[0].startswith("220"):
            assert replies[0].startswith("421 4.7.0 "), replies
            world.ledger.events["rate"] += 1
        else:
            world.ledger.events["lost"] += 1


PLAN: list[tuple[Event, int]] = [
    (inbound, 900), (virtual, 60), (aliased, 80), (outbound, 600), (program, 200), (later, 90), (down, 40),
    (expiring, 12), (refused_by_peer, 60), (no_such_domain, 30), (no_such_user, 20), (hold, 15), (discard, 15),
    (warned, 20),
    (relay, 60), (unknown_user, 80), (listed, 40), (bad_helo, 30), (bad_sender_domain, 30), (bad_sender, 20),
    (bad_client, 20), (greylisted, 30), (too_big, 15),
    (dictionary, 6), (http, 10), (pipelining, 10), (lost, 40), (lost_in_text, 10), (idle, 15), (guess_password, 20),
    (greedy, 2),
]  # fmt: skip
