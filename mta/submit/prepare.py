"""From what a caller of `sendmail` wrote on stdin to an envelope and a message as LF lines.

Decisions only: bytes in, bytes out, the same for the daemon and for the fallback to maildrop.

- every CR before an LF is dropped (PHP, DOS files), a missing last LF is added;
- leading `From ` and `>From ` lines (mbox, UUCP) are dropped;
- without -i a line "." ends the message, at the end of input also without LF;
- with -t recipients come from To, Cc and Bcc, or only from Resent-To, -Cc and -Bcc when there is such a header.

See also: mta/submit/options.py, sendmail(1)
"""

import re
from collections.abc import Generator, Mapping
from dataclasses import field
from itertools import chain
from typing import TypeVar

from mta.envelope import VERP, Envelope, Recipient
from mta.message import Header, HeaderScanner, text
from mta.message_address import SLICE, finished, parsing
from mta.record import dataclass
from mta.submit.options import (
    EX_DATAERR,
    EX_USAGE,
    Invocation,
    UsageError,
    argument_recipients,
    check_recipients,
    full_name,
)

HEADER_BLOCK_LIMIT = 2 << 20  # bytes of header kept while looking for recipients and hops
_FROM_LINE = re.compile(rb">*From ")
_FROM_DECIDED = 1024  # bytes after which a line of ">" is no From_ line
_LISTS = frozenset((b"to", b"cc", b"bcc"))
_RESENT_LISTS = frozenset((b"resent-to", b"resent-cc", b"resent-bcc"))

T = TypeVar("T")
Steps = Generator[None, None, T]  # work in slices of some milliseconds; its result is what it returns


@dataclass(frozen=True, slots=True)
class Caller:
    """Who runs sendmail.  login, gecos: "" when the uid has no entry."""

    uid: int
    login: str = ""
    gecos: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerpSettings:
    """postconf(5)."""

    default_verp_delimiters: str = "+="
    verp_delimiter_filter: str = "-=+"

    def permit(self, delimiters: str) -> bool:
        """Two of the permitted characters?"""
        return len(delimiters) == 2 and all(c in self.verp_delimiter_filter for c in delimiters)


