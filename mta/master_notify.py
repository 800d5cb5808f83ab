"""Telling systemd how we are: READY=1, STOPPING=1, WATCHDOG=1 (sd_notify(3)), without its library."""

import contextlib
import socket
from collections.abc import Mapping


class Notify:
    """Datagrams to $NOTIFY_SOCKET; without one every method does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 2_000_000 if usec.isascii() and usec.isdigit() else 0.0
        """Seconds between WATCHDOG=1 messages, 0 = systemd does not watch."""

    def send(self, state: str) -> None:
        """Send "READY=1" and the like; a missing receiver is no error."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), self._address)

    @property
    def active(self) -> bool:
        """True under systemd with Type=notify."""
        return bool(self._address)
