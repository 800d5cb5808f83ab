"""rmail(8): mail that came by UUCP, `rmail recipient ...` with From_ lines that say which way it came.

    From c Sat Nov 21 00:00:00 2026 remote from h2
    >From c Sat Nov 21 00:00:00 2026 remote from h1

means the sender h2!h1!c.  Texts and exit status are Sendmail's: 64 no recipients, 65 no From_ line.

See also: RFC 976
"""

import os
from collections.abc import Iterator, Sequence

from sendmail_compat import fast
from sendmail_compat.tool import ToolError, say

EX_USAGE, EX_DATAERR = 64, 65
MAX_LINES = 65536  # bytes of From_ lines
_REMOTE = b" remote from "


class _Rest(fast.Input):
    """stdin behind the From_ lines."""

    __slots__ = ("_skip",)

    def __init__(self, whole: fast.Input, skip: int) -> None:
        super().__init__(whole.memory[skip:], whole.fd, whole.size - skip)
        self._skip = skip

    def chunks(self) -> Iterator[bytes]:
        """See fast.Input."""
        if self.fd < 0:
            yield from super().chunks()
            return
        at = self._skip
        while piece := os.pread(self.fd, fast.CHUNK, at):
            at += len(piece)
            yield piece


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    recipients = [word for word in argv[1:] if not word.startswith("-") or word == "-"]
    if len(recipients) != len(argv) - 1:
        bad = next(word for word in argv[1:] if word.startswith("-"))
        say("rmail", f"dash precedes argument: {bad}")
        return EX_USAGE
    if not recipients:
        say("rmail", "usage: rmail [-D host] [-T] user ...")
        return EX_USAGE
    from sendmail_compat import slow  # it imported this module

    config = slow.configured("")
    try:
        whole = fast.read_input(config.size_limit, until_dot=False)
    except OSError:
        raise ToolError("cannot read the message; nothing was queued") from None
    if whole is None:
        return fast.too_big(list(argv))
    head = whole.memory[:MAX_LINES] if whole.fd < 0 else os.pread(whole.fd, MAX_LINES, 0)
    sender, length, problem = sender_of(head)
    if problem:
        say("rmail", problem)
        return EX_DATAERR
    # -G: no local completion of what came from elsewhere.  One recipient with a comma is still one.
    people = [f"<{r}>" if "," in r and not r.startswith("<") else r for r in recipients]
    command = ["rmail", "-G", "-i", "-f", sender, "--", *people]
    return slow.submit(command, config, _Rest(whole, length))


def sender_of(head: bytes) -> tuple[str, int, str]:
    """(path!user, bytes of From_ lines, what is wrong)."""
    path, user, at = b"", b"", 0
    while True:
        line, newline, _ = head[at:].partition(b"\n")
        text = line.removesuffix(b"\r")
        word = text[6:] if text.startswith(b">From ") else text[5:] if text.startswith(b"From ") else None
        if word is None:
            break
        address = word.split(None, 1)[0] if word.split() else b""
        if not address:
            return "", 0, f"corrupted From line: {text.decode('utf-8', 'replace')}"
        system, bang, name = address.rpartition(b"!")
        if not bang:
            system, name = b"", address
        if _REMOTE in word:
            system = word.rpartition(_REMOTE)[2].strip() + (b"!" + system if system else b"")
        if system:
            path += system + b"!"
        user = name
        at += len(line) + len(newline)
        if not newline:
            break
    if not user:
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
        return "", 0, f"missing or empty From line: {first}"
    return (path + user).decode("utf-8", "surrogateescape"), at, ""
