"""Queue ids: made from a time and the inode of the file, so that two files on one disk never share one.

Short: five hex digits of microseconds, then the inode in hex ("C0145230954").  Long (enable_long_queue_ids):
seconds in base 52 (at least 6 digits), microseconds in base 52 (4 digits), "z", inode in base 51.  Vowels are
missing from the alphabet so that no id spells a word.

Directories named in hash_queue_names are split by the first hex digits of the microseconds, for both kinds.

See also: postconf(5) enable_long_queue_ids, hash_queue_depth
"""

import re

_ALPHABET = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
_VALUE = {c: i for i, c in enumerate(_ALPHABET)}
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_TEMPORARY = re.compile(r"[0-9]{1,6}\.[0-9]{1,10}")
_LONG = re.compile(r"([0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{6,})([0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{4})z([^z]+)")
_SHORT = re.compile(r"([0-9A-F]{5})([0-9A-F]+)")


def make(seconds: int, microseconds: int, inode: int, *, long: bool) -> str:
    """Return the id of a file created at this Unix time."""
    if not long:
        return f"{microseconds:05X}{inode:X}"
    return f"{_digits(seconds, 52, 6)}{_digits(microseconds, 52, 4)}z{_digits(inode, 51, 1)}"


def is_queue_id(name: str) -> bool:
    """True for what may be the name of a queued message (also one that another MTA made)."""
    return _ID.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """True for USEC.PID: a message being written."""
    return _TEMPORARY.fullmatch(name) is not None


def inode_of(queue_id: str) -> int | None:
    """The inode inside an id, None when the id is of neither form."""
    if found := _SHORT.fullmatch(queue_id):
        return int(found[2], 16)
    if found := _LONG.fullmatch(queue_id):
        return _number(found[3], 51)
    return None


def with_inode(queue_id: str, inode: int) -> str:
    """The id that this file should have when its name came from elsewhere: same time, its own inode."""
    if found := _SHORT.fullmatch(queue_id):
        return f"{found[1]}{inode:X}"
    if found := _LONG.fullmatch(queue_id):
        return f"{found[1]}{found[2]}z{_digits(inode, 51, 1)}"
    return f"00000{inode:X}"


def hash_directories(queue_id: str, depth: int) -> str:
    """Return "C/" or "C/0/" ...: the subdirectory of an id in a hashed queue, "" at depth 0."""
    text = queue_id
    if (found := _LONG.fullmatch(queue_id)) and (usec := _number(found[2], 52)) is not None:
        text = f"{usec:05X}"
    return "".join(f"{c}/" for c in text[:depth].ljust(depth, "_"))


def _digits(number: int, base: int, width: int) -> str:
    out = ""
    while number:
        number, digit = divmod(number, base)
        out = _ALPHABET[digit] + out
    return out.rjust(width, "0")


def _number(text: str, base: int) -> int | None:
    number = 0
    for c in text:
        digit = _VALUE.get(c, base)
        if digit >= base:
            return None
        number = number * base + digit
    return number
