"""What one restriction sees and does: the question asked, its answer so far, refusals and deferrals.

An `Ask` lives for one check of one command.  A restriction returns DUNNO (go on), OK (ends its list) or REJECT
(ends everything; the reply is in the Ask).

See also: SMTPD_ACCESS_README, access(5), postconf(5) warn_if_reject
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import field
from enum import IntEnum
from typing import Protocol

from mta.dns.mx import MXAnswer
from mta.lookup.address import ExtensionRules
from mta.lookup.match_list import NetworkList
from mta.lookup.table import Maps
from mta.record import dataclass
from mta.smtp.path import quote_address
from mta.smtp.reply import Reply
from mta.smtpd.facts import Deferral, Facts, Stage
from mta.trivial_rewrite import Rewriter, Route


class Status(IntEnum):
    """What a restriction says."""

    DUNNO = 0
    OK = 1
    REJECT = 2


class ServerError(Exception):
    """The configuration makes no sense: 451 4.3.5, and str() is logged as a warning."""


CLIENT = "Client host"
REVERSE_CLIENT = "Unverified Client host"
HELO = "Helo command"
SENDER = "Sender address"
RECIPIENT = "Recipient address"
ETRN = "Etrn command"
DATA = "Data command"
END_OF_DATA = "End-of-data"

CONFIGURATION_ERROR = (451, "4.3.5", "Server configuration error")
MAX_DEPTH = 100  # classes and table results that name each other


@dataclass(frozen=True, slots=True)
class RestrictionSettings:
    """postconf(5)."""

    smtpd_client_restrictions: tuple[str, ...]
    smtpd_helo_restrictions: tuple[str, ...]
    smtpd_sender_restrictions: tuple[str, ...]
    smtpd_relay_restrictions: tuple[str, ...]
    smtpd_recipient_restrictions: tuple[str, ...]
    smtpd_data_restrictions: tuple[str, ...]
    smtpd_end_of_data_restrictions: tuple[str, ...]
    smtpd_etrn_restrictions: tuple[str, ...]
    smtpd_restriction_classes: tuple[str, ...]
    smtpd_delay_reject: bool
    smtpd_relay_before_recipient_restrictions: bool
    smtpd_reject_unlisted_recipient: bool
    smtpd_reject_unlisted_sender: bool
    smtpd_null_access_lookup_key: str
    mynetworks: tuple[str, ...]
    parent_domain_matches_subdomains: tuple[str, ...]
    allow_untrusted_routing: bool
    soft_bounce: bool
    show_user_unknown_table_name: bool
    double_bounce_sender: str
    local_recipient_maps: tuple[str, ...]
    alias_maps: tuple[str, ...]
    virtual_alias_maps: tuple[str, ...]
    virtual_mailbox_maps: tuple[str, ...]
    relay_recipient_maps: tuple[str, ...]
    canonical_maps: tuple[str, ...]
    recipient_canonical_maps: tuple[str, ...]
    sender_canonical_maps: tuple[str, ...]
    unknown_local_recipient_reject_code: int
    unknown_virtual_alias_reject_code: int
    unknown_virtual_mailbox_reject_code: int
    unknown_relay_recipient_reject_code: int
    unknown_address_reject_code: int
    unknown_client_reject_code: int
    unknown_hostname_reject_code: int
    access_map_reject_code: int
    access_map_defer_code: int
    reject_code: int
    defer_code: int
    relay_domains_reject_code: int
    invalid_hostname_reject_code: int
    non_fqdn_reject_code: int
    multi_recipient_bounce_reject_code: int
    maps_rbl_reject_code: int
    plaintext_reject_code: int


class Dns(Protocol):
    """The part of mta/dns/resolver.py used here; errors are mta.dns.mx.DnsError."""

    async def mx(self, domain: str) -> MXAnswer:
        """MX records."""

    async def addresses(self, host: str, wanted: Sequence[int] = ()) -> list[str]:
        """Addresses of a host (wanted: 4, 6)."""

    async def texts(self, name: str) -> list[str]:
        """TXT records, printable."""

    async def exists(self, domain: str) -> bool:
        """Has the domain MX or address records?"""


class Log(Protocol):
    """The part of mta/maillog/maillog.py used here."""

    def warning(self, service: str, text: str) -> None:
        """One line with "warning: " in front."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What all restrictions share."""

    settings: RestrictionSettings
    rewriter: Rewriter
    dns: Dns
    warn: Callable[[str], None]
    pause: Callable[[float], Awaitable[None]]
    mynetworks: NetworkList
    own_addresses: NetworkList
    recipient_maps: dict[str, Maps]
    rewriting: dict[str, tuple[Maps, ...]]  # those that turn a SENDER or RECIPIENT into another address

    @property
    def extension_rules(self) -> ExtensionRules:
        """How user+extension is split."""
        return self.rewriter.extension_rules


