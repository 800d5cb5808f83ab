"""Messages of every kind that a queue file can hold, for the bit rot tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mta.envelope import Envelope, Notify, Recipient, Ret
from mta.queue.api import Parent
from tests.virtual_time import EPOCH

USER = "games"  # on every Debian


@dataclass
class Message:
    """One message as it was given.  Numbers make addresses and content unlike any other's."""

    number: int
    kind: str
    place: str
    envelope: Envelope
    content: bytes
    expected: set[str]  # who is to get it
    refused: set[str] = field(default_factory=set)  # who is offered it and says no
    parent: Parent | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    queue_id: str = ""
    path: Path = Path()
    damage: str = ""
    harmless: bool = False  # the damaged byte is one of those that change in place
    child: "Message | None" = None


def content(n: int, size: int = 400) -> bytes:
    """A message text like no other's."""
    lines = [b"X-Id: %d\nSubject: message %d\n\n" % (n, n)]
    lines += [b"%d: line %d of the text\n" % (n, i) for i in range(size // 24)]
    return b"".join(lines)


def _at(n: int, *names: str) -> list[Recipient]:
    return [Recipient(f"{name}.{n}@sink.test") for name in names]


def _envelope(n: int, recipients: list[Recipient], sender: str = "sender") -> Envelope:
    address = f"{sender}.{n}@origin.test" if sender else ""
    return Envelope(address, recipients, EPOCH - 60.0 + n / 1_000_000)


def plain(n: int, place: str) -> Message:
    return Message(n, "plain", place, _envelope(n, _at(n, "a")), content(n), {f"a.{n}@sink.test"})


def everything(n: int, place: str) -> Message:
    """Every attribute that an envelope can have."""
    people = [
        Recipient(f"a.{n}@sink.test", f"first.{n}@here.test", Notify.FAILURE | Notify.DELAY, f"rfc822;o.{n}@here.test"),
        Recipient(f"b.{n}@sink.test", "", Notify.NEVER),
        Recipient(f"c.{n}@sink.test"),
    ]
    envelope = _envelope(n, people)
    envelope.full_name, envelope.envelope_id, envelope.ret = "Full Name", f"ENV.{n}", Ret.FULL
    envelope.encoding, envelope.warn_time = "8bit", EPOCH + 4 * 3600
    envelope.attributes = {"rewrite_context": "local", "log_client_name": "client.test", "log_protocol_name": "ESMTP",
                           "log_client_address": "192.0.2.9", "log_helo_name": "helo.test"}  # fmt: skip
    text = content(n) + "Grüße\n".encode("latin1")
    return Message(n, "everything", place, envelope, text, {r.address for r in people})


def blocks(n: int, place: str) -> Message:
    """Large content: L blocks."""
    message = plain(n, place)
    message.kind, message.content = "blocks", content(n, 400_000)
    return message


def long_lines(n: int, place: str) -> Message:
    message = plain(n, place)
    message.kind, message.content = "long lines", content(n) + b"0123456789" * 700 + b"\n\n" + b"x" * 2048 + b"\n"
    return message


def no_content(n: int, place: str) -> Message:
    message = plain(n, place)
    message.kind, message.content = "no content", b""
    return message


def settled_before(n: int, place: str) -> Message:
    """Some recipients are done, one is cancelled."""
    people = _at(n, "done", "todo", "cancelled", "late")
    people[0].state, people[2].state = "D", "/"
    got = {f"todo.{n}@sink.test", f"late.{n}@sink.test"}
    return Message(n, "settled before", place, _envelope(n, people), content(n), got)


def refused(n: int, place: str) -> Message:
    """One recipient is refused: a report with the whole original."""
    got, no = f"a.{n}@sink.test", f"perm.{n}@sink.test"
    return Message(n, "refused", place, _envelope(n, _at(n, "a", "perm")), content(n), {got}, {no})


def refused_header(n: int, place: str) -> Message:
    """The same, with a report that has the header only."""
    message = refused(n, place)
    message.kind, message.envelope.ret = "refused, header", Ret.HDRS
    return message


def refused_large(n: int, place: str) -> Message:
    """The same for a message over bounce_size_limit: a third of it is header."""
    message = refused(n, place)
    pad = b"".join(b"X-Pad: %d %s\n" % (i, b"p" * 60) for i in range(400))
    message.kind, message.content = "refused, large", pad + content(n, 60_000)
    return message


def late(n: int, place: str) -> Message:
    """Greylisted, and old enough for a delay notice."""
    envelope = _envelope(n, _at(n, "a", "temp"))
    envelope.warn_time = EPOCH - 10
    return Message(n, "late", place, envelope, content(n), {r.address for r in envelope.recipients})


def local(n: int, place: str) -> Message:
    """A mailbox, and an alias with two members elsewhere."""
    envelope = _envelope(n, [Recipient(f"{USER}+{n}@a.example"), Recipient(f"list+{n}@a.example")])
    return Message(n, "local", place, envelope, content(n), {f"{USER}+{n}@a.example", f"member+{n}@sink.test"})


def utf8(n: int, place: str) -> Message:
    envelope = _envelope(n, _at(n, "grüße"), "absender-ö")
    envelope.smtputf8 = True
    text = content(n) + "Grüße\n".encode()
    return Message(n, "utf8", place, envelope, text, {r.address for r in envelope.recipients})


def notice(n: int, place: str) -> Message:
    message = Message(n, "notice", place, _envelope(n, _at(n, "a"), ""), content(n), {f"a.{n}@sink.test"})
    message.attributes = {"submit_key": f"{n:032x}"}
    return message


def parent(n: int, _: str) -> Message:
    """Its child, a bounce of one recipient, was committed; the mark in the parent is still to be made."""
    return Message(n, "parent", "incoming", _envelope(n, _at(n, "a", "bounced")), content(n), {f"a.{n}@sink.test"})


KINDS: tuple[Callable[[int, str], Message], ...] = (
    plain, everything, long_lines, no_content, settled_before, refused, refused_header, refused_large, late, local,
    utf8, notice, parent, blocks,
)  # fmt: skip
