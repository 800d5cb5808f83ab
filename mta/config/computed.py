"""Defaults that depend on the machine or on other parameters: names, networks, own addresses.

    myhostname  gethostname(2), completed with $mydomain when it has no dot
    mydomain    $myhostname without its first label; localdomain when it has none
    myorigin    a value that begins with / is a file: its first line
    disable_dns_lookups  follows smtp_dns_support_level where that is set
    mynetworks  by mynetworks_style from the addresses that inet_interfaces and inet_protocols leave

See also: postconf(5) under these names
"""

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Protocol

from mta.config.host import HostFacts, Interface
from mta.config.macro import MacroError
from mta.config.main_cf import decode
from mta.config.master_cf import Service
from mta.config.param import split

LOCALDOMAIN = "localdomain"


class Source(Protocol):
    """What is needed of a Config."""

    host: HostFacts

    @property
    def service(self) -> Service | None:
        """The service it is for."""

    def is_set(self, name: str) -> bool:
        """True when main.cf sets it."""

    def raw(self, name: str) -> str | None:
        """Text before expansion."""

    def text(self, name: str) -> str:
        """Expanded text."""


def compute(config: Source, name: str) -> str | None:
    """The value of a parameter that is not simply its text; None: it is."""
    if name == "myorigin":
        return _origin(config)
    if name == "disable_dns_lookups" and (level := config.text("smtp_dns_support_level").lower()):
        return "yes" if level == "disabled" else "no"  # the old parameter counts only when the new one is empty
    match name:
        case "process_name":
            return config.service.command if config.service else "master"
        case "service_name":
            return config.service.name if config.service else ""
        case "process_id":
            return ""
    if config.is_set(name):
        return None
    match name:
        case "myhostname":
            return _hostname(config)
        case "mydomain":
            host = config.text("myhostname") if config.is_set("myhostname") else config.host.hostname
            return host.partition(".")[2] or LOCALDOMAIN
        case "mynetworks":
            return " ".join(_networks(config))
        case "smtpd_processes":
            return str(config.host.processors)
    return None


def _hostname(config: Source) -> str:
    name = config.host.hostname
    if "." in name:
        return name
    return f"{name}.{config.text('mydomain') if config.is_set('mydomain') else LOCALDOMAIN}"


def _origin(config: Source) -> str | None:
    """First line of the file that myorigin names; None when it names none."""
    raw = config.raw("myorigin") or ""
    if not raw.startswith("/"):
        return None
    try:
        with open(raw, "rb") as file:
            first = decode(file.readline(4096)).strip()
    except OSError as error:
        raise MacroError(f"{raw}: {error.strerror}") from None
    if not first:
        raise MacroError(f"{raw}: the first line is empty")
    return first


def listening(config: Source) -> list[Interface]:
    """Own addresses that mail is received on, by inet_interfaces and inet_protocols, in the kernel's order."""
    protocols = {p.lower() for p in split(config.text("inet_protocols"))}
    wanted = set()
    versions = {v for v in (4, 6) if "all" in protocols or f"ipv{v}" in protocols}
    for word in split(config.text("inet_interfaces")):
        match word.lower():
            case "all":
                wanted |= {i.ip for i in config.host.interfaces}
            case "loopback-only":
                wanted |= {i.ip for i in config.host.interfaces if i.ip.is_loopback}
            case folded:
                wanted |= set(config.host.addresses(folded))
    return [i for i in config.host.interfaces if i.ip in wanted and i.version in versions]


def own_addresses(config: Source) -> tuple[str, ...]:
    """Addresses of listening() and proxy_interfaces, canonical text, each once."""
    proxies = [a for word in split(config.text("proxy_interfaces")) for a in config.host.addresses(word.lower())]
    return tuple(dict.fromkeys(str(a) for a in (*(i.ip for i in listening(config)), *proxies)))


def _networks(config: Source) -> list[str]:
    style = config.text("mynetworks_style").lower()
    found = []
    for interface in listening(config):
        if style == "host":
            network = ip_network(interface.ip)
        elif style == "class" and interface.version == 4:
            network = ip_network((interface.ip, _class_prefix(int(interface.ip))), strict=False)
        else:
            network = interface.network
        found.append(str(network) if isinstance(network, IPv4Network) else
                     f"[{network.network_address}]/{network.prefixlen}")  # fmt: skip
    return list(dict.fromkeys(found))


def _class_prefix(address: int) -> int:
    """Prefix of the class A, B, C or D network of an IPv4 address."""
    first = address >> 24
    return 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32


def is_address(text: str) -> bool:
    """True for an IPv4 or IPv6 address, with or without brackets."""
    try:
        ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
