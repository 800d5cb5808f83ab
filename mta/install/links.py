"""Which names lead to which mail system: the plan for sendmail, mailq, newaliases and the others.

Two traps decide the order.  update-alternatives never replaces a real file, says so, and exits 0; so a file of another
mail system is moved by dpkg-divert first, to NAME.postfix, NAME.exim, ...  And on Debian mailq and newaliases are
links to sendmail: left where they are, they would follow sendmail to another mail system, so each name becomes a
slave of one group, and the other mail system is registered as a choice before ours.

See also: update-alternatives(1), dpkg-divert(1), Debian Policy 11.6
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from mta.install.steps import Alternative, Choose, Divert, MakeLink, Step, StepError, call
from mta.record import dataclass

GROUP, MASTER = "mta", "/usr/sbin/sendmail"
MUST_AGREE = (MASTER, "/usr/bin/mailq", "/usr/bin/newaliases")
PRIORITY = 20
"""Ours: above Exim and OpenSMTPD (10), below Postfix (60, in older releases 30) and Sendmail (90)."""
PRIORITIES = {"postfix": 60, "sendmail": 90, "exim": 10, "opensmtpd": 10}
MANAGED = "/etc/alternatives/"
TOOLS = ("update-alternatives", "alternatives")


@dataclass(frozen=True, slots=True)
class Name:
    """A name that callers use.  link: its path.  group: its name among the alternatives.  program: ours, in bin/."""

    link: str
    group: str
    program: str


NAMES = (
    Name(MASTER, GROUP, "sendmail"),
    Name("/usr/bin/mailq", "mta-mailq", "mailq"),
    Name("/usr/bin/newaliases", "mta-newaliases", "newaliases"),
    Name("/usr/bin/rmail", "mta-rmail", "rmail"),
    Name("/usr/lib/sendmail", "mta-sendmail", "sendmail"),
    Name("/usr/bin/runq", "mta-runq", "runq"),
    Name("/usr/bin/rsmtp", "mta-rsmtp", "rsmtp"),
    Name("/usr/sbin/makemap", "mta-makemap", "makemap"),
    # where Debian has them
    Name("/usr/sbin/rmail", "mta-sbin-rmail", "rmail"),
    Name("/usr/sbin/runq", "mta-sbin-runq", "runq"),
    Name("/usr/sbin/rsmtp", "mta-sbin-rsmtp", "rsmtp"),
)
"""The names that Fedora's mail systems share; on Debian the same group is made by us."""
MAN, PAGES = "/usr/share/man", "share/aiomta/man"


def manual_names(prefix: str) -> Iterator[Name]:
    """The manual pages of these commands, as they will be compressed below the prefix."""
    programs = {name.program for name in NAMES}
    for page in pages(prefix):
        program, _, section = page.rpartition(".")
        if program in programs and os.path.isdir(f"{MAN}/man{section}"):
            yield Name(f"{MAN}/man{section}/{page}.gz", f"mta-{program}man", f"../{PAGES}/{page}.gz")


def pages(prefix: str) -> list[str]:
    """File names of all manual pages that were installed with us."""
    try:
        return sorted(name for name in os.listdir(f"{prefix}/{PAGES}") if name[-1:].isdigit())
    except FileNotFoundError:
        return []


def find_tool() -> str:
    """update-alternatives, or Fedora's name for it; "" when there is none."""
    for name in TOOLS:
        for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
            if os.access(f"{folder}/{name}", os.X_OK):
                return name
    return ""


@dataclass(frozen=True)
class Found:
    """What lies at our names.  moves: path of a foreign file -> where it is diverted to."""

    names: Sequence[Name]
    moves: Mapping[str, str]
    owner: str


def owner_of(path: str) -> str:
    """Short name of the mail system whose package a file belongs to; "local" when no package knows it."""
    found = re.match(r"([^:,\s]+)", call("dpkg-query", "--search", path, status=(0, 1)))
    if not found or found[1] == "diversion":
        return "local"
    package = found[1]
    for known in (*PRIORITIES, "nullmailer", "msmtp", "ssmtp", "dma"):
        if package.startswith(known):
            return known
    return package


def look(prefix: str) -> Found:
    """Look at the names; StepError when what lies there cannot be moved out of the way."""
    if not os.path.exists(f"{prefix}/bin/sendmail"):
        raise StepError(f"{prefix}/bin/sendmail: no such program; is the prefix right?")
    names = [*NAMES, *manual_names(prefix)]
    moves = {}
    for name in names:
        if not os.path.lexists(name.link):
            continue
        target = os.readlink(name.link) if os.path.islink(name.link) else ""
        if target == MANAGED + name.group:
            continue
        if target.startswith(MANAGED):
            raise StepError(f"{name.link}: belongs to the alternatives group {os.path.basename(target)}; "
                            "remove the mail system that made it first")  # fmt: skip
        moves[name.link] = owner_of(name.link)
    main = moves.get(MASTER, "") or next(iter(moves.values()), "")
    return Found(names, {path: f"{path}.{owner}" for path, owner in moves.items()}, main)


def plan_diverts(found: Found) -> Iterator[Step]:
    """Move foreign files out of the way."""
    for path, to in found.moves.items():
        if os.path.lexists(to):
            raise StepError(f"{to}: exists already")
        yield Divert(path, to)


def plan_links(found: Found, prefix: str) -> Iterator[Step]:
    """--divert: plain links to ours."""
    for name in found.names:
        if os.path.islink(name.link) and os.readlink(name.link) == MANAGED + name.group:
            raise StepError(f"{name.link}: belongs to the alternatives group {name.group}; use --alternatives")
        yield MakeLink(name.link, os.path.normpath(f"{prefix}/bin/{name.program}"))


def plan_alternatives(found: Found, prefix: str, tool: str) -> Iterator[Step]:
    """--alternatives: the other mail system as a choice, then ours, and ours chosen."""
    ours = f"{prefix}/bin/sendmail"
    slaves = [[n.link, n.group, os.path.normpath(f"{prefix}/bin/{n.program}")] for n in found.names if n.link != MASTER]
    if MASTER in found.moves:
        theirs = [[n.link, n.group, _after(n.link, found.moves)] for n in found.names
                  if n.link != MASTER and n.link in found.moves]  # fmt: skip
        priority = PRIORITIES.get(found.owner, 10)
        yield Alternative(tool, GROUP, MASTER, found.moves[MASTER], priority, theirs)
    yield Alternative(tool, GROUP, MASTER, ours, PRIORITY, slaves)
    yield Choose(tool, GROUP, ours, chosen(tool))


def _after(path: str, moves: Mapping[str, str]) -> str:
    """Where a program is found after the moves: what a link leads to, if that moves too, else the moved file."""
    target = os.path.realpath(path)
    if os.path.islink(path) and target in moves:
        return moves[target]
    return moves[path]


def chosen(tool: str) -> str:
    """The choice that was made by hand; "" when the group chooses itself, or is not there."""
    said = call(tool, "--display", GROUP, status=(0, 2))
    manual = re.search(r"(?m)^\S+ - (?:manual mode|status is manual)", said)
    current = re.search(r"(?m)link currently points to (\S+)", said)
    return current[1].rstrip(".") if manual and current else ""


def systems(prefix: str) -> dict[str, bool]:
    """Of each name that must agree: does it lead to ours?"""
    folder = os.path.realpath(f"{prefix}/bin")
    return {link: os.path.dirname(os.path.realpath(link)) == folder for link in MUST_AGREE}
