"""Counters of the services that have limits of their own (-o smtpd_client_... in master.cf).

A service with the limits of main.cf shares one set of counters with its like, under the client's address; one with
others has its own, and asks as "address/service".  That is one word, so it goes through the link between worker and
scheduler as it is.
"""

from collections.abc import Mapping

from mta.smtpd.facts import Verdict
from mta.smtpd.ports import Anvil


class ServiceAnvil:
    """What the server of one such service asks; anvil: AnvilOfServices, or the link to it."""

    def __init__(self, anvil: Anvil, service: str) -> None:
        self._anvil, self._suffix = anvil, f"/{service}"

    async def connect(self, address: str) -> Verdict:
        """See Anvil."""
        return await self._anvil.connect(address + self._suffix)

    async def mail(self, address: str) -> Verdict:
        """See Anvil."""
        return await self._anvil.mail(address + self._suffix)

    async def rcpt(self, address: str) -> Verdict:
        """See Anvil."""
        return await self._anvil.rcpt(address + self._suffix)

    def disconnect(self, address: str) -> None:
        """See Anvil."""
        self._anvil.disconnect(address + self._suffix)


class AnvilOfServices:
    """Finds the counters that a question is for.  common: of all services that are not in `own`, by name."""

    def __init__(self, common: Anvil, own: Mapping[str, Anvil]) -> None:
        self._common, self._own = common, own

    def _counters(self, asked: str) -> tuple[Anvil, str]:
        """A service that a reload took away, or changed, counts with the others until its clients have gone."""
        address, _, service = asked.partition("/")
        return self._own.get(service, self._common), address

    async def connect(self, asked: str) -> Verdict:
        """See Anvil."""
        anvil, address = self._counters(asked)
        return await anvil.connect(address)

    async def mail(self, asked: str) -> Verdict:
        """See Anvil."""
        anvil, address = self._counters(asked)
        return await anvil.mail(address)

    async def rcpt(self, asked: str) -> Verdict:
        """See Anvil."""
        anvil, address = self._counters(asked)
        return await anvil.rcpt(address)

    def disconnect(self, asked: str) -> None:
        """See Anvil."""
        anvil, address = self._counters(asked)
        anvil.disconnect(address)
