"""Troubles that a start of the warm parent may have (World.trouble): a message that kills its handler, a slow disk."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import mta.qmgr.qmgr
from mta.deliver.request import DeliveryRequest
from mta.deliver.smtp import SmtpAgent
from mta.fsio.linux_aio import Done, LinuxAio

POISON = "poison@sink.test"  # sender of messages that no handler survives
SLOW = 0.5  # seconds that each flush takes longer


def poison() -> None:
    """The process that delivers such a message dies, as of a bug in C; suspects are tried after 0.1 s, not 10."""
    deliver = SmtpAgent.deliver

    async def dying(self: SmtpAgent, request: DeliveryRequest) -> None:
        if request.envelope.sender == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        await deliver(self, request)

    SmtpAgent.deliver = dying  # type: ignore[method-assign]
    mta.qmgr.qmgr.SUSPECT_DELAY = 0.1


def slow_disk() -> None:
    """Each flush is done half a second late, whoever asked for it."""
    submit, fsync = LinuxAio.submit, os.fsync

    def late(self: LinuxAio, fds: Sequence[int], op: int, done: Done) -> None:
        def tell(results: list[OSError | None]) -> None:
            asyncio.get_running_loop().call_later(SLOW, done, results)

        submit(self, fds, op, tell)

    def slow_fsync(fd: int) -> None:
        time.sleep(SLOW)
        fsync(fd)

    LinuxAio.submit = late  # type: ignore[method-assign]
    os.fsync = slow_fsync  # type: ignore[assignment]


TROUBLES = {"poison": poison, "slow-disk": slow_disk}
