"""The addresses of a header rewritten in their places: what stands around them stays.

See also: mta/message_address.py (what an address list is)
"""

from collections.abc import Callable

from mta.message_address import parse_list, quote

FOLD = 70  # columns of a rewritten header, counted as Postfix does
REWRITE_LIMIT = 5000  # addresses of a header: some 70 ms, in which nobody else has a turn


def is_too_long(value: str) -> bool:
    """Has this list more elements than are rewritten?"""
    return value.count(",") + value.count(";") > REWRITE_LIMIT


def rewrite_list(name: str, value: str, rewrite: Callable[[str], str]) -> str | None:
    """Rewrite the addresses of one header; None when nothing changes.

    name: as it stands in the header.  Result: the whole header without its final LF, folded with LF TAB at
    commas; text around the addresses (names, comments, group words) is kept, its folds become blanks.
    A list of more than REWRITE_LIMIT stays as it is (Postfix discards what follows some 1,700 addresses).
    """
    if is_too_long(value):
        return None
    parsed = parse_list(value)
    changed, folded = False, "\n" in value
    pieces = []
    for element in parsed.elements:
        out, pos = [], element.start
        for address in element.addresses:
            if not address.text:
                continue
            new = rewrite(address.text)
            same = new == address.text if parsed.malformed else quote(new) == address.source
            if same and not address.routed:
                continue  # quoted only where it has to be, as Postfix writes it
            changed = True
            out += [value[pos : address.start], quote(new)]
            pos = address.end
        out.append(value[pos : element.end])
        pieces.append(" ".join("".join(out).split("\n")) if folded else "".join(out))
    return _fold(name, pieces) if changed else None


def _fold(name: str, pieces: list[str]) -> str:
    lines = [f"{name}:"]
    for n, piece in enumerate(pieces):
        text = piece.strip() + ("," if n < len(pieces) - 1 else "")
        if n and len(lines[-1]) + 1 + len(text) >= FOLD:
            lines.append(text)
        else:
            lines[-1] += f" {text}"
    return "\n\t".join(lines)
