"""`sendmail` where neither the submit socket nor maildrop can be reached (a chroot): SMTP to submit_fallback_relay.

The server completes nothing for us, so addresses and headers are completed here as far as a program without the
daemon's tables can: unqualified addresses go out with the name of this host.  Exit 0 means that the server has
answered 250 after the final dot for every recipient.  A connection lost after the dot is 75, "may have been queued".

See also: postconf(5) submit_fallback_relay
"""

import os
import re
import smtplib
import socket
from email.utils import formatdate

from mta.message import HeaderScanner
from mta.message_address import quote
from mta.submit.options import Invocation
from mta.submit.prepare import Submission
from sendmail_compat import fast

EX_OK, EX_DATAERR, EX_NOUSER, EX_TEMPFAIL = 0, 65, 67, 75
CONNECT_TIMEOUT = 12.0  # seconds
REPLY_TIMEOUT = 300.0
_DROPPED = (b"bcc", b"resent-bcc", b"return-path", b"content-length")
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)|([^\]]+:[^\]]*:[^\]]+))(?::(\d+))?\Z")


def place(text: str) -> tuple[str, int]:
    """Host and port of "host", "host:port", "[v6]:port"; the port is 25 when none is given."""
    found = _HOST.match(text.strip())
    if found is None:
        raise ValueError(text)
    return found[1] or found[2] or found[3], int(found[4] or 25)


def send(server: str, invocation: Invocation, submission: Submission, stdin: fast.Input) -> int:
    """Hand the message over; return the exit status."""

    def fatal(status: int, text: str) -> int:
        fast.say(f"{invocation.program}: fatal: {server}: {text}")
        return status

    content = _content(submission, stdin)
    envelope = submission.envelope(0.0)
    name = socket.gethostname()
    people = [_qualified(r.address, name) for r in envelope.recipients]
    smtp = smtplib.SMTP(timeout=CONNECT_TIMEOUT, local_hostname=name)
    try:
        smtp.connect(*place(server))
        if smtp.sock is not None:
            smtp.sock.settimeout(REPLY_TIMEOUT)
        smtp.ehlo_or_helo_if_needed()
        sender = _qualified(envelope.sender, name) if envelope.sender else ""
        refused = _refusal(*smtp.mail(sender))
        for address in people:
            refused = refused or _refusal(*smtp.rcpt(address))
        if refused:
            return fatal(*refused)
    except (OSError, smtplib.SMTPException, ValueError) as error:
        return fatal(EX_TEMPFAIL, f"{type(error).__name__}; nothing was queued")
    finally:
        if not smtp.sock:
            smtp.close()
    try:
        code, text = smtp.data(content)
    except (smtplib.SMTPDataError, smtplib.SMTPServerDisconnected, OSError) as error:
        if isinstance(error, smtplib.SMTPDataError):
            return fatal(*(_refusal(error.smtp_code, error.smtp_error) or (EX_TEMPFAIL, "unexpected answer")))
        return fatal(EX_TEMPFAIL, "connection lost; the message may have been queued")
    refused = _refusal(code, text)
    smtp.close()
    return fatal(*refused) if refused else EX_OK


def _refusal(code: int, text: bytes | str) -> tuple[int, str] | None:
    """Exit status and text of a reply that is not positive."""
    if 200 <= code < 300:
        return None
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    status = EX_TEMPFAIL if code < 500 else EX_NOUSER if said.startswith("5.1.1") else EX_DATAERR
    return status, f"{code} {' '.join(said.split())}; nothing was queued"


def _qualified(address: str, host: str) -> str:
    return quote(address if "@" in address else f"{address}@{host}")


def _content(submission: Submission, stdin: fast.Input) -> bytes:
    """The message as CRLF lines, without Bcc, with the headers that must be there."""
    text = b"".join(submission.feed(chunk) for chunk in stdin.chunks() if not submission.ended) + submission.end()
    scanner = HeaderScanner(len(text))
    headers = scanner.feed(text)
    if not scanner.done:
        headers += scanner.end()
    kept = [header.raw for header in headers if header.name not in _DROPPED]
    have = {header.name for header in headers}
    host = socket.gethostname()
    if b"date" not in have:
        kept.append(f"Date: {formatdate(localtime=True)}\n".encode())
    if b"from" not in have:
        sender = _qualified(submission.sender or "MAILER-DAEMON", host)
        kept.append(f"From: {sender}\n".encode("utf-8", "surrogateescape"))
    if b"message-id" not in have:
        kept.append(f"Message-Id: <{os.urandom(12).hex()}@{host}>\n".encode())
    whole = b"".join(kept) + (scanner.rest or b"\n")
    return whole.replace(b"\r", b" ").replace(b"\n", b"\r\n")
