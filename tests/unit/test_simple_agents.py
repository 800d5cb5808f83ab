"""discard:, error: and retry: say what their next hop says, and nothing worse."""

from collections.abc import AsyncIterator

import pytest

from mta.clock import Clock
from mta.deliver.request import DeliveryAgent, DeliveryRequest, Result
from mta.deliver.simple import DiscardAgent, ErrorAgent, RetryAgent
from mta.envelope import Envelope, Recipient
from mta.smtp.reply import Reply


async def said(agent: DeliveryAgent, nexthop: str) -> Result:
    """Deliver to two recipients; the result is the same for both."""
    results: list[Result] = []

    def content() -> AsyncIterator[bytes]:
        raise AssertionError("nobody needs to read the message")

    recipients = (Recipient("a@x.test", offset=1), Recipient("b@x.test", offset=2))
    request = DeliveryRequest(
        "4F1", Envelope("s@src.test", list(recipients), 0.0), "t", nexthop, recipients, 100, content,
        lambda _recipient, result: results.append(result),
    )  # fmt: skip
    await agent.deliver(request)
    await agent.close()
    assert len(results) == 2 and results[0] == results[1]
    assert results[0].text == results[0].reply.text and results[0].relay == "none"
    return results[0]


@pytest.mark.parametrize(
    ("agent", "nexthop", "reply"),
    [
        (DiscardAgent, "some text", Reply(250, "2.0.0", "some text")),
        (DiscardAgent, "2.1.5 gone", Reply(250, "2.1.5", "gone")),
        (DiscardAgent, "5.1.1 gone", Reply(250, "2.0.0", "gone")),
        (DiscardAgent, "", Reply(250, "2.0.0", "discarded")),
        (ErrorAgent, "5.1.6 gone away", Reply(550, "5.1.6", "gone away")),
        (ErrorAgent, "just text", Reply(550, "5.0.0", "just text")),
        (ErrorAgent, "4.2.1 later", Reply(450, "4.2.1", "later")),
        (ErrorAgent, "2.0.0 fine", Reply(550, "5.0.0", "fine")),
        (ErrorAgent, "5.1.6", Reply(550, "5.1.6", "mail is not deliverable")),
        (ErrorAgent, "5.1.6x no code", Reply(550, "5.0.0", "5.1.6x no code")),
        (RetryAgent, "4.4.4 maybe", Reply(450, "4.4.4", "maybe")),
        (RetryAgent, "word", Reply(450, "4.0.0", "word")),
        (RetryAgent, "5.4.4 five", Reply(450, "4.0.0", "five")),
    ],
)
async def test_the_next_hop_is_the_answer(
    agent: type[DiscardAgent] | type[ErrorAgent] | type[RetryAgent], nexthop: str, reply: Reply
) -> None:
    assert (await said(agent(Clock()), nexthop)).reply == reply
