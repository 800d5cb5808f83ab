"""The sockets a running MTA holds: TCP listeners named by master.cf, unix sockets named by the queue directory.

They come from systemd (LISTEN_FDS, sd_listen_fds(3)) or are opened here, before privileges are dropped, and are
kept by the first process, so that neither a reload nor a crashed worker loses a connection that waits in a
backlog.  An inherited TCP socket whose address is not configured is closed with an error line: a forgotten
socket unit must not open a port that main.cf does not name.

Failure: an address that cannot be bound ends the start with file:line of its master.cf entry.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from mta.record import dataclass

LISTEN_FDS_START = 3  # sd_listen_fds(3)
BACKLOG = 1024  # clients that wait in the kernel until they are accepted; event loops set another one
AT_ONCE = 4  # of them accepted per turn of asyncio's loop: each needs a descriptor, also to be refused
_PORTS = {"smtp": 25, "submission": 587, "smtps": 465, "submissions": 465, "urd": 465}


class SocketProblemError(Exception):
    """str() is a line for the administrator."""


@dataclass(frozen=True, slots=True)
class Address:
    """One TCP address to listen on; host "0.0.0.0" or "::" for all."""

    host: str
    port: int

    @property
    def version(self) -> int:
        """Of IP: 4 or 6."""
        return 6 if ":" in self.host else 4

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def service_port(name: str) -> int:
    """Port number of "25", "smtp", ...; SocketProblemError when nobody knows it."""
    if name.isascii() and name.isdigit() and len(name) <= 5 and 0 < int(name) < 65536:
        return int(name)
    if name in _PORTS:
        return _PORTS[name]
    try:
        return socket.getservbyname(name, "tcp")
    except OSError:
        raise SocketProblemError(f"unknown service name: {name}") from None


def split_service(name: str) -> tuple[str, str]:
    """Split master.cf's "host:port", "[v6]:port" or "port" into (host or "", port name)."""
    if name.startswith("[") and "]:" in name:
        host, _, port = name[1:].partition("]:")
        return host, port
    host, _, port = name.rpartition(":")
    return host, port


def wanted_addresses(service: str, inet_interfaces: Iterable[str], inet_protocols: Iterable[str]) -> list[Address]:
    """Expand one inet service of master.cf; with a host of its own inet_interfaces does not apply, as in master(5)."""
    host, port_name = split_service(service)
    port = service_port(port_name)
    hosts = [host] if host else list(inet_interfaces)
    protocols = set(inet_protocols)
    families = {4, 6} if "all" in protocols else {4 if p == "ipv4" else 6 for p in protocols}
    found: dict[Address, None] = {}
    for each in hosts:
        for literal in _literals(each):
            if (6 if ":" in literal else 4) in families:
                found[Address(literal, port)] = None
    return list(found)


def _literals(host: str) -> list[str]:
    """Addresses of an inet_interfaces word."""
    if host == "all":
        return ["0.0.0.0", "::"]  # noqa: S104  (the administrator asked for all interfaces)
    if host == "loopback-only":
        return ["127.0.0.1", "::1"]
    with contextlib.suppress(ValueError):
        return [str(ip_address(host.strip("[]")))]
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SocketProblemError(f"inet_interfaces: {host}: {error.strerror}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def listen_tcp(address: Address) -> socket.socket:
    """Open a listener.  proto is named because asyncio sets TCP_NODELAY only on sockets that say they are TCP."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        hint = " (where systemd opens the ports: mta install --sockets)" if error.errno == errno.EACCES else ""
        raise SocketProblemError(f"bind {address}: {error.strerror}{hint}") from None
    return sock


def has_ipv6() -> bool:
    """True when this machine can bind an IPv6 address at all (inet_protocols = all must not fail without)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def listen_unix(path: str, mode: int) -> socket.socket:
    """Open a unix listener at path, replacing a stale one; the path is checked because the kernel cuts at 107 bytes."""
    if len(os.fsencode(path)) > 107:
        raise SocketProblemError(f"{path}: too long for a socket (107 bytes); choose a shorter queue_directory")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SocketProblemError(f"{path}: exists and is not a socket")
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise SocketProblemError(f"{path}: {error.strerror}") from None
    except SocketProblemError:
        sock.close()
        raise
    return sock


def close_unix(sock: socket.socket, *, remove: bool) -> None:
    """Close a unix listener; remove: its name in the file system too."""
    path = sock.getsockname()
    sock.close()
    if remove:
        with contextlib.suppress(OSError):
            os.unlink(path)


def inherited(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """Listening sockets that systemd handed to this process, [] without systemd; other descriptors are closed."""
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    sockets = []
    for fd in range(LISTEN_FDS_START, LISTEN_FDS_START + int(environ["LISTEN_FDS"])):
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket, or nothing at all
            with contextlib.suppress(OSError):
                os.close(fd)
            continue
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if sock.family not in families or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            continue
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def address_of(sock: socket.socket) -> Address | str:
    """Where a listener listens: an Address, or the path of a unix socket."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(name)
    host, port = name[0], name[1]
    return Address(str(host), int(port))
