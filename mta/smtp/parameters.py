"""ESMTP parameters of MAIL and RCPT, and the xtext they are written in.

Every function either returns a value or the Reply that refuses the input; none raises on any input.  Texts and codes
are Postfix's.  No state.

See also: RFC 1870 (SIZE), RFC 3461 s4 (DSN), RFC 4954 (AUTH), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 6533 s3 (ORCPT)
"""

import re

from mta.envelope import NOTIFY_DEFAULT, RET_DEFAULT, Notify, Ret
from mta.record import dataclass
from mta.smtp.reply import Reply
from mta.smtp.rules import Rules

MAX_ENVID = 100  # characters of an ENVID, RFC 3461 s4.4
MAX_ORCPT = 500  # RFC 3461 s4.2
_MAX_DIGITS = 19  # of SIZE; more is too large whatever it says

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
# Wider than RFC 3461 s4: clients write "=" (SRS and BATV addresses in ORCPT) and lower-case digits, Postfix takes
# both, and a 501 would lose the mail for a detail.  What we send is strict.
_XTEXT_CHAR = re.compile(r"\+([0-9A-Fa-f]{2})")
_XTEXT = re.compile(rb"(?:[!-*,-~]|\+[0-9A-Fa-f]{2})*")
_OWN_XTEXT = re.compile(r"[!-*,-<>-~]*")
_UNITEXT_CHAR = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")

BAD_SIZE = Reply(501, "5.5.4", "Bad message size syntax")
BAD_BODY = Reply(501, "5.5.4", "Bad BODY parameter syntax")
SIZE_OVERFLOW = Reply(552, "5.3.4", "Message size exceeds file system imposed limit")
BAD_RET = Reply(501, "5.5.4", "Bad RET parameter syntax")
BAD_ENVID = Reply(501, "5.5.4", "Bad ENVID parameter syntax")
BAD_NOTIFY = Reply(501, "5.5.4", "Error: Bad NOTIFY parameter syntax")
BAD_ORCPT = Reply(501, "5.5.4", "Error: Bad ORCPT parameter syntax")
BAD_AUTH = Reply(501, "5.5.4", "Bad AUTH parameter syntax")
BAD_PARAMETER = Reply(501, "5.5.4", "Error: Bad parameter syntax")


@dataclass(slots=True)
class MailCommand:
    """MAIL FROM:<path> with its parameters.

    size: SIZE= in octets, 0 when not given.  encoding: "", "7bit" or "8bit".  envelope_id: ENVID= decoded.
    auth: AUTH= decoded ("<>" = unknown), "" when not given.
    """

    sender: str
    size: int = 0
    encoding: str = ""
    smtputf8: bool = False
    ret: Ret = RET_DEFAULT
    envelope_id: str = ""
    auth: str = ""


@dataclass(slots=True)
class RcptCommand:
    """RCPT TO:<path>; orcpt is "type;address" decoded, "" when not given."""

    recipient: str
    notify: Notify = NOTIFY_DEFAULT
    orcpt: str = ""


def encode_xtext(text: str) -> str:
    """Return xtext of RFC 3461 s4; what is not ASCII is encoded octet by octet of its UTF-8 form."""
    if _OWN_XTEXT.fullmatch(text):
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(c) if 33 <= c <= 126 and c not in b"+=" else f"+{c:02X}" for c in raw)


def decode_xtext(raw: bytes) -> str | None:
    """Return the text, None when it is not xtext or holds a control character once decoded."""
    if not _XTEXT.fullmatch(raw):
        return None
    text = _XTEXT_CHAR.sub(lambda m: chr(int(m[1], 16)), raw.decode("ascii"))
    return text if text.isascii() and text.isprintable() else None


def _parameters(text: bytes) -> list[tuple[bytes, bytes | None, bytes]] | Reply:
    """Split "A=x B" into (name in upper case, value or None, the word); a name given twice is refused."""
    found: list[tuple[bytes, bytes | None, bytes]] = []
    seen: set[bytes] = set()
    if _CONTROL.search(text.replace(b"\t", b" ")):
        return BAD_PARAMETER
    for word in text.split():
        name, equals, value = word.partition(b"=")
        name = name.upper()
        if not _KEYWORD.fullmatch(name):
            return _unsupported(word)
        if name in seen:
            return _DUPLICATE.get(name, BAD_PARAMETER)
        seen.add(name)
        found.append((name, value if equals else None, word))
    return found


_DUPLICATE = {
    b"SIZE": BAD_SIZE, b"BODY": BAD_BODY, b"RET": BAD_RET, b"ENVID": BAD_ENVID, b"NOTIFY": BAD_NOTIFY,
    b"ORCPT": BAD_ORCPT, b"AUTH": BAD_AUTH,
}  # fmt: skip


