"""Addresses and host names in SMTP commands: bytes <-> the form the house keeps (str, unquoted, no controls).

Strict, linear, and never through a header parser.  Every function either returns a value or the Reply that refuses
the input; none raises on any input.  No state.

Where we are stricter than Postfix: no comments or display names around an address, no unquoted specials in a
local part, and an address that is not ASCII needs SMTPUTF8 (as with strict_smtputf8 = yes).  Addresses without
a domain pass, as in Postfix: they are completed later.

See also: RFC 5321 s4.1, RFC 6531 (SMTPUTF8), postconf(5)
"""

import ipaddress
import re

from mta.smtp.reply import Reply
from mta.smtp.rules import Rules

MAX_PATH = 254  # octets of an address without its brackets, RFC 5321 s4.5.3.1.3 (256 with them)
MAX_LOCAL = 64  # RFC 5321 s4.5.3.1.1; only with strict_rfc821_envelopes: mailing lists (VERP, SRS) send longer ones
MAX_DOMAIN = 255

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]+"
_LABEL = rb"[A-Za-z0-9_\x80-\xff](?:[A-Za-z0-9_\x80-\xff-]{0,61}[A-Za-z0-9_\x80-\xff])?"
_HOST = rb"%b(?:\.%b)*\.?" % (_LABEL, _LABEL)
_LOCAL = re.compile(_ATOM)
_DOMAIN = re.compile(_HOST)
_PLAIN_PATH = re.compile(rb"<(%b)(?:@(%b))?>" % (_ATOM, _HOST))
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ROUTE = re.compile(rb"@[^:@,<>\"]+(?:,@[^:@,<>\"]+)*:")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_PLAIN_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]*")
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_PLAIN_ADDRESS = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*(?:@[^@]*)?")
_JOINERS = {0x200C: None, 0x200D: None}

BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
NEED_SMTPUTF8 = Reply(553, "5.6.7", "Must declare SMTPUTF8 to send unicode address")


def parse_path(path: bytes, rules: Rules, bad: Reply, *, smtputf8: bool) -> str | Reply:
    """Return the unquoted address of "<address>", or `bad`, or 553 5.6.7.

    Unless strict the brackets are optional, and blanks just inside them ignored.
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
    if not address or _PLAIN_ADDRESS.fullmatch(address):
        return address
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"' + at + domain


def parse_host(argument: bytes, *, smtputf8: bool = True) -> str:
    """Return the HELO/EHLO name for facts and logs; characters that could mislead a reader become "?".

    As in Postfix the name is not judged here (reject_invalid_helo_hostname does that).
    """
    text = argument.decode("utf-8" if smtputf8 else "ascii", "replace")
    if _PLAIN_HOST.fullmatch(text):
        return text
    return "".join(c if c.isprintable() and c not in " <>()\\\";@" else "?" for c in text)


def split_path(text: bytes) -> tuple[bytes, bytes]:
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
        path = path[1:-1] if rules.strict else path[1:-1].strip(b" \t")
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
