"""The header block of a message, on bytes with LF lines: found, read and written, never parsed by `email`.

The scanner works incrementally and in linear time whatever the cut: a header is complete when the byte after
its last LF is seen and is no blank or tab.  The block ends at an empty line, or at the first line that is neither
`name:` (blanks may stand before the colon) nor a continuation: such a line begins the body, as in Postfix.

See also: mta/message_address.py (what is inside an address header), RFC 5322 s2.2, RFC 5321 s4.4 (trace)
"""

import re
from typing import NamedTuple

from mta.envelope import Origin
from mta.message_address import quote

HEADER_LIMIT = 102400  # bytes of one logical header kept in memory: Postfix's header_size_limit

_END = re.compile(rb"\n(?![ \t])(?=[\x00-\xff])")  # the LF that ends a logical header, once the next byte is there
_NAME = re.compile(rb"([!-9;-~]+)([ \t]*):")
_MBOX_LINE = re.compile(rb">*From ")
_SPECIALS = re.compile(r'[][()<>@,;:\\".\x00-\x1f\x7f]')


class Header(NamedTuple):
    """One logical header.  name: lower case, b"" for a later piece.  raw: with its LFs.  whole: not a piece."""

    name: bytes
    raw: bytes
    whole: bool = True

    @property
    def value(self) -> bytes:
        """After the colon, without the final LF; inner LFs stay."""
        return self.raw[self.raw.index(b":") + 1 :].rstrip(b"\n")


class HeaderScanner:
    """Cuts a stream of LF lines into headers and the rest.

    A header over `limit` bytes is not whole, and may come in pieces, so memory is bounded and nothing is cut off.
    When `done`, `rest` holds what followed: b"\\n" + body (the LF is there even when the sender forgot it), or
    b"" when the message ends with its header.

    mbox_line: "From " lines in front of everything, left by a program that read a mailbox, become X-Mailbox-Line
    headers as in Postfix's smtpd(8); otherwise they would push the whole header into the body.
    """

    def __init__(self, limit: int = HEADER_LIMIT, *, mbox_line: bool = False) -> None:
        self.done = False
        self.rest = b""
        self._limit = limit
        self._pending = bytearray()
        self._searched = 0  # bytes of pending known to hold no end
        self._piece = False  # inside a header that is too long
        self._mbox_line = mbox_line  # no header has been seen

    def feed(self, data: bytes) -> list[Header]:
        """Return the headers that became complete; after `done` it must not be called."""
        if self._pending:
            self._pending += data
            ended = _END.search(self._pending, self._searched) is not None or self._pending[:1] == b"\n"
            if not ended and len(self._pending) <= self._limit:  # small pieces: look before copying
                self._searched = len(self._pending) - 1
                return []
            data = bytes(self._pending)
        found: list[Header] = []
        start, search = 0, self._searched
        while True:
            if data[start : start + 1] == b"\n" and not self._piece:
                self._finish(data[start:])
                return found
            end = _END.search(data, max(search, start))
            if end is None:
                break
            stop = end.end()
            name = None if self._piece else _NAME.match(data, start)
            if self._piece:
                found.append(Header(b"", data[start:stop], whole=False))
                self._piece = False
            elif name:
                found.append(Header(name[1].lower(), data[start:stop], whole=stop - start <= self._limit))
                self._mbox_line = False
            elif self._mbox_line and _MBOX_LINE.match(data, start):
                found.append(_mailbox_line(data[start:stop]))
            else:
                self._finish(b"\n" + data[start:])
                return found
            start = stop
        self._pending[:] = data[start:]
        self._searched = max(0, len(self._pending) - 1)
        if len(self._pending) > self._limit:
            found += self._overflow()
        return found

    def end(self) -> list[Header]:
        """The message ends here: return the last header; `rest` is then complete."""
        data, self._pending = bytes(self._pending), bytearray()
        self.done = True
        if not data:
            return []
        if data == b"\n" and not self._piece:
            self.rest = data
            return []
        if not data.endswith(b"\n"):
            data += b"\n"
        if self._piece:
            return [Header(b"", data, whole=False)]
        name = _NAME.match(data)
        if name:
            return [Header(name[1].lower(), data, whole=len(data) <= self._limit)]
        if self._mbox_line and _MBOX_LINE.match(data):
            return [_mailbox_line(data)]
        self.rest = b"\n" + data
        return []

    def _overflow(self) -> list[Header]:
        data = bytes(self._pending)
        if self._piece:
            header = Header(b"", data, whole=False)
        else:
            name = _NAME.match(data)
            if not name:
                self._finish(b"\n" + data)
                return []
            header = Header(name[1].lower(), data, whole=False)
        # An end may still show itself at the very last LF: keep that byte.
        keep = 1 if data.endswith(b"\n") else 0
        self._piece = True
        self._pending[:] = data[len(data) - keep :] if keep else b""
        self._searched = 0
        return [header._replace(raw=data[: len(data) - keep])]

    def _finish(self, rest: bytes) -> None:
        self.done, self.rest, self._pending = True, rest, bytearray()


