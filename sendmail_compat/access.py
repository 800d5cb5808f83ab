"""Who may use the commands, judged in the command itself: for what is done without the daemon.

See also: mta/submit/users.py, postconf(5) authorized_submit_users
"""

import asyncio
import os

from mta.clock import Clock
from mta.fsio.fsio import Fsio
from mta.lookup.context import LookupContext
from mta.lookup.unix import UserDb
from mta.submit.users import Access
from sendmail_compat.config import Config


class Quiet:
    """A log for look-ups in a command: their errors come as TableError."""

    def warning(self, service: str, text: str) -> None:
        """Nothing."""


def denied(config: Config, parameter: str) -> str | None:
    """None when this process's user is in the list, or the list is the default; else the user's name.  TableError."""
    spec = config.text(parameter) or "static:anyone"
    if os.getuid() == 0 or spec == "static:anyone":
        return None

    async def ask() -> str | None:
        fsio = Fsio(aio=False)
        try:
            users = UserDb(fsio, Clock())
            context = LookupContext(fsio, Clock(), Quiet(), users, environ=dict(os.environ))
            return await Access(users, context).denied(tuple(spec.replace(",", " ").split()), os.getuid())
        finally:
            fsio.close()

    return asyncio.run(ask())