class InputLines:
    """stdin as LF lines; `ended` once a "." line was seen: what follows is not part of the message."""

    def __init__(self, *, dot_ends: bool) -> None:
        self.ended = False
        self._dot_ends = dot_ends
        self._carry = b""  # CRs, or a dot at the start of a line, whose meaning the next byte decides
        self._line_start = True
        self._first: bytes | None = b""  # while leading From_ lines may come; None = past them
        self._dropping = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on."""
        if self.ended:
            return b""
        data = self._carry + chunk
        if b"\r" in data:
            *lines, last = data.split(b"\n")
            data = b"\n".join([*(line.rstrip(b"\r") for line in lines), last])
            body = data.rstrip(b"\r")
        else:
            body = data
        self._carry = data[len(body) :]
        if self._dot_ends:
            body = self._until_dot(body)
        if body:
            self._line_start = body.endswith(b"\n")
        return self._without_from(body)

    def end(self) -> bytes:
        """No more input: return the rest, with its last LF."""
        carry, self._carry = self._carry, b""
        if self._dot_ends and carry == b".":
            carry, self.ended = b"", True
        if carry:
            self._line_start = False
        rest = self._without_from(carry)
        if self._first is not None:
            rest, self._first = (b"" if self._dropping else self._first) + rest, None
        return rest if self._line_start or self._dropping else rest + b"\n"

    def _until_dot(self, body: bytes) -> bytes:
        if self._line_start and body.startswith(b".\n"):
            self.ended = True
            return b""
        end = body.find(b"\n.\n")
        if end >= 0:
            self.ended = True
            self._carry = b""
            return body[: end + 1]
        if body.endswith(b"\n.") or (self._line_start and body == b"."):
            self._carry = b"." + self._carry
            return body[:-1]
        return body

    def _without_from(self, data: bytes) -> bytes:
        if self._first is None:
            return data
        data = self._first + data
        while data or self._dropping:
            if self._dropping:
                end = data.find(b"\n")
                if end < 0:
                    self._first = b""
                    return b""
                data, self._dropping = data[end + 1 :], False
            elif _FROM_LINE.match(data):
                self._dropping = True
            elif (
                len(data) < _FROM_DECIDED
                and b"\n" not in data
                and data.lstrip(b">")[:5] == b"From "[: len(data.lstrip(b">"))]
            ):
                break  # a prefix of one: wait
            else:
                self._first = None
                return data
        self._first = data
        return b""


class Submission:
    """One call of sendmail: its envelope, and its header held back until recipients and hops are known.

    Feed it stdin; what comes out goes to the queue as soon as `ready`.  Raises UsageError.
    """

    def __init__(self, invocation: Invocation, caller: Caller, verp: VerpSettings | None = None) -> None:
        """verp: None for the defaults."""
        self.invocation = invocation
        self.caller = caller
        login = caller.login or str(caller.uid)
        self.sender = invocation.sender if invocation.sender is not None else login
        self.full_name = full_name(invocation, caller.environment, caller.gecos, login)
        self.who = f"{self.sender}({caller.uid})"
        self.arguments = argument_recipients(invocation)
        self.found: list[str] = []
        self.hops = 0
        self.ready = False
        if not self.arguments and not invocation.extract:
            raise invocation.fatal(
                EX_USAGE,
                f"{self.who}: Recipient addresses must be specified on the command line or via the -t option",
            )
        self._verp = self._delimiters(verp or VerpSettings())
        self._lines = InputLines(dot_ends=invocation.dot_ends)
        self._scanner = HeaderScanner(HEADER_BLOCK_LIMIT)
        self._held = bytearray()
        self._resent: list[str] | None = None  # a resent message goes to nobody of its To
        self._fault: UsageError | None = None  # of To, Cc or Bcc, which matters unless the message is resent

    def _delimiters(self, settings: VerpSettings) -> str:
        """Of -XV, "" without it."""
        asked = self.invocation.verp
        if asked is None:
            return ""
        delimiters = asked or settings.default_verp_delimiters
        if not settings.permit(delimiters):
            wanted = f"-V requires two characters from {settings.verp_delimiter_filter}"
            raise self.invocation.fatal(EX_USAGE, wanted)
        if not self.sender:
            raise self.invocation.fatal(EX_USAGE, f"{self.who}: -V option requires non-null sender address")
        return delimiters

    @property
    def ended(self) -> bool:
        """The final dot was seen; further input means nothing."""
        return self._lines.ended

    def feed(self, chunk: bytes) -> bytes:
        """Return message text for the queue; b"" while the header is not complete."""
        return finished(self.feeding(chunk))

    def end(self) -> bytes:
        """stdin ended: return the rest; `ready` is True afterwards."""
        return finished(self.ending())

    def feeding(self, chunk: bytes) -> Steps[bytes]:
        """As feed(), with pauses: a header may hold 200,000 addresses, and others wait for the same loop."""
        return (yield from self._pass(self._lines.feed(chunk)))

    def ending(self) -> Steps[bytes]:
        """As end(), with pauses."""
        out = yield from self._pass(self._lines.end())
        if self.ready:
            return out
        yield from self._examine(self._scanner.end())
        return self._release()

    def _pass(self, data: bytes) -> Steps[bytes]:
        if self.ready:
            return data
        self._held += data
        if data:
            yield from self._examine(self._scanner.feed(data))
        if self._scanner.done:
            return self._release()
        if len(self._held) > HEADER_BLOCK_LIMIT:
            if self.invocation.extract:
                raise self.invocation.fatal(EX_DATAERR, f"{self.who}: message header too big")
            return self._release()
        return b""

    def _release(self) -> bytes:
        if self.invocation.extract:
            if self._resent is not None:
                self.found = self._resent
            elif self._fault is not None:
                raise self._fault
            if not self.found and not self.arguments:
                raise self.invocation.fatal(EX_USAGE, f"{self.who}: No recipient addresses found in message header")
        else:
            self.found = []
        self.ready = True
        out, self._held = bytes(self._held), bytearray()
        return out

    def _examine(self, headers: list[Header]) -> Steps[None]:
        for n, header in enumerate(headers):
            if n % SLICE == SLICE - 1:
                yield
            if header.name == b"received":
                self.hops += 1
            elif self.invocation.extract and header.name in _LISTS:
                try:
                    self.found += yield from self._addresses(header)
                except UsageError as error:
                    self._fault = self._fault or error
            elif self.invocation.extract and header.name in _RESENT_LISTS:
                if self._resent is None:
                    self._resent = []
                self._resent += yield from self._addresses(header)

    def _addresses(self, header: Header) -> Steps[list[str]]:
        parsed = yield from parsing(text(header.value))
        if parsed.malformed:
            name = header.name.decode().title()
            raise self.invocation.fatal(
                EX_DATAERR, f"{self.who}: malformed address in {name} header: {parsed.malformed}"
            )
        addresses = [a for a in parsed.addresses if a]
        for at in range(0, len(addresses), SLICE):
            check_recipients(self.invocation, addresses[at : at + SLICE])
            yield
        return addresses

    def envelope(self, arrival: float) -> Envelope:
        """The envelope as submitted, addresses not yet completed; arrival: Unix time in seconds."""
        return finished(self.enveloping(arrival))

    def enveloping(self, arrival: float) -> Steps[Envelope]:
        """As envelope(), with pauses."""
        invocation = self.invocation
        recipients: list[Recipient] = []
        ascii_only = self.sender.isascii()
        for address in chain(self.arguments, self.found):
            recipients.append(Recipient(address, notify=invocation.notify))
            ascii_only = ascii_only and address.isascii()
            if len(recipients) % SLICE == 0:
                yield
        return Envelope(
            self.sender,
            recipients,
            arrival,
            full_name=self.full_name,
            envelope_id=invocation.envelope_id,
            ret=invocation.ret,
            encoding=invocation.encoding,
            smtputf8=invocation.smtputf8 or not ascii_only,
            attributes={
                "rewrite_context": "remote" if invocation.remote else "local",
                **({VERP: self._verp} if self._verp else {}),
            },
        )
