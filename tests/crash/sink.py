"""The next hop of crash tests.  It tells the ledger just before it says 250.

Recipients named perm...@ get 550, temp...@ get 450 on their first try; all others 250.
"""

import re

from tests.crash.ledger import Ledger
from tests.smtp_sink import OK, SmtpSink

_TEST_ID = re.compile(rb"^x-test-id:[ \t]*([^\r]*?)[ \t]*\r\n", re.IGNORECASE | re.MULTILINE)


class Sink(SmtpSink):
    """Listens on an ephemeral port of 127.0.0.1."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._seen: set[str] = set()
        super().__init__()

    def answer(self, sender: str, recipient: str) -> bytes:
        """See SmtpSink."""
        if recipient.startswith("perm"):
            return b"550 5.1.1 no such user"
        if recipient.startswith("temp") and recipient not in self._seen:
            self._seen.add(recipient)
            return b"450 4.2.0 greylisted"
        return OK

    def take(self, sender: str, recipients: tuple[str, ...], content: bytes) -> None:
        """See SmtpSink."""
        found = _TEST_ID.search(content)
        for recipient in recipients:
            self.ledger.deliver(found[1].decode() if found else "", recipient)
