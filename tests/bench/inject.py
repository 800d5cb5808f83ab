"""Many runs of a sendmail command: `python -m tests.bench.inject ROOT MESSAGE NUMBER PARALLEL COMMAND...`.

Enters ROOT as the bench user, starts the command with the file MESSAGE as its input, NUMBER times, PARALLEL at a time,
and prints the seconds that each took as JSON.  posix_spawn costs 0.4 ms here, for whatever is started.
"""

import json
import os
import sys
import time

from tests.bench.lab import PEOPLE


def main() -> int:
    """Status 1 when a command fails."""
    root, message, number, parallel, *command = sys.argv[1:]
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setgid(PEOPLE["bench"])
    os.setuid(PEOPLE["bench"])
    actions = [(os.POSIX_SPAWN_OPEN, 0, message, os.O_RDONLY, 0)]
    running: dict[int, float] = {}
    times: list[float] = []
    left = int(number)
    while left or running:
        while left and len(running) < int(parallel):
            begin = time.perf_counter()
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
            running[pid] = begin
            left -= 1
        pid, status = os.wait()
        times.append(time.perf_counter() - running.pop(pid))
        if status:
            print(f"{command}: status {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            return 1
    print(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
