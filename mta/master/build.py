"""Puts the rooms together: from a configuration to the objects of one process.

Nothing here decides anything about mail; it is the list of who gets what.  Each process builds its own after
the fork, so one process can hold two MTAs, and tests do.
"""

import contextlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from ssl import SSLContext

from mta import descriptors
from mta.bounce.bounce import BounceSettings, BounceWriter
from mta.cleanup.cleanup import Cleanup
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock
from mta.config.config import Config, Service
from mta.deliver.connector import Connector, NetConnector
from mta.deliver.local import LocalAgent, OwnMailboxes
from mta.deliver.local_client import HelperConnection
from mta.deliver.local_plan import local_settings
from mta.deliver.request import DeliveryAgent
from mta.deliver.simple import DiscardAgent, ErrorAgent, RetryAgent
from mta.deliver.smtp import SmtpAgent
from mta.deliver.smtp_settings import LmtpSettings, SmtpSettings, lmtp
from mta.dns.resolver import Resolver, ResolverSettings
from mta.envelope import Recipient
from mta.fsio.fsio import Fsio, fsync_now
from mta.lookup.context import LookupContext
from mta.lookup.match_list import NetworkList, parent_style
from mta.lookup.open import open_tables
from mta.lookup.table import Maps
from mta.lookup.unix import UserDb
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.memory import settle
from mta.qmgr.backoff import BackoffSettings
from mta.qmgr.grouping import Target
from mta.qmgr.qmgr import QmgrSettings, QueueManager
from mta.qmgr.scheduler import Scheduler, SchedulerSettings, TransportLimits
from mta.queue.store import SpoolStore, StoreSettings
from mta.record import dataclass
from mta.smtpd.anvil import Anvil as AnvilCounters
from mta.smtpd.anvil import AnvilSettings
from mta.smtpd.anvil_service import AnvilOfServices, ServiceAnvil
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.ports import Anvil
from mta.smtpd.restrict_core import RestrictionSettings
from mta.smtpd.restrictions import Restrictions
from mta.smtpd.server import SMTPServer
from mta.smtpd.server_settings import ServerSettings
from mta.submit.smtp import LocalDoor
from mta.tls import CertificateError, TlsClientSettings, TlsError, TlsServerSettings, client_tls, server_context
from mta.trivial_rewrite import Rewriter, RewriterSettings

LOCAL_CLIENTS = "local_header_rewrite_clients"
EXCEPTIONS = "smtpd_client_event_limit_exceptions"
Kept = dict[TlsServerSettings, SSLContext]
"""Certificates as they were at the start or reload."""


@dataclass(slots=True)
class Core:
    """What the scheduler and a worker both need."""

    config: Config
    clock: Clock
    log: Maillog
    fsio: Fsio
    connector: Connector
    users: UserDb
    context: LookupContext
    resolver: Resolver
    rewriter: Rewriter
    store: SpoolStore
    cleanup: Cleanup
    agents: dict[str, DeliveryAgent] = field(default_factory=dict)

    def tables(self, spec: tuple[str, ...]) -> Maps:
        """Open "type:name" tables."""
        return open_tables(spec, self.context)

    async def close(self) -> None:
        """Release what the process holds; deliveries and sessions have ended before."""
        for agent in self.agents.values():
            await agent.close()
        await self.resolver.close()
        self.fsio.close()
        self.log.close()


def build_core(
    config: Config, *, owner: bool, clock: Clock | None = None, fsio: Fsio | None = None,
    connector: Connector | None = None, log: Maillog | None = None,
) -> Core:  # fmt: skip
    """owner: this process runs the queue.  The other arguments replace the outside world in tests."""
    clock = clock or Clock()
    fsio = fsio or Fsio(journal=True)
    connector = connector or NetConnector(clock)
    log = log or Maillog(config.fill(MaillogSettings), clock)
    users = UserDb(fsio, clock)
    context = LookupContext(
        fsio, clock, log, users, default_database_type=config.text("default_database_type"), environ=dict(os.environ)
    )
    resolver = Resolver(config.fill(ResolverSettings), connector, clock, log)
    rewriter = Rewriter(config.fill(RewriterSettings), context, config.own_addresses())
    store = SpoolStore(config.fill(StoreSettings), fsio, clock, log, owner=owner)
    cleanup = Cleanup(
        config.fill(CleanupSettings), store, rewriter, lambda spec: open_tables(spec, context), log, clock,
        local_client=local_clients(config),
    )  # fmt: skip
    return Core(config, clock, log, fsio, connector, users, context, resolver, rewriter, store, cleanup)


def local_clients(config: Config) -> Callable[[str], bool]:
    """Is this client address one of local_header_rewrite_clients, whose headers are completed?

    Understood: permit_inet_interfaces (the default) and permit_mynetworks, as far as it names networks.
    """
    words = set(config.words(LOCAL_CLIENTS))
    own = {"127.0.0.1", "::1", *config.own_addresses()} if "permit_inet_interfaces" in words else set()
    found = map(_network, config.words("mynetworks") if "permit_mynetworks" in words else ())
    networks = [network for network in found if network]

    def is_local(address: str) -> bool:
        if address in own or not networks:
            return address in own
        return any(ip_address(address) in network for network in networks)

    return is_local


