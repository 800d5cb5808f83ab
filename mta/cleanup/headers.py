"""Headers on their way in: what is dropped, counted, completed and added.

Mail from elsewhere keeps its headers as they are, except that message_drop_headers go.  Local mail, and with
remote_header_rewrite_domain all new mail, gets complete addresses in its address headers and, at the end of the
header, the Message-Id, Date and From it lacks (the Resent- ones for a resent message), in Postfix's order.

See also: cleanup(8), RFC 5322 s3.6
"""

import re
from collections.abc import Callable, Generator

from mta.message import Header, clean, from_header, normalised, text
from mta.message_address import parsing
from mta.message_rewrite import is_too_long, rewrite_list
from mta.record import dataclass

SENDER_HEADERS = frozenset(
    b"from sender reply-to errors-to return-receipt-to resent-from resent-sender resent-reply-to mail-followup-to"
    b" disposition-notification-to mail-reply-to".split()
)
RECIPIENT_HEADERS = frozenset(b"to cc bcc resent-to resent-cc resent-bcc apparently-to".split())
RESENT_HEADERS = frozenset(  # RFC 5322 s3.6.6; no other Resent- header makes a message a resent one
    b"resent-to resent-cc resent-bcc resent-from resent-sender resent-reply-to resent-date resent-message-id".split()
)
_ADDRESS = rb"([A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)"
_ONE_ADDRESS = re.compile(rb"[ \t]*(?:%b|[A-Za-z0-9 ]*<%b>)[ \t]*\n" % (_ADDRESS, _ADDRESS)).fullmatch
_ENCODINGS = {b"8bit": "8bit", b"binary": "8bit"}

Rewrite = Callable[[bytes, str], str]  # (header name, address) -> address


@dataclass(frozen=True, slots=True)
class Missing:
    """What is needed to add headers to local mail.  message_id: makes one for this queue id."""

    queue_id: str
    message_id: Callable[[str], str]
    full_name: str
    sender: str


class HeaderFilter:
    """State of one message's header.

    rewrite None: headers stay as they are.  hops: Received headers, our own not counted.  notes: texts to be
    logged under the queue id.  encoding: from Content-Transfer-Encoding, "" when it says nothing.
    """

    __slots__ = ("_drop", "_dropping", "_resent", "_rewrite", "_seen", "encoding", "hops", "notes")

    def __init__(self, drop: frozenset[bytes], rewrite: Rewrite | None) -> None:
        self.hops = 0
        self.notes: list[str] = []
        self.encoding = ""
        self._drop = drop
        self._rewrite = rewrite
        self._seen: set[bytes] = set()
        self._resent = False
        self._dropping = False

    def take(self, header: Header) -> bytes:
        """Return what is stored for this header, b"" when it is dropped."""
        name = header.name
        if not header.whole:
            if name:
                self._dropping = name in self._drop
                self._seen.add(name)
                self._resent = self._resent or name in RESENT_HEADERS
            return b"" if self._dropping else header.raw
        self._seen.add(name)
        if name in RESENT_HEADERS:
            self._resent = True  # Resent-Bcc too, which is dropped
        if name in self._drop:
            return b""
        if name == b"received":
            self.hops += 1
        elif name.endswith(b"message-id") and name in (b"message-id", b"resent-message-id"):
            value = " ".join(text(header.value).split())
            self.notes.append(f"{name.decode()}={value}")
        elif name == b"content-transfer-encoding":
            self.encoding = _ENCODINGS.get(header.value.strip().lower(), self.encoding)
        if self._rewrite is None:
            return header.raw
        return self._rewritten(header)

    def _rewritten(self, header: Header) -> bytes:
        raw = normalised(header)
        if header.name not in SENDER_HEADERS and header.name not in RECIPIENT_HEADERS:
            return raw
        rewrite, kind = self._rewrite, header.name
        label, _, value = raw.partition(b":")
        simple = _ONE_ADDRESS(value)
        if simple is not None and rewrite is not None:
            address = (simple[1] or simple[2]).decode()
            if rewrite(kind, address) == address:
                return raw
        new = rewrite_list(
            text(label), text(value.rstrip(b"\n")), lambda address: rewrite(kind, address) if rewrite else address
        )
        return raw if new is None else new.encode("utf-8", "surrogateescape") + b"\n"

    def added(self, missing: Missing, date: str) -> bytes:
        """Headers that local mail lacks; notes the message-id it makes."""
        resent = b"resent-" if self._resent else b""
        prefix = b"Resent-" if self._resent else b""
        out = []
        if resent + b"message-id" not in self._seen:
            made = missing.message_id(missing.queue_id)
            out.append(prefix + b"Message-Id: " + clean(made) + b"\n")
            self.notes.append(f"{resent.decode()}message-id={made}")
        if resent + b"date" not in self._seen:
            out.append(prefix + b"Date: " + clean(date) + b"\n")
        if resent + b"from" not in self._seen:
            out.append(from_header(prefix, missing.full_name, missing.sender))
        return b"".join(out)

    def note_absent(self) -> None:
        """A message without Message-Id is logged as such."""
        if b"message-id" not in self._seen and not self.notes:
            self.notes.append("message-id=<>")


def has_addresses(header: Header) -> bool:
    """Is this one of those whose addresses are rewritten?"""
    return header.whole and (header.name in SENDER_HEADERS or header.name in RECIPIENT_HEADERS)


def addresses_in(header: Header) -> Generator[None, None, list[tuple[bytes, str]]]:
    """Every (header name, address) that rewriting will ask for, found with pauses; used to look them up beforehand."""
    value = text(header.value) if has_addresses(header) else ""
    if is_too_long(value):
        return []
    parsed = yield from parsing(value)
    return [(header.name, address) for address in parsed.addresses if address]
