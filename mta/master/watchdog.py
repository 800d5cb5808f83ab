"""Two watchdogs for three kinds of process, fed from the event loop: a loop that stands still feeds nobody.

- The scheduler feeds systemd's (WatchdogSec of mta.service), which ends and restarts the whole service; mta-local
  feeds that of its own unit.
- A worker sets the kernel's alarm clock again and again.  When it rings the worker dies, the first process forks
  another, and only its own clients are lost.  It is set only where systemd watches the scheduler.

See also: sd_watchdog_enabled(3), alarm(2), mta/master/process.py
"""

import math
import signal

from mta.clock import Clock
from mta.master.notify import Notify

OFTEN = 4  # times per period


async def feed(notify: Notify, clock: Clock) -> None:
    """Tell systemd that the loop turns."""
    while True:
        notify.send("WATCHDOG=1")
        await clock.sleep(notify.watchdog / OFTEN)


async def guard(notify: Notify, clock: Clock) -> None:
    """Let the kernel end this process when its loop has not turned for systemd's period."""
    try:
        while True:
            signal.alarm(math.ceil(notify.watchdog))
            await clock.sleep(notify.watchdog / OFTEN)
    finally:
        signal.alarm(0)
