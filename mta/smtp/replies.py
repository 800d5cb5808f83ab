"""Bytes from a server -> replies, incremental and bounded, for a client that trusts nothing.

What decides is the code, so the code is read strictly: three digits, 2 to 5 first, then blank, "-" or the end of
the line (RFC 5321 s4.2 wants a code without text accepted), the same code on every line.  The text is only
words: it is kept printable, at most MAX_KEPT octets and MAX_LINES lines of it, and whether it was decent is told
by `clean`, so that the dialogue can refuse to act on a positive reply that it cannot read.

Inside a multi-line *refusal* a line without any code counts as more text: the recipient is refused whatever the
peer mixes into its words (CVE-2020-8794 came from treating such a line as structure).  A line may end with a
bare LF, as with every MTA.

See also: RFC 5321 s4.2, s4.5.3.1.5; RFC 2034
"""

import re

from mta.record import dataclass
from mta.smtp.reply import Reply

MAX_KEPT = 64 * 1024  # octets of one reply, and of one line
MAX_LINES = 512
MAX_REPLY = 1024 * 1024  # octets of one reply, kept or not: nobody talks for ever
_ENHANCED = re.compile(r" *(([245])\.\d{1,3}\.\d{1,3})(?:[ \t]+|$)")


class MalformedReplyError(Exception):
    """The peer does not speak SMTP; str() is for the log."""


@dataclass(frozen=True, slots=True)
class PeerReply:
    """reply: code, enhanced code ("X.0.0" when the peer gave none that fits; "" for 3xx) and text without either.

    raw: the lines as they came, codes included, joined by "\\n" and printable.  clean: the text was UTF-8 without
    control characters.
    """

    reply: Reply
    raw: str
    clean: bool = True

    @property
    def code(self) -> int:
        """200..599."""
        return self.reply.code

    @property
    def line(self) -> str:
        """All of it on one line, as Postfix logs it."""
        return self.raw.replace("\n", " ")


class ReplyParser:
    """feed() what arrives, take replies with next() until it returns None."""

    __slots__ = ("_buffer", "_clean", "_code", "_kept", "_lines", "_position", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        self._reset()

    def _reset(self) -> None:
        self._code = b""
        self._lines: list[str] = []
        self._kept = 0
        self._size = 0
        self._clean = True

    @property
    def empty(self) -> bool:
        """True when nothing is waiting: no reply, no part of one."""
        return self._position == len(self._buffer) and not self._code

    def feed(self, data: bytes) -> None:
        """Add bytes from the peer."""
        self._buffer = self._buffer[self._position :] + data if self._position < len(self._buffer) else data
        self._position = 0

    def next(self) -> PeerReply | None:
        """Return the next complete reply, None when more bytes are needed; raise MalformedReplyError."""
        while True:
            end = self._buffer.find(b"\n", self._position)
            if end < 0:
                self._check_rest()
                return None
            line = self._buffer[self._position : end]
            self._size += end + 1 - self._position
            self._position = end + 1
            if line.endswith(b"\r"):
                line = line[:-1]
            if not self._code and line[3:4] == b" " and (heard := _one_line(line)) is not None:
                self._size = 0
                return heard
            if self._take(line):
                return self._finish()

    def _check_rest(self) -> None:
        """Judge a line that is not complete yet, so that junk without a line end is not waited for."""
        waiting = len(self._buffer) - self._position
        if waiting > MAX_KEPT or self._size + waiting > MAX_REPLY:
            raise MalformedReplyError("endless reply")
        if waiting and not self._code and not 50 <= self._buffer[self._position] <= 53:
            raise MalformedReplyError("malformed reply")

    def _take(self, line: bytes) -> bool:
        """Add a line to the current reply; True when it was the last one."""
        if self._size > MAX_REPLY or len(line) > MAX_KEPT:
            raise MalformedReplyError("endless reply")
        code = line[:3]
        separator = line[3:4]
        if len(code) == 3 and code.isdigit() and 50 <= code[0] <= 53 and separator in (b"", b" ", b"-"):
            if self._code and code != self._code:
                raise MalformedReplyError("reply lines with different codes")
            self._code = code
            self._keep(line)
            return separator != b"-"
        if self._code and self._code[0] >= 52:
            self._keep(line)
            return False
        raise MalformedReplyError("malformed reply")

    def _keep(self, line: bytes) -> None:
        if len(self._lines) >= MAX_LINES or self._kept + len(line) > MAX_KEPT:
            return
        self._kept += len(line)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self._clean = False
            text = line.decode("ascii", "replace").replace("\ufffd", "?")
        if not text.isprintable():
            text = text.replace("\t", " ")
            if not text.isprintable():
                self._clean = False
                text = "".join(c if c.isprintable() else "?" for c in text)
        self._lines.append(text)

    def _finish(self) -> PeerReply:
        lines, code, prefix = self._lines, int(self._code), self._code.decode()
        parts = [part[4:] if part.startswith(prefix) else part for part in lines]
        enhanced = f"{code // 100}.0.0" if code // 100 != 3 else ""
        for part in parts[0], parts[-1]:  # as in Postfix the last line counts; the first one, when it has none
            found = _ENHANCED.match(part)
            if found and found[2] == prefix[0]:
                enhanced = found[1]
        text = "\n".join(part.lstrip(" ").removeprefix(enhanced).lstrip(" ") for part in parts)
        heard = PeerReply(Reply(code, enhanced, text), "\n".join(lines), self._clean)
        self._reset()
        return heard


def _one_line(line: bytes) -> PeerReply | None:
    """The common case, a decent reply of one line, at once; None: take the long way."""
    if len(line) > MAX_KEPT or not line.isascii() or not line[:3].isdigit() or not 50 <= line[0] <= 53:
        return None
    raw = line.decode("ascii")
    if not raw.isprintable():
        return None
    text, kind = raw[4:].lstrip(" "), raw[0]
    enhanced = "" if kind == "3" else f"{kind}.0.0"
    if text[1:2] == "." and text[0] == kind and (found := _ENHANCED.match(text)):
        enhanced = found[1]
        text = text[found.end() :]
    return PeerReply(Reply(int(raw[:3]), enhanced, text), raw)
