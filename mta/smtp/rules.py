"""What a session offers its client, as far as the parsers of commands need to know it.  A value; no state."""

from mta.record import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """What the session offers and asks for.

    size, dsn, smtputf8: the keyword was offered and the client said EHLO; otherwise its parameters are unknown.
    auth: AUTH= of RFC 4954 is understood (it needs a mechanism).  strict: strict_rfc821_envelopes.
    allow_minus: allow_min_user, an address may start with "-".
    """

    size: bool = True
    dsn: bool = True
    smtputf8: bool = True
    auth: bool = False
    strict: bool = False
    allow_minus: bool = False
