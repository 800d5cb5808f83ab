"""Facts of the machine that defaults are computed from: host name, addresses with their networks, processors.

The only reader of the operating system in the configuration; everything else takes a HostFacts, so that tests
and `main.cf.default` do not depend on the machine.

See also: getifaddrs(3)
"""

import ctypes
import os
import socket
from collections.abc import Mapping
from dataclasses import field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

from mta.record import dataclass

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address
LOOPBACK: tuple[Interface, ...] = (IPv4Interface("127.0.0.1/8"), IPv6Interface("::1/128"))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """hostname: as gethostname(2) says.  interfaces: own addresses with prefix, in the kernel's order, IPv4
    first.  processors: that we may use.  names: addresses by name in lower case, from /etc/hosts."""

    hostname: str = "localhost"
    interfaces: tuple[Interface, ...] = LOOPBACK
    processors: int = 1
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Of an address, with or without brackets, or of a name in /etc/hosts or our own; () when unknown."""
        try:
            return (ip_address(name.removeprefix("[").removesuffix("]")),)
        except ValueError:
            return self.names.get(name, ())


def read_host() -> HostFacts:
    """The facts of this machine, now."""
    return HostFacts(socket.gethostname(), _interfaces(), len(os.sched_getaffinity(0)), _hosts("/etc/hosts"))


def _hosts(file: str) -> dict[str, tuple[Address, ...]]:
    """The names of a hosts(5) file; what is malformed or cannot be read is left out."""
    found: dict[str, tuple[Address, ...]] = {}
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                address, *names = line.partition("#")[0].split() or [""]
                try:
                    parsed = ip_address(address)
                except ValueError:
                    continue
                for name in names:
                    found[name.lower()] = (*found.get(name.lower(), ()), parsed)
    except OSError:
        return found
    return found


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
)
_OFFSET = {socket.AF_INET: (2, 4), socket.AF_INET6: (6, 16)}  # of the address in sockaddr_in(6), and its length
_IFF_UP = 1


def _interfaces() -> tuple[Interface, ...]:
    """Addresses of all interfaces that are up; the loopback addresses alone when they cannot be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        return LOOPBACK
    found: list[Interface] = []
    try:
        item = head
        while item:
            entry = item.contents
            if entry.address and entry.flags & _IFF_UP and entry.address.contents.family in _OFFSET:
                found.append(_interface(entry))
            item = entry.next
    finally:
        libc.freeifaddrs(head)
    found.sort(key=lambda interface: interface.version)  # stable: the kernel's order within a family
    return tuple(dict.fromkeys(found)) or LOOPBACK


def _interface(entry: _IfAddrs) -> Interface:
    start, length = _OFFSET[entry.address.contents.family]
    address = bytes(entry.address.contents.data)[start : start + length]
    prefix = 8 * length
    if entry.netmask:
        mask = bytes(entry.netmask.contents.data)[start : start + length]
        prefix = sum(b.bit_count() for b in mask)
    family = entry.address.contents.family
    return ip_interface(f"{socket.inet_ntop(family, address)}/{prefix}")
