"""Idle connections that the next message for the same server may use.

On demand, as in Postfix: a connection is kept only while there is more mail for its next hop, that is when another
delivery to it is under way or one ended within the last smtp_connection_cache_time_limit; a single message ends
with QUIT at once.  At most MAX_IDLE connections wait, each for at most that limit.

A server may take its time to answer QUIT, or never do it.  At most MAX_LEAVING connections wait for that, or else the
bounces for one such server could take all descriptors.

See also: postconf(5) smtp_connection_cache_on_demand, smtp_connection_reuse_time_limit
"""

import asyncio

from mta.clock import Clock
from mta.deliver.smtp_session import Session
from mta.deliver.smtp_settings import SmtpSettings
from mta.record import dataclass

MAX_IDLE = 100
MAX_LEAVING = 100
Key = tuple[str, str, int]  # host name, address, port


@dataclass(slots=True)
class _Site:
    """How busy a next hop is: deliveries under way, and when the last one ended (monotonic seconds)."""

    active: int = 0
    last: float = float("-inf")


class Pool:
    """Owns every session of one agent from the moment it is open."""

    def __init__(self, settings: SmtpSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._sites: dict[str, _Site] = {}
        self._idle: dict[Key, list[Session]] = {}
        self._until: dict[Session, tuple[float, Key]] = {}  # idle sessions, the oldest first
        self._open: set[Session] = set()
        self._leaving: dict[Session, None] = {}  # QUIT was said, the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, site: str) -> None:
        """A delivery to this next hop begins."""
        self._sites.setdefault(site, _Site()).active += 1

    def leave(self, site: str) -> None:
        """It has ended."""
        found = self._sites[site]
        found.active -= 1
        found.last = self._clock.monotonic()
        self._start_timer()

    def adopt(self, session: Session) -> None:
        """Watch a new session until it is gone."""
        self._open.add(session)
        session.on_lost = self.forget

    def forget(self, session: Session) -> None:
        """The connection is gone."""
        self._open.discard(session)
        self._leaving.pop(session, None)
        self._unpark(session)

    def _unpark(self, session: Session) -> None:
        found = self._until.pop(session, None)
        if found is not None:
            waiting = self._idle[found[1]]
            waiting.remove(session)
            if not waiting:
                del self._idle[found[1]]

    def has(self, key: Key) -> bool:
        """Is a connection to this server waiting?"""
        return key in self._idle

    def take(self, key: Key) -> Session | None:
        """Take a waiting connection, the one used last; None when there is none."""
        waiting = self._idle.get(key)
        if not waiting:
            return None
        session = waiting[-1]
        self._unpark(session)
        return session

    def put(self, site: str, key: Key, session: Session) -> None:
        """A delivery has ended: keep the connection when it is good and there is demand, else say good-bye."""
        if not self.wanted(site, session):
            self.dismiss(session)
            return
        if len(self._until) >= MAX_IDLE:
            oldest = next(iter(self._until))
            self._unpark(oldest)
            self.dismiss(oldest)
        expires = self._clock.monotonic() + self._settings.smtp_connection_cache_time_limit
        self._until[session] = (expires, key)
        self._idle.setdefault(key, []).append(session)
        self._start_timer()

    def dismiss(self, session: Session) -> None:
        """Say good-bye; when too many wait for the answer, the oldest is dropped."""
        session.quit()
        if session in self._open:
            self._leaving[session] = None
        if len(self._leaving) > MAX_LEAVING:
            oldest = next(iter(self._leaving))
            del self._leaving[oldest]
            oldest.abort()

    def wanted(self, site: str, session: Session) -> bool:
        """Is it usable, within its limits, and likely to be used?"""
        settings = self._settings
        if not (settings.smtp_connection_cache_on_demand and session.reusable and session.alive):
            return False
        limit = settings.smtp_connection_reuse_count_limit
        now = self._clock.monotonic()
        if (limit and session.uses >= limit) or now - session.opened > settings.smtp_connection_reuse_time_limit:
            return False
        found = self._sites[site]
        return found.active > 1 or now - found.last < settings.smtp_connection_cache_time_limit

    def _start_timer(self) -> None:
        if self._timer is None:
            limit = self._settings.smtp_connection_cache_time_limit
            self._timer = self._clock.call_later(limit, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        limit = self._settings.smtp_connection_cache_time_limit
        for session in [s for s, (expires, _) in self._until.items() if expires <= now]:
            self._unpark(session)
            self.dismiss(session)
        for site in [name for name, s in self._sites.items() if not s.active and now - s.last >= limit]:
            del self._sites[site]
        if self._until or self._sites:
            self._start_timer()

    async def close(self) -> None:
        """Drop all connections; returns when the transports have let go of their sockets."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for session in list(self._open):
            if session in self._until:
                session.quit()
            session.abort()
        for _ in range(3):  # transports close their sockets in a later turn of the loop
            await self._clock.sleep(0)
        self._sites.clear()
