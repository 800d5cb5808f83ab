"""Message text on the wire: end of data, dot-stuffing and line endings, incremental, in both directions.

Only CR LF "." CR LF ends a message; no other sequence does, whatever another server may take for one (SMTP
smuggling, CVE-2023-51764).  A stray LF becomes a line end and a stray CR a blank *before* anything is stored,
so nothing that we send on can be read in two ways.  CR CR LF is one line end: programs write it that convert line
ends twice, and a blank would make the empty line after the header a part of the header.

Both classes give the same bytes however the input is cut, and look at bytes only with find, count and replace:
no loop over lines.  Single octets are counted by replacing them with nothing: bytes.count() of one octet takes ten
times as long.

See also: RFC 5321 s2.3.8, s4.5.2; postconf(5) smtpd_forbid_bare_newline
"""

_END = b"\r\n.\r\n"


class DataReceiver:
    """Wire bytes after the 354 -> message text as LF lines, dots unstuffed.

    A lone "." that is not the end (a bare LF on either side) is a line with its dot removed, i.e. empty.
    wire_size: octets of text received so far without stuffing dots and without the final dot, lines counted
    with CR LF.  bare_lf, bare_cr: how many stray ones were replaced.  has_8bit: an octet above 127 was seen.
    done: the end of data was seen; `rest` is then what followed it (the next commands).
    """

    __slots__ = ("_line_start", "_tail", "bare_cr", "bare_lf", "done", "has_8bit", "rest", "wire_size")

    def __init__(self) -> None:
        self.wire_size = 0
        self.bare_lf = 0
        self.bare_cr = 0
        self.has_8bit = False
        self.done = False
        self.rest = b""
        self._tail = b""  # undecided end of the input: CR or CR CR, or at a line start "." or ". CR"
        self._line_start: bytes = _END[:2]  # the line end before the input, b"" within a line

    def feed(self, data: bytes) -> bytes:
        """Return the text that is certain now, b"" when none is.  Not to be called once `done`."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        before = self._line_start
        if before == b"\r\n" and data.startswith(b".\r\n"):
            self.done, self.rest = True, data[3:]
            return b""
        # A search for one octet takes no time, and base64 has no dots.
        end = data.find(_END) if b"." in data else -1
        if end >= 0:
            self.done, self.rest = True, data[end + 5 :]
            return self._normalise(data[: end + 2], before)
        keep = self._undecided(data, before)
        if keep:
            self._tail = data[-keep:]
            data = data[:-keep]
        if not data:
            return b""
        # How the next input is preceded: by CR LF, by a bare LF (no end of data after it), or by neither.
        self._line_start = b"\r\n" if data.endswith(b"\r\n") else data[-1:] if data.endswith(b"\n") else b""
        return self._normalise(data, before)

    def _undecided(self, data: bytes, before: bytes) -> int:
        """How many octets at the end may turn out to be part of the end of data or of a CR LF."""
        if data.endswith(b"\r"):
            if data.endswith((b"\r\r", b"\r\n.\r")) or (before and data == b".\r"):
                return 2
            return 1
        if data.endswith(b"."):
            if data.endswith(b"\n."):
                return 1
            if before and data == b".":
                return 1
        return 0

    def _normalise(self, data: bytes, before: bytes) -> bytes:
        out = data.replace(b"\r", b"")
        line_ends = len(data) - len(out)
        if out.replace(b"\n", b"\r\n") != data:  # stray ones
            lines = data.count(b"\r\n")
            self.bare_cr += line_ends - lines
            out = data.replace(b"\r\n", b"\n").replace(b"\r\n", b"\n").replace(b"\r", b" ")
            line_ends = len(out) - len(out.replace(b"\n", b""))
            self.bare_lf += line_ends - lines
        if before and out.startswith(b"."):
            out = out[1:]
        if b"." in out and b"\n." in out:
            out = out.replace(b"\n.", b"\n")
        if not self.has_8bit and not out.isascii():
            self.has_8bit = True
        self.wire_size += len(out) + line_ends
        return out


class DotStuffer:
    """Message text -> wire bytes for DATA: CR LF lines, leading dots doubled.

    Text normally comes with LF lines; CR LF lines are taken too.  A stray CR becomes a blank: this is the last
    door before the peer, and messages adopted from elsewhere did not pass our DataReceiver.
    """

    __slots__ = ("_line_start", "_tail")

    def __init__(self) -> None:
        self._line_start = True
        self._tail = b""  # a CR whose LF may come

    def feed(self, text: bytes) -> bytes:
        """Return the wire form of the next piece of text."""
        if self._tail:
            text = self._tail + text
            self._tail = b""
        if text.endswith(b"\r"):
            self._tail = b"\r"
            text = text[:-1]
        if not text:
            return b""
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b" ")
        first_dot = self._line_start and text.startswith(b".")
        self._line_start = text.endswith(b"\n")
        if b"." in text and b"\n." in text:
            text = text.replace(b"\n.", b"\n..")
        text = text.replace(b"\n", b"\r\n")
        return b"." + text if first_dot else text

    def finish(self) -> bytes:
        """Return the end of the last line when it had none, and the final dot."""
        last = b" " if self._tail else b""
        return last + (b".\r\n" if self._line_start and not last else _END)