def _unsupported(word: bytes) -> Reply:
    return Reply(555, "5.5.4", "Unsupported option: " + word[:100].decode("ascii", "replace"))


def mail_parameters(command: MailCommand, text: bytes, rules: Rules) -> Reply | None:
    found = _parameters(text)
    if isinstance(found, Reply):
        return found
    for name, value, word in found:
        if name == b"SIZE" and rules.size and value is not None:
            if not value.isdigit():
                return BAD_SIZE
            if len(value) > _MAX_DIGITS:
                return SIZE_OVERFLOW
            command.size = int(value)
        elif name == b"BODY" and value is not None and value.upper() in (b"7BIT", b"8BITMIME"):
            command.encoding = "7bit" if value.upper() == b"7BIT" else "8bit"
        elif name == b"SMTPUTF8" and rules.smtputf8 and value is None:
            command.smtputf8 = True
        elif name == b"RET" and rules.dsn and value is not None:
            if value.upper() not in (b"FULL", b"HDRS"):
                return BAD_RET
            command.ret = Ret.FULL if value.upper() == b"FULL" else Ret.HDRS
        elif name == b"ENVID" and rules.dsn and value is not None:
            envid = decode_xtext(value)
            if not envid or len(envid) > MAX_ENVID:
                return BAD_ENVID
            command.envelope_id = envid
        elif name == b"AUTH" and rules.auth and value is not None:
            auth = decode_xtext(value)
            if auth is None or len(auth) > MAX_ORCPT:
                return BAD_AUTH
            command.auth = auth
        else:
            return _unsupported(word)
    return None


def rcpt_parameters(command: RcptCommand, text: bytes, rules: Rules, *, smtputf8: bool) -> Reply | None:
    found = _parameters(text)
    if isinstance(found, Reply):
        return found
    for name, value, word in found:
        if name == b"NOTIFY" and rules.dsn and value is not None:
            notify = _notify(value)
            if notify is None:
                return BAD_NOTIFY
            command.notify = notify
        elif name == b"ORCPT" and rules.dsn and value is not None:
            orcpt = _orcpt(value, smtputf8=smtputf8)
            if orcpt is None:
                return BAD_ORCPT
            command.orcpt = orcpt
        else:
            return _unsupported(word)
    return None


_NOTIFY_WORDS = {b"SUCCESS": Notify.SUCCESS, b"FAILURE": Notify.FAILURE, b"DELAY": Notify.DELAY}


def _notify(value: bytes) -> Notify | None:
    """RFC 3461 s4.1: NEVER alone, or a list of the others, none twice."""
    if value.upper() == b"NEVER":
        return Notify.NEVER
    notify = NOTIFY_DEFAULT
    for word in value.upper().split(b","):
        flag = _NOTIFY_WORDS.get(word)
        if flag is None or flag in notify:
            return None
        notify |= flag
    return notify


def _orcpt(value: bytes, *, smtputf8: bool) -> str | None:
    """ORCPT= -> "type;address" decoded; the utf-8 type has escapes of its own (RFC 6533 s3)."""
    kind, semicolon, encoded = value.partition(b";")
    if not semicolon or not encoded or not _KEYWORD.fullmatch(kind) or len(value) > MAX_ORCPT:
        return None
    utf8 = kind.lower() == b"utf-8"
    address = _decode_unitext(encoded, smtputf8=smtputf8) if utf8 else decode_xtext(encoded)
    return None if not address else f"{kind.decode('ascii')};{address}"


def is_orcpt(text: str) -> bool:
    """Is this "type;address", decoded, as it may come in ORCPT=?"""
    kind, semicolon, address = text.partition(";")
    raw = address.encode("utf-8", "surrogateescape")
    return bool(
        semicolon and raw and kind.isascii() and _KEYWORD.fullmatch(kind.encode())
        and len(text) <= MAX_ORCPT and not _CONTROL.search(raw)
    )  # fmt: skip


def _decode_unitext(raw: bytes, *, smtputf8: bool) -> str | None:
    r"""utf-8-addr-xtext and utf-8-addr-unitext of RFC 6533: "\x{20AC}" stands for a character, "+" for itself."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not text.isascii() and not smtputf8:
        return None
    codes = [int(code, 16) for code in _UNITEXT_CHAR.findall(text)]
    if any(code > 0x10FFFF or 0xD800 <= code <= 0xDFFF for code in codes):
        return None
    text = _UNITEXT_CHAR.sub(lambda m: chr(int(m[1], 16)), text)
    return text if text.isprintable() else None
