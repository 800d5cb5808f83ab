"""postcat(1): the contents of a queue file, record by record.  Reads a Postfix's files as well as ours.

Only what can be read with the caller's rights; errors are exit 1.

See also: mta/queue/queue_file.py
"""

import contextlib
import errno
import io
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from mta.queue.maildrop_rules import file_limit
from mta.queue.queue_id import hash_directories
from mta.queue.queue_reader import MAX_POINTERS, DamagedError, P, integer
from sendmail_compat.config import Config
from sendmail_compat.tool import ToolError, configuration, options, say

USAGE = (
    "postcat [-b (body text)] [-c config_dir] [-d (decimal record type)] [-e (envelope records)] [-h (header text)]"
    " [-q (access queue)] [-v] [file(s)...]"
)
_QUEUES = ("incoming", "active", "deferred", "hold", "corrupt", "maildrop")  # where anybody may use any id: last
_LABELS = {
    "C": "message_size", "T": "message_arrival_time", "c": "queue_file_create_time", "F": "sender_fullname",
    "I": "content_inspector", "L": "content_filter", "S": "sender", "R": "recipient", "D": "done_recipient",
    "/": "canceled_recipient", "O": "original_recipient", "A": "named_attribute", "K": "killed_record",
    "W": "warning_message_time", "V": "verp_delimiters", ">": "redirect_to", "f": "flags", "r": "return_receipt",
    "e": "errors_to", "P": "priority", "p": "pointer_record", "i": "dsn_envelope_id", "<": "dsn_return_flags",
    "n": "dsn_notify_flags", "o": "dsn_original_recipient", "N": "regular_text",
}  # fmt: skip
_CONTENT = {"N": "regular_text", "L": "unterminated_text"}


class _Style:
    """What is printed: envelope, header, body; offsets, record types; raw: pointers are not followed."""

    def __init__(self, letters: set[str]) -> None:
        parts = letters & {"e", "h", "b"}
        self.envelope, self.header, self.body = ("e" in parts or not parts, "h" in parts or not parts,
                                                 "b" in parts or not parts)  # fmt: skip
        self.offsets, self.types = "o" in letters, "d" in letters
        self.raw, self.verbose = "r" in letters, "v" in letters


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, rest = options(argv, "bc:dehoqrv", USAGE)
    letters = {letter for letter, _ in found}
    config = configuration(found)
    style = _Style(letters)
    try:
        if not rest:
            _show(sys.stdin.buffer.read(), "stdin", style, sys.stdout.buffer)
        for name in rest:
            if "q" in letters:
                _show(*_from_queue(config, name), style, sys.stdout.buffer)
            else:
                _show(_read(name, name), name, style, sys.stdout.buffer)
    except DamagedError:
        sys.stdout.buffer.flush()
        raise ToolError("record read error") from None
    return 0