def _mailbox_line(raw: bytes) -> Header:
    return Header(b"x-mailbox-line", b"X-Mailbox-Line: " + raw)


def normalised(header: Header) -> bytes:
    """The header with blanks before its colon removed (`Subject : x`), as RFC 5322 s4.5 asks of new messages."""
    raw = header.raw
    if raw[len(header.name) : len(header.name) + 1] == b":":
        return raw
    name = _NAME.match(raw)
    if name is None or not name[2]:
        return raw
    return name[1] + raw[name.end() - 1 :]


def text(data: bytes) -> str:
    """Header bytes as str: UTF-8, other bytes as surrogates."""
    return data.decode("utf-8", "surrogateescape")


def clean(value: str) -> bytes:
    """A value of ours for a header: no control character can end the line."""
    if not value.isprintable():
        value = "".join("?" if ord(c) < 32 or ord(c) == 127 else c for c in value)
    return value.encode("utf-8", "surrogateescape")


def received(origin: Origin, host: str, mail_name: str, queue_id: str, recipient: str, date: str) -> bytes:
    """Return our Received: header (RFC 5321 s4.4) in Postfix's layout.

    recipient: the only one of an SMTP transaction, "" when there are several.  date: RFC 5322 form.
    """
    by = f"by {host} ({mail_name}"
    if origin.door == "smtpd":
        address = f"IPv6:{origin.client_address}" if ":" in origin.client_address else origin.client_address
        name = origin.client_name or "unknown"
        lines = [f"Received: from {origin.helo or name} ({name} [{address}])"]
        if origin.tls:
            lines.append(f"({origin.tls})")
        what = f"{by}) with {origin.protocol} id {queue_id}"
        lines += [what, f"for <{quote(recipient)}>; {date}"] if recipient else [f"{what};", date]
    elif origin.uid >= 0:
        by += f", from userid {origin.uid})" + (f" with {origin.protocol}" if origin.protocol else "")
        lines = [f"Received: from {origin.helo}", by] if origin.helo else [f"Received: {by}"]
        lines.append(f"id {queue_id}; {date}")
    else:
        lines = [f"Received: {by})", f"id {queue_id}; {date}"]
    whole = " ".join(lines)
    if whole.isprintable():
        return "\n\t".join(lines).encode("utf-8", "surrogateescape") + b"\n"
    return b"\n\t".join(map(clean, lines)) + b"\n"


def from_header(prefix: bytes, full_name: str, sender: str) -> bytes:
    """`From: Full Name <sender>`, the name quoted when it has specials; MAILER-DAEMON for the null sender."""
    if not sender:
        return prefix + b"From: MAILER-DAEMON\n"
    address = quote(sender)
    if not full_name:
        return prefix + b"From: " + clean(address) + b"\n"
    phrase = full_name
    if _SPECIALS.search(phrase):
        phrase = '"' + phrase.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return prefix + b"From: " + clean(f"{phrase} <{address}>") + b"\n"
