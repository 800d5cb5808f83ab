"""The one answer type: what we say, hear, log, store and quote in a bounce.

A Reply is an SMTP reply (RFC 5321 s4.2) with its enhanced status code (RFC 3463).  The first digit of the
code alone decides what happens to mail: 2xx done, 3xx go on, 4xx try again later, 5xx give up.

See also: RFC 2034 (enhanced codes on the wire)
"""

from dataclasses import field

from mta.record import dataclass

MAX_LINE = 512  # octets with CRLF, RFC 5321 s4.5.3.1.5
_CONTROL = {c: "?" for c in (*range(32), 127) if c != 10}


@dataclass(frozen=True, slots=True)
class Reply:
    """code: 200..599; enhanced: "2.1.0" or "" when the reply has none (220, 354, 3xx); text: lines joined by "\\n"."""

    code: int
    enhanced: str
    text: str
    _encoded: bytes = field(default=b"", init=False, repr=False, compare=False)  # when encode() was called

    @property
    def is_positive(self) -> bool:
        """2xx: done."""
        return 200 <= self.code <= 299

    @property
    def is_intermediate(self) -> bool:
        """3xx: the peer waits for more."""
        return 300 <= self.code <= 399

    @property
    def is_temporary(self) -> bool:
        """4xx: the same command may succeed later."""
        return 400 <= self.code <= 499

    @property
    def is_permanent(self) -> bool:
        """5xx: repeating it is useless."""
        return 500 <= self.code <= 599

    def softened(self) -> "Reply":
        """The temporary form of a refusal (soft_bounce): 550 5.1.1 becomes 450 4.1.1."""
        return Reply(self.code - 100, "4" + self.enhanced[1:] if self.enhanced else "", self.text)

    def encode(self) -> bytes:
        """Return the reply as wire bytes, each line ended by CRLF, control characters replaced by "?".

        Text that is not ASCII is sent as UTF-8 (RFC 6531 s3.7.4.1 allows it once SMTPUTF8 is in use); a line
        over 512 octets is cut, so no echo of the peer's own input can exceed the limit.
        """
        if not self._encoded:
            object.__setattr__(self, "_encoded", self._encode())
        return self._encoded

    def _encode(self) -> bytes:
        prefix = f"{self.enhanced} " if self.enhanced else ""
        if self.text.isascii() and self.text.isprintable() and len(self.text) < MAX_LINE // 2:
            return f"{self.code} {prefix}{self.text}\r\n".encode()
        lines = self.text.translate(_CONTROL).split("\n")
        last = len(lines) - 1
        out = []
        for i, line in enumerate(lines):
            raw = f"{self.code}{' ' if i == last else '-'}{prefix}{line}".encode("utf-8", "replace")
            if len(raw) > MAX_LINE - 2:
                raw = raw[: MAX_LINE - 2].decode("utf-8", "ignore").encode()
            out.append(raw + b"\r\n")
        return b"".join(out)

    def __str__(self) -> str:
        """One line for logs and bounces: "550 5.1.1 text text"."""
        text = " ".join(self.text.split("\n"))
        return f"{self.code} {self.enhanced} {text}" if self.enhanced else f"{self.code} {text}"
