"""The daemon's side of mta-local: one connection per recipient, a descriptor with the request, one answer.

Connections are made to a socket (systemd holds it open) or, where we forked mta-local ourselves, are handed to
it through a channel that survives any number of forks of the daemon.

Whatever goes wrong is temporary: the recipient waits.

See also: mta/local_helper.py, mta/deliver/local_wire.py
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from mta.clock import Clock
from mta.deadlines import Deadlines
from mta.deliver.local_wire import ANSWER_LIMIT, Answer, Ask, WireError, decode_answer, encode_ask
from mta.smtp.reply import Reply

GRACE = 60.0  # seconds more than mta-local has
UNAVAILABLE = Reply(451, "4.3.0", "local delivery is not available, will try again")


class HelperConnection:
    """Implements Backend of mta/deliver/local.py."""

    def __init__(self, connect: Callable[[], socket.socket], clock: Clock, time_limit: float) -> None:
        """connect: makes a connection without waiting; OSError.  time_limit: command_time_limit, seconds."""
        self._connect, self._deadlines, self._limit = connect, Deadlines(clock), time_limit + GRACE

    async def deliver(self, ask: Ask, content: int) -> Answer:
        """See Backend."""
        try:
            sock = self._connect()
        except OSError:
            return Answer(UNAVAILABLE)
        with sock:
            try:
                sock.setblocking(False)
                line = encode_ask(ask)
                if socket.send_fds(sock, [line], [content]) != len(line):
                    return Answer(UNAVAILABLE)
                async with self._deadlines.timeout(self._limit):
                    return decode_answer(await _read(sock))
            except WireError as error:
                return Answer(Reply(451, "4.3.0", f"local delivery: {error}"))
            except (OSError, TimeoutError):
                return Answer(UNAVAILABLE)

    async def close(self) -> None:
        """Nothing is kept."""


async def _read(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    pieces, size, ended = [], 0, False
    while not ended:
        piece = await loop.sock_recv(sock, 65536)
        pieces.append(piece)
        size += len(piece)
        ended = piece.endswith(b"\n")
        if not piece or size > ANSWER_LIMIT:
            raise WireError("no answer")
    return b"".join(pieces)


def to_socket(path: str) -> Callable[[], socket.socket]:
    """Connections to a listening unix socket."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock

    return connect


def through_channel(channel: socket.socket) -> Callable[[], socket.socket]:
    """Connections to the mta-local at the other end of a channel; see fork_helper."""
    channel.setblocking(False)

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(channel, [b"\n"], [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    return connect


def fork_helper(run: Callable[[socket.socket], int], in_child: Callable[[], None]) -> socket.socket:
    """Fork mta-local, as root, before root is given up; return our end of the channel.

    Only for a process without loop and threads.  in_child: called first (die with the parent).  run: serves the
    channel and returns the exit status.  The child keeps no other descriptor of ours: no port, no lock.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return ours
    status = 70
    with contextlib.suppress(BaseException):
        in_child()
        keep = theirs.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        status = run(theirs)
    os._exit(status)
