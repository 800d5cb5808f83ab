"""A next hop that keeps what it hears, byte for byte.

Recipients whose name begins with `defer` get 450, with `refuse` 550, all others are accepted.
"""

from dataclasses import dataclass

from tests.smtp_sink import OK, SmtpSink


@dataclass(frozen=True, slots=True)
class Heard:
    """One message: the addresses as sent, the content with CRLF, dots unstuffed."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class Sink(SmtpSink):
    """mail() is what came in so far."""

    def __init__(self, address: str, port: int = 25, *, eight_bit: bool = True) -> None:
        self._heard: list[Heard] = []
        super().__init__(address, port, offers=(b"PIPELINING", *([b"8BITMIME"] if eight_bit else []), b"DSN"))

    def mail(self) -> list[Heard]:
        """What was accepted so far."""
        with self.lock:
            return list(self._heard)

    def answer(self, sender: str, recipient: str) -> bytes:
        """See SmtpSink."""
        if recipient.startswith("defer"):
            return b"450 4.2.1 come back later"
        return b"550 5.1.1 not here" if recipient.startswith("refuse") else OK

    def take(self, sender: str, recipients: tuple[str, ...], content: bytes) -> None:
        """See SmtpSink."""
        self._heard.append(Heard(sender, recipients, content))
