"""What the dialogue tells its shell to do, in order.

The shell does each at once, except that after Ask, Begin, Commit, Wait and StartTls the dialogue stands still
until the shell has answered with the same token.  At most one of those is open.
"""

from dataclasses import field

from mta.envelope import RET_DEFAULT, Recipient, Ret
from mta.record import dataclass
from mta.smtpd.facts import Facts, Stage


@dataclass(slots=True)
class Transaction:
    """One mail transaction, from the MAIL that was accepted until its end, however it ends.

    size: SIZE= in octets, 0 = not declared.  hold ... filter: effects of verdicts, as in Verdict.
    """

    sender: str
    size: int = 0
    encoding: str = ""
    smtputf8: bool = False
    ret: Ret = RET_DEFAULT
    envelope_id: str = ""
    auth: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    hold: bool = False
    discard: bool = False
    redirect: str = ""
    bcc: tuple[str, ...] = ()
    prepend: tuple[str, ...] = ()
    filter: str = ""


@dataclass(slots=True)
class Send:
    """Write these bytes to the client."""

    data: bytes


@dataclass(slots=True)
class Ask:
    """May this be?  -> answer(token, Verdict).  Abandoned when the connection is lost."""

    token: int
    stage: Stage
    facts: Facts


@dataclass(slots=True)
class Begin:
    """Open a message for this transaction -> begun(token, None), or the Reply that refuses it."""

    token: int
    transaction: Transaction


@dataclass(slots=True)
class Body:
    """Append this text (LF lines) to the open message."""

    data: bytes


@dataclass(slots=True)
class Commit:
    """The message is complete: make it durable -> committed(token, Reply).  Never abandoned.

    size: octets as received, lines counted with CR LF.  has_8bit: it holds octets above 127.
    """

    token: int
    size: int
    has_8bit: bool


@dataclass(slots=True)
class Abort:
    """Forget the open message."""


@dataclass(slots=True)
class Wait:
    """Let a client that makes errors wait -> waited(token) after so many seconds."""

    token: int
    seconds: float


@dataclass(slots=True)
class StartTls:
    """Everything sent is flushed, the input is empty: begin the handshake -> tls_started(token, ...)."""

    token: int


@dataclass(slots=True)
class Log:
    """One log line of this session."""

    text: str
    warning: bool = False


@dataclass(slots=True)
class Close:
    """Flush what was sent, then close the connection."""


Event = Send | Ask | Begin | Body | Commit | Abort | Wait | StartTls | Log | Close
