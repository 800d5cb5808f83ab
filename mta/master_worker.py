"""An smtpd worker process: accepts, talks SMTP, commits into the shared spool, announces each message.

It owns nothing of the queue: it only drafts and commits.  Counters of clients are the scheduler's, over the
link.  SIGTERM: stop listening, let transactions end, leave.
"""

import asyncio
import os
import signal

from mta.config.config import Config
from mta.master_build import build_core
from mta.master_scheduler import DRAIN, Running, Sockets, listen_smtp, run_loop
from mta.worker_link import LinkClient


def run_worker(config: Config, sockets: Sockets) -> int:
    """The process's whole life; returns its exit status."""
    return run_loop(lambda stop: _serve(config, sockets, stop))


async def _serve(config: Config, sockets: Sockets, stop: asyncio.Event) -> int:
    core = build_core(config, owner=False)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, core.log.reopen)
    path = os.path.join(config.text("queue_directory"), "private", "qmgr")
    link = LinkClient(path, core.clock, core.log)
    core.store.arrived = link.arrived
    running = Running()
    running.tasks.append(asyncio.get_running_loop().create_task(link.run()))
    await listen_smtp(running, core, link, sockets)
    await stop.wait()
    await running.stop_listening()
    await running.drain_sessions(DRAIN)
    await link.settled(DRAIN)
    await running.cancel()
    await core.close()
    return 0
