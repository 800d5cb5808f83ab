"""Changing the queue: through the daemon while it runs, directly while it does not.

See also: mta/control.py ("admin" requests), sendmail_compat/queue_direct.py
"""

import socket
from collections.abc import Iterator, Sequence

from mta.queue.api import Queue
from mta.queue.store_admin import Verb
from sendmail_compat.config import Config
from sendmail_compat.queue_direct import direct_act, direct_wake
from sendmail_compat.queue_tools import DownError, RefusedError, connect

BATCH = 500  # ids per request


def administer(
    config: Config, verb: Verb | str, queue_ids: Sequence[str], queues: Sequence[Queue] = ()
) -> dict[str, str]:
    """Do a verb, or "flush", to messages; id (or directory) -> "done", "absent", "busy" or "failed why".

    [EVERYTHING] stands for every message the verb can be done to.  Raises RefusedError, or OSError when the
    directories cannot be changed.  A daemon that does not answer is one that does not run: locks keep the two apart.
    """
    done: dict[str, str] = {}
    try:
        with connect(config, "flush") as sock:
            for found in _ask(sock, str(verb), queue_ids, queues):
                done |= found
        return done
    except DownError:
        rest = [queue_id for queue_id in queue_ids if queue_id not in done]
        if verb == "flush":
            direct_wake(config, rest)
            return done | dict.fromkeys(rest, "done")
        return done | direct_act(config, Verb(verb), rest, queues)


def _ask(sock: socket.socket, verb: str, queue_ids: Sequence[str], queues: Sequence[Queue]) -> Iterator[dict[str, str]]:
    """One request per batch on one connection; DownError, RefusedError."""
    words = f"admin {verb} {','.join(queues)}" if queues else f"admin {verb}"
    try:
        answers = sock.makefile("rb")
        for at in range(0, len(queue_ids), BATCH):
            request = "".join(f"{line}\n" for line in (words, *queue_ids[at : at + BATCH], ""))
            sock.sendall(request.encode("utf-8", "replace"))
            found: dict[str, str] = {}
            for line in answers:
                outcome, _, queue_id = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
                if outcome == "0":
                    break
                if outcome.isdigit():
                    raise RefusedError(int(outcome), queue_id)
                if outcome == "failed":
                    queue_id, _, why = queue_id.partition(" ")
                    outcome = f"failed {why}"
                found[queue_id] = outcome
            else:
                raise DownError("connection closed")
            yield found
    except OSError as error:
        raise DownError(str(error)) from None
