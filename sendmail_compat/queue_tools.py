"""What mailq and `sendmail -q` do: talk to the showq and flush sockets, and print Postfix's layout.

See also: mta/control.py (the other end), postqueue(1)
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from sendmail_compat.config import Config

TIMEOUT = 30.0  # seconds without an answer
EX_UNAVAILABLE = 69
LONG_ID = 13  # an id longer than this asks for the wide layout
_MARKS = {"active": "*", "hold": "!"}


class DownError(Exception):
    """The daemon cannot be reached; str() is the reason."""


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


def rows(config: Config) -> Iterator[Row]:
    """Every message in the queue; raises DownError before the first."""
    sock = connect(config, "showq")
    with sock, sock.makefile("r", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("{"):  # "STATUS text": we may not look
                status, _, text = line.strip().partition(" ")
                raise RefusedError(int(status) if status.isdigit() else EX_UNAVAILABLE, text)
            yield json.loads(line)


def show_queue(config: Config, found: Iterable[Row], write: Callable[[str], None]) -> None:
    """Print in Postfix's layout."""
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
    else:
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
        if why and why != reason:
            lines.append(f"{' ' * max(0, 76 - len(why))}({why})")
        reason = why or reason
        lines.append(f"{indent}{recipient['address']}")
    return "\n".join([*lines, ""])


def mailq(config: Config) -> int:
    """Print the queue; return the exit status."""
    try:
        show_queue(config, rows(config), _out)
    except DownError as error:
        return _mailq_down(config, str(error))
    except RefusedError as error:
        _say(f"fatal: {error}")
        return error.status
    return 0


def _out(text: str) -> None:
    sys.stdout.write(text)


def _mailq_down(config: Config, why: str) -> int:
    """Without the daemon only those who may read the directories can look."""
    if not os.access(f"{config.queue}/incoming", os.R_OK):
        _say(f"fatal: Queue report unavailable - mail system is down (Connect to the showq service: {why})")
        return EX_UNAVAILABLE
    _say(f"warning: Mail system is down -- accessing queue directly (Connect to the showq service: {why})")
    from sendmail_compat.queue_direct import direct_rows

    try:
        show_queue(config, direct_rows(config), _out)
    except OSError as error:
        _say(f"fatal: Queue report unavailable: {os.strerror(error.errno or 0)}")
        return EX_UNAVAILABLE
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"postqueue: {text}\n")


def flush(config: Config, selection: tuple[str, str, bool]) -> int:
    """Run the queue, or a part of it: kind I, R, S or "" (all), argument, negated."""
    kind, argument, negated = selection
    try:
        if not kind:
            return _request(config, "flush")
        if kind == "I" and not negated:
            return _request(config, f"id {argument}")
        status = 0
        for row in list(rows(config)):
            if _selected(row, kind, argument) != negated:
                status = max(status, _request(config, f"id {row['queue_id']}"))
        return status
    except DownError:
        _say("fatal: Cannot flush mail queue - mail system is down")
        return EX_UNAVAILABLE
    except RefusedError as error:
        _say(f"fatal: {error}")
        return error.status


def _selected(row: Row, kind: str, argument: str) -> bool:
    """Substring match, as Sendmail's -qI, -qR and -qS."""
    wanted = argument.lower()
    match kind:
        case "I":
            return wanted in row["queue_id"].lower()
        case "S":
            return wanted in row["sender"].lower()
        case "R":
            return any(wanted in r["address"].lower() for r in row["recipients"])
        case _:
            return False


def _request(config: Config, line: str) -> int:
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
        _say(f"fatal: {text}")
    return int(status)
