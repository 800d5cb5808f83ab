"""SMTP commands as bytes -> verb, address, ESMTP parameters.  Strict, linear, and never through a header parser.

Every function either returns a value or the Reply that refuses the input; none raises on any input.  Texts and
codes are Postfix's.  An address comes out as the house keeps it: str, unquoted, without control characters.

Where we are stricter than Postfix: no comments or display names around an address, no unquoted specials in a
local part, and an address that is not ASCII needs SMTPUTF8 (as with strict_smtputf8 = yes).  Addresses without
a domain pass, as in Postfix: they are completed later.

See also: RFC 5321 s4.1, RFC 1870 (SIZE), RFC 3461 s4 (DSN), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), postconf(5)
"""

import ipaddress
import re
from dataclasses import dataclass

from mta.envelope import NOTIFY_DEFAULT, RET_DEFAULT, Notify, Ret
from mta.smtp.reply import Reply

MAX_PATH = 254  # octets of an address without its brackets, RFC 5321 s4.5.3.1.3 (256 with them)
MAX_LOCAL = 64  # RFC 5321 s4.5.3.1.1; only with strict_rfc821_envelopes: mailing lists (VERP, SRS) send longer ones
MAX_DOMAIN = 255
MAX_ENVID = 100  # characters of an ENVID, RFC 3461 s4.4
MAX_ORCPT = 500  # RFC 3461 s4.2
_MAX_DIGITS = 19  # of SIZE; more is too large whatever it says

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]+"
_LABEL = rb"[A-Za-z0-9_\x80-\xff](?:[A-Za-z0-9_\x80-\xff-]{0,61}[A-Za-z0-9_\x80-\xff])?"
_HOST = rb"%b(?:\.%b)*\.?" % (_LABEL, _LABEL)
_LOCAL = re.compile(_ATOM)
_DOMAIN = re.compile(_HOST)
_PLAIN_PATH = re.compile(rb"<(%b)(?:@(%b))?>" % (_ATOM, _HOST))
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ROUTE = re.compile(rb"@[^:@,<>\"]+(?:,@[^:@,<>\"]+)*:")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_XTEXT_CHAR = re.compile(r"\+([0-9A-F]{2})")
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_UNITEXT_CHAR = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_ATOM_TEXT = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_JOINERS = {0x200C: None, 0x200D: None}

BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
NEED_SMTPUTF8 = Reply(553, "5.6.7", "Must declare SMTPUTF8 to send unicode address")
BAD_SIZE = Reply(501, "5.5.4", "Bad message size syntax")
BAD_BODY = Reply(501, "5.5.4", "Bad BODY parameter syntax")
SIZE_OVERFLOW = Reply(552, "5.3.4", "Message size exceeds file system imposed limit")
BAD_RET = Reply(501, "5.5.4", "Bad RET parameter syntax")
BAD_ENVID = Reply(501, "5.5.4", "Bad ENVID parameter syntax")
BAD_NOTIFY = Reply(501, "5.5.4", "Error: Bad NOTIFY parameter syntax")
BAD_ORCPT = Reply(501, "5.5.4", "Error: Bad ORCPT parameter syntax")
BAD_AUTH = Reply(501, "5.5.4", "Bad AUTH parameter syntax")
BAD_PARAMETER = Reply(501, "5.5.4", "Error: Bad parameter syntax")


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


def split_command(line: bytes) -> tuple[bytes, bytes]:
    """Return (verb in upper case, rest without blanks around it) of a line that has no line end any more."""
    verb, _, rest = line.strip(b" \t").partition(b" ")
    if b"\t" in verb:
        verb, _, more = verb.partition(b"\t")
        rest = more + b" " + rest
    return verb.upper(), rest.strip(b" \t")


def parse_mail(argument: bytes, rules: Rules) -> MailCommand | Reply:
    """Parse what follows "MAIL "."""
    if argument[:5].upper() != b"FROM:":
        return MAIL_SYNTAX
    path, parameters = _split_path(argument[5:])
    if not path:
        return MAIL_SYNTAX
    if path == b"<>":
        command = MailCommand("")
    else:
        # The parameter decides whether the address may be UTF-8, so it is looked for first.
        utf8 = rules.smtputf8 and parameters != b"" and b"SMTPUTF8" in parameters.upper().split()
        sender = parse_path(path, rules, BAD_SENDER, smtputf8=utf8)
        if isinstance(sender, Reply):
            return sender
        command = MailCommand(sender)
    if parameters:
        refused = _mail_parameters(command, parameters, rules)
        if refused is not None:
            return refused
    return command


def parse_rcpt(argument: bytes, rules: Rules, *, smtputf8: bool) -> RcptCommand | Reply:
    """Parse what follows "RCPT "; smtputf8: MAIL declared it."""
    if argument[:3].upper() != b"TO:":
        return RCPT_SYNTAX
    path, parameters = _split_path(argument[3:])
    if not path:
        return RCPT_SYNTAX
    recipient = parse_path(path, rules, BAD_RECIPIENT, smtputf8=smtputf8)
    if isinstance(recipient, Reply):
        return recipient
    command = RcptCommand(recipient)
    if parameters:
        refused = _rcpt_parameters(command, parameters, rules, smtputf8=smtputf8)
        if refused is not None:
            return refused
    return command