@dataclass(slots=True)
class Ask:
    """One command being judged.

    recipient: None when none is to be judged (before RCPT, and in DATA with several).  warning: recursion depth
    at which warn_if_reject was met, 0 = not active.
    """

    tools: Tools
    stage: Stage
    facts: Facts
    recipient: str | None = None
    reply: Reply | None = None
    depth: int = 0
    warning: int = 0
    defer_if_permit: Deferral | None = None
    defer_if_reject: Deferral | None = None
    recipient_checked: bool = False
    sender_checked: bool = False
    hold: bool = False
    discard: bool = False
    redirect: str = ""
    filter: str = ""
    bcc: tuple[str, ...] = ()
    prepend: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)

    async def resolve(self, address: str) -> Route:
        """Where an address as sent by the client goes; remembered for this check.  TableError: unknown."""
        route = self.routes.get(address)
        if route is None:
            rewriter = self.tools.rewriter
            route = await rewriter.resolve(rewriter.rewrite(address, local=True), self.facts.sender or "")
            self.routes[address] = route
        return route

    def reject(self, code: int, dsn: str, text: str) -> Status:
        """Refuse: REJECT, or DUNNO and a log line when warn_if_reject is active.

        An earlier DEFER_IF_REJECT takes the place of a refusal for good.  The first digit of dsn follows the code.
        """
        deferral = self.defer_if_reject
        if deferral is not None and not self.warning and code >= 500:
            self.defer_if_reject = None
            code, dsn, text = deferral.code, deferral.dsn, deferral.text
        if not 400 <= code <= 599:
            self.tools.warn(f"SMTP reply code configuration error: {code} {dsn} {text}")
            code, dsn, text = CONFIGURATION_ERROR
        if self.tools.settings.soft_bounce and code >= 500:
            code -= 100
        reply = Reply(code, f"{code // 100}{dsn[1:]}", text)
        if self.warning:  # until run() ends it: a class is warned of as a whole
            self.note("reject_warning", str(reply))
            return Status.DUNNO
        self.reply = reply
        return Status.REJECT

    def fault(self, code: int, dsn: str, text: str) -> Status:
        """Refuse because of a fault of ours, which warn_if_reject does not turn into a warning."""
        self.warning = 0
        return self.reject(code, dsn, text)

    def defer_later(self, code: int, dsn: str, text: str) -> Status:
        """DEFER_IF_PERMIT: refuse unless something else does so for good.  Only the first one counts."""
        if self.warning:
            return self.reject(code, dsn, text)
        if self.defer_if_permit is None:
            self.defer_if_permit = Deferral(code, dsn, text)
        return Status.DUNNO

    def soften(self, code: int, dsn: str, text: str) -> Status:
        """DEFER_IF_REJECT: a later refusal becomes this one, after warn_if_reject too."""
        if self.defer_if_reject is None:
            self.defer_if_reject = Deferral(code, dsn, text)
        return Status.DUNNO

    def note(self, what: str, text: str) -> None:
        """Log "NOQUEUE: WHAT: RCPT from client: text; from=<> to=<> proto= helo=<>" with the verdict."""
        self.log.append(log_line(self.stage, self.facts, what, text, self.recipient))


def log_line(stage: Stage, facts: Facts, what: str, text: str, recipient: str | None) -> str:
    """Return Postfix's line about a decision of a restriction."""
    about = [] if facts.sender is None else [f"from=<{quote_address(facts.sender)}>"]
    if recipient is not None:
        about.append(f"to=<{quote_address(recipient)}>")
    about.append(f"proto={facts.protocol}")
    if facts.helo:
        about.append(f"helo=<{facts.helo}>")
    return f"{facts.queue_id or 'NOQUEUE'}: {what}: {stage} from {facts.client}: {text}; {' '.join(about)}"


Check = Callable[[Ask, str, str], Awaitable[Status]]  # (ask, what is judged, which kind of thing: CLIENT, ...)


@dataclass(frozen=True, slots=True)
class Restriction:
    """One word of a list with its argument, ready to run.  check None: warn_if_reject."""

    name: str
    check: Check | None


async def run(restrictions: Sequence[Restriction], ask: Ask, name: str, kind: str) -> Status:
    """Evaluate a list: the first OK or REJECT ends it.

    name, kind: what is judged ("user@dst.test", RECIPIENT).  TableError and ServerError pass through.
    """
    if ask.depth >= MAX_DEPTH:
        raise ServerError("SMTPD access restrictions cause unreasonable recursion")
    ask.depth += 1
    try:
        for restriction in restrictions:
            if ask.discard:
                break
            if restriction.check is None:
                ask.warning = ask.warning or ask.depth
                continue
            status = await restriction.check(ask, name, kind)
            if ask.warning >= ask.depth:
                ask.warning = 0
            if status:
                return status
            if ask.defer_if_permit is not None and ask.defer_if_reject is not None:
                break
    finally:
        ask.depth -= 1
    return Status.DUNNO
