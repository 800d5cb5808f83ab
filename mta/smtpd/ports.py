"""What the SMTP server needs from the other rooms, as types only.

Policy is answered by mta/smtpd/restrictions.py, Cleanup and Intake by mta/cleanup, Anvil by mta/smtpd/anvil.py,
PeerNames by mta/dns/resolver.py; mta/master/master.py puts them together.
"""

from typing import Protocol

from mta.envelope import Envelope, Origin
from mta.smtp.reply import Reply
from mta.smtpd.facts import Facts, Stage, Verdict


class Policy(Protocol):
    """May the client do this?"""

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        """Judge a stage by the facts known so far.  A table or DNS that fails is a 4xx verdict, not an exception."""


class Intake(Protocol):
    """One message on its way into the queue.  After commit or abort it is not used again."""

    queue_id: str

    def write(self, content: bytes) -> None:
        """Append text as LF lines, cut anywhere, at most 64 KiB at once.  Errors show at commit."""

    async def commit(self) -> Reply:
        """Make it durable; "250 2.0.0 Ok: queued as ID", or why not.  May be run without a Task (mta/eager.py)."""

    def abort(self) -> None:
        """Forget it without trace; never raises."""


class Cleanup(Protocol):
    """The one door into the queue."""

    async def open(
        self,
        origin: Origin,
        envelope: Envelope,
        *,
        hold: bool = False,
        prepend: tuple[str, ...] = (),
        size_hint: int = 0,
    ) -> Intake:
        """Begin a message; QueueError when nothing can be taken now.  size_hint: SIZE= in octets, 0 = unknown."""


class Anvil(Protocol):
    """Counts what each client does (smtpd_client_*_limit).  Verdict.reply refuses."""

    async def connect(self, address: str) -> Verdict:
        """A client has connected; each call is followed by one disconnect."""

    async def mail(self, address: str) -> Verdict:
        """A client sent MAIL; asked only with smtpd_client_message_rate_limit."""

    async def rcpt(self, address: str) -> Verdict:
        """A client sent RCPT; asked only with smtpd_client_recipient_rate_limit."""

    def disconnect(self, address: str) -> None:
        """A client has gone."""


class Exceptions(Protocol):
    """Whom no such limit holds for (smtpd_client_event_limit_exceptions)."""

    async def match(self, address: str, host: str = "") -> bool:
        """Is this client, with its verified name, one of them?  TableError: nobody knows."""


class PeerName(Protocol):
    """Who a client is by DNS; statuses as in Facts (2 found, 4 temporary failure, 5 none or forged)."""

    @property
    def name(self) -> str:
        """Verified name or "unknown"."""

    @property
    def reverse_name(self) -> str:
        """PTR name, verified or not, or "unknown"."""

    @property
    def name_status(self) -> int: ...

    @property
    def reverse_status(self) -> int: ...


class PeerNames(Protocol):
    """Finds the name of a client's address."""

    async def client_name(self, address: str) -> PeerName:
        """Never raises for DNS trouble: the statuses tell."""


class Log(Protocol):
    """The part of mta/maillog/maillog.py used here."""

    def write(self, service: str, text: str) -> None:
        """One line."""

    def warning(self, service: str, text: str) -> None:
        """One line with "warning: " in front."""
