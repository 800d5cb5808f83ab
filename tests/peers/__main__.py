"""Run the peers tests: `python -m tests.peers [pytest arguments]`, as root."""

import os
import sys

from tests.peers.namespace import build, run_inside

LIMIT = float(os.environ.get("AIOMTA_PEERS_LIMIT", "1200"))  # seconds for all tests


def main() -> int:
    """Return pytest's exit status; 124 when the time is up."""
    build()
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or ["tests/peers"]
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    return run_inside([sys.executable, "-m", "pytest", "-p", "no:xdist", *options, *wanted], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