def _network(word: str) -> IPv4Network | IPv6Network | None:
    with contextlib.suppress(ValueError):
        return ip_network(word.replace("[", "").replace("]", ""), strict=False)
    return None


def not_local_clients(config: Config) -> list[str]:
    """The words that local_clients() does not understand: those clients it takes for strangers, or for its own."""
    words = config.words(LOCAL_CLIENTS)
    networks = config.words("mynetworks") if "permit_mynetworks" in words else ()
    understood = ("permit_inet_interfaces", "permit_mynetworks")
    return [word for word in words if word not in understood] + [w for w in networks if _network(w) is None]


def rehearse(config: Config, inet: Sequence[str]) -> None:
    """Build and throw away what the processes will build, in the process that forks them.

    What cannot be built stops the start; what is remembered on the way (settings) is shared by the processes.
    inet: names of the services that are listened to.
    """
    core = build_core(config, owner=True, fsio=Fsio(aio=False))
    build_anvil(core)
    services = {service.name: service for service in config.services if service.type == "inet"}
    for name in inet:
        own = config.for_service(services[name])
        own.fill(ServerSettings)
        _restrictions(core, own)
        with contextlib.suppress(CertificateError):  # which is no reason not to start, or check.py has said so
            server_context(own.fill(TlsServerSettings))
    build_qmgr(core, None)
    core.log.close()
    del core
    settle()


# -- receiving ------------------------------------------------------------------------------------


def build_anvil(core: Core) -> Anvil:
    """The counters of clients: one set for the whole mail system, and one for each service with limits of its own."""
    common = _counters(core, core.config)
    own = {
        service.name: _counters(core, core.config.for_service(service))
        for service in core.config.services
        if has_own_limits(core.config, service)
    }
    return AnvilOfServices(common, own) if own else common


def _counters(core: Core, config: Config) -> AnvilCounters:
    return AnvilCounters(config.fill(AnvilSettings), core.clock)


def has_own_limits(config: Config, service: Service) -> bool:
    """Does an smtpd service of master.cf count by other limits than main.cf's?  config: main.cf's."""
    if service.type != "inet" or service.command != "smtpd":
        return False
    own = config.for_service(service)
    return (own.fill(AnvilSettings), own.words(EXCEPTIONS)) != (config.fill(AnvilSettings), config.words(EXCEPTIONS))


def has_rate_limits(config: Config) -> bool:
    """Does any service limit what a client may do per time unit?"""
    inet = (service for service in config.services if service.type == "inet")
    return any(
        each.integer(f"smtpd_client_{what}_rate_limit")
        for each in (config, *map(config.for_service, inet))
        for what in ("connection", "message", "recipient")
    )


class PermitAll:
    """The policy and the counters of a user of this machine (`sendmail -bs`): nothing is refused."""

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        """See Policy.  A local user may name any recipient: unknown ones bounce, as with sendmail -t."""
        return PERMIT

    async def connect(self, address: str) -> Verdict:
        """See Anvil."""
        return PERMIT

    async def mail(self, address: str) -> Verdict:
        """See Anvil."""
        return PERMIT

    async def rcpt(self, address: str) -> Verdict:
        """See Anvil."""
        return PERMIT

    def disconnect(self, address: str) -> None:
        """See Anvil."""


def build_stdin_smtpd(core: Core) -> SMTPServer:
    """The server behind `sendmail -bs`: the same dialogue, trusted, on the submit socket."""
    filled = core.config.fill(ServerSettings)
    settings = replace(
        filled, smtpd_peername_lookup=False, smtpd_forbid_unauth_pipelining=False, smtpd_tls_wrappermode=False
    )
    door, everything = LocalDoor(core.cleanup), PermitAll()
    return SMTPServer(
        settings, everything, door, everything, core.resolver, core.log, core.clock, silent=frozenset(Stage)
    )  # fmt: skip


def build_smtpd(core: Core, config: Config, anvil: Anvil, service: str, kept: Kept | None = None) -> SMTPServer:
    """The server of one inet service; config: with that service's -o settings.  kept: when files have gone bad."""
    syslog_name = config.text("syslog_name")
    prefix = syslog_name.partition("/")[2]
    name = f"{prefix}/smtpd" if prefix else service
    if config.service and has_own_limits(core.config, config.service):
        anvil = ServiceAnvil(anvil, config.service.name)
    restrictions = _restrictions(core, config, name)
    tls = _server_tls(core, config.fill(TlsServerSettings), name, kept or {})
    return SMTPServer(
        config.fill(ServerSettings), restrictions, core.cleanup, anvil, core.resolver, core.log, core.clock, tls,
        service=name, entry=config.service.name if config.service else "smtp", silent=restrictions.silent,
        company=core.fsio.company, exceptions=_exceptions(core, config),
    )  # fmt: skip


def _exceptions(core: Core, config: Config) -> NetworkList:
    parents = parent_style(EXCEPTIONS, config.words("parent_domain_matches_subdomains"))
    return NetworkList(EXCEPTIONS, config.words(EXCEPTIONS), core.context, parents=parents)


