"""qshape(1): how much queued mail there is for each domain, by age.

Reads the queue files itself, with the rights of root or of the owner of the queue, as Postfix's program does; the
daemon need not run.

See also: Postfix's QSHAPE_README
"""

import getopt
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mta.queue.maildrop_rules import MAX_RECORDS
from mta.queue.queue_reader import DamagedError, decode
from mta.queue.store_listing import MAX_DEPTH
from sendmail_compat.tool import ToolError, configuration

USAGE = """\
Usage: {0} [ -s ] [ -p ] [ -m <min_subdomains> ] [ -l ]
\t[ -b <bucket_count> ] [ -t <bucket_time> ] [ -w <terminal_width> ]
\t[ -N <batch_msg_count> ] [ -n <batch_top_domains> ]
\t[ -c <config_directory> ] [ <queue_name> ... ]
-s counts senders instead of recipients; -p adds parent domains, with a dot in front, that have at least
<min_subdomains> (default 5) subdomains.  Ages are in units of <bucket_time> minutes (default 5): the first
bucket is younger than one, each further one reaches twice as far, or with -l one unit further.  Without
queue names: incoming and active.  Names that are no absolute paths are below the queue directory."""
_NAME = re.compile(r"[A-Za-z0-9]{6,}")
_TOP = 20  # domains shown on a terminal
_NARROWEST = 18


class _UsageError(Exception):
    """Wrong options; str() is what is wrong, "" for -h."""


@dataclass
class Shape:
    """Options, and what has been counted: total and buckets by domain."""

    senders: bool = False
    parents: bool = False
    linear: bool = False
    buckets: int = 10
    tick: int = 5
    least: int = 5
    width: int = 80
    top: int = 0
    rows: dict[str, Counter[int]] = field(default_factory=lambda: {"TOTAL": Counter()})
    subdomains: Counter[str] = field(default_factory=Counter)

    def bucket(self, age: float) -> int:
        """Column of an age in seconds; 0 is the total."""
        units = age / (60 * self.tick)
        if units < 1:
            return 1
        number = int(units + 1) if self.linear else 2 + int(math.log(units) / math.log(2))
        return min(number, self.buckets)

    def add(self, address: str, bucket: int) -> None:
        """Count one address."""
        self._count("TOTAL", bucket)
        domain = (address.lower() or "MAILER-DAEMON").rpartition("@")[2].replace("..", ".")
        domain = domain.strip(".") or domain
        fresh = self._count(domain, bucket)
        while self.parents and (shorter := re.fullmatch(r"\.?[^.]+\.(.*\..*)", domain)):
            domain = f".{shorter[1]}"
            was_fresh, fresh = fresh, self._count(domain, bucket)
            if was_fresh:
                self.subdomains[domain] += 1

    def _count(self, domain: str, bucket: int) -> bool:
        """True when the domain was not known."""
        row = self.rows.setdefault(domain, Counter())
        row[0] += 1
        row[bucket] += 1
        return row[0] == 1

    def lines(self) -> Iterator[str]:
        """The table: heads, then domains with the most first."""
        heads, at = ["T"], self.tick
        for number in range(1, self.buckets + 1):
            heads.append(str(at) if number < self.buckets else f"{_before(heads)}+")
            at += self.tick if self.linear else at
        total = self.rows["TOTAL"]
        widths = []
        for number, head in enumerate(heads):
            most = max(len(head), len(str(total[number])))
            widths.append(most + 1 if most > 2 else 3)
        room = max(_NARROWEST, self.width - sum(widths))
        yield _line("", heads, widths, room)
        order = sorted(self.rows, key=lambda d: (-self.rows[d][0], len(d)))
        shown = [d for d in order if not d.startswith(".") or self.subdomains[d] >= self.least]
        for domain in shown[: self.top or None]:
            counts = [str(self.rows[domain][n]) for n in range(self.buckets + 1)]
            yield _line(domain, counts, widths, room)


def _before(heads: Sequence[str]) -> str:
    return heads[-1] if len(heads) > 1 else "0"


def _line(domain: str, cells: Sequence[str], widths: Sequence[int], room: int) -> str:
    if len(domain) > room:
        domain = f".+{domain[2 - room :]}" if domain.startswith(".") else f"+{domain[1 - room :]}"
    return f"{domain:>{room}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status (255 for wrong usage, as perl's die)."""
    try:
        shape, found, rest = _options(argv)
    except _UsageError as error:
        if str(error):
            sys.stderr.write(f"{argv[0]}: Unknown option: {error}\n")
        sys.stderr.write(USAGE.format(argv[0]) + "\n")
        return 255
    queues = rest or ["incoming", "active"]
    root = "" if all(name.startswith("/") for name in queues) else configuration(found).queue
    if root and not os.access(root, os.X_OK):
        raise ToolError(f"chdir({root}): No such file or directory")
    now = time.time()
    for name in queues:
        limit = MAX_RECORDS if _is_maildrop(name) else 0
        for path in _files(os.path.join(root, name)):
            _count(shape, path, now, limit)
    for line in shape.lines():
        print(line)
    return 0


def _options(argv: Sequence[str]) -> tuple[Shape, list[tuple[str, str]], list[str]]:
    try:
        given, rest = getopt.getopt(list(argv[1:]), "lhc:psw:b:t:m:n:N:")
    except getopt.GetoptError as error:
        raise _UsageError(error.opt) from None
    found = {name[1:]: value for name, value in given}
    if "h" in found:
        raise _UsageError("")

    def number(letter: str, default: int, least: int = 1) -> int:
        text = found.get(letter, "")
        return int(text) if text.isdigit() and int(text) >= least else default

    top = number("n", _TOP if sys.stdout.isatty() else 0) if "n" in found or sys.stdout.isatty() else 0
    shape = Shape(
        "s" in found, "p" in found, "l" in found, number("b", 10), number("t", 5), number("m", 5),
        number("w", 80, 81), top if sys.stdout.isatty() else 0,
    )  # fmt: skip
    return shape, [(name[1:], value) for name, value in given], rest


def _is_maildrop(top: str) -> bool:
    """Where anybody may leave anything?"""
    return os.path.basename(os.path.normpath(top)) == "maildrop"


def _files(top: str) -> Iterator[str]:
    """Deeper than hash directories go, and in those that somebody made in maildrop, there is no mail."""
    deepest = 0 if _is_maildrop(top) else MAX_DEPTH
    for folder, below, names in os.walk(top, onerror=_complain):
        if folder[len(top) :].count("/") >= deepest:
            below.clear()
        yield from (f"{folder}/{name}" for name in names if _NAME.fullmatch(name))


def _complain(error: OSError) -> None:
    sys.stderr.write(f"qshape: {error.filename}: {os.strerror(error.errno or 0)}\n")


def _count(shape: Shape, path: str, now: float, limit: int) -> None:
    """Count one queue file; what is none, or is gone, is left out.  limit: see decode()."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        found = os.fstat(fd)
        if found.st_mode & 0o733 not in (0o700, 0o710):
            return
        file = decode(lambda offset, size: os.pread(fd, size, offset), limit)
    except (OSError, DamagedError):
        return
    finally:
        os.close(fd)
    todo = [r.address for r in file.envelope.recipients if r.todo]
    bucket = shape.bucket(now - (file.envelope.arrival or found.st_mtime))
    for address in [file.envelope.sender] if shape.senders and todo else todo:
        shape.add(address, bucket)
