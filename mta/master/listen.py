"""Which sockets this configuration asks for: at start all of them, at a reload what has changed.

See also: mta/master/sockets.py (how each is opened), master(5)
"""

import os
import socket
from collections.abc import Callable, Sequence

from mta.config.config import Config, Problem
from mta.maillog.maillog import Maillog
from mta.master.scheduler import Sockets
from mta.master.sockets import (
    Address,
    SocketProblemError,
    address_of,
    close_unix,
    has_ipv6,
    listen_tcp,
    listen_unix,
    wanted_addresses,
)

PUBLIC = ("submit", "showq", "flush", "pickup")
"""Sockets anybody may connect to."""
Place = tuple[str, Address, str]
"""Name of the master.cf service, address, "file:line" of the service."""


def tcp_services(config: Config) -> tuple[list[Place], list[Problem]]:
    """Every address that an inet smtpd service of master.cf asks for, and what is wrong with the others."""
    interfaces = config.words("inet_interfaces")
    protocols = config.words("inet_protocols")
    if "all" in protocols and not has_ipv6():
        protocols = ("ipv4",)
    found: dict[Address, Place] = {}
    problems = []
    for service in config.services:
        if service.type != "inet" or service.command != "smtpd":
            continue
        try:
            addresses = wanted_addresses(service.name, interfaces, protocols)
        except SocketProblemError as problem:
            problems.append(Problem(service.file, service.line, str(problem), True))
            continue
        for address in addresses:
            if address in found:
                text = f"{service.name}: {address} is already used by the service of {found[address][2]}"
                problems.append(Problem(service.file, service.line, text, True))
            else:
                found[address] = (service.name, address, f"{service.file}:{service.line}")
    return list(found.values()), problems


def open_sockets(
    config: Config, given: Sequence[socket.socket], log: Maillog, stored: Callable[[socket.socket], bool]
) -> Sockets:
    """Take the inherited sockets that are wanted, close the others, open what is missing; SocketProblemError.

    stored: a predecessor opened it, not a socket unit.  When nobody wants it, it has to give way before its port is
    opened at another address: it still listens in the manager's store.
    """
    by_address = {address_of(s): s for s in given}
    spool = config.text("queue_directory")
    paths = {name: os.path.join(spool, "public", name) for name in PUBLIC}
    paths["submit"] = config.text("submit_socket")
    paths["qmgr"] = os.path.join(spool, "private", "qmgr")
    tcp: list[tuple[str, socket.socket]] = []
    unix: dict[str, socket.socket] = {}
    places = tcp_services(config)[0]
    for left in by_address.keys() - {address for _, address, _ in places} - set(paths.values()):
        with by_address.pop(left) as sock:
            if stored(sock):
                log.warning("master", f"no longer listening on {left}")
                sock.shutdown(socket.SHUT_RDWR)
            else:
                log.write("master", f"error: inherited socket {left} is not in inet_interfaces and master.cf: closed")
    inherited = set(by_address)
    try:
        for service, address, where in places:
            sock = by_address.pop(address) if address in by_address else _listen(address, where)
            tcp.append((service, sock))
        for name, path in paths.items():
            mode = 0o600 if name == "qmgr" else 0o666
            unix[name] = by_address.pop(path) if path in by_address else listen_unix(path, mode)
    except SocketProblemError:
        for _, sock in tcp:
            sock.close()
        for sock in unix.values():
            close_unix(sock, remove=address_of(sock) not in inherited)
        raise
    ours = {name for name, path in paths.items() if path not in inherited}
    return Sockets(tcp, unix, frozenset(ours))


def _listen(address: Address, where: str) -> socket.socket:
    try:
        return listen_tcp(address)
    except SocketProblemError as problem:
        raise SocketProblemError(f"{where}: {problem}") from None


def _port(sock: socket.socket) -> tuple[int, int]:
    """Version of IP and port of a TCP listener."""
    return (6 if sock.family == socket.AF_INET6 else 4), int(sock.getsockname()[1])


def refreshed(old: Sockets, config: Config, log: Maillog) -> Sockets:
    """The sockets after a reload: those in use stay open, new addresses are opened if our rights suffice.

    An address that cannot be opened is logged and left out.  Where it would be the only one of a port, those that were
    the port's stay: a port below 1024, or one that is open at another address, needs a new start.
    """
    by_address = {address_of(sock): sock for _, sock in old.tcp}
    tcp, missing = [], dict[tuple[int, int], str]()
    for service, address, where in tcp_services(config)[0]:
        try:
            sock = by_address.pop(address) if address in by_address else _listen(address, where)
        except SocketProblemError as problem:
            log.warning("master", f"{problem}; not listening there, try stop and start")
            missing[address.version, address.port] = service
            continue
        tcp.append((service, sock))
    served = {_port(sock) for _, sock in tcp}
    for left, sock in by_address.items():
        if _port(sock) in missing.keys() - served:
            log.warning("master", f"still listening on {left}, until stop and start")
            tcp.append((missing[_port(sock)], sock))
            continue
        log.warning("master", f"no longer listening on {left}")
        sock.close()
    return Sockets(tcp, old.unix, old.ours)
