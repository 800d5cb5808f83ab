"""What master.cf asks for and nobody would do: warnings of every start, reload and `mta check`.

- a service that we do not have, or that listens nowhere;
- a transport that a parameter names and no service delivers for: its mail would wait, and be returned in the end;
- a -o setting that the service does not read.  Where mail would be less safe without it, it stops the start.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from mta.config.config import Config, Problem, Service
from mta.config.params import READ_ONLY, find
from mta.config.params_known import NOOP_SUFFIXES
from mta.deliver.local_plan import LocalSettings
from mta.deliver.mailbox import MailboxSettings
from mta.deliver.smtp_settings import LmtpSettings, SmtpSettings
from mta.master.build import EXCEPTIONS
from mta.master.listen import Place
from mta.master.owner import problem_at
from mta.smtpd.anvil import AnvilSettings
from mta.smtpd.restrict_core import RestrictionSettings
from mta.smtpd.server_settings import ServerSettings
from mta.tls import TlsClientSettings, TlsServerSettings
from mta.trivial_rewrite import RewriterSettings

DELIVER = ("smtp", "lmtp", "local", "discard", "error")  # commands of unix services that have an agent
_POSTFIX = (*DELIVER, "anvil", "bounce", "cleanup", "dnsblog", "flush", "nqmgr", "oqmgr", "pickup", "pipe", "postlogd",
            "proxymap", "qmgr", "scache", "showq", "smtpd", "spawn", "tlsmgr", "tlsproxy", "trivial-rewrite", "verify",
            "virtual")  # fmt: skip
_REFUSED = ("postscreen", "qmqpd")  # as inet services, in mta/config/check.py
_TRANSPORTS = (  # parameter, and the one that lists the domains of its class
    ("default_transport", ""), ("relay_transport", "relay_domains"), ("local_transport", "mydestination"),
    ("virtual_transport", "virtual_mailbox_domains"),
)  # fmt: skip
_NOT_BUILT = (  # mta/deliver/local_plan.py lets the mail wait that they would get
    "mailbox_transport", "mailbox_transport_maps", "mailbox_command", "mailbox_command_maps", "fallback_transport",
    "fallback_transport_maps", "luser_relay",
)  # fmt: skip
_ADDRESSES = ("inet_interfaces", "inet_protocols", "proxy_interfaces")
_SETTINGS: dict[str, tuple[type, ...]] = {  # what mta/master/build.py and mta-local fill for each service
    "smtpd": (ServerSettings, RestrictionSettings, AnvilSettings, TlsServerSettings),
    "smtp": (SmtpSettings, TlsClientSettings),
    "lmtp": (SmtpSettings, LmtpSettings, TlsClientSettings),
    "local": (LocalSettings, MailboxSettings, RewriterSettings),
}
_FURTHER = {
    "smtpd": (EXCEPTIONS, "syslog_name", *_ADDRESSES),
    "smtp": _ADDRESSES,
    "lmtp": _ADDRESSES,
    "local": _ADDRESSES,
}
_COPIES = "copies of mail would be missing"
_UNSAFE = {
    ("cleanup", "always_bcc"): _COPIES,
    ("cleanup", "sender_bcc_maps"): _COPIES,
    ("cleanup", "recipient_bcc_maps"): _COPIES,
    **{(command, "soft_bounce"): "mail would be returned that is to wait" for command in (*DELIVER, "bounce", "qmgr")},
}


def check_master(config: Config, places: Sequence[Place]) -> Iterator[Problem]:
    """places: where the inet services listen."""
    listening = {origin for _, _, origin in places}
    for service in config.services:
        yield from _nobody(service, listening)
        try:
            yield from _overrides(config, service)
        except ValueError as error:  # a macro of its own, used by main.cf
            yield _at(service, str(error), fatal=True)
    yield from _transports(config)


def _nobody(service: Service, listening: set[str]) -> Iterator[Problem]:
    """A service that does nothing."""
    if service.type != "inet":
        if service.command not in (*_POSTFIX, *_REFUSED):
            yield _at(service, f"unknown command {service.command}: this service would do nothing")
    elif service.command == "smtpd":
        if service.origin not in listening:
            yield _at(service, "listens nowhere: inet_interfaces and inet_protocols leave no address for it")
    elif service.command not in _REFUSED:
        yield _at(service, f"{service.command} is not honoured as an inet service: nobody would answer on this port")


def _at(service: Service, text: str, *, fatal: bool = False) -> Problem:
    return Problem(service.file, service.line, f"{service.name}/{service.type}: {text}", fatal)


def _transports(config: Config) -> Iterator[Problem]:
    """Transports without a service, and ways of local delivery that are not built."""
    commands = {service.name: service.command for service in config.services if service.type == "unix"}
    for name, domains in _TRANSPORTS:
        if domains and not config.text(domains):
            continue
        value = config.text(name)
        transport = value.partition(":")[0]
        command = commands.get(transport)
        if command in DELIVER:
            continue
        why = "master.cf has no unix service of this name" if command is None else f"{command} is not honoured yet"
        place = domains if domains and not config.is_set(name) else name
        yield problem_at(config, place, f"{name} = {value}: {why}; its mail would wait, and be returned", fatal=False)
    for name in _NOT_BUILT:
        if config.text(name):
            text = f"{name} = {config.text(name)}: not honoured yet; mail for it would wait, and be returned"
            yield problem_at(config, name, text, fatal=False)


def _overrides(config: Config, service: Service) -> Iterator[Problem]:
    """Settings of -o that change nothing of what the service reads."""
    if service.command not in _POSTFIX or (service.type == "inet") != (service.command == "smtpd"):
        return
    if service.command in ("pipe", "spawn", "virtual"):
        return  # nothing of it is honoured
    own = config.for_service(service)
    read = (*_FURTHER.get(service.command, ()), *_names(service.command), *own.restriction_classes())
    for name in service.overrides:
        param = find(name)
        if param is None or name in READ_ONLY or (name == "syslog_name" and service.type != "inet"):
            continue
        ignored = param.noop and not name.endswith(NOOP_SUFFIXES)
        if ignored or (not param.honoured and not param.noop) or own.text(name) == config.text(name):
            continue  # of no consequence, or said by mta/config/check.py
        without = _without(config, own, name)
        if any(own.text(each) != without.text(each) for each in read):
            continue
        unsafe = _UNSAFE.get((service.command, name), "") if own.text(name).lower() not in ("", "no") else ""
        shown = f"-o {name}={own.text(name)}: not honoured for this service"
        yield _at(service, f"{shown}, and ignoring it would be less safe: {unsafe}" if unsafe else shown,
                  fatal=bool(unsafe))  # fmt: skip


def _names(command: str) -> list[str]:
    return [field.name for settings in _SETTINGS.get(command, ()) for field in fields(settings)]


def _without(config: Config, own: Config, name: str) -> Config:
    """The settings of a service but for one of its own."""
    settings = {n: s for n, s in own.settings().items() if n != name}
    settings |= {n: s for n, s in config.settings().items() if n == name}
    return Config(config.directory, settings, config.services, config.host, service=own.service)
