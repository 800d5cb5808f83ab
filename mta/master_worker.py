"""An smtpd worker process: accepts, talks SMTP, commits into the shared spool, announces each message.

It owns nothing of the queue: it only drafts and commits.  Counters of clients are the scheduler's, over the
link, unless it is the only worker.  SIGTERM: stop listening, let transactions end, leave.  SIGHUP, a successor
listens already: stop listening, let clients go when they like (for LEAVE seconds), then as SIGTERM.  The same
after smtpd_processes_max_idle seconds without a client: it is forked again when the next one knocks
(mta/master_demand.py).
"""

import asyncio
import os

from mta.clock import Clock
from mta.config.config import Config
from mta.master_build import build_anvil, build_core
from mta.master_notify import Notify
from mta.master_process import Parent
from mta.master_scheduler import DRAIN, Running, Sockets, listen_smtp, on_rotate, run_loop
from mta.master_watchdog import guard
from mta.worker_link_client import LinkClient

LEAVE = 300.0  # seconds a session may go on after a reload, with the old settings
LOOK = 0.2


def run_worker(config: Config, sockets: Sockets, parent: Parent) -> int:
    """The process's whole life; returns its exit status."""
    leave = asyncio.Event()

    def hang_up() -> bool:
        leave.set()
        return False

    return run_loop(lambda stop: _serve(config, sockets, parent, stop, leave), hang_up)


async def _serve(
    config: Config, sockets: Sockets, parent: Parent, stop: asyncio.Event, leave: asyncio.Event
) -> int:
    core = build_core(config, owner=False)
    on_rotate(core)
    path = os.path.join(config.text("queue_directory"), "private", "qmgr")
    link = LinkClient(path, core.clock, core.log)
    core.store.arrived = link.arrived
    running = Running()
    running.tasks.append(asyncio.get_running_loop().create_task(link.run()))
    notify = Notify(os.environ)
    if notify.watchdog:
        running.tasks.append(asyncio.get_running_loop().create_task(guard(notify, core.clock)))
    alone = config.integer("smtpd_processes") == 1  # then its clients are all clients
    await listen_smtp(running, core, build_anvil(core) if alone else link, sockets)
    parent.serving()
    idle = _leave_when_idle(running, leave, config.seconds("smtpd_processes_max_idle"), core.clock)
    running.tasks.append(asyncio.get_running_loop().create_task(idle))
    await _either(stop, leave)
    await running.stop_listening()
    parent.leaving()
    link.leaving()
    latest = core.clock.monotonic() + LEAVE
    while running.session_count() and not stop.is_set() and core.clock.monotonic() < latest:
        await core.clock.sleep(LOOK)
    await running.drain_sessions(DRAIN)
    await link.settled(DRAIN)
    await running.cancel()
    await core.close()
    return 0


async def _leave_when_idle(running: Running, leave: asyncio.Event, limit: float, clock: Clock) -> None:
    """Set `leave` when no client was seen for `limit` seconds."""
    since = clock.monotonic()
    while clock.monotonic() - since < limit:
        await clock.sleep(limit / 10)
        if running.session_count():
            since = clock.monotonic()
    leave.set()


async def _either(*events: asyncio.Event) -> None:
    """Wait for one of them."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
