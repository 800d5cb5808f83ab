"""What one local user may hand in, so that no user can fill the queue or take every connection.

Root and mail_owner are not limited.  Counters are per uid and kept in memory: a restart forgives.

See also: postconf(5) submit_user_connection_limit, submit_user_message_limit, submit_reserved_space
"""

from collections import Counter
from collections.abc import Callable

from mta.clock import Clock
from mta.record import dataclass

MAX_USERS = 10_000  # uids remembered; more begin a new interval for all


@dataclass(frozen=True, slots=True)
class UserLimitSettings:
    """postconf(5).  0 = no limit.  submit_reserved_space: percent.  anvil_rate_time_unit: seconds."""

    submit_user_connection_limit: int = 50
    submit_user_message_limit: int = 0
    submit_reserved_space: int = 5
    anvil_rate_time_unit: float = 60.0


class UserLimits:
    """Shared by the submit socket and pickup."""

    def __init__(
        self, settings: UserLimitSettings, clock: Clock, free: Callable[[], float] = lambda: 100.0, owner: int = 0
    ) -> None:
        """free: percent of the queue's file system that is free; OSError counts as all.  owner: uid of mail_owner."""
        self.settings, self._clock, self._free, self._owner = settings, clock, free, owner
        self._messages: Counter[int] = Counter()
        self._since = float("-inf")

    def exempt(self, uid: int) -> bool:
        """Root and mail_owner."""
        return uid in (0, self._owner)

    def refusal(self, uid: int) -> str | None:
        """Count a message of this user; why it is not taken now, None when it is."""
        if self.exempt(uid):
            return None
        try:
            full = self._free() < self.settings.submit_reserved_space
        except OSError:
            full = False
        if full:
            return "the queue is nearly full, try again later"
        limit = self.settings.submit_user_message_limit
        if not limit:
            return None
        now = self._clock.monotonic()
        if now - self._since >= self.settings.anvil_rate_time_unit or len(self._messages) > MAX_USERS:
            self._messages.clear()
            self._since = now
        if self._messages[uid] >= limit:
            return "too many messages, try again later"
        self._messages[uid] += 1
        return None
