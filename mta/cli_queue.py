"""mta queue: list, show, hold, release, requeue, expire, delete and flush messages.

Works through the daemon while it runs, and directly on the directories while it does not (root or mail_owner).
Exit 0 done; 1 a named message is not there, or is busy; 64 usage; 69 the queue cannot be seen; 77 not allowed.

See also: mta/queue_admin.py (filters), docs/queue.md
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from mta.clock import Clock, mbox_date
from mta.queue.api import Queue
from mta.queue.reasons import printable
from mta.queue.store_admin import DEFAULT_QUEUES, Verb
from mta.queue_admin import Filter, FilterError, age_text, comparison
from sendmail_compat import config as main_cf
from sendmail_compat import postcat
from sendmail_compat.queue_admin import administer
from sendmail_compat.queue_direct import become_owner, next_attempt
from sendmail_compat.queue_tools import DownError, RefusedError, Row, available_lines, parse_row, request, show_queue
from sendmail_compat.tool import LogLine, ToolError, plain_output, plural, syslog_name

EX_USAGE, EX_UNAVAILABLE, EX_NOPERM, EX_CONFIG = 64, 69, 77, 78
ACTIONS = {  # verb: done to each, said of all
    "hold": ("placed on hold", "Placed on hold"), "release": ("released from hold", "Released from hold"),
    "requeue": ("requeued", "Requeued"), "expire": ("expired", "Expired"), "delete": ("deleted", "Deleted"),
    "flush": ("to be tried now", "To be tried now"),
}  # fmt: skip
_WIDTH = 40  # of a column of addresses in --table
_FLUSHED = (Queue.INCOMING, Queue.ACTIVE, Queue.DEFERRED)


class _UsageError(Exception):
    """str() is what argparse says."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """See ArgumentParser: ours ends with another status."""
        raise _UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mta queue", description="Look at queued messages and act on them.")
    parser.add_argument("verb", choices=("list", "show", *ACTIONS))
    parser.add_argument("ids", nargs="*", metavar="ID", help="queue ids, or ALL")
    for name in ("sender", "recipient", "domain"):
        parser.add_argument(f"--{name}", default="", metavar="GLOB", help=f"{name} like this, for example *@x.test")
    parser.add_argument("--reason", default="", metavar="TEXT", help="part of the reason of the last delay, or a glob")
    parser.add_argument("--age", default="", metavar="AGE", help="such as >2h, <30m, >=5d; without sign: at least")
    parser.add_argument("--size", default="", metavar="SIZE", help="such as >10k or <1m; without sign: at least")
    parser.add_argument("--queue", default="", metavar="NAMES", help="only in these queues, for example deferred,hold")
    parser.add_argument("--json", action="store_true", help="one JSON object per message (list, show), or one in all")
    parser.add_argument("--table", action="store_true", help="one line per message")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done")
    return parser


def main(arguments: Sequence[str], directory: str) -> int:
    """Run `mta queue ARGUMENTS`; return the exit status."""
    plain_output()
    try:
        options = _parser().parse_intermixed_args(list(arguments))
        wanted = _filter(options)
    except (_UsageError, FilterError) as error:
        print(f"mta: queue: {error}", file=sys.stderr)
        return EX_USAGE
    try:
        config = main_cf.read(directory)
        return _Run(config, options, wanted).run()
    except main_cf.ConfigError as error:
        return _fail(EX_CONFIG, str(error))
    except DownError as error:
        return _fail(EX_UNAVAILABLE, str(error))
    except RefusedError as error:
        return _fail(error.status, str(error))
    except ToolError as error:
        return _fail(1, str(error))
    except OSError as error:
        return _fail(EX_UNAVAILABLE, f"{error.filename or 'queue'}: {error.strerror}")


def _fail(status: int, text: str) -> int:
    print(f"mta: queue: fatal: {text}", file=sys.stderr)
    return status


def _filter(options: argparse.Namespace) -> Filter:
    queues = tuple(options.queue.replace(",", " ").split())
    for name in queues:
        if name not in list(Queue):
            raise FilterError(f"{name!r}: expected a queue: {', '.join(Queue)}")
    ids = frozenset(word for word in options.ids if word != "ALL")
    wanted = Filter(
        options.sender, options.recipient, options.domain, options.reason,
        comparison(options.age, sizes=False) if options.age else None,
        comparison(options.size, sizes=True) if options.size else None, queues, ids,
    )  # fmt: skip
    if options.verb in ACTIONS and options.verb != "flush" and wanted.empty and "ALL" not in options.ids:
        raise FilterError(f"{options.verb} needs ids, filters, or ALL")
    if options.verb == "show" and not ids:
        raise FilterError("show needs ids")
    return wanted


class _Run:
    def __init__(self, config: main_cf.Config, options: argparse.Namespace, wanted: Filter) -> None:
        self._config, self._options, self._wanted = config, options, wanted
        self._now = Clock().now()

    def run(self) -> int:
        """Do the verb."""
        options = self._options
        if options.verb in ACTIONS and not become_owner(self._config) and options.verb != "flush":
            return _fail(EX_NOPERM, "this is reserved for the superuser and the owner of the queue")
        if options.verb == "flush" and self._wanted.empty and not options.dry_run:
            print(f"To be tried now: {request(self._config, 'flush')}")
            return 0
        rows = [row for row in map(parse_row, available_lines(self._config)) if self._matches(row)]
        missing = sorted(self._wanted.ids - {row["queue_id"] for row in rows})
        for queue_id in missing:
            print(f"mta: queue: {queue_id}: not in the queue, or not what the filters ask for", file=sys.stderr)
        status = 1 if missing else 0
        match options.verb:
            case "list":
                self._list(rows)
            case "show":
                become_owner(self._config)
                for row in rows:
                    self._show(row)
            case verb:
                status = max(status, self._act(verb, rows))
        return status

    def _matches(self, row: Row) -> bool:
        return self._wanted.matches(
            row["queue_id"], row["queue_name"], row["sender"],
            [(r["address"], r.get("delay_reason", "")) for r in row["recipients"]],
            age=self._now - row["arrival_time"], size=row["message_size"],
        )  # fmt: skip

    # -- looking ------------------------------------------------------------------------------------

    def _list(self, rows: list[Row]) -> None:
        if self._options.json:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
        elif self._options.table:
            self._table(rows)
        else:
            show_queue(self._config, rows, sys.stdout.write)

    def _table(self, rows: list[Row]) -> None:
        lines = [("QUEUE ID", "QUEUE", "SIZE", "AGE", "SENDER", "RECIPIENT", "REASON")]
        for row in rows:
            first = row["recipients"][0]["address"] if row["recipients"] else "-"
            more = f" +{len(row['recipients']) - 1}" if len(row["recipients"]) > 1 else ""
            reason = next((r["delay_reason"] for r in row["recipients"] if "delay_reason" in r), "")
            lines.append((
                row["queue_id"], row["queue_name"] + "#" * row["forced_expire"], str(row["message_size"]),
                age_text(self._now - row["arrival_time"]), _cut(row["sender"]), _cut(first) + more, reason,
            ))  # fmt: skip
        widths = [max(len(line[n]) for line in lines) for n in range(6)]
        for line in lines:
            cells = [f"{line[n]:>{w}}" if n in (2, 3) else f"{line[n]:<{w}}" for n, w in enumerate(widths)]
            print("  ".join([*cells, line[6]]).rstrip())

    def _show(self, row: Row) -> None:
        due = next_attempt(self._config, row["queue_id"]) if row["queue_name"] == "deferred" else None
        head = postcat.header_of(self._config, row["queue_id"])
        if self._options.json:
            print(json.dumps({**row, "next_attempt": due and int(due), "header": head}, ensure_ascii=False))
            return
        age = age_text(self._now - row["arrival_time"])
        print(f"{row['queue_id']}: {row['queue_name']}{', expires at the next attempt' * row['forced_expire']}")
        print(f"    arrived    {mbox_date(row['arrival_time'])} ({age} ago)")
        if due is not None:
            print(f"    next try   {mbox_date(due)}" + " (now)" * (due <= self._now))
        print(f"    size       {row['message_size']} bytes")
        print(f"    sender     {row['sender']}")
        for recipient in row["recipients"]:
            reason = recipient.get("delay_reason", "")
            print(f"    recipient  {recipient['address']}" + f"  ({reason})" * bool(reason))
        print()
        print("".join(f"    {printable(line.expandtabs())}\n" for line in head.split("\n")[:-1]))

    # -- acting -------------------------------------------------------------------------------------

    def _act(self, verb: str, rows: list[Row]) -> int:
        """Do a verb to these messages, and say what was done."""
        possible = [str(q) for q in (_FLUSHED if verb == "flush" else DEFAULT_QUEUES[Verb(verb)])]
        queue_ids = [row["queue_id"] for row in rows if row["queue_name"] in possible]
        each, all_of_them = ACTIONS[verb]
        if self._options.dry_run:
            self._report(verb, queue_ids, [], f"would be {each}", f"Would be {each}")
            return 0
        queues = [Queue(name) for name in self._wanted.queues] if verb != "flush" else []
        found = administer(self._config, verb, queue_ids, queues) if queue_ids else {}
        if verb == "expire":  # returned to the sender now, not at the next attempt
            administer(self._config, "flush", [queue_id for queue_id in queue_ids if found.get(queue_id) == "done"])
        done = [queue_id for queue_id in queue_ids if found.get(queue_id) == "done"]
        busy = [queue_id for queue_id in queue_ids if found.get(queue_id) == "busy"]
        log = LogLine(self._config, f"{syslog_name(self._config)}/postsuper")
        for queue_id in done if verb != "flush" else ():
            log.write(f"{queue_id}: {'removed' if verb == Verb.DELETE else each}")  # postsuper's words
        failed = {name: why.removeprefix("failed ") for name, why in found.items() if why.startswith("failed ")}
        for name, why in failed.items():
            print(f"mta: queue: {name}: {why}", file=sys.stderr)
        self._report(verb, done, busy, each, all_of_them)
        return 1 if busy or failed else 0

    def _report(self, verb: str, done: list[str], busy: list[str], each: str, all_of_them: str) -> None:
        if self._options.json:
            print(json.dumps({
                "verb": verb, "dry_run": self._options.dry_run, "count": len(done), "queue_ids": done, "busy": busy,
            }))  # fmt: skip
            return
        for queue_id in done:
            print(f"{queue_id}: {each}")
        for queue_id in busy:
            print(f"{queue_id}: is being delivered, try again later")
        print(f"{all_of_them}: {plural(len(done))}")


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
