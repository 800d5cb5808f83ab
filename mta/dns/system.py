"""What this machine's own files say about names: resolv.conf and hosts, re-read when they change.

Both are small local files, so they are read in place; whether they changed is looked at once per second at most.
A file that is missing counts as empty.  One that cannot be read (no descriptor, a disk error) is what it was, and as
long as it never was anything, nobody knows what it says.

See also: resolv.conf(5), hosts(5)
"""

import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mta.clock import Clock
from mta.config.param import parse_server as parse_server  # where dns_servers is checked
from mta.record import dataclass

MAX_FILE = 1 << 20  # octets; more is not looked at
CHECK_EVERY = 1.0  # seconds
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Servers:
    """Name servers in order; seconds per try and rounds over all of them (options timeout:, attempts:)."""

    addresses: tuple[tuple[str, int], ...]
    seconds: float = 5.0
    attempts: int = 2


@dataclass(frozen=True, slots=True)
class Hosts:
    """addresses by name in lower case; name by address: the first name of its first line."""

    addresses: dict[str, tuple[str, ...]]
    names: dict[str, str]


class WatchedFile(Generic[T]):
    """The parsed content of a file, as it is now."""

    def __init__(self, path: str, clock: Clock, parse: Callable[[str], T]) -> None:
        self._path, self._clock, self._parse = path, clock, parse
        self._stamp: tuple[int, int, int] | None = None
        self._next = float("-inf")
        self._value: T | None = None

    def get(self) -> T:
        """Return the parsed file; another stat at most once per second.  OSError: it cannot be read, and never was."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + CHECK_EVERY
            with contextlib.suppress(OSError):
                self._look()
        if self._value is None:
            raise OSError(f"{self._path} cannot be read")
        return self._value

    def _look(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._value = self._parse(file.read(MAX_FILE))
                self._stamp = stamp
        except FileNotFoundError:
            self._stamp, self._value = None, self._parse("")


def parse_resolv_conf(text: str) -> Servers:
    """nameserver, options timeout: and attempts:; without any nameserver 127.0.0.1, as libc does."""
    servers: list[tuple[str, int]] = []
    numbers = {"timeout": 5, "attempts": 2}
    for words in _lines(text):
        if words[0] == "nameserver" and len(words) > 1 and len(servers) < 3:
            if is_address(words[1].partition("%")[0]):
                servers.append((words[1], 53))
        elif words[0] == "options":
            for option in words[1:]:
                name, _, value = option.partition(":")
                if name in numbers and value.isascii() and value.isdigit():
                    numbers[name] = max(1, min(30, int(value)))
    return Servers(tuple(servers) or (("127.0.0.1", 53),), float(numbers["timeout"]), min(5, numbers["attempts"]))


def parse_hosts(text: str) -> Hosts:
    """Lines "address name alias..."; a line whose address is none is skipped."""
    addresses: dict[str, tuple[str, ...]] = {}
    names: dict[str, str] = {}
    for words in _lines(text):
        if len(words) < 2 or not is_address(words[0]):
            continue
        address = str(ipaddress.ip_address(words[0]))
        names.setdefault(address, words[1])
        for name in words[1:]:
            known = addresses.get(name.lower(), ())
            if address not in known:
                addresses[name.lower()] = (*known, address)
    return Hosts(addresses, names)


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.partition("#")[0].partition(";")[0].split()
        if words:
            yield words


def is_address(text: str) -> bool:
    """True for an IPv4 or IPv6 address in any spelling."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def same_address(one: str, other: str) -> bool:
    """Compare two addresses, not their spellings."""
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False
