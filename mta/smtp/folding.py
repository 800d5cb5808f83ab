"""Lines that a peer may not take as they are: broken into shorter ones, in pieces of any size.

See also: RFC 5321 s4.5.3.1.6; postconf(5) smtp_line_length_limit
"""


class LineFolder:
    """Breaks lines over `limit` octets by LF and a blank, as Postfix does; text comes with LF lines."""

    __slots__ = ("_column", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._column = 0  # octets of the current line given out so far

    def feed(self, text: bytes) -> bytes:
        """Return the next piece; the common case costs one search per `limit` octets."""
        limit = self._limit
        if not limit:
            return text
        copied, start, room, size = 0, 0, max(0, limit - self._column), len(text)
        pieces: list[bytes] = []
        while size - start > room:
            end = text.rfind(b"\n", start, start + room + 1)
            if end >= 0:
                start, room = end + 1, limit
            else:
                pieces += (text[copied : start + room], b"\n ")
                copied = start = start + room
                room = limit - 1
        newline = text.rfind(b"\n", start)
        self._column = size - newline - 1 if newline >= 0 else limit - room + size - start
        if not pieces:
            return text
        pieces.append(text[copied:])
        return b"".join(pieces)
