"""What mailq and `sendmail -q` do: talk to the showq and flush sockets, and print Postfix's layout.

See also: mta/control.py (the other end), postqueue(1)
"""

import contextlib
import itertools
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from sendmail_compat.config import Config

TIMEOUT = 30.0  # seconds without an answer
EX_UNAVAILABLE = 69
BATCH = 1000  # ids per request
LONG_ID = 13  # an id longer than this asks for the wide layout
_MARKS = {"active": "*", "hold": "!"}


class DownError(Exception):
    """The daemon cannot be reached; str() is the reason."""


class CutOffError(DownError):
    """The answer ended too early, so that what we have is not the whole queue."""


class RefusedError(Exception):
    """The daemon does not show the queue to us; status, and text for the user."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RecipientRow(TypedDict, total=False):
    """One entry of "recipients"."""

    address: str
    delay_reason: str


class Row(TypedDict):
    """One line of the showq socket, as `postqueue -j` prints it; addresses are quoted where they have to be."""

    queue_name: str
    queue_id: str
    arrival_time: int
    message_size: int
    forced_expire: bool
    sender: str
    recipients: list[RecipientRow]


def connect(config: Config, name: str) -> socket.socket:
    """Connect to public/NAME; raises DownError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(f"{config.queue}/public/{name}")
    except OSError as error:
        sock.close()
        raise DownError(os.strerror(error.errno) if error.errno else "timeout") from None
    return sock


class Unread:
    """What the listing could not read, as it is said on stderr."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> None:
        """Say one."""
        self.count += 1
        say(f"warning: {text}")


def lines(config: Config, unread: Callable[[str], object] | None = None) -> Iterator[str]:
    """A JSON object for every message in the queue; DownError, CutOffError, RefusedError.

    unread: is told what the daemon could not read; None: say it.
    """
    sock = connect(config, "showq")
    found: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sock, found), daemon=True).start()
    return messages(_received(found), unread or Unread())


def _receive(sock: socket.socket, found: "queue.SimpleQueue[bytes | OSError]") -> None:
    """Take lines as fast as they come: the daemon cuts off who does not read, and our output may be a pager."""
    try:
        with sock, sock.makefile("rb") as answer:
            for line in answer:
                found.put(line)
        found.put(b"")
    except OSError as error:
        found.put(error)


def _received(found: "queue.SimpleQueue[bytes | OSError]") -> Iterator[str]:
    while line := found.get():
        if isinstance(line, OSError):
            raise DownError(os.strerror(line.errno) if line.errno else "timeout")
        if line.endswith(b"\n"):
            yield line.decode("utf-8", "replace").rstrip("\n")


def messages(answer: Iterable[str], unread: Callable[[str], object]) -> Iterator[str]:
    """The JSON objects in an answer of the showq socket; CutOffError, RefusedError."""
    begun = False
    try:
        for line in answer:
            word, _, text = line.partition(" ")
            if line.startswith("{"):
                begun = True
                yield line
            elif word == "warning":
                unread(text)
            elif word == "0":
                return
            else:  # we may not look
                raise RefusedError(int(word) if word.isdigit() else EX_UNAVAILABLE, text)
    except DownError as error:
        if begun:
            raise CutOffError(f"Queue report incomplete - {error}") from None
        raise
    raise CutOffError("Queue report incomplete - connection closed")


def rows(config: Config) -> Iterator[Row]:
    """Every message in the queue; DownError, RefusedError."""
    return map(parse_row, lines(config))


def parse_row(line: str) -> Row:
    """What a line of the showq socket says."""
    row: Row = json.loads(line)
    return row


def show_queue(
    config: Config, found: Iterable[Row], write: Callable[[str], object], unread: Unread | None = None
) -> None:
    """Print in Postfix's layout; not that the queue is empty when something in it could not be read."""
    wide = config.text("enable_long_queue_ids").lower() == "yes"
    total = count = 0
    for row in found:
        if not count:
            wide = wide or len(row["queue_id"]) > LONG_ID
            write(_HEAD_WIDE if wide else _HEAD)
        write(format_row(row, wide=wide) + "\n")
        total += row["message_size"]
        count += 1
    if count:
        write(f"-- {total // 1024} Kbytes in {count} Request{'s' * (count != 1)}.\n")
    elif unread is None or not unread.count:
        write("Mail queue is empty\n")


_HEAD_WIDE = "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------\n"
_HEAD = "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------\n"


def format_row(row: Row, *, wide: bool) -> str:
    """One message: its line, then recipients under their reasons."""
    mark = _MARKS.get(row["queue_name"], "") + "#" * row["forced_expire"]
    when = time.asctime(time.localtime(row["arrival_time"]))
    head = f"{row['queue_id']}{mark}"
    sender = row["sender"]
    if wide:
        lines = [f"{head:<17} {row['message_size']:8d} {when[:19]:>19} {sender}"]
    else:
        lines = [f"{head:<11} {row['message_size']:7d} {when[:20]:>20} {sender}"]
    indent = " " * (47 if wide else 41)
    reason = ""
    for recipient in sorted(row["recipients"], key=lambda r: "delay_reason" not in r):
        why = recipient.get("delay_reason", "")
        if why != reason:
            reason = why
            shown = why or "reason unavailable"
            lines.append(f"{' ' * max(0, 76 - len(shown.encode()))}({shown})")
        lines.append(f"{indent}{recipient['address']}")
    return "\n".join([*lines, ""])


