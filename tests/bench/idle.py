"""Memory: of an idle mail system, and of one that holds a thousand connections that say nothing."""

import contextlib
import socket
import time

from tests.bench.lab import Lab
from tests.bench.run import Figures
from tests.bench.systems import System

CONNECTIONS, FIRST = 1000, 100
PAUSE = 2.0  # seconds until nothing moves


def connect(port: int) -> socket.socket:
    """One client after its EHLO."""
    sock = socket.create_connection(("127.0.0.1", port), 60)
    assert sock.recv(512).startswith(b"220 ")
    sock.sendall(b"EHLO src.test\r\n")
    reply = b""
    while b"250 " not in reply:
        piece = sock.recv(4096)
        assert piece, reply
        reply += piece
    return sock


def idle(lab: Lab, system: System) -> Figures:
    """MB before any client came (idle_mb) and with all connections (memory_mb), KiB per connection.

    FIRST connections come before, and all but one go: what a process fills at its first client is no connection's, and
    neither is the process that takes it.
    """
    time.sleep(PAUSE)
    empty = system.group.pss()
    with connect(system.port), contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as first:
            for _ in range(FIRST - 1):
                first.enter_context(connect(system.port))
        time.sleep(PAUSE)
        before = system.group.pss()
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(system.port))
        time.sleep(PAUSE)
        full = system.group.pss()
        processes = len(system.group.processes())
    return {
        "idle_mb": empty / 1024,
        "memory_mb": full / 1024,
        "connection_kib": (full - before) / CONNECTIONS,
        "processes": processes,
    }
