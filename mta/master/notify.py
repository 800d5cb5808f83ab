"""Telling systemd how we are: READY=1, STOPPING=1, WATCHDOG=1, FDSTORE=1 (sd_notify(3)), without its library."""

import contextlib
import socket
from collections.abc import Iterable, Mapping, Sequence

from mta.master.sockets import address_of

_MARK = "listen-"

class Notify:
    """Datagrams to $NOTIFY_SOCKET; without one every method does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1_000_000 if usec.isascii() and usec.isdigit() else 0.0
        """Seconds within which systemd wants a WATCHDOG=1, 0 = it does not watch."""

    def send(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send "READY=1" and the like; a missing receiver is no error."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(self._address)
            socket.send_fds(sock, [state.encode()], list(fds))

    @property
    def active(self) -> bool:
        """True under systemd with Type=notify."""
        return bool(self._address)


class Keeper:
    """Leaves the TCP listeners that we opened ourselves with systemd, so that a restart loses nobody who waits there.

    Those of socket units stay with systemd anyway.  State: names of what systemd's store holds for us; units: the
    addresses that socket units hold.  A listener's name is made of its address, which is unique.
    """

    def __init__(self, notify: Notify, environ: Mapping[str, str], given: Iterable[socket.socket]) -> None:
        """given: what sd_listen_fds(3) gave, before anything of it is closed."""
        self._notify = notify
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        self._stored = {name for name in names if name.startswith(_MARK)}
        self._units = {address_of(sock) for sock in given if _name(sock) not in self._stored}

    def stored(self, sock: socket.socket) -> bool:
        """Does the store hold this listener for us?"""
        return _name(sock) in self._stored

    def hold(self, sockets: Iterable[socket.socket]) -> None:
        """Make the store agree with the TCP listeners as they are now."""
        ours = {_name(sock): sock for sock in sockets if address_of(sock) not in self._units}
        for name in ours.keys() - self._stored:
            self._notify.send(f"FDSTORE=1\nFDNAME={name}", [ours[name].fileno()])
        for name in self._stored - ours.keys():
            self._notify.send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._stored = set(ours)


def _name(sock: socket.socket) -> str:
    """FDNAME of a listener: no ":", which separates names in LISTEN_FDNAMES."""
    return f"{_MARK}{address_of(sock)}".replace(":", "_")
