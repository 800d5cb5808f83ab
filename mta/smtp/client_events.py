"""What the client side of a dialogue waits for, and what it has the shell do.

See also: mta/smtp/client.py
"""

from enum import Enum

from mta.record import dataclass
from mta.smtp.replies import PeerReply


class Step(Enum):
    """What the dialogue waits for; value: (timeout parameter, where we are in Postfix's words, command's name)."""

    GREETING = ("smtp_helo_timeout", "receiving the initial server greeting", "")
    EHLO = ("smtp_helo_timeout", "performing the EHLO handshake", "")
    HELO = ("smtp_helo_timeout", "performing the HELO handshake", "")
    LHLO = ("smtp_helo_timeout", "performing the LHLO handshake", "")
    STARTTLS = ("smtp_starttls_timeout", "receiving the STARTTLS response", "")
    HANDSHAKE = ("smtp_starttls_timeout", "performing the TLS handshake", "")
    IDLE = ("smtp_rset_timeout", "waiting", "")
    MAIL = ("smtp_mail_timeout", "sending MAIL FROM", "MAIL FROM command")
    RCPT = ("smtp_rcpt_timeout", "sending RCPT TO", "RCPT TO command")
    DATA = ("smtp_data_init_timeout", "sending DATA command", "DATA command")
    BODY = ("smtp_data_xfer_timeout", "sending message body", "")
    DOT = (
        "smtp_data_done_timeout",
        "sending end of data -- message may be sent more than once",
        "end of DATA command",
    )
    LONE_DOT = ("smtp_data_done_timeout", "sending end of data", "")
    RSET = ("smtp_rset_timeout", "sending RSET probe", "")
    QUIT = ("smtp_quit_timeout", "sending QUIT", "")
    CLOSED = ("smtp_quit_timeout", "closing", "")

    def __init__(self, limit: str, where: str, command: str) -> None:
        self.limit = limit
        self.where = where
        self.command = command


HANDSHAKE_STEPS = frozenset((Step.EHLO, Step.HELO, Step.LHLO))


@dataclass(frozen=True, slots=True)
class Send:
    """Write this now."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Make the TLS handshake now, then call tls_started()."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The server greeted us and told its features: a message may begin."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server does not want to talk to us (greeting, EHLO/HELO); step says which."""

    heard: PeerReply
    step: Step


@dataclass(frozen=True, slots=True)
class Fate:
    """What the server said about recipient number `index` of the transaction, in reply to `command`."""

    index: int
    heard: PeerReply
    command: str


@dataclass(frozen=True, slots=True)
class WantBody:
    """Stream the message now, then call end_body() and write the final dot."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every recipient has its Fate.  reusable: another message may follow on this connection, after reset() when
    reset_needed (the transaction was left before its end)."""

    reusable: bool
    reset_needed: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The peer does not keep to the protocol at `step`; close.  problem: for the log, printable."""

    problem: str
    step: Step


@dataclass(frozen=True, slots=True)
class Closed:
    """QUIT was answered, or the server said good-bye (421) while idle: close."""


Event = Send | StartTls | Ready | Refused | Fate | WantBody | Finished | Broken | Closed
