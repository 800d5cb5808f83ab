"""Messages that prove themselves: an id, and a digest of the body; and what is read back from a peer or a mailbox."""

import email.parser
import email.policy
import hashlib
import re
from dataclasses import dataclass

_ID = re.compile(r"\bid ([0-9A-Za-z]{6,})")
_FINAL = re.compile(rb"^Final-Recipient: rfc822; ?(\S+)", re.M)
_TEST_ID = re.compile(rb"^X-Test-Id: (\S+)", re.M)
_PARSER = email.parser.BytesHeaderParser(policy=email.policy.compat32)


def compose(name: str, size: int) -> bytes:
    """A message of about so many bytes, lines with CRLF."""
    line = f"{name} 0123456789 abcdefghijklmnopqrstuvwxyz".encode()
    body = b"\n".join([line] * max(1, size // len(line))) + b"\n"
    head = f"From: <tester@sink.test>\nSubject: power cut\nX-Test-Id: {name}\nX-Test-Digest: {digest(body)}\n\n"
    return (head.encode() + body).replace(b"\n", b"\r\n")


def digest(body: bytes) -> str:
    """Of the body without what a transport may change: line ends, and empty lines at the end."""
    return hashlib.sha256(body.replace(b"\r\n", b"\n").rstrip(b"\n")).hexdigest()


@dataclass(frozen=True, slots=True)
class Copy:
    """One message as it arrived.  queue_id: of the MTA that passed it on; reports: (message, recipient) it bounces."""

    name: str
    recipient: str
    queue_id: str
    whole: bool
    when: float
    reports: tuple[tuple[str, str], ...] = ()


def read(content: bytes, recipient: str, when: float) -> Copy:
    """What arrived for a recipient, at a time of the monotonic clock (0.0: unknown)."""
    head, _, body = content.replace(b"\r\n", b"\n").partition(b"\n\n")
    headers = _PARSER.parsebytes(head + b"\n\n")
    received = headers.get_all("Received") or [""]
    found = _ID.search(str(received[0]))
    queue_id = found[1] if found else ""
    name = str(headers.get("X-Test-Id", ""))
    if name:
        return Copy(name, recipient, queue_id, digest(body) == headers.get("X-Test-Digest"), when)
    named = _TEST_ID.search(body)
    about = named[1].decode() if named else ""
    reports = tuple((about, address.decode()) for address in _FINAL.findall(body))
    return Copy("", recipient, queue_id, bool(about and reports), when, reports)
