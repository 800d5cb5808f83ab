"""Delivery status notifications: the bytes of a multipart/report around a returned message.

Layout as Postfix writes it, because people's tools know it: a text for humans, message/delivery-status for
programs, then the message or its header.  The original is not in here: callers send the pieces of `opening(report)`,
the text to be returned, `closing(report)`, so a large message is never in memory.

Everything that came from outside (remote replies, addresses, envelope ids) is data: it enters as one line of
printable ASCII of at most TEXT_LIMIT characters, folded, and only addresses may keep UTF-8, in a report that
says so.  `_line` refuses whatever could still end a line.

See also: RFC 3461, RFC 3464 (fields), RFC 6533 (utf-8 addresses), RFC 3834 (Auto-Submitted), bounce(8)
"""

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import chain, islice

from mta.message_address import quote
from mta.record import dataclass

TEXT_LIMIT = 1024  # characters of a remote text
WIDTH = 79  # columns of a folded line, as Postfix
INDENT = "    "
WORD_LIMIT = 900  # characters without a blank before a line is cut all the same; RFC 5322 s2.1.1: 998 octets
ADDRESS_LIMIT = 900  # octets of an address in a field
PIECE = 100  # lines

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,69}[0-9A-Za-z'()+_,./:=?-]\Z")  # RFC 2046 s5.1.1
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\Z", re.ASCII)
_TOKEN = re.compile(r"[^0-9A-Za-z!#$%&'*+.^_`|~-]")


class Kind(Enum):
    """What the notice says; the value is Action: of RFC 3464 s2.3.3 unless the recipient has its own."""

    FAILURE = "failed"
    DELAY = "delayed"
    SUCCESS = "delivered"


_SUBJECT = {
    Kind.FAILURE: "Undelivered Mail Returned to Sender",
    Kind.DELAY: "Delayed Mail (still being retried)",
    Kind.SUCCESS: "Successful Mail Delivery Report",
}
_POSTMASTER_SUBJECT = {
    Kind.FAILURE: "Postmaster Copy: Undelivered Mail",
    Kind.DELAY: "Postmaster Warning: Delayed Mail",
    Kind.SUCCESS: "Postmaster Copy: Successful Mail Delivery",
}
_DESCRIPTION = {
    Kind.FAILURE: "Undelivered Message",
    Kind.DELAY: "Undelivered Message",
    Kind.SUCCESS: "Message",
}
_ACTIONS = ("failed", "delayed", "delivered", "relayed", "expanded")


@dataclass(frozen=True, slots=True)
class ReportRecipient:
    """One recipient.  original: before aliasing, "".  orcpt: "type;address" or "".  action: "" = by kind.

    status: "5.1.1".  text: what happened, for humans.  diagnostic: "smtp; 550 ..." in the remote's words, "" when
    `text` says all.  remote_mta: host name, "".
    """

    address: str
    original: str
    orcpt: str
    status: str
    text: str
    action: str = ""
    diagnostic: str = ""
    remote_mta: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole notice.  Dates are finished text (RFC 5322).

    to: address that gets it.  sender: of the original message.  boundary: random, RFC 2046 characters.
    original: what follows `opening`: "message", "headers" or "" (cannot be read).  eight_bit: the original has
    bytes above 127.  utf8: addresses or the original's header need SMTPUTF8.  postmaster: a copy for the
    administrator, without the text for humans.  warned_after, retried_for: seconds, for delay notices.
    """

    kind: Kind
    to: str
    myhostname: str
    mail_name: str
    queue_id: str
    sender: str
    date: str
    arrival: str
    boundary: str
    recipients: tuple[ReportRecipient, ...]
    envelope_id: str = ""
    retry_until: str = ""
    original: str = "message"
    eight_bit: bool = False
    utf8: bool = False
    postmaster: bool = False
    warned_after: float = 0.0
    retried_for: float = 0.0


def opening(report: Report) -> Iterator[bytes]:
    """Everything up to the first byte of the returned message (or header), in pieces that take milliseconds each: of
    a mailing there may be 200,000 recipients.  ValueError: a bug, no boundary."""
    if not _BOUNDARY.match(report.boundary):
        raise ValueError("not a MIME boundary")
    lines = chain(
        _header(report), ("", "This is a MIME-encapsulated message.", ""), _notification(report), _status(report),
        _original(report),
    )  # fmt: skip
    while piece := b"".join(map(_line, islice(lines, PIECE))):
        yield piece


def closing(report: Report) -> bytes:
    """What follows the returned message, whose last line must have ended."""
    end = _line("") if report.original else b""
    return end + _line(f"--{report.boundary}--")


# -- parts ------------------------------------------------------------------------------------------------


def _header(report: Report) -> Iterator[str]:
    postmaster = report.postmaster
    yield f"Date: {_clean(report.date)}"
    yield f"From: Mail Delivery System <MAILER-DAEMON@{_token(report.myhostname)}>"
    yield f"Subject: {(_POSTMASTER_SUBJECT if postmaster else _SUBJECT)[report.kind]}"
    yield f"To: {_address(report.to, utf8=report.utf8)}"
    yield f"Auto-Submitted: {'auto-generated' if postmaster else 'auto-replied'}"
    yield "MIME-Version: 1.0"
    yield "Content-Type: multipart/report; report-type=delivery-status;"
    yield f'\tboundary="{report.boundary}"'
    yield f"Content-Transfer-Encoding: {_encoding(report)}"


def _notification(report: Report) -> Iterator[str]:
    yield f"--{report.boundary}"
    yield "Content-Description: Notification"
    yield f"Content-Type: text/plain; charset={'utf-8' if report.utf8 else 'us-ascii'}"
    yield f"Content-Transfer-Encoding: {'8bit' if report.utf8 else '7bit'}"
    yield ""
    if not report.postmaster:
        yield from _words(report)
    for recipient in report.recipients:
        yield ""
        address = _address(recipient.address, utf8=report.utf8)
        original = _address(recipient.original, utf8=report.utf8)
        came_from = f" (expanded from <{original}>)" if original and original.lower() != address.lower() else ""
        yield from _fold(f"<{address}>{came_from}: {_clean(recipient.text)}")
    yield ""


def _words(report: Report) -> Iterator[str]:
    yield f"This is the mail system at host {_clean(report.myhostname)}."
    yield ""
    match report.kind:
        case Kind.FAILURE:
            yield "Your message could not be delivered to the recipients below. The"
            yield "reason stands beside each address, the message is attached."
        case Kind.DELAY:
            yield "THIS IS ONLY A WARNING. YOU NEED NOT SEND YOUR MESSAGE AGAIN."
            yield ""
            yield f"For more than {_span(report.warned_after)} your message could not be delivered to the"
            yield f"recipients below. It will be tried again until it is {_span(report.retried_for)} old."
        case _:
            yield "Your message was delivered to the recipients below, or handed on as"
            yield "far as this system can tell. Where it was handed on, other systems"
            yield "may still send you a report of their own."
    yield ""
    if report.kind is not Kind.SUCCESS:
        yield "If you need help, please write to postmaster and include this report."
        yield ""
    yield "                   The mail system"


def _status(report: Report) -> Iterator[str]:
    yield f"--{report.boundary}"
    yield "Content-Description: Delivery report"
    if report.utf8:
        yield "Content-Type: message/global-delivery-status"
        yield "Content-Transfer-Encoding: 8bit"
    else:
        yield "Content-Type: message/delivery-status"
    yield ""
    name = _token(report.mail_name)
    yield f"Reporting-MTA: dns; {_clean(report.myhostname)}"
    if report.envelope_id:
        yield from _fold(f"Original-Envelope-Id: {_clean(report.envelope_id)}")
    yield f"X-{name}-Queue-ID: {_clean(report.queue_id)}"
    if report.sender:
        yield f"X-{name}-Sender: {_typed(report.sender, utf8=report.utf8)}"
    yield f"Arrival-Date: {_clean(report.arrival)}"
    for recipient in report.recipients:
        yield ""
        yield from _recipient(report, recipient, name)
    yield ""


def _recipient(report: Report, recipient: ReportRecipient, name: str) -> Iterator[str]:
    """The fields of one recipient, RFC 3464 s2.3."""
    yield f"Final-Recipient: {_typed(recipient.address, utf8=report.utf8)}"
    kind, semicolon, address = recipient.orcpt.partition(";")
    if semicolon and address.strip():
        yield f"Original-Recipient: {_token(kind)};{_given(address.strip(), utf8=report.utf8)}"
    yield f"Action: {recipient.action if recipient.action in _ACTIONS else report.kind.value}"
    fallback = {Kind.FAILURE: "5.0.0", Kind.DELAY: "4.0.0", Kind.SUCCESS: "2.0.0"}[report.kind]
    yield f"Status: {recipient.status if _STATUS.match(recipient.status) else fallback}"
    if recipient.remote_mta:
        yield from _fold(f"Remote-MTA: dns; {_clean(recipient.remote_mta)}")
    kind, semicolon, text = recipient.diagnostic.partition(";")
    if semicolon and text.strip():
        yield from _fold(f"Diagnostic-Code: {_token(kind)}; {_clean(text)}")
    else:
        yield from _fold(f"Diagnostic-Code: X-{name}; {_clean(recipient.text)}")
    if report.kind is Kind.DELAY and report.retry_until:
        yield f"Will-Retry-Until: {_clean(report.retry_until)}"


def _original(report: Report) -> Iterator[str]:
    if not report.original:
        return
    headers = report.original == "headers"
    yield f"--{report.boundary}"
    yield f"Content-Description: {_DESCRIPTION[report.kind]}{' Headers' if headers else ''}"
    if headers:
        yield f"Content-Type: {'message/global-headers' if report.utf8 else 'text/rfc822-headers'}"
    else:
        yield f"Content-Type: {'message/global' if report.utf8 else 'message/rfc822'}"
    yield f"Content-Transfer-Encoding: {_encoding(report)}"
    yield ""
    yield f"Return-Path: <{_address(report.sender, utf8=report.utf8)}>"


# -- values -----------------------------------------------------------------------------------------------


def _encoding(report: Report) -> str:
    return "8bit" if report.eight_bit or report.utf8 else "7bit"


def _span(seconds: float) -> str:
    """ "4 hours", "5 days": the largest unit that divides well enough."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{round(seconds)} seconds"


def _clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """Outside text as one line of printable ASCII: white space of any kind is one blank, the rest is "?"."""
    line = " ".join(text[: 4 * limit].split())
    if line.isascii() and line.isprintable():
        return line[:limit]
    return "".join(c if " " <= c <= "~" else "?" for c in line)[:limit]


def _token(text: str) -> str:
    """A name that may stand in a field name or address type."""
    return _TOKEN.sub("_", text.strip()[:100]) or "unknown"


def _address(address: str, *, utf8: bool) -> str:
    """An address in quoted form on one line; what is not ASCII stays in a utf8 report, else is "?"."""
    quoted = quote(address) if address else ""
    if _plain(quoted):
        return quoted
    return _bounded(c if " " <= c <= "~" or (utf8 and c.isprintable()) else "?" for c in quoted)


def _typed(address: str, *, utf8: bool) -> str:
    """ "rfc822; a@b", or with type utf-8 what is not ASCII (RFC 6533 s3)."""
    kind = "rfc822" if address.isascii() else "utf-8"
    return f"{kind}; {_given(quote(address), utf8=utf8)}"


def _given(address: str, *, utf8: bool) -> str:
    """An address with its type beside it.  Without SMTPUTF8 as utf-8-addr-xtext, RFC 6533 s3: \\x{FC}."""

    if _plain(address):
        return address

    def one(c: str) -> str:
        if " " <= c <= "~":
            return c
        if not c.isprintable():
            return "?"
        return c if utf8 else f"\\x{{{ord(c):X}}}"

    return _bounded(map(one, address))


def _plain(address: str) -> bool:
    """May it stand as it is?  Nearly all may."""
    return len(address) <= ADDRESS_LIMIT and address.isascii() and address.isprintable()


def _bounded(pieces: Iterable[str]) -> str:
    """Join until ADDRESS_LIMIT octets are full: such a line is not folded."""
    out, size = [], 0
    for piece in pieces:
        size += len(piece.encode())
        if size > ADDRESS_LIMIT:
            break
        out.append(piece)
    return "".join(out)


def _fold(text: str) -> Iterator[str]:
    """Fold at blanks to WIDTH columns; later lines are indented, so none can look like a boundary or a field."""
    line = ""
    for word in _words_of(text):
        if line and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = INDENT + word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _words_of(text: str) -> Iterable[str]:
    for word in text.split(" "):
        for i in range(0, max(1, len(word)), WORD_LIMIT):
            yield word[i : i + WORD_LIMIT]


def _line(text: str) -> bytes:
    """The only way out: one line, and a bug instead of a second one."""
    if not text.isprintable() and any(c < " " or c == "\x7f" for c in text.removeprefix("\t")):
        raise ValueError("control character in a line of a delivery report")
    return text.encode() + b"\n"
