"""Every command of the mail system, once: packages, `install`, manual pages and completion are made from this list.

See also: sendmail_compat/install.py, docs/commands.md
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a command is installed."""

    STUB = "stub"  # the file sendmail_compat/bin/sendmail with its interpreter and library filled in
    LINK = "link"  # a link to the stub, which looks at the name it was called by
    PYTHON = "python"  # an entry point of the Python package


@dataclass(frozen=True, slots=True)
class Command:
    """name: of the program.  folder: "bin" or "sbin", below /usr.  page: section of the manual.  summary: one line."""

    name: str
    folder: str
    kind: Kind
    page: int
    summary: str


COMMANDS = (
    Command("sendmail", "sbin", Kind.STUB, 1, "hand in mail, as every program on Unix does"),
    Command("mailq", "bin", Kind.LINK, 1, "list the mail queue"),
    Command("newaliases", "bin", Kind.LINK, 1, "check the alias files"),
    Command("rmail", "bin", Kind.LINK, 8, "hand in mail that came by UUCP"),
    Command("runq", "bin", Kind.LINK, 8, "deliver what is queued now"),
    Command("rsmtp", "bin", Kind.LINK, 8, "hand in a batch of SMTP commands"),
    Command("makemap", "sbin", Kind.LINK, 8, "check a lookup table and write it in cdb form"),
    Command("postqueue", "sbin", Kind.LINK, 1, "list or flush the mail queue"),
    Command("postsuper", "sbin", Kind.LINK, 1, "hold, release, requeue, expire or delete queued mail"),
    Command("postcat", "sbin", Kind.LINK, 1, "show the contents of a queue file"),
    Command("qshape", "sbin", Kind.LINK, 1, "show queued mail by domain and age"),
    Command("postdrop", "sbin", Kind.LINK, 1, "put a message in queue file form into maildrop"),
    Command("postlog", "sbin", Kind.LINK, 1, "write lines to the mail log"),
    Command("postkick", "sbin", Kind.LINK, 1, "wake a service of the mail system"),
    Command("mta", "sbin", Kind.PYTHON, 8, "start, stop and look after the mail system and its queue"),
    Command("mta-local", "sbin", Kind.PYTHON, 8, "deliver to local users; started by the mail system"),
)
STUB = next(c for c in COMMANDS if c.kind is Kind.STUB)
LINKS = tuple(c for c in COMMANDS if c.kind is Kind.LINK)
