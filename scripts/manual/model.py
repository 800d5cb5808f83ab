"""What a manual page says, before it is roff: short texts, one list of options for page and completion.

In every text `x` stands for x in bold; a blank line begins a paragraph.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the shell offers for an argument."""

    NONE = ""  # nothing can be offered
    FILE = "file"
    DIRECTORY = "directory"
    QUEUE = "queue"  # a queue name: deferred, hold ...
    QUEUE_ID = "queue-id"  # a queue id, or ALL
    USER = "user"


@dataclass(frozen=True, slots=True)
class Option:
    """flag: "-c", "--dry-run"; argument: its name, "" for none; attached: no blank between them; words: its values."""

    flag: str
    doc: str
    argument: str = ""
    kind: Kind = Kind.NONE
    words: tuple[str, ...] = ()
    attached: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A word that says what to do, as `start` of mta.  options: its own, besides those of the command."""

    name: str
    doc: str
    options: tuple[Option, ...] = ()
    verbs: "tuple[Verb, ...]" = ()
    operands: Kind = Kind.NONE


@dataclass(frozen=True, slots=True)
class Page:
    """One manual page.

    synopsis: lines without the command's name.  operands: what the arguments after the options are.  sections:
    (title, text) after the options.  status: (exit status, meaning).  files: (path, what it is).  see: "mailq(1)".
    command: False for a file format, which has no completion.
    """

    name: str
    section: int
    about: str
    synopsis: tuple[str, ...]
    description: str
    options: tuple[Option, ...] = ()
    verbs: tuple[Verb, ...] = ()
    operands: Kind = Kind.NONE
    sections: tuple[tuple[str, str], ...] = ()
    status: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    see: tuple[str, ...] = ()
    command: bool = True
    terms: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """(section title, ((term, text), ...)): definition lists, after the sections."""
