"""How near is this process to RLIMIT_NOFILE, and how much may each part of it hold open?

A connection that takes the last descriptor leaves none for the message it brings, for a table, or for the name
service (which then says "no such user" of users who exist).  So the last quarter is never given to clients: the
kernel hands out the lowest free number, hence a new connection whose number lies in the last quarter means that
three quarters are in use, whoever uses them.  What clients bring must find enough when they have the other three, or
each of them is told to come again, and nobody is served.

See also: getrlimit(2), postconf(5) qmgr_message_active_limit
"""

import os
import resource

PER_JOB = 2  # the queue file, and a bounce or forwarded copy being written
PER_DELIVERY = 4  # a connection, or the copy for a mailbox (twice for a moment) and the way to mta-local
FOR_LOOKUP = 8  # with fewer an answer of the name service is not to be believed
RESERVE = 16  # listeners, tables, DNS, control connections


def limit() -> int:
    """RLIMIT_NOFILE, the soft one; a large number stands for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def in_last_quarter(fd: int, most: int = 0) -> bool:
    """A descriptor that was just opened: are three quarters of all in use?  most: limit(), if known."""
    return fd * 4 >= (most or limit()) * 3


def scarce() -> bool:
    """Are fewer than FOR_LOOKUP left now?  Opens so many to see."""
    opened: list[int] = []
    try:
        for _ in range(FOR_LOOKUP):
            opened.append(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError:
        return True
    finally:
        for fd in opened:
            os.close(fd)
    return False


def spare() -> int:
    """Descriptors that may be planned with: not open now, and not RESERVE."""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # not even one for the directory
        return 0
    return max(0, limit() - used - RESERVE)


def jobs() -> int:
    """How many messages may be active at once: half of what is spare."""
    return max(1, spare() // 2 // PER_JOB)


def deliveries() -> int:
    """How many deliveries may run at once: the other half."""
    return max(1, spare() // 2 // PER_DELIVERY)
