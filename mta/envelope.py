"""Who a message is from and for: the values that travel from the SMTP or sendmail door to the last delivery.

Addresses are str, unquoted as in a Postfix queue file ("a b@dom", not "\\"a b\\"@dom"); "" is the null sender.
Bytes of a file that are not UTF-8 survive as surrogates (errors="surrogateescape").  No address in here holds
a control character: grammar and the submit door refuse them.

See also: RFC 3461 (NOTIFY, RET, ENVID, ORCPT)
"""

from dataclasses import field
from enum import IntFlag

from mta.record import dataclass

MAILER_DAEMON = "MAILER-DAEMON"  # how the null sender is shown


class Notify(IntFlag):
    """NOTIFY= of RFC 3461 s4.1, with Postfix's values in `notify_flags`; 0 = not given = FAILURE | DELAY."""

    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8


class Ret(IntFlag):
    """RET= of RFC 3461 s4.3, with Postfix's values in `ret_flags`; 0 = not given."""

    FULL = 1
    HDRS = 2


VERP = "verp_delimiters"  # attribute: each recipient is to get the message from a sender of its own; see verp_sender
NOTIFY_DEFAULT = Notify(0)
RET_DEFAULT = Ret(0)


@dataclass(slots=True)
class Recipient:
    """One recipient and how far it is.

    address: final address.  original: as it was before aliasing, "" when the same.  dsn_orig_rcpt: ORCPT as
    "type;address" with xtext decoded, "" when not given.  offset: of its record in the queue file, 0 = not
    stored.  state: "R" to do, "D" done, "/" cancelled.
    """

    address: str
    original: str = ""
    notify: Notify = NOTIFY_DEFAULT
    dsn_orig_rcpt: str = ""
    offset: int = 0
    state: str = "R"

    @property
    def todo(self) -> bool:
        """True while nobody has taken final responsibility."""
        return self.state == "R"


@dataclass(slots=True)
class Envelope:
    """Sender, recipients and named attributes of one message.

    arrival: Unix time in seconds.  attributes: Postfix's named attributes (A records) except those that have a
    field here, for example rewrite_context, log_client_name, log_client_address, log_helo_name,
    log_protocol_name, log_message_origin, sasl_username; and VERP.  encoding: "", "7bit" or "8bit".
    """

    sender: str
    recipients: list[Recipient]
    arrival: float
    full_name: str = ""
    envelope_id: str = ""
    ret: Ret = RET_DEFAULT
    encoding: str = ""
    smtputf8: bool = False
    warn_time: float = 0.0
    attributes: dict[str, str] = field(default_factory=dict)

    def readdressed(self, sender: str, recipients: list[Recipient]) -> "Envelope":
        """The same with other addresses; the attributes are shared."""
        return Envelope(
            sender, recipients, self.arrival, self.full_name, self.envelope_id, self.ret, self.encoding, self.smtputf8,
            self.warn_time, self.attributes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Through which door a message came; feeds Received:, the log and `rewrite_context`.

    door: "smtpd", "pickup" (sendmail), "bounce", "forward".  For smtpd the client_* fields, helo and protocol
    ("SMTP", "ESMTP", "ESMTPS", ...) are set; for pickup uid, and protocol and helo when root has told them.
    tls: comment for Received:, "" in the clear.  requeued: it was in the queue before, and its size was judged then.
    """

    door: str
    client_name: str = ""
    client_address: str = ""
    client_port: int = 0
    helo: str = ""
    protocol: str = ""
    uid: int = -1
    sasl_username: str = ""
    tls: str = ""
    rewrite_local: bool = False  # rewrite_context=local: complete and rewrite headers
    requeued: bool = False


def domain_of(address: str) -> str:
    """Return the part after the last "@" in lower case, "" when there is none."""
    return address.rpartition("@")[2].lower() if "@" in address else ""


def wants_verp(envelope: Envelope) -> bool:
    """Does each recipient get a sender of its own?  The null sender has no room for it."""
    return len(envelope.attributes.get(VERP, "")) == 2 and bool(envelope.sender)


def verp_sender(envelope: Envelope, recipient: Recipient) -> str:
    """The sender that names the recipient: `list@a` to `bob@b` becomes `list+bob=b@a`, for the delimiters "+=".

    The recipient is named as it was before aliasing, because that is the name the sender of the message knows.
    """
    sender, delimiters = envelope.sender, envelope.attributes[VERP]
    local, at, domain = sender.rpartition("@") if "@" in sender else (sender, "", "")
    name = recipient.original or recipient.address
    user, _, host = name.rpartition("@") if "@" in name else (name, "", "")
    return local + delimiters[0] + user + (delimiters[1] + host if host else "") + at + domain