def parse_path(path: bytes, rules: Rules, bad: Reply, *, smtputf8: bool) -> str | Reply:
    """Return the unquoted address of "<address>" (brackets optional unless strict), or `bad`, or 553 5.6.7.

    A source route "@a,@b:" is dropped (RFC 5321 appendix C): the address behind it is what counts.
    """
    match = _PLAIN_PATH.fullmatch(path)
    if match is not None:
        local, domain = match.groups()
        address = path[1:-1]
        if domain is not None and not _good_host(domain):
            return bad
    else:
        found = _unusual_path(path, rules)
        if found is None:
            return bad
        local, domain, address = found
    if len(address) > MAX_PATH or (rules.strict and len(local) > MAX_LOCAL):
        return bad
    if address.startswith(b"-") and not rules.allow_minus:
        return bad
    if address.isascii():
        return address.decode("ascii")
    if not smtputf8:
        return NEED_SMTPUTF8
    try:
        text = address.decode("utf-8")
    except UnicodeDecodeError:
        return NEED_SMTPUTF8
    # Unicode has its own line ends and control characters (U+0085, U+2028, direction overrides); of the
    # invisible ones only the joiners that some scripts need to spell a name are let through.
    return text if text.translate(_JOINERS).isprintable() else bad


def quote_address(address: str) -> str:
    """Return an unquoted address as it must stand on the wire and in headers (RFC 5321 Local-part).

    "" stays "" (the null sender).  The last "@" separates the domain.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if not local and not at:
        return ""
    if _ATOM_TEXT.fullmatch(local):
        return address
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"' + at + domain


def encode_xtext(text: str) -> str:
    """Return xtext of RFC 3461 s4; what is not ASCII is encoded octet by octet of its UTF-8 form."""
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(c) if 33 <= c <= 126 and c not in b"+=" else f"+{c:02X}" for c in raw)


def decode_xtext(raw: bytes) -> str | None:
    """Return the text, None when it is not xtext or holds a control character once decoded."""
    if not _XTEXT.fullmatch(raw):
        return None
    text = _XTEXT_CHAR.sub(lambda m: chr(int(m[1], 16)), raw.decode("ascii"))
    return text if text.isascii() and text.isprintable() else None


def is_header_like(word: bytes) -> bool:
    """True for a first word such as "Subject:": a mail header, or HTTP, sent to us as a command."""
    name, colon, _ = word.partition(b":")
    return bool(colon) and bool(name) and all(33 <= c <= 126 for c in name)


def parse_host(argument: bytes, *, smtputf8: bool = True) -> str:
    """Return the HELO/EHLO name for facts and logs; characters that could mislead a reader become "?".

    As in Postfix the name is not judged here (reject_invalid_helo_hostname does that).
    """
    text = argument.decode("utf-8" if smtputf8 else "ascii", "replace")
    return "".join(c if c.isprintable() and c not in " <>()\\\";@" else "?" for c in text)


def _split_path(text: bytes) -> tuple[bytes, bytes]:
    """Split "<path> PARAMETERS": at the first blank outside of quotes and brackets."""
    text = text.lstrip(b" \t")
    end = text.find(b">")
    if text.startswith(b"<") and end > 0 and b'"' not in text[:end] and b"\\" not in text[:end]:
        # The common case; what stands right behind ">" belongs to the path and makes it a bad one.
        while end + 1 < len(text) and text[end + 1] not in b" \t":
            end += 1
        return text[: end + 1], text[end + 1 :].strip(b" \t")
    quoted = False
    bracket = False
    i = 0
    while i < len(text):
        c = text[i]
        if c == 0x5C:  # backslash
            i += 1
        elif c == 0x22:
            quoted = not quoted
        elif not quoted:
            if c == 0x3C:
                bracket = True
            elif c == 0x3E:
                bracket = False
            elif c in b" \t" and not bracket:
                break
        i += 1
    return text[:i], text[i:].strip(b" \t")


def _unusual_path(path: bytes, rules: Rules) -> tuple[bytes, bytes | None, bytes] | None:
    """Parse what the one-regex form does not cover; return (local part unquoted, domain or None, address)."""
    if path.startswith(b"<") and path.endswith(b">") and len(path) > 2:
        path = path[1:-1]
    elif rules.strict or path.startswith(b"<") or path.endswith(b">"):
        return None
    if len(path) > 4 * MAX_PATH or _CONTROL.search(path):
        return None
    if path.startswith(b"@"):
        route = _ROUTE.match(path)
        if route is None:
            return None
        path = path[route.end() :]
    quoted = _QUOTED.match(path)
    if quoted is not None:
        local = re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL)
        rest = path[quoted.end() :]
    else:
        plain = _LOCAL.match(path)
        if plain is None:
            return None
        local = plain[0]
        rest = path[plain.end() :]
    if not local or (quoted is not None and not rest and b"@" in local):
        return None  # without a domain "a@b" in quotes would later look like the address a@b
    if not rest:
        return local, None, local
    if not rest.startswith(b"@"):
        return None
    domain = rest[1:]
    if domain.startswith(b"["):
        if not _good_literal(domain):
            return None
    elif not _DOMAIN.fullmatch(domain) or not _good_host(domain):
        return None
    return local, domain, local + b"@" + domain


def _good_host(domain: bytes) -> bool:
    """As Postfix's valid_hostname(): an address in digits and dots is no host name."""
    return len(domain) <= MAX_DOMAIN and not domain.replace(b".", b"").isdigit()


def _good_literal(domain: bytes) -> bool:
    """[1.2.3.4] or [IPv6:...], RFC 5321 s4.1.3."""
    if not domain.endswith(b"]"):
        return False
    text = domain[1:-1].decode("ascii", "replace")
    try:
        if text[:5].lower() == "ipv6:":
            return "%" not in text and bool(ipaddress.IPv6Address(text[5:]))
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False


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


def _mail_parameters(command: MailCommand, text: bytes, rules: Rules) -> Reply | None:
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


def _rcpt_parameters(command: RcptCommand, text: bytes, rules: Rules, *, smtputf8: bool) -> Reply | None:
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
