"""The reply parser: strict about codes, tolerant of words, bounded in everything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.smtp.replies import MAX_KEPT, MAX_LINES, MAX_REPLY, MalformedReplyError, PeerReply, ReplyParser
from mta.smtp.reply import Reply


def parse(data: bytes, *, step: int = 0) -> list[PeerReply]:
    parser = ReplyParser()
    found = []
    for start in range(0, len(data), step or len(data) or 1):
        parser.feed(data[start : start + (step or len(data))])
        while (heard := parser.next()) is not None:
            found.append(heard)
    return found


@pytest.mark.parametrize(
    ("wire", "reply"),
    [
        (b"250 2.1.0 Ok\r\n", Reply(250, "2.1.0", "Ok")),
        (b"250 ok\r\n", Reply(250, "2.0.0", "ok")),
        (b"250\r\n", Reply(250, "2.0.0", "")),
        (b"250 \r\n", Reply(250, "2.0.0", "")),
        (b"354 go\n", Reply(354, "", "go")),
        (b"550 4.1.1 class does not fit\r\n", Reply(550, "5.0.0", "4.1.1 class does not fit")),
        (b"550-5.1.1 a\r\n550-5.1.1  b\r\n550 c\r\n", Reply(550, "5.1.1", "a\nb\nc")),
        (b"550-a\r\n550 5.7.1 b\r\n", Reply(550, "5.7.1", "a\nb")),
        (b"550-5.7.1 a\r\n550 5.1.1 b\r\n", Reply(550, "5.1.1", "5.7.1 a\nb")),
        (b"550  5.1.1  x\r\n", Reply(550, "5.1.1", "x")),
        (b"550-\r\n550  5.1.1  x\r\n", Reply(550, "5.1.1", "\nx")),
        (b"571 5.7.1 x\r\n", Reply(571, "5.7.1", "x")),
        (b"550-5.1.1 x\r\n550-\r\nX-Inject: 1\r\n550 z\r\n", Reply(550, "5.1.1", "x\n\nX-Inject: 1\nz")),
    ],
)
def test_replies_are_read_however_they_are_cut(wire: bytes, reply: Reply) -> None:
    for step in (0, 1, 2, 5):
        (heard,) = parse(wire, step=step)
        assert heard.reply == reply and heard.clean


def test_what_the_peer_said_is_kept_for_the_log() -> None:
    (heard,) = parse(b"550-5.1.1 no\r\n550 5.1.1 such user\r\n")
    assert heard.line == "550-5.1.1 no 550 5.1.1 such user"


@pytest.mark.parametrize(
    "wire",
    [b"100 x\r\n", b"600 x\r\n", b"9999 x\r\n", b"\r\n", b"hello there\r\n", b"OK\r\n", b"25 x\r\n", b"250x\r\n",
     b"250\tx\r\n", b"250-a\r\n550 b\r\n", b"550-a\r\n250 b\r\n", b"250-a\r\nb\r\n250 c\r\n", b" 250 x\r\n",
     b"\x15\x03\x01\x00\x02\x02\x28", b"x" * 100, b"2\xb250 x\r\n"],
)  # fmt: skip
def test_what_is_not_a_reply_is_an_error(wire: bytes) -> None:
    for step in (0, 1):
        with pytest.raises(MalformedReplyError):
            parse(wire, step=step)


def test_words_are_made_printable_and_their_state_is_told() -> None:
    for raw in (b"\xff\xfe", b"a\x00b", b"\x1b[2J", "\u202e".encode(), b"a\rb"):
        (heard,) = parse(b"250 " + raw + b"\r\n")
        assert not heard.clean and heard.raw.isprintable()
    (heard,) = parse("250 grün\t1\r\n".encode())
    assert heard.clean and heard.raw == "250 grün 1"


def test_a_reply_is_bounded_in_memory_and_in_length() -> None:
    (heard,) = parse(b"250-CAP\r\n" * 2000 + b"250 end\r\n")
    assert heard.raw.count("\n") == MAX_LINES - 1
    (heard,) = parse(b"550-" + b"y" * 5000 + b"\r\n" + b"550-x\r\n" * 5 + b"550 " + b"z" * 60000 + b"\r\n")
    assert len(heard.raw) <= MAX_KEPT + MAX_LINES


@pytest.mark.parametrize(("piece", "limit"), [(b"250-again and again\r\n" * 100, MAX_REPLY), (b"2" * 1000, MAX_KEPT)])
def test_nobody_talks_for_ever(piece: bytes, limit: int) -> None:
    parser = ReplyParser()
    with pytest.raises(MalformedReplyError):
        for _ in range(limit // len(piece) + 2):
            parser.feed(piece)
            parser.next()


def test_empty_tells_whether_anything_waits() -> None:
    parser = ReplyParser()
    seen = [parser.empty]
    parser.feed(b"250 a\r\n250-b\r\n")
    for _ in range(2):
        parser.next()
        seen.append(parser.empty)
    parser.feed(b"250 c\r\n")
    parser.next()
    assert [*seen, parser.empty] == [True, False, False, True]


@given(st.binary(max_size=300), st.integers(1, 40))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_any_bytes_give_replies_or_the_one_error_and_cuts_do_not_matter(data: bytes, step: int) -> None:
    def outcome(cut: int) -> list[PeerReply] | None:
        try:
            return parse(data, step=cut)
        except MalformedReplyError:
            return None

    whole, cut = outcome(0), outcome(step)
    if whole is None or cut is None:
        assert whole == cut
    else:
        assert whole == cut
        assert all(200 <= heard.code <= 599 and heard.raw.replace("\n", "").isprintable() for heard in whole)