def certificates(config: Config, inet: Sequence[str]) -> Kept:
    """Load what is readable now, for workers that find it unreadable later; by mail_owner, who forks them."""
    services = {service.name: service for service in config.services if service.type == "inet"}
    kept = {}
    for settings in {config.for_service(services[name]).fill(TlsServerSettings) for name in inet}:
        with contextlib.suppress(TlsError):
            if context := server_context(settings):
                kept[settings] = context
    return kept


def _server_tls(core: Core, settings: TlsServerSettings, service: str, kept: Kept) -> SSLContext | None:
    """With the certificate as it is now, else as it was; without any, port 25 goes on in the clear."""
    try:
        return server_context(settings)
    except CertificateError as error:
        context = kept.get(settings)
        without = "connections are closed" if settings.smtpd_tls_wrappermode else "STARTTLS is not offered"
        core.log.warning(service, f"{error}; {'going on with what it was before' if context else without}")
        return context


def _restrictions(core: Core, config: Config, name: str = "smtpd") -> Restrictions:
    context = replace(core.context, service=name)  # of tables that others have opened, too, what it says is ours
    return Restrictions(
        config.fill(RestrictionSettings), core.rewriter, context, core.resolver,
        classes=config.restriction_classes(), own_addresses=config.own_addresses(),
    )  # fmt: skip


# -- delivering -----------------------------------------------------------------------------------


def build_agents(core: Core, helper: HelperConnection | None) -> dict[str, DeliveryAgent]:
    """One agent per unix service of master.cf that we have; the others are "mail transport unavailable"."""
    agents: dict[str, DeliveryAgent] = {}
    for service in core.config.services:
        if service.type != "unix" or service.name in agents:
            continue
        config = core.config.for_service(service)
        match service.command:
            case "smtp" | "lmtp":
                agents[service.name] = _smtp(core, config, is_lmtp=service.command == "lmtp")
            case "local":
                agents[service.name] = _local(core, config, service.name, helper)
            case "discard":
                agents[service.name] = DiscardAgent(core.clock)
            case "error":
                agents[service.name] = (RetryAgent if service.name == "retry" else ErrorAgent)(core.clock)
    return agents


def _local(core: Core, config: Config, name: str, helper: HelperConnection | None) -> DeliveryAgent:
    """Through mta-local where there is one, else in this process as the user that we are."""
    settings = local_settings(config)
    own = OwnMailboxes(
        settings, name, core.rewriter, core.context, core.users, core.fsio, core.clock, core.log, fsync_now
    )
    return LocalAgent(settings, helper or own, core.fsio, core.clock)


def _smtp(core: Core, config: Config, *, is_lmtp: bool) -> DeliveryAgent:
    settings = config.fill(SmtpSettings)
    if is_lmtp:
        settings = lmtp(settings, config.fill(LmtpSettings))
    return SmtpAgent(
        settings, core.resolver, core.connector, client_tls(config.fill(TlsClientSettings)), core.log, core.clock,
        lmtp=is_lmtp, own_addresses=frozenset(config.own_addresses()), shuffle=random.shuffle,
    )  # fmt: skip


def build_qmgr(core: Core, helper: HelperConnection | None) -> QueueManager:
    """The queue manager with all of its agents."""
    config = core.config
    core.agents = build_agents(core, helper)
    default = transport_limits(config, "default")
    most = descriptors.deliveries()
    limits = {name: transport_limits(config, name) for name in core.agents}
    limits = {name: replace(each, process_limit=min(each.process_limit, most)) for name, each in limits.items()}
    settings = config.fill(QmgrSettings)
    active = min(settings.qmgr_message_active_limit, descriptors.jobs())
    bounces = BounceWriter(
        config.fill(BounceSettings), core.cleanup, core.store, core.log, core.clock, core.fsio.entropy
    )
    rewriter = core.rewriter

    async def resolve(recipient: Recipient, sender: str) -> Target:
        route = await rewriter.resolve(recipient.address, sender)
        return Target(route.transport, route.nexthop, route.recipient)

    qmgr = QueueManager(
        replace(settings, qmgr_message_active_limit=active), config.fill(BackoffSettings), core.store,
        Scheduler(config.fill(SchedulerSettings), limits, default), resolve, core.agents, bounces, core.cleanup,
        core.clock, core.log,
    )  # fmt: skip
    core.store.arrived = lambda queue_id, _: qmgr.arrived(queue_id)
    return qmgr


def transport_limits(config: Config, transport: str) -> TransportLimits:
    """maxproc of master.cf, <transport>_destination_concurrency_limit and its like."""
    processes = config.integer("default_process_limit")
    for service in config.services:
        if service.name == transport and service.type == "unix" and service.maxproc is not None:
            processes = service.maxproc or 1_000_000
    return TransportLimits(
        processes,
        config.transport_value(transport, "destination_concurrency_limit"),
        config.transport_value(transport, "destination_recipient_limit"),
        config.transport_value(transport, "initial_destination_concurrency"),
        config.transport_value(transport, "destination_concurrency_failed_cohort_limit"),
    )
