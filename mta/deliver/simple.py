"""The agents that only say something: discard, error and retry.

    discard:text      the mail is gone and counts as sent
    error:5.1.6 text  the mail bounces; error:4.2.1 text, or a code that is not 5.x.y or 4.x.y: see `parse_status`
    retry:4.4.4 text  the mail waits

The text is the next hop of the transport, so it comes from the administrator's tables.  Where Postfix's error(8)
turns a 4.x.y into a bounce with 5.0.0, we believe the 4: a wrong bounce loses mail.

See also: discard(8), error(8)
"""

import re

from mta.clock import Clock
from mta.deliver.request import DeliveryRequest, Result
from mta.smtp.reply import Reply

_STATUS = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})(?:\s+|\Z)(.*)", re.ASCII | re.DOTALL)


def parse_status(text: str, default: str) -> tuple[str, str]:
    """Split "5.1.6 gone away" into (enhanced code, text); the default code when there is none."""
    found = _STATUS.match(text)
    return (found[1], found[2].strip()) if found else (default, text.strip())


class _SayingAgent:
    """Reports one result for every recipient of a request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def deliver(self, request: DeliveryRequest) -> None:
        """See DeliveryAgent."""
        reply = self._reply(request)
        result = Result(reply, reply.text, finished=self._clock.monotonic())
        for recipient in request.recipients:
            request.done(recipient, result)

    async def close(self) -> None:
        """Nothing is kept."""

    def _reply(self, request: DeliveryRequest) -> Reply:
        raise NotImplementedError


class DiscardAgent(_SayingAgent):
    """discard: throws mail away."""

    def _reply(self, request: DeliveryRequest) -> Reply:
        enhanced, text = parse_status(request.nexthop, "2.0.0")
        return Reply(250, enhanced if enhanced[0] == "2" else "2.0.0", text or "discarded")


class ErrorAgent(_SayingAgent):
    """error: bounces mail, or lets it wait when the text begins with 4.x.y."""

    def _reply(self, request: DeliveryRequest) -> Reply:
        enhanced, text = parse_status(request.nexthop, "5.0.0")
        text = text or "mail is not deliverable"
        if enhanced[0] == "4":
            return Reply(450, enhanced, text)
        return Reply(550, enhanced if enhanced[0] == "5" else "5.0.0", text)


class RetryAgent(_SayingAgent):
    """retry: lets mail wait."""

    def _reply(self, request: DeliveryRequest) -> Reply:
        enhanced, text = parse_status(request.nexthop, "4.0.0")
        return Reply(450, enhanced if enhanced[0] == "4" else "4.0.0", text or "delivery is put off")
