"""What every lookup table needs from outside, in one value.

Types only, so that a table can be built in a test from three small objects.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import ParamSpec, Protocol, TypeVar

from mta.clock import Clock
from mta.lookup.table import Table
from mta.lookup.unix import UserDb
from mta.record import dataclass

P = ParamSpec("P")
T = TypeVar("T")


class Worker(Protocol):
    """The part of mta/fsio/fsio.py used here: blocking work off the loop."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call fn in a thread."""


class Log(Protocol):
    """The part of mta/maillog/maillog.py used here."""

    def warning(self, service: str, text: str) -> None:
        """One line with "warning: " in front."""


@dataclass(frozen=True, slots=True)
class LookupContext:
    """Handed to open_tables(); tables opened with the same context and name are shared.

    service: under which name warnings of tables are logged.  environ: for environ: tables.
    """

    fsio: Worker
    clock: Clock
    log: Log
    users: UserDb
    service: str = "trivial-rewrite"
    default_database_type: str = "hash"
    environ: Mapping[str, str] = field(default_factory=dict)
    shared: dict[tuple[str, bool], Table] = field(default_factory=dict, repr=False)

    def warn(self, text: str) -> None:
        """Log one warning."""
        self.log.warning(self.service, text)
