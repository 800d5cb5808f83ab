"""Why mail could not be handed to a host: what decides about the recipients, and what is said of it.

See also: mta/deliver/smtp_session.py
"""

from mta.record import dataclass
from mta.smtp.replies import PeerReply
from mta.smtp.reply import Reply

MAX_WORDS = 1024  # characters of a peer's words that go into logs and reports


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session or an attempt to get one ended early.

    reply decides between deferred and bounced; text is for the log; heard: the peer's own words, if it was those.
    site: the host is to blame, not the message.  tls: doing it without TLS may help.
    handshake: why that failed, for the log.
    """

    reply: Reply
    text: str
    heard: PeerReply | None = None
    site: bool = True
    tls: bool = False
    handshake: str = ""


UNREADABLE = Failure(Reply(451, "4.3.0", "unreadable mail queue entry"), "unreadable mail queue entry", site=False)


def words(heard: PeerReply) -> str:
    """What the peer said, on one line of bounded length."""
    return heard.line[:MAX_WORDS]
