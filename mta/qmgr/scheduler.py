"""Which delivery starts next, and how many at once per destination.

Events in (enqueue, finished), decisions out (next).  No I/O and no clock: callers pass `now`, monotonic
seconds.  A destination is a transport and a next hop.  Each has

- a window: how many deliveries may run at once.  It starts at initial_destination_concurrency (at most
  transport_destination_concurrency_limit), grows by one
  after a cohort (one window full) of successes and shrinks by one after a cohort of site failures
  (postconf(5) default_destination_concurrency_positive_feedback = negative_feedback = 1/concurrency);
- when transport_destination_concurrency_failed_cohort_limit cohorts have failed it is dead: nothing is tried
  until minimal_backoff_time has passed, and everything waiting for it is given back with the reason, so that
  its messages are deferred at once instead of each waiting for its own timeout.

Destinations of one transport take turns, so a slow or busy one delays no other.  Within one destination
messages are served in order of arrival, but a job with more entries waiting yields after each entry to jobs
behind it, so that a mailing of ten thousand recipients does not stand before a single letter.

Cost: enqueue, next and finished are O(1) amortised, but for moving up the other waiting entries of the same message
(pointers in a list); memory is the entry, and a list and a node for each message that waits.
"""

from collections import OrderedDict
from dataclasses import field

from mta.envelope import Recipient
from mta.record import dataclass
from mta.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """postconf(5); seconds."""

    minimal_backoff_time: float


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """process_limit: deliveries at once over all destinations of the transport; concurrency: per destination
    (0 = no limit of its own); recipients: per delivery (0 = no limit); initial: per destination at first;
    failed_cohorts: until a destination is dead (0 = never)."""

    process_limit: int
    concurrency: int
    recipients: int
    initial: int
    failed_cohorts: int


@dataclass(slots=True, eq=False)
class Entry:
    """One delivery to be made: some recipients of one message at one destination.

    destination: what the window counts; the next hop, or next hop and recipient for a transport that takes one
    recipient at a time (then `local_destination_concurrency_limit = 2` means two per mailbox, as in Postfix).
    """

    job_id: str
    transport: str
    nexthop: str
    recipients: tuple[Recipient, ...]
    destination: str


@dataclass(slots=True, eq=False)
class _Destination:
    """Jobs take turns: `jobs` maps a job id to its waiting entries, in order of arrival.

    Lists, because most hold one entry and thousands wait: a deque takes 600 bytes more.
    """

    jobs: "OrderedDict[str, list[Entry]]" = field(default_factory=OrderedDict)
    busy: int = 0
    window: float = 0.0
    failed_cohorts: float = 0.0
    dead_until: float = 0.0
    reason: Reply | None = None


@dataclass(slots=True, eq=False)
class _Transport:
    limits: TransportLimits
    first_window: float  # of a destination of which nothing is known
    destinations: dict[str, _Destination] = field(default_factory=dict)
    ready: "OrderedDict[str, None]" = field(default_factory=OrderedDict)  # next hops that may start something
    busy: int = 0


