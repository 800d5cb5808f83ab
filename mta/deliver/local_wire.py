"""What the daemon and mta-local say to each other, as bytes: one JSON object per line, one request per connection.

The daemon is not trusted by mta-local, and its answer is data to the daemon: both directions are checked to the
last field.  Addresses are str with surrogates for bytes that are not UTF-8; JSON keeps them.

See also: mta/local_helper.py
"""

import json

from mta.record import dataclass
from mta.smtp.reply import Reply

REQUEST_LIMIT = 16384  # bytes of a request line
ANSWER_LIMIT = 32 << 20  # bytes of an answer: the largest expansion with the longest addresses
ADDRESS_LIMIT = 1024  # characters
_FIELDS = ("queue_id", "recipient", "original", "sender", "transport")


class WireError(ValueError):
    """Not a request, or not an answer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Deliver to one recipient.  original: address before aliasing, "".  transport: name of the agent."""

    queue_id: str
    recipient: str
    original: str
    sender: str
    transport: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it.  recipients: not empty when it is to be forwarded, with `sender` as envelope sender."""

    reply: Reply
    recipients: tuple[str, ...] = ()
    sender: str = ""


def _clean(value: object, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit or any(c < " " or c == "\x7f" for c in value):
        raise WireError("malformed text")
    return value


def _object(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError("not JSON") from error
    if not isinstance(found, dict):
        raise WireError("not an object")
    return found


def encode_ask(ask: Ask) -> bytes:
    """One line."""
    return json.dumps({name: getattr(ask, name) for name in _FIELDS}).encode() + b"\n"


def decode_ask(line: bytes) -> Ask:
    """WireError for anything but a whole request."""
    found = _object(line)
    if set(found) != set(_FIELDS):
        raise WireError("wrong fields")
    ask = Ask(*(_clean(found[name], ADDRESS_LIMIT) for name in _FIELDS))
    if not ask.recipient or not ask.transport:
        raise WireError("no recipient")
    return ask


def encode_answer(answer: Answer) -> bytes:
    """One line."""
    reply = answer.reply
    text = " ".join(reply.text.split("\n"))
    fields = {"code": reply.code, "enhanced": reply.enhanced, "text": text}
    return json.dumps(fields | {"recipients": answer.recipients, "sender": answer.sender}).encode() + b"\n"


def decode_answer(line: bytes) -> Answer:
    """WireError for anything but a whole answer."""
    found = _object(line)
    code, recipients = found.get("code"), found.get("recipients")
    if not isinstance(code, int) or not 200 <= code <= 599 or not isinstance(recipients, list):
        raise WireError("malformed answer")
    text = _clean(found.get("text"), ADDRESS_LIMIT * 8)
    reply = Reply(code, _clean(found.get("enhanced"), 16), text)
    addresses = tuple(_clean(address, ADDRESS_LIMIT) for address in recipients)
    return Answer(reply, addresses, _clean(found.get("sender"), ADDRESS_LIMIT))
