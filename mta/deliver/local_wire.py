"""What the daemon and mta-local say to each other, as bytes: one JSON object per line, one request per connection.

The daemon is not trusted by mta-local, and its answer is data to the daemon: both directions are checked to the
last field.  Addresses are str with surrogates for bytes that are not UTF-8; JSON keeps them.  Who sent a message and
whom it was for at first is only text: control characters are replaced where it becomes a header.

See also: mta/local_helper.py
"""

import json

from mta.record import dataclass
from mta.smtp.reply import Reply

REQUEST_LIMIT = 16384  # bytes of a request line
ANSWER_LIMIT = 32 << 20  # bytes of an answer: the largest expansion with the longest addresses
ADDRESS_LIMIT = 2048  # characters; more than any command of SMTP can hold that we take
TEXT_LIMIT = 8 * ADDRESS_LIMIT  # characters of the text of a reply
_FIELDS = ("queue_id", "recipient", "original", "sender", "transport")
_JUST_TEXT = ("original", "sender")


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


def possible(address: str) -> bool:
    """Could this be an address?  Not with a control character (RFC 5321 s4.1.2) or over ADDRESS_LIMIT characters."""
    return len(address) <= ADDRESS_LIMIT and not any(c < " " or c == "\x7f" for c in address)


def _text(name: str, value: object, limit: int = ADDRESS_LIMIT) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise WireError(f"malformed {name}")
    return value


def _clean(name: str, value: object, limit: int = ADDRESS_LIMIT) -> str:
    text = _text(name, value, limit)
    if any(c < " " or c == "\x7f" for c in text):
        raise WireError(f"malformed {name}")
    return text


def _object(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError("not JSON") from error
    if not isinstance(found, dict):
        raise WireError("not an object")
    return found


def encode_ask(ask: Ask) -> bytes:
    """One line; WireError for what would not be taken."""
    fields = {name: getattr(ask, name) for name in _FIELDS}
    _checked(fields)
    line = json.dumps(fields).encode() + b"\n"
    if len(line) > REQUEST_LIMIT:
        raise WireError("addresses too long")
    return line


def decode_ask(line: bytes) -> Ask:
    """WireError for anything but a whole request."""
    found = _object(line)
    if set(found) != set(_FIELDS):
        raise WireError("wrong fields")
    return _checked(found)


def _checked(found: dict[str, object]) -> Ask:
    ask = Ask(*((_text if name in _JUST_TEXT else _clean)(name, found[name]) for name in _FIELDS))
    if not ask.recipient or not ask.transport:
        raise WireError("no recipient")
    return ask


def encode_answer(answer: Answer) -> bytes:
    """One line."""
    reply = answer.reply
    text = "".join(" " if c < " " or c == "\x7f" else c for c in reply.text[:TEXT_LIMIT])
    fields = {"code": reply.code, "enhanced": reply.enhanced, "text": text}
    return json.dumps(fields | {"recipients": answer.recipients, "sender": answer.sender}).encode() + b"\n"


def decode_answer(line: bytes) -> Answer:
    """WireError for anything but a whole answer."""
    found = _object(line)
    code, recipients = found.get("code"), found.get("recipients")
    if not isinstance(code, int) or not 200 <= code <= 599 or not isinstance(recipients, list):
        raise WireError("malformed answer")
    text = _clean("text", found.get("text"), TEXT_LIMIT)
    reply = Reply(code, _clean("enhanced", found.get("enhanced"), 16), text)
    addresses = tuple(_clean("recipients", address) for address in recipients)
    return Answer(reply, addresses, _text("sender", found.get("sender")))
