"""An smtpd worker process: accepts, talks SMTP, commits into the shared spool, announces each message.

It owns nothing of the queue: it only drafts and commits.  SIGTERM: stop listening, let transactions end, leave.
SIGHUP, a successor listens already: stop listening, let clients go when they like (for LEAVE seconds), then as SIGTERM.

How many there are, up to smtpd_processes: the first is forked when a client knocks (mta/master/demand.py), and each
with more than CROWD clients, of which some go and others come, calls for a sibling.  One worker with few clients is
quicker than two: all of them share its flushes, and nobody has to ask the scheduler how many connections a client has.
After smtpd_processes_max_idle seconds without a client a worker leaves as after SIGHUP, a sibling of the first already
with fewer than FEW.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine

from mta.clock import Clock
from mta.config.config import Config
from mta.master.build import Kept, build_anvil, build_core, has_rate_limits
from mta.master.notify import Notify
from mta.master.process import Parent
from mta.master.scheduler import DRAIN, Running, Sockets, listen_smtp, on_rotate, run_loop
from mta.master.watchdog import guard
from mta.worker_link_client import LinkClient

CROWD = 40  # connections of one worker: from here on a second processor is worth more than a common flush
FEW = CROWD // 4
TURNOVER = 5  # connections that come, and that go, within LOOK: a sibling gets new ones only, idle ones need none
BUSY = 4  # looks that must have found it so
LEAVE = 300.0  # seconds a session may go on after a reload, with the old settings
LOOK = 0.2


def run_worker(config: Config, sockets: Sockets, kept: Kept, parent: Parent, *, first: bool = True) -> int:
    """The process's whole life; returns its exit status.  first: stays as long as there is any client."""
    leave = asyncio.Event()

    def hang_up() -> bool:
        leave.set()
        return False

    few = 1 if first else FEW
    return run_loop(lambda stop: _serve(config, sockets, kept, parent, stop, leave, few), hang_up)


async def _serve(
    config: Config, sockets: Sockets, kept: Kept, parent: Parent, stop: asyncio.Event, leave: asyncio.Event, few: int
) -> int:
    core = build_core(config, owner=False)
    core.clock.bind()
    on_rotate(core)
    path = os.path.join(config.text("queue_directory"), "private", "qmgr")
    processes = config.integer("smtpd_processes")
    counts = processes == 1 or not has_rate_limits(config)  # what it has counted of rates a sibling is not told
    link = LinkClient(path, core.clock, core.log, build_anvil(core) if counts else None)
    core.store.arrived = link.arrived
    running = Running()
    running.tasks.append(asyncio.get_running_loop().create_task(link.run()))
    notify = Notify(os.environ)
    if notify.watchdog:
        running.tasks.append(asyncio.get_running_loop().create_task(guard(notify, core.clock)))
    await listen_smtp(running, core, link, sockets, kept)
    parent.serving()
    call = parent.call if processes > 1 else _nothing
    looking = _leave_when_idle(running, call, config.seconds("smtpd_processes_max_idle"), few, core.clock)
    running.tasks.append(asyncio.get_running_loop().create_task(_then(looking, leave)))
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


async def _leave_when_idle(
    running: Running, call: Callable[[], None], limit: float, few: int, clock: Clock
) -> None:
    """Return when there have been fewer clients than `few` for `limit` seconds; call for a sibling when crowded."""
    since, came, went, busy = clock.monotonic(), 0, 0, 0
    while clock.monotonic() - since < limit:
        await clock.sleep(min(limit / 10, LOOK))
        clients, before = running.peak(), (came, went)
        came = running.accepted()
        went = came - running.session_count()
        if clients >= few:
            since = clock.monotonic()
        crowded = clients > CROWD and min(came - before[0], went - before[1]) >= TURNOVER
        busy = busy + 1 if crowded else 0
        if busy == BUSY:
            busy = 0
            call()


async def _then(waiting: Coroutine[None, None, None], event: asyncio.Event) -> None:
    await waiting
    event.set()


def _nothing() -> None:
    pass


async def _either(*events: asyncio.Event) -> None:
    """Wait for one of them."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
