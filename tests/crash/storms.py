"""Signals under load: stops, starts and storms of reloads while ten senders run:

    python -m tests.crash.storms [--restarts 50] [--seed N]

Nobody is killed: a client in the middle of a message hears its answer, 421, or nothing and sends again; every
promise is kept, and no copy is there twice.
"""

import contextlib
import random
import signal
import sys
import time
from pathlib import Path

from tests.crash.system import System
from tests.crash.under_load import Outcome, UnderLoad, main, run_under_load

HUPS = 12  # in one storm


def run(directory: Path, restarts: int, seed: int) -> Outcome:
    """Stop and start so many times, with a storm of SIGHUPs before each stop; directory must be empty."""
    rng = random.Random(seed)

    def restart(load: UnderLoad) -> None:
        time.sleep(rng.uniform(0.02, 0.4))
        _storm(load.system, rng)
        load.busy_moment()
        if (status := load.system.stop()) != 0:
            load.wrong.append(f"a stop ended with {status}")
        load.system.start()

    return run_under_load(directory, restarts, restart)


def _storm(system: System, rng: random.Random) -> None:
    """SIGHUPs faster than a reload is done."""
    for _ in range(rng.randrange(HUPS)):
        if system.process is not None:
            with contextlib.suppress(ProcessLookupError):
                system.process.send_signal(signal.SIGHUP)
        time.sleep(rng.uniform(0.0, 0.05))


if __name__ == "__main__":
    sys.exit(main(__doc__, "restarts", 50, run))
