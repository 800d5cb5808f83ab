"""When may a deferred message be tried again, and when is it too old?

Decisions only, no I/O and no clock.  All state is what the queue file records anyway (arrival time), so a
restart changes no retry time.

See also: mta/INTERNALS.md "retry", RFC 5321 s4.5.4.1, postconf(5)
"""

from mta.record import dataclass


@dataclass(frozen=True, slots=True)
class BackoffSettings:
    """postconf(5), all in seconds."""

    minimal_backoff_time: float
    maximal_backoff_time: float
    maximal_queue_lifetime: float
    bounce_queue_lifetime: float


def next_attempt(arrival: float, now: float, settings: BackoffSettings) -> float:
    """Return when to retry a message that was just deferred.

    The gap equals the message's age, kept within the two limits: attempts at age 0, 5, 10, 20, 40, 80 min,
    then every 67 min.  RFC 5321 s4.5.4.1 says "at least 30 minutes" (SHOULD); like Postfix we start faster,
    because greylisting needs a second try within minutes.

    arrival, now, result: Unix time in seconds.  A clock that was set back (now < arrival) counts as age 0, so
    it can neither flood nor strand mail.
    """
    age = max(0.0, now - arrival)
    return now + min(max(age, settings.minimal_backoff_time), settings.maximal_backoff_time)


def expired(arrival: float, now: float, *, null_sender: bool, settings: BackoffSettings) -> bool:
    """True when a message that could not be delivered is given back: 5 days, bounces by their own limit."""
    lifetime = settings.bounce_queue_lifetime if null_sender else settings.maximal_queue_lifetime
    return now - arrival >= lifetime


def due(next_try: float, now: float, settings: BackoffSettings) -> float:
    """Return when a stored next-attempt time really is due.

    A time further away than maximal_backoff_time cannot have come from next_attempt: the clock jumped, so the
    message is due now.
    """
    return now if next_try > now + settings.maximal_backoff_time else next_try
