"""postsuper(1): hold, release, requeue, expire, delete queued mail; repair the queue.

Postfix's options, texts and exit status.  Works beside a running daemon, through it.

See also: mta/queue/store_admin.py
"""

import os
import sys
from collections.abc import Sequence
from itertools import groupby

from mta.queue.api import Queue
from mta.queue.queue_id import is_queue_id
from mta.queue.store_admin import EVERYTHING, Verb
from sendmail_compat.config import Config
from sendmail_compat.queue_admin import administer
from sendmail_compat.queue_direct import become_owner, repair
from sendmail_compat.queue_tools import RefusedError
from sendmail_compat.tool import LogLine, ToolError, configuration, options, plural, say, syslog_name

USAGE = (
    "postsuper [-c config_dir] [-d queue_id (delete)] [-e queue_id (expire)] [-f queue_id (expire and/or un-hold)]"
    " [-h queue_id (hold)] [-H queue_id (un-hold)] [-p (purge temporary files)] [-r queue_id (requeue)]"
    " [-s (structure fix)] [-S (redundant structure fix)][-v (verbose)] [queue...]"
)
_VERBS = {"d": Verb.DELETE, "h": Verb.HOLD, "e": Verb.EXPIRE, "f": Verb.EXPIRE, "H": Verb.RELEASE, "r": Verb.REQUEUE}
_EACH = {
    Verb.HOLD: "placed on hold", Verb.RELEASE: "released from hold", Verb.REQUEUE: "requeued", Verb.EXPIRE: "expired",
    Verb.DELETE: "removed",
}  # fmt: skip
_ALL = {
    Verb.REQUEUE: "Requeued", Verb.DELETE: "Deleted", Verb.EXPIRE: "Force-expired", Verb.HOLD: "Placed on hold",
    Verb.RELEASE: "Released from hold",
}  # fmt: skip  # in the order of the summary
_WITHOUT_MAIL = ("defer", "bounce", "flush", "trace")


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, rest = options(argv, "c:d:e:f:h:H:pr:sSv", USAGE)
    config = configuration(found)
    wanted = [(letter, value) for letter, value in found if letter in _VERBS]
    queues = _queues(rest)
    log = LogLine(config, f"{syslog_name(config)}/postsuper")
    if not become_owner(config):
        raise ToolError("use of this command is reserved for the superuser")
    run = _Run(config, log, queues)
    if not wanted or {"p", "s", "S"} & {letter for letter, _ in found}:
        repair(config)
    for (letter, everything), group in groupby(wanted, lambda option: (option[0], option[1] == "ALL")):
        run.option(letter, None if everything else [value for _, value in group])
    run.summary()
    return 1 if run.failed else 0


def _queues(names: Sequence[str]) -> list[Queue] | None:
    """The queues to look at; None: the verb's own."""
    known = [str(q) for q in Queue if q is not Queue.CORRUPT]
    for name in names:
        if name not in known and name not in _WITHOUT_MAIL:
            raise ToolError(f"invalid directory name: {name}")
    return [Queue(name) for name in names if name in known] if names else None


class _Run:
    def __init__(self, config: Config, log: LogLine, queues: list[Queue] | None) -> None:
        self._config, self._log, self._queues = config, log, queues
        self._counts: dict[Verb, int] = {}
        self.failed = False  # something could not be done

    def option(self, letter: str, values: Sequence[str] | None) -> None:
        """One letter with its ids up to the next other one, or None for ALL; -f is -e, then -H."""
        verbs = [_VERBS[letter]] + [Verb.RELEASE] * (letter == "f")
        if values is None:
            for verb in verbs:
                self._act(verb, [EVERYTHING])
            return
        names = _expand(values)
        queue_ids = list(dict.fromkeys(filter(is_queue_id, names)))
        found = [self._act(verb, queue_ids) for verb in verbs]
        for name in dict.fromkeys(names):
            if not is_queue_id(name):
                self._tell(f"warning: invalid mail queue id: {name}")
            for verb, outcomes in zip(verbs, found, strict=True):
                if outcomes.get(name) == "done" and verb in _EACH:
                    self._tell(f"{name}: {_EACH[verb]}")

    def _act(self, verb: Verb, queue_ids: Sequence[str]) -> dict[str, str]:
        self._counts.setdefault(verb, 0)
        if not queue_ids or self._queues == []:
            return {}
        try:
            outcomes = administer(self._config, verb, queue_ids, self._queues or ())
        except RefusedError as error:
            raise ToolError(str(error)) from None
        except OSError as error:
            raise ToolError(f"{error.filename or self._config.queue}: {os.strerror(error.errno or 0)}") from None
        self._counts[verb] += sum(outcome == "done" for outcome in outcomes.values())
        for queue_id, outcome in outcomes.items():
            if outcome == "busy":
                self._tell(f"warning: {queue_id}: is being delivered, cannot be requeued now")
            elif outcome.startswith("failed "):
                self._tell(f"warning: {queue_id}: {outcome.removeprefix('failed ')}")
                self.failed = True
        return outcomes

    def summary(self) -> None:
        """How many of each."""
        for verb, words in _ALL.items():
            if verb in self._counts:
                self._tell(f"{words}: {plural(self._counts[verb])}")

    def _tell(self, text: str) -> None:
        say("postsuper", text)
        self._log.write(text)


def _expand(values: Sequence[str]) -> list[str]:
    """ "-" stands for the lines of stdin."""
    out: list[str] = []
    for value in values:
        out += sys.stdin.buffer.read().decode("utf-8", "replace").splitlines() if value == "-" else [value]
    return out
