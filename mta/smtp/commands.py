"""What a client says: commands with the parameters that the server understands, and what a server understands.

See also: mta/smtp/client.py; RFC 1870 (SIZE), 3461 (DSN), 6152 (8BITMIME), 6531 (SMTPUTF8)
"""

from mta.envelope import Notify, Recipient, Ret
from mta.record import dataclass
from mta.smtp.parameters import MAX_ORCPT, encode_xtext, is_orcpt
from mta.smtp.path import quote_address


@dataclass(frozen=True, slots=True)
class Features:
    """What EHLO offered.  size_limit: octets, 0 = none told."""

    names: frozenset[str] = frozenset()
    size_limit: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.names


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message for one server.  size: octets for SIZE=.  encoding: "", "7bit" or "8bit" as in the envelope."""

    sender: str
    recipients: tuple[Recipient, ...]
    size: int
    encoding: str = ""
    smtputf8: bool = False
    envelope_id: str = ""
    ret: Ret = Ret(0)


def sendable(address: str) -> bool:
    """Can it stand in a command?  Not with CR, LF or NUL, which no quotes make harmless."""
    return address.isprintable() or not any(c in address for c in "\r\n\0")


def send_command(text: str) -> bytes:
    """Return a command line as wire bytes: exactly one CR LF, at the end.  ValueError: text holds CR, LF or NUL."""
    line = text.encode("utf-8", "surrogateescape")
    if b"\r" in line or b"\n" in line or b"\0" in line:
        raise ValueError("line break in an SMTP command")
    return line + b"\r\n"


def mail_command(message: Transaction, features: Features) -> bytes:
    """MAIL FROM with the parameters the server understands."""
    parts = [f"MAIL FROM:<{quote_address(message.sender)}>"]
    if "SIZE" in features:
        parts.append(f"SIZE={message.size}")
    if "8BITMIME" in features and message.encoding in ("7bit", "8bit"):
        parts.append("BODY=8BITMIME" if message.encoding == "8bit" else "BODY=7BIT")
    if message.smtputf8 and "SMTPUTF8" in features:
        parts.append("SMTPUTF8")
    if "DSN" in features:
        if message.envelope_id:
            parts.append(f"ENVID={encode_xtext(message.envelope_id)}")
        if message.ret:
            parts.append("RET=FULL" if message.ret == Ret.FULL else "RET=HDRS")
    return send_command(" ".join(parts))


def rcpt_command(recipient: Recipient, features: Features, *, smtputf8: bool = False) -> bytes:
    """RCPT TO; with DSN also NOTIFY and ORCPT (the address before aliasing when the sender named none)."""
    parts = [f"RCPT TO:<{quote_address(recipient.address)}>"]
    if "DSN" in features:
        if recipient.notify:
            parts.append(f"NOTIFY={_notify(recipient.notify)}")
        original = recipient.dsn_orig_rcpt
        if not original and recipient.original:
            kind = "rfc822" if recipient.original.isascii() else "utf-8"
            original = f"{kind};{quote_address(recipient.original)}"
        if original and is_orcpt(original):  # a queue file may hold anything, and the mail matters more
            kind, _, address = original.partition(";")
            value = f"{kind};{_original(kind, address, smtputf8=smtputf8)}"
            parts += [f"ORCPT={value}"] * (len(value) <= MAX_ORCPT)
    return send_command(" ".join(parts))


def _notify(notify: Notify) -> str:
    if notify & Notify.NEVER:
        return "NEVER"
    wanted = (Notify.SUCCESS, Notify.FAILURE, Notify.DELAY)
    return ",".join(flag.name or "" for flag in wanted if notify & flag)


def _original(kind: str, address: str, *, smtputf8: bool) -> str:
    """xtext, or for utf-8 addresses the form of RFC 6533 s3 that needs ASCII only."""
    if kind.lower() != "utf-8" or not smtputf8:
        return encode_xtext(address)
    return "".join(c if "!" <= c <= "~" and c not in "\\+=" else f"\\x{{{ord(c):X}}}" for c in address)


def parse_features(text: str, ignored: frozenset[str] = frozenset()) -> Features:
    """Read an EHLO reply's text (lines joined by "\\n", the first is the server's name).

    ignored: keywords in upper case that are taken as not offered.  A SIZE that is not a plain number counts as
    offered without a limit.
    """
    names = set()
    size_limit = 0
    for line in text.split("\n")[1:]:
        words = line.split()
        if not words or (name := words[0].upper()) in ignored:
            continue
        names.add(name)
        if name == "SIZE" and len(words) > 1 and words[1].isascii() and words[1].isdigit() and len(words[1]) < 20:
            size_limit = int(words[1])
    return Features(frozenset(names), size_limit)