def list_text(config: Config) -> None:
    """Print the queue in Postfix's layout; RefusedError, DownError with the whole text."""
    unread = Unread()
    show_queue(config, map(parse_row, available_lines(config, unread)), _out, unread)


def list_json(config: Config, write: Callable[[str], object]) -> None:
    """One JSON object per message, as `postqueue -j`."""
    for line in available_lines(config):
        write(f"{line}\n")


def _out(text: str) -> None:
    sys.stdout.write(text)


def available_lines(config: Config, unread: Unread | None = None) -> Iterable[str]:
    """Messages from the daemon, or from the directories while it is down; RefusedError, DownError with the whole text.

    Without the daemon only those who may read the directories can look; they hear first that mail waits.
    """
    try:
        found = lines(config, unread)
        first = next(found, None)
        return found if first is None else itertools.chain([first], found)
    except CutOffError:
        raise
    except DownError as error:
        why = str(error)
    if not os.access(f"{config.queue}/incoming", os.R_OK):
        raise DownError(f"Queue report unavailable - mail system is down (Connect to the Postfix showq service: {why})")
    waiting = in_maildrop(config.queue)
    say(f"warning: Mail system is down -- accessing queue directly (Connect to the Postfix showq service: {why})")
    if waiting:
        say(f"warning: {waiting} message{'s' * (waiting != 1)} in maildrop wait for the mail system to be started")
    from sendmail_compat.queue_direct import direct_lines

    try:
        return messages(direct_lines(config), unread or Unread())
    except OSError as error:
        raise DownError(f"Queue report unavailable: {os.strerror(error.errno or 0)}") from None


def in_maildrop(queue: str) -> int:
    """How many messages wait in maildrop; 0 when we may not look."""
    try:
        with os.scandir(f"{queue}/maildrop") as entries:
            return sum(1 for entry in entries if "." not in entry.name and entry.is_file(follow_symlinks=False))
    except OSError:
        return 0


def mailq(config: Config) -> int:
    """Print the queue; return the exit status."""
    try:
        list_text(config)
        sys.stdout.flush()
    except DownError as error:
        say(f"fatal: {error}")
        return EX_UNAVAILABLE
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"fatal: output write error: {os.strerror(error.errno or 0)}")
        return EX_UNAVAILABLE
    except RefusedError as error:
        say(f"fatal: {error}")
        return error.status
    return 0


def say(text: str) -> None:
    """On stderr, under the name of the program that Postfix's sendmail runs for this."""
    sys.stderr.write(f"postqueue: {text}\n")


def flush(config: Config, selection: tuple[str, str, bool], transport: Callable[[str], str] | None = None) -> int:
    """Run the queue, or a part of it: kind I, R, S, G or "" (all), argument, negated.

    transport: of an address, for kind G.
    """
    kind, argument, negated = selection
    try:
        if not kind:
            request(config, "flush")
        elif kind == "I" and not negated and argument.isalnum() and request(config, f"id {argument}")[:2] != "0 ":
            pass  # it was a whole id
        else:
            ids = [row["queue_id"] for row in rows(config) if selected(row, kind, argument, transport) != negated]
            for at in range(0, len(ids), BATCH):  # for each request the daemon looks through the queue
                request(config, "\n".join(("ids", *ids[at : at + BATCH], "")))
    except CutOffError as error:
        say(f"fatal: {error}")
        return EX_UNAVAILABLE
    except DownError:
        say("fatal: Cannot flush mail queue - mail system is down")
        return EX_UNAVAILABLE
    except RefusedError as error:
        say(f"fatal: {error}")
        return error.status
    return 0


def wait_until_idle(config: Config, limit: float = 300.0) -> None:
    """Return when nothing is being delivered any more, at most so many seconds later."""
    end = time.monotonic() + limit
    with contextlib.suppress(DownError, RefusedError):
        while time.monotonic() < end and any(row["queue_name"] in ("incoming", "active") for row in rows(config)):
            time.sleep(0.3)


def selected(row: Row, kind: str, argument: str, transport: Callable[[str], str] | None = None) -> bool:
    """Substring match, as Sendmail's -qI, -qR and -qS; -qG compares the transport of each recipient."""
    wanted = argument.lower()
    addresses = [r["address"].lower() for r in row["recipients"]]
    match kind:
        case "I":
            return wanted in row["queue_id"].lower()
        case "S":
            return wanted in row["sender"].lower()
        case "R":
            return any(wanted in address for address in addresses)
        case "G" if transport is not None:
            return any(wanted == transport(address) for address in addresses)
        case _:
            return False


def request(config: Config, line: str) -> str:
    """One request to the flush socket, and what it says, "3 messages"; DownError, RefusedError."""
    with connect(config, "flush") as sock:
        try:
            sock.sendall(f"{line}\n".encode("utf-8", "surrogateescape"))
            answer = sock.makefile("r", encoding="utf-8", errors="replace").readline()
        except OSError as error:
            raise DownError(str(error)) from None
    status, _, text = answer.strip().partition(" ")
    if not status.isdigit():
        raise DownError("no answer")
    if status != "0":
        raise RefusedError(int(status), text)
    return text
