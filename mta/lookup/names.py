"""Is this a host name, an address, an address literal?  By form only, as Postfix's valid_hostname(3) decides.

See also: RFC 5321 s4.1.3 (literals), RFC 1123 s2.1 (names)
"""

import re
import unicodedata

from mta.lookup.cidr import Address, parse_address

MAX_NAME = 255  # octets
_SPELLING = "\u00b7\u0375\u05f3\u05f4\u200c\u200d\u30fb"  # no letters, but names need them (RFC 5892 appendix A)
_NAME = re.compile(r"(?=.*[^\d.])(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")


def valid_hostname(name: str) -> bool:
    """True for dot-separated labels of letters, digits, "-" and "_" (also beyond ASCII) that are not all digits."""
    if len(name) > MAX_NAME:
        return False
    if name.isascii():
        return _NAME.fullmatch(name) is not None
    plain = "".join(c if c.isascii() else "x" for c in name)
    return _NAME.fullmatch(plain) is not None and all(_letter(c) for c in name if not c.isascii())


def _letter(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c)[0] == "M" or c in _SPELLING


def literal_address(domain: str) -> Address | None:
    """The address of "[1.2.3.4]" or "[IPv6:...]", None when domain is no valid literal."""
    if not (domain.startswith("[") and domain.endswith("]")):
        return None
    return mailhost_address(domain[1:-1])


def mailhost_address(text: str) -> Address | None:
    """The address of "1.2.3.4" or "IPv6:..."; an IPv6 address needs the prefix."""
    if ("[" in text) or (":" in text and text[:5].lower() != "ipv6:"):
        return None
    address = parse_address(text)
    return None if address is None or (address[0] == 32 and ":" in text) else address
