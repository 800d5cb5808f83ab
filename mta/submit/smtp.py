"""`sendmail -bs`: the SMTP dialogue of the network, on the submit socket, for a local user.

The connection is handed to an SMTP server's own connection object; what comes through it is local mail, so its
headers are completed, and the user is logged.

See also: mta/submit/submit.py (mode s), mta/smtpd/server.py
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from mta.envelope import Envelope, Origin
from mta.smtpd.ports import Cleanup, Intake

_Protocol = asyncio.Protocol | asyncio.BufferedProtocol


class LocalDoor:
    """A Cleanup whose mail is local, whatever address its client seems to have."""

    def __init__(self, cleanup: Cleanup) -> None:
        self._cleanup = cleanup

    async def open(
        self,
        origin: Origin,
        envelope: Envelope,
        *,
        hold: bool = False,
        prepend: tuple[str, ...] = (),
        size_hint: int = 0,
    ) -> Intake:
        """See mta.smtpd.ports.Cleanup."""
        local = replace(origin, rewrite_local=True, client_name="localhost", client_address="127.0.0.1")
        return await self._cleanup.open(local, envelope, hold=hold, prepend=prepend, size_hint=size_hint)


class Server(Protocol):
    """The part of mta.smtpd.server.SMTPServer that is needed."""

    def factory(self, ended: Callable[[], None]) -> _Protocol:
        """The protocol of one connection; ended: called when that is gone."""


class SmtpOnStdin:
    """Give `serve` to SubmitServer.

    make: makes an SMTPServer with LocalDoor and a policy that permits; called for the first user, because most
    systems never have one, and it costs a megabyte.
    """

    def __init__(self, make: Callable[[], Server]) -> None:
        self._make = make
        self._server: Server | None = None

    async def serve(self, transport: asyncio.Transport, uid: int, ended: Callable[[], None]) -> None:
        """Hand the connection, which is not being read, over and return: from here on the SMTP server owns it.

        ended: called once when it is gone; not after an exception.

        In a turn of the loop of its own, as for a connection from the network: the server takes the short way only
        when it is not called from a task.
        """
        if self._server is None:
            try:
                self._server = self._make()
            except BaseException:
                transport.abort()
                raise
        asyncio.get_running_loop().call_soon(self._hand_over, self._server, transport, ended)

    @staticmethod
    def _hand_over(server: Server, transport: asyncio.Transport, ended: Callable[[], None]) -> None:
        if transport.is_closing():  # the user has gone: its end would be told to nobody
            ended()
            return
        protocol = server.factory(ended)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if not transport.is_closing():
            transport.resume_reading()
