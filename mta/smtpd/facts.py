"""What is known about an SMTP session when it asks "may this be?", and the possible answers.

Pure values between the dialogue (session.py), its shell (server.py) and the restrictions.
"""

from dataclasses import field
from enum import StrEnum

from mta.record import dataclass
from mta.smtp.reply import Reply


class Stage(StrEnum):
    """Which command asks; the value is the word in log lines ("reject: RCPT from ...")."""

    CONNECT = "CONNECT"
    HELO = "HELO"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    END_OF_MESSAGE = "END-OF-MESSAGE"
    VRFY = "VRFY"
    ETRN = "ETRN"


@dataclass(frozen=True, slots=True)
class Deferral:
    """A refusal that waits for what the rest of the lists says."""

    code: int
    dsn: str
    text: str


@dataclass(slots=True)
class Facts:
    """Facts of the session so far; written by the session and its shell, read by restrictions and the log.

    client_name: verified name or "unknown".  reverse_client_name: PTR, verified or not, or "unknown".
    client_name_status, reverse_name_status: 2 found, 4 temporary failure, 5 does not exist (or forged).
    sender: None before MAIL, "" for the null sender, else unquoted.  recipient: of the RCPT (or VRFY/ETRN
    argument) being asked; at DATA and END-OF-MESSAGE the only one that was accepted, "" with several.  size: of
    SIZE= or, at END-OF-MESSAGE, seen.  discard: the message is one that nobody will get.  postponed_client,
    postponed_helo, postponed_sender: what a DEFER_IF_PERMIT up to CONNECT, HELO and MAIL keeps for RCPT.
    """

    client_address: str = ""
    client_port: int = 0
    client_name: str = "unknown"
    reverse_client_name: str = "unknown"
    client_name_status: int = 5
    reverse_name_status: int = 5
    protocol: str = "SMTP"
    helo: str = ""
    sender: str | None = None
    recipient: str = ""
    recipient_count: int = 0
    size: int = 0
    smtputf8: bool = False
    sasl_username: str = ""
    sasl_method: str = ""
    tls: str = ""
    unauth_pipelining: bool = False
    queue_id: str = ""
    etrn_or_vrfy: str = ""
    discard: bool = False
    postponed_client: Deferral | None = None
    postponed_helo: Deferral | None = None
    postponed_sender: Deferral | None = None

    @property
    def client(self) -> str:
        """ "name[address]" as in Postfix's log."""
        return f"{self.client_name}[{self.client_address}]"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to an Ask.

    reply None = permitted.  With a reply: 4xx/5xx refuses; 2xx replaces the usual text (VRFY: 252 or 250).
    close: send the reply and close (421 and 521 close anyway).  hold, discard: apply to the whole message.
    redirect: one recipient that replaces all.  bcc: added recipients.  prepend: header lines to put in front.
    filter: "transport:nexthop" of access(5) FILTER.  postponed: permitted here, but RCPT or ETRN is to be refused so.
    """

    reply: Reply | None = None
    close: bool = False
    hold: bool = False
    discard: bool = False
    redirect: str = ""
    bcc: tuple[str, ...] = ()
    prepend: tuple[str, ...] = ()
    filter: str = ""
    postponed: Deferral | None = None
    log: tuple[str, ...] = field(default=())  # extra log texts (warn_if_reject, INFO, WARN), already formatted


PERMIT = Verdict()
