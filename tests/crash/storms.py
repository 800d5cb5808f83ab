"""Signals under load: stops, starts and storms of reloads while ten senders run:

    python -m tests.crash.storms [--restarts 50] [--seed N]

Nobody is killed: a client in the middle of a message hears its answer, 421, or nothing and sends again; every
promise is kept, and no copy is there twice.
"""

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.crash.kill9 import LOCAL_USER, Outcome, Sender, _busy_moment, _wait_until_empty, read_mailbox, still_promised
from tests.crash.ledger import Ledger
from tests.crash.sink import Sink
from tests.crash.system import System

HUPS = 12  # in one storm


def run(directory: Path, restarts: int, seed: int) -> Outcome:
    """Stop and start so many times, with a storm of SIGHUPs before each stop; directory must be empty."""
    rng = random.Random(seed)
    ledger = Ledger()
    sink = Sink(ledger)
    system = System(directory, {"relayhost": f"[127.0.0.1]:{sink.port}"})
    system.start()
    stop = threading.Event()
    senders = [Sender(i, system.port, ledger, stop) for i in range(10)]
    for sender in senders:
        sender.start()
    wrong, busy = [], 0
    try:
        for n in range(restarts):
            time.sleep(rng.uniform(0.02, 0.4))
            _storm(system, rng)
            busy += _busy_moment(senders, sink)
            if (status := system.stop()) != 0:
                wrong.append(f"stop {n} ended with {status}")
            system.start()
        time.sleep(0.5)
        stop.set()
        for sender in senders:
            sender.join(60)
        _wait_until_empty(system, 120.0)
        system.stop()
    finally:
        stop.set()
        system.kill()
        sink.close()
    read_mailbox(system, ledger)
    queued = {key for files in system.queue().values() for file in files for key in still_promised(file)}
    left = {name: files for name, files in system.queue().items() if files and name in ("hold", "corrupt")}
    refused = frozenset(r for _, r in ledger.bounced if r.startswith("perm"))
    wrong += ledger.verdict(queued, refused)
    wrong += [f"left in {name}: {[f.name for f in files[:5]]}" for name, files in left.items()]
    return Outcome(wrong, len(ledger.promised), len(ledger.delivered), len(ledger.bounced), restarts, busy)


def _storm(system: System, rng: random.Random) -> None:
    """SIGHUPs faster than a reload is done."""
    for _ in range(rng.randrange(HUPS)):
        if system.process is not None:
            with contextlib.suppress(ProcessLookupError):
                system.process.send_signal(signal.SIGHUP)
        time.sleep(rng.uniform(0.0, 0.05))


def main() -> int:
    """Command line; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}, mailbox {LOCAL_USER}", flush=True)
    with tempfile.TemporaryDirectory(prefix="storm-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        outcome = run(path, options.restarts, options.seed)
    print(str(outcome).replace("kills", "restarts"))
    for line in outcome.wrong[:50]:
        print("  " + line)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