def _read(path: str, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ToolError(f"open {name}: {os.strerror(error.errno or 0)}") from None


def _from_queue(config: Config, queue_id: str) -> tuple[bytes, str]:
    """Contents of a queue file and its name below the queue directory."""
    if not queue_id.replace("_", "").isalnum() or not queue_id.isascii():
        raise ToolError(f"bad mail queue ID: {queue_id}")
    hashed = config.text("hash_queue_names").replace(",", " ").split()
    text = config.text("hash_queue_depth")
    depth = int(text) if text.isdigit() else 1
    refused: OSError | None = None
    maildrop_limit = file_limit(config.size_limit)
    for queue in _QUEUES:
        for levels in {depth if queue in hashed else 0, 0}:
            name = f"{queue}/{hash_directories(queue_id, levels)}{queue_id}"
            try:
                data = _regular(f"{config.queue}/{name}", maildrop_limit if queue == "maildrop" else 0)
                if data is not None:
                    return data, name
            except FileNotFoundError:
                continue
            except OSError as error:
                refused = refused or error
    reason = os.strerror(refused.errno or 0) if refused else "No such file or directory"
    raise ToolError(f"open queue file {queue_id}: {reason}")


def _regular(path: str, limit: int) -> bytes | None:
    """The contents of a file; None when it is anything else, a link too.  limit: bytes, 0 = none; OSError above."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if limit and found.st_size > limit:
            raise OSError(errno.EFBIG, "too large")
        return file.read() if stat.S_ISREG(found.st_mode) else None


def header_of(config: Config, queue_id: str) -> str:
    """The header of a queued message, of a damaged one as much as can be read; ToolError."""
    data, name = _from_queue(config, queue_id)
    out = io.BytesIO()
    with contextlib.suppress(DamagedError):
        _show(data, name, _Style({"h"}), out)
    return out.getvalue().decode("utf-8", "replace")


def _show(data: bytes, name: str, style: _Style, out: BinaryIO) -> None:
    """Print one file; what is no queue file is a warning, what ends in a record or nowhere DamagedError."""
    write = out.write
    place = "envelope"
    header, in_line = True, False
    if not data:
        return
    if chr(data[0]) not in "CTFSA":
        say("postcat", f"warning: {name}: input is not a valid queue file")
        return
    if style.envelope:
        write(f"*** ENVELOPE RECORDS {name} ***\n".encode())
    for kind, value, offset in _records(data, raw=style.raw):
        letter = chr(kind)
        prefix = (f"{offset:9d} " if style.offsets else "") + (f"{kind:3d} " if style.types else "")
        marks = {"M": "MESSAGE CONTENTS", "X": "HEADER EXTRACTED", "E": "MESSAGE FILE END"}
        if letter in marks:
            place = "content" if letter == "M" else "extracted"
            if style.envelope:
                write(f"{prefix}*** {marks[letter]} {name} ***\n".encode())
            if letter == "E":
                break
        elif place == "content" and letter in _CONTENT:
            header = header and (in_line or _is_header(value))
            in_line = letter == "L"
            if style.header if header else style.body:
                label = f"{_CONTENT[letter]}: " if style.verbose else ""
                end = b"" if in_line and not (style.offsets or style.verbose) else b"\n"
                write((prefix + label).encode() + value + end)
        elif style.envelope and letter != "w" and not (letter == "p" and place == "content"):
            write(f"{prefix}{_describe(letter, value)}\n".encode("utf-8", "surrogateescape"))
    out.flush()


def _records(data: bytes, *, raw: bool) -> Iterator[tuple[int, bytes, int]]:
    """Every record; raw: as it lies in the file, pointers too.  DamagedError when the file ends in one."""
    pos = pointers = 0
    while pos < len(data):
        start, n, shift = pos + 1, 0, 0
        while True:
            if start >= len(data) or shift > 28:
                raise DamagedError("ends in a length")
            n |= (data[start] & 127) << shift
            start, shift = start + 1, shift + 7
            if data[start - 1] < 128:
                break
        if start + n > len(data):
            raise DamagedError("ends in a record")
        value, at = data[start : start + n], pos
        pos = start + n
        if raw or data[at] != P:
            yield data[at], value, at
        elif target := integer(value):
            pos, pointers = target, pointers + 1
            if target < 0 or pointers > MAX_POINTERS:
                raise DamagedError("bad pointer")


def _is_header(line: bytes) -> bool:
    """A header line or its continuation; the first other line is the body's."""
    if line[:1] in (b" ", b"\t"):
        return True
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    return bool(colon and name) and all(32 < c < 127 for c in name)


def _describe(letter: str, value: bytes) -> str:
    text = value.decode("utf-8", "surrogateescape")
    if letter in "TW":
        seconds = text.split()[0] if text.split() else "0"
        return f"{_LABELS[letter]}: {_date(seconds)}"
    if letter == "A":
        name, equals, seconds = text.partition("=")
        if name == "create_time" and equals:
            return f"create_time: {_date(seconds)}"
    return f"{_LABELS.get(letter, 'unknown_record_type')}: {text}"


def _date(seconds: str) -> str:
    """As text; what is no time of this machine stays as it is."""
    if not seconds.isascii() or not seconds.isdigit():
        return seconds
    try:
        return time.asctime(time.localtime(int(seconds)))
    except (OverflowError, ValueError, OSError):
        return seconds