class Scheduler:
    """The pure heart of the queue manager."""

    def __init__(self, settings: SchedulerSettings, limits: "dict[str, TransportLimits]", default: TransportLimits):
        self._settings = settings
        self._limits = limits
        self._default = default
        self._transports: dict[str, _Transport] = {}

    def limits(self, transport: str) -> TransportLimits:
        """Limits that hold for a transport."""
        return self._limits.get(transport, self._default)

    def enqueue(self, entry: Entry, now: float) -> Reply | None:
        """Let an entry wait for its turn; a Reply instead means: destination is dead, defer with this reason."""
        transport = self._transport(entry.transport)
        destination = transport.destinations.get(entry.destination)
        if destination is None:
            destination = _Destination(window=transport.first_window)
            transport.destinations[entry.destination] = destination
        if destination.dead_until > now:
            return destination.reason
        if destination.dead_until:
            self._revive(transport, destination)
        destination.jobs.setdefault(entry.job_id, []).append(entry)
        self._set_ready(transport, entry.destination, destination)
        return None

    def next(self, now: float) -> Entry | None:
        """Return an entry to start now, None when nothing may start.  Each returned entry must be `finished`."""
        for transport in self._transports.values():
            if transport.busy >= transport.limits.process_limit:
                continue
            if transport.ready:
                nexthop, _ = transport.ready.popitem(last=False)
                destination = transport.destinations[nexthop]
                entry = self._take(destination)
                destination.busy += 1
                transport.busy += 1
                self._set_ready(transport, nexthop, destination)
                return entry
        return None

    def finished(self, entry: Entry, now: float, *, failure: Reply | None = None) -> list[tuple[Entry, Reply]]:
        """An entry's delivery has ended.  failure: why the site is to blame, None when it answered.

        Returns the waiting entries that will not be tried because the destination is dead now, with the reason
        to defer them.
        """
        transport = self._transports[entry.transport]
        destination = transport.destinations[entry.destination]
        transport.busy -= 1
        destination.busy -= 1
        dropped: list[tuple[Entry, Reply]] = []
        if failure:
            dropped = self._failed(transport, destination, now, failure)
        else:
            self._succeeded(transport, destination)
        self._set_ready(transport, entry.destination, destination)
        if not (destination.busy or destination.jobs or destination.failed_cohorts):
            del transport.destinations[entry.destination]
            transport.ready.pop(entry.destination, None)
        return dropped

    def forget_dead(self, now: float, *, even_if_not_due: bool = False) -> None:
        """Forget failures, except of sites whose time is not over (of those too, when a flush was asked for)."""
        for transport in self._transports.values():
            for nexthop, destination in list(transport.destinations.items()):
                if even_if_not_due or destination.dead_until <= now:
                    self._revive(transport, destination)
                    if not destination.busy and not destination.jobs:
                        del transport.destinations[nexthop]

    def withdraw(self) -> list[Entry]:
        """Take back everything that waits (shutdown)."""
        taken: list[Entry] = []
        for transport in self._transports.values():
            transport.ready.clear()
            for destination in transport.destinations.values():
                taken += self._drain(destination)
        return taken

    def _transport(self, name: str) -> _Transport:
        transport = self._transports.get(name)
        if transport is None:
            limits = self.limits(name)
            first = min(limits.initial, limits.concurrency or limits.initial)
            transport = self._transports[name] = _Transport(limits, float(first))
        return transport

    @staticmethod
    def _take(destination: _Destination) -> Entry:
        """The next job's next entry; a job with more of them goes to the end of the line."""
        job_id, entries = destination.jobs.popitem(last=False)
        entry = entries.pop(0)
        if entries:
            destination.jobs[job_id] = entries
        return entry

    @staticmethod
    def _drain(destination: _Destination) -> list[Entry]:
        taken = [entry for entries in destination.jobs.values() for entry in entries]
        destination.jobs.clear()
        return taken

    @staticmethod
    def _set_ready(transport: _Transport, nexthop: str, destination: _Destination) -> None:
        if destination.jobs and destination.busy < int(destination.window):
            transport.ready.setdefault(nexthop)
        else:
            transport.ready.pop(nexthop, None)

    @staticmethod
    def _revive(transport: _Transport, destination: _Destination) -> None:
        destination.dead_until = 0.0
        destination.failed_cohorts = 0.0
        destination.window = max(destination.window, transport.first_window)

    def _succeeded(self, transport: _Transport, destination: _Destination) -> None:
        destination.failed_cohorts = 0.0
        limit = transport.limits.concurrency or transport.limits.process_limit
        destination.window = min(float(limit), destination.window + 1.0 / max(1.0, destination.window))

    def _failed(
        self, transport: _Transport, destination: _Destination, now: float, failure: Reply
    ) -> list[tuple[Entry, Reply]]:
        destination.failed_cohorts += 1.0 / max(1.0, destination.window)
        destination.window = max(1.0, destination.window - 1.0 / max(1.0, destination.window))
        limit = transport.limits.failed_cohorts
        if not limit or destination.failed_cohorts < limit - 1e-9:
            return []
        destination.dead_until = now + self._settings.minimal_backoff_time
        reason = Reply(451, failure.enhanced, f"delivery temporarily suspended: {failure.text}")
        destination.reason = reason
        return [(entry, reason) for entry in self._drain(destination)]
