"""rsmtp(8): a batch of SMTP commands on stdin (`exim -bS`), handed to the daemon one by one.

Replies are read, not shown.  The first refusal ends the batch and is said on stderr.  Exit status as Exim's: 0 all
was accepted, 1 something was accepted before the refusal, 2 nothing was; 75 when the daemon is not there.

See also: mta/submit/wire.py (mode s)
"""

import socket
import sys
from collections.abc import Iterator, Sequence

from sendmail_compat.smtp_relay import BusyError, open_dialogue
from sendmail_compat.tool import ToolError, say

REPLY_TIMEOUT = 330.0  # seconds; after the final dot the daemon may take 300


class _RefusedError(Exception):
    """str(): command and reply."""


class _Dialogue:
    """Commands in lock-step."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._replies = sock.makefile("rb")
        self.accepted = 0

    def reply(self, to: str) -> str:
        """Read a whole reply; _RefusedError unless it is positive."""
        while True:
            line = self._replies.readline()
            if not line:
                raise _RefusedError(f"{to}: connection to the mail system lost")
            text = line.decode("utf-8", "replace").rstrip()
            if text[3:4] != "-":
                break
        if text[:1] not in "23":
            raise _RefusedError(f"{to}: {text}")
        return text

    def send(self, line: bytes) -> None:
        """One line."""
        self._sock.sendall(line + b"\r\n")

    def batch(self, lines: Iterator[bytes]) -> None:
        """All commands to QUIT or the end of input."""
        for line in lines:
            verb = line[:4].upper()
            if not line.strip() or verb == b"QUIT":
                if verb == b"QUIT":
                    break
                continue
            self.send(line)
            reply = self.reply(line.decode("utf-8", "replace"))
            if verb == b"DATA" and reply.startswith("354"):
                self._message(lines)
        self.send(b"QUIT")

    def _message(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            self.send(line)
            if line == b".":
                self.reply("DATA")
                self.accepted += 1
                return
        raise _RefusedError("DATA: input ends inside a message")  # the dot was not sent: nothing is queued


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    if [word for word in argv[1:] if word not in ("-bS", "-i", "-oi", "-oee")]:
        raise ToolError("usage: rsmtp < batch")
    from sendmail_compat import slow  # it imported this module

    config = slow.configured("")
    try:
        sock = open_dialogue(config.text("submit_socket"), ["rsmtp", "-bs"])
    except BusyError as busy:
        say("rsmtp", str(busy))
        return busy.status
    with sock:
        sock.settimeout(REPLY_TIMEOUT)
        dialogue = _Dialogue(sock)
        try:
            dialogue.reply("greeting")
            dialogue.send(b"HELO localhost")
            dialogue.reply("HELO")
            dialogue.batch(_lines())
        except (_RefusedError, OSError) as error:
            say("rsmtp", f"{error or type(error).__name__}; {dialogue.accepted} accepted before")
            return 1 if dialogue.accepted else 2
    return 0


def _lines() -> Iterator[bytes]:
    """stdin's lines without their ends, LF or CRLF; a From_ line before the first command is skipped."""
    first = True
    for line in sys.stdin.buffer:
        text = line.rstrip(b"\n").removesuffix(b"\r")
        if not (first and text.startswith((b"From ", b">From "))):
            yield text
        first = False
