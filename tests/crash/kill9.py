"""kill -9 at random moments while ten senders run: python -m tests.crash.kill9 [--kills 100] [--seed N]

At random moments every process of the MTA is killed and started again.  In the end it may work until the queue is
empty; the ledger judges.
"""

import random
import sys
import time
from pathlib import Path

from tests.crash.under_load import Outcome, UnderLoad, main, run_under_load


def run(directory: Path, kills: int, seed: int, *, settings: dict[str, str] | None = None) -> Outcome:
    """Do it; directory must be empty."""
    rng = random.Random(seed)

    def kill(load: UnderLoad) -> None:
        time.sleep(rng.uniform(0.02, 0.7))
        load.ledger.kill(in_flight=load.busy_moment())
        load.system.kill()
        load.system.start()

    return run_under_load(directory, kills, kill, settings)


if __name__ == "__main__":
    sys.exit(main(__doc__, "kills", 100, run))
