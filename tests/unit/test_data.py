"""End of data, line endings and dots, however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.smtp.data import DataReceiver, DotStuffer


def receive(data: bytes, cuts: list[int] | None = None) -> tuple[bytes, DataReceiver]:
    """Feed data cut at these offsets (default: whole); stops at the end of data."""
    receiver = DataReceiver()
    edges = [0, *sorted(cuts or []), len(data)]
    text = b""
    for start, end in pairwise(edges):
        if receiver.done:
            receiver.rest += data[start:end]
        elif start < end:
            text += receiver.feed(data[start:end])
    return text, receiver


def stuff(text: bytes, cuts: list[int] | None = None) -> bytes:
    stuffer = DotStuffer()
    edges = [0, *sorted(cuts or []), len(text)]
    pieces = [stuffer.feed(text[a:b]) for a, b in pairwise(edges)]
    return b"".join(pieces) + stuffer.finish()


@pytest.mark.parametrize(
    ("wire", "text", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"a\r\n.\r\n", b"a\n", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\n", b"QUIT\r\n"),
        (b"..\r\n...\r\n.x\r\n.\r\n", b".\n..\nx\n", b""),
        (b"\r\n\r\n.\r\n.\r\n", b"\n\n", b".\r\n"),
        (b"a\r\r\n.\r\n", b"a\n", b""),  # CR before a true end of data
        (b"A: b\r\r\n\r\r\nc\r\r\n\r\n.\r\n", b"A: b\n\nc\n\n", b""),  # line ends that were converted twice
        (b"a\r\r\r\nb\r\r\rc\r\n.\r\n", b"a \nb   c\n", b""),
        (b"\x85.\x85 \xe2\x80\xa8 \x0b\x0c\x1c\r\n.\r\n", b"\x85.\x85 \xe2\x80\xa8 \x0b\x0c\x1c\n", b""),
        (b"a\x00b\r\n.\r\n", b"a\x00b\n", b""),
    ],
)
def test_text_and_rest_are_told_apart(wire: bytes, text: bytes, rest: bytes) -> None:
    got, receiver = receive(wire)
    assert (got, receiver.rest, receiver.done) == (text, rest, True)


@pytest.mark.parametrize(
    ("false_end", "stored"),
    [
        (b"\n.\n", b"\n\n"),
        (b"\n.\r\n", b"\n\n"),
        (b"\r\n.\n", b"\n\n"),
        (b"\r.\r", b" . "),
        (b"\r\n.\r", b"\n "),
        (b"\r.\r\n", b" .\n"),
        (b"\r\n.\r\r\n", b"\n\n"),
        (b"\r\n.\r\x00\n", b"\n \x00\n"),
        (b"\r\n\x00.\r\n", b"\n\x00.\n"),
        (b"\r\n .\r\n", b"\n .\n"),
        (b"\n\r.\r\n", b"\n .\n"),
        (b"\n\r\n.\n\r", b"\n\n\n "),
    ],
)
def test_nothing_but_crlf_dot_crlf_ends_a_message(false_end: bytes, stored: bytes) -> None:
    for cut in range(len(false_end) + 2):
        got, receiver = receive(b"a" + false_end + b"MAIL\r\n.\r\n", [1 + cut])
        assert receiver.done and receiver.rest == b""
        assert got == b"a" + stored + b"MAIL\n"


_PIECE = st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.", b"\r\n.\r", b"\r\r", b"a", b"\xff", b"\x00"])
_PIECES = st.lists(_PIECE, max_size=30)


@settings(deadline=None, derandomize=True)
@given(_PIECES, st.lists(st.integers(0, 60), max_size=8), st.binary(max_size=4))
def test_cuts_change_nothing(pieces: list[bytes], cuts: list[int], after: bytes) -> None:
    wire = b"".join(pieces) + b"\r\n.\r\n" + after
    cuts = [cut for cut in cuts if cut <= len(wire)]
    whole, one = receive(wire)
    text, two = receive(wire, cuts)
    bytewise, three = receive(wire, list(range(len(wire))))
    assert whole == text == bytewise
    for other in (two, three):
        assert (one.rest, one.wire_size, one.bare_lf, one.bare_cr, one.has_8bit) == (
            other.rest, other.wire_size, other.bare_lf, other.bare_cr, other.has_8bit
        )  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(_PIECES)
def test_stored_text_is_canonical(pieces: list[bytes]) -> None:
    text, _ = receive(b"".join(pieces) + b"\r\n.\r\n")
    assert b"\r" not in text
    assert text == b"" or text.endswith(b"\n")


@settings(deadline=None, derandomize=True)
@given(_PIECES, st.lists(st.integers(0, 60), max_size=6))
def test_what_is_stuffed_comes_out_as_it_went_in(pieces: list[bytes], cuts: list[int]) -> None:
    text, _ = receive(b"".join(pieces) + b"\r\n.\r\n")
    wire = text.replace(b"\n", b"\r\n")
    cuts = [cut for cut in cuts if cut <= len(wire)]
    stuffed = stuff(wire, cuts)
    assert stuffed == stuff(text) == stuff(wire)
    again, receiver = receive(stuffed)
    assert again == text and receiver.rest == b"" and not receiver.bare_lf and not receiver.bare_cr


@settings(deadline=None, derandomize=True)
@given(_PIECES, st.lists(st.integers(0, 60), max_size=6))
def test_stuffed_text_has_one_end_and_no_stray_line_ends(pieces: list[bytes], cuts: list[int]) -> None:
    text = b"".join(pieces)
    wire = b"\r\n" + stuff(text, [cut for cut in cuts if cut <= len(text)])
    assert wire.count(b"\r") == wire.count(b"\n") == wire.count(b"\r\n")
    assert wire.endswith(b"\r\n.\r\n") and wire.count(b"\r\n.\r\n") == 1


def test_counts_on_the_fly() -> None:
    _, receiver = receive(b"a\r\n..b\r\n\xe9\n\r.\r\n.\r\n")
    # "a" CRLF, ".b" CRLF, 0xe9 CRLF (was a bare LF), blank and dot CRLF
    assert receiver.wire_size == 3 + 4 + 3 + 4
    assert (receiver.bare_lf, receiver.bare_cr, receiver.has_8bit) == (1, 1, True)


def test_last_line_without_end_gets_one() -> None:
    assert stuff(b"a") == b"a\r\n.\r\n"
    assert stuff(b"") == b".\r\n"
    assert stuff(b"a\r") == b"a \r\n.\r\n"
