"""Queue file records: what we write, what we read, and that both agree."""

import zlib
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import VERP, Envelope, Notify, Recipient, Ret
from mta.queue.api import Parent
from mta.queue.content_reader import ContentReader, check_content
from mta.queue.queue_file import (
    BLOCK,
    FLAG_BLOCKS,
    LINE_LIMIT,
    SIZE_RECORD,
    encode_block,
    encode_head,
    encode_last_block,
    encode_lines,
    encode_size,
    encode_tail,
    record,
)
from mta.queue.queue_reader import DamagedError, QueueFile, decode

ARRIVAL = 1795217804.786757


def encoded(envelope: Envelope, content: bytes, *, blocks: bool = False, parent: Parent | None = None,
            attributes: Mapping[str, str] | None = None) -> bytes:  # fmt: skip
    """A whole file, made as the store makes it."""
    head = encode_head(envelope)
    if content and not content.endswith(b"\n"):
        content += b"\n"
    if blocks:
        cut = max(0, len(content) - 1) // BLOCK * BLOCK
        body = b"".join(encode_block(content[i : i + BLOCK]) for i in range(0, cut, BLOCK))
        body += encode_last_block(content[cut:])
    else:
        body = encode_lines(content)
    size = encode_size(head, len(body), blocks=blocks)
    tail = encode_tail(head, size, uid="ab" * 16, content_crc=zlib.crc32(content), parent=parent, attributes=attributes)
    return size + head.data[SIZE_RECORD:] + body + tail


def decoded(raw: bytes) -> QueueFile:
    return decode(lambda offset, size: raw[offset : offset + size])


def text_of(raw: bytes, file: QueueFile, step: int = 32768) -> bytes:
    reader, out = ContentReader(file.content_offset), b""
    while not reader.done:
        out += reader.feed(raw[reader.offset : reader.offset + step])
    return out


def simple() -> Envelope:
    return Envelope("a@src.test", [Recipient("b@dst.test")], ARRIVAL)


def test_the_bytes_are_those_of_postfix_up_to_the_extracted_segment() -> None:
    envelope = Envelope(
        "root@mx.test", [Recipient("carol@dst.test", dsn_orig_rcpt="rfc822;carol@dst.test", notify=Notify.DELAY)],
        1795228922.5, full_name="root", warn_time=1795232522, attributes={"rewrite_context": "local"},
    )  # fmt: skip
    raw = encoded(envelope, b"A: b\n\nhi\n")
    expected = (
        b"C\x5f             12             287               1              16              12               0"
        b"T\x111795228922 500000" b"A\x16create_time=1795228922" b"A\x15rewrite_context=local" b"F\x04root"
        b"S\x0croot@mx.test" b"W\x0f     1795232522" b"A\x0enotify_flags=8"
        b"A\x23dsn_orig_rcpt=rfc822;carol@dst.test" b"O\x0ecarol@dst.test" b"R\x0ecarol@dst.test" b"M\x00"
        b"N\x04A: b" b"N\x00" b"N\x02hi" b"X\x00"
    )  # fmt: skip
    assert raw[: len(expected)] == expected
    assert raw.endswith(b"A\x09crashes=0E\x00")


def test_length_bytes_are_seven_bits_low_group_first() -> None:
    assert record(b"N", b"x" * 127)[:2] == b"N\x7f"
    assert record(b"N", b"x" * 128)[:3] == b"N\x80\x01"
    assert record(b"L", b"x" * 65536)[:4] == b"L\x80\x80\x04"


@pytest.mark.parametrize(("length", "kinds"), [
    (0, "N"), (127, "N"), (128, "N"), (LINE_LIMIT, "N"), (LINE_LIMIT + 1, "LN"), (2 * LINE_LIMIT, "LN"),
    (2 * LINE_LIMIT + 1, "LLN"),
])  # fmt: skip
def test_a_long_line_becomes_pieces_and_a_final_record(length: int, kinds: str) -> None:
    raw = encoded(simple(), b"x" * length + b"\nend\n")
    file = decoded(raw)
    at, seen = file.content_offset, ""
    while raw[at] != ord("X"):
        n, start = raw[at + 1], at + 2
        if n > 127:
            n, start = n & 127 | raw[at + 2] << 7, at + 3
        assert n <= LINE_LIMIT
        seen += chr(raw[at])
        at = start + n
    assert seen == kinds + "N"
    assert text_of(raw, file) == b"x" * length + b"\nend\n"


def test_a_last_line_without_newline_gets_one() -> None:
    for blocks in (False, True):
        raw = encoded(simple(), b"one\ntwo", blocks=blocks)
        assert text_of(raw, decoded(raw)) == b"one\ntwo\n"


def test_blocks_are_flagged_so_that_a_postfix_refuses_them() -> None:
    raw = encoded(simple(), b"line\n" * 40_000, blocks=True)
    assert int(raw[2:97].split()[3]) & FLAG_BLOCKS
    file = decoded(raw)
    assert file.blocks
    assert text_of(raw, file) == b"line\n" * 40_000


def test_delimiters_of_a_sender_per_recipient_stand_behind_the_sender_as_in_postfix() -> None:
    envelope = simple()
    envelope.attributes[VERP] = "+="
    raw = encoded(envelope, b"\nx\n")
    assert b"S\x0aa@src.testV\x02+=O\x0a" in raw and b"verp" not in raw
    assert decoded(raw).envelope.attributes == {VERP: "+="}


def test_done_and_cancelled_recipients_keep_their_state() -> None:
    envelope = simple()
    envelope.recipients += [Recipient("c@dst.test", state="D"), Recipient("d@dst.test", state="/")]
    assert [r.state for r in decoded(encoded(envelope, b"x\n")).envelope.recipients] == ["R", "D", "/"]


def test_a_mark_a_crash_count_and_a_sent_warning_leave_the_checksum_right() -> None:
    envelope = simple()
    envelope.warn_time = ARRIVAL
    raw = bytearray(encoded(envelope, b"x\n"))
    file = decoded(bytes(raw))
    raw[file.envelope.recipients[0].offset] = ord("D")
    raw[file.crashes_offset] = ord("3")
    raw[file.warn_offset + 2 : file.warn_offset + 17] = b"%15d" % 0
    again = decoded(bytes(raw))
    assert (again.envelope.recipients[0].state, again.crashes, again.envelope.warn_time) == ("D", 3, 0.0)


def test_parent_and_attributes_come_back() -> None:
    parent = Parent("bounce", "cd" * 16, "4F3", (160, 200))
    file = decoded(encoded(simple(), b"x\n", parent=parent, attributes={"submit_key": "k=1"}))
    assert file.parent == parent
    assert file.others == {"submit_key": "k=1"}
    assert file.uid == "ab" * 16


def test_many_recipients_do_not_fit_one_window_and_are_all_read() -> None:
    envelope = Envelope("a@src.test", [Recipient(f"user{i}@a-long-domain.dst.test") for i in range(3000)], ARRIVAL)
    raw = encoded(envelope, b"x\n")
    file = decoded(raw)
    assert [r.address for r in file.envelope.recipients] == [r.address for r in envelope.recipients]
    assert all(raw[r.offset : r.offset + 1] == b"R" for r in file.envelope.recipients)


@pytest.mark.parametrize("victim", ["uid=", "content_crc32=", "envelope_crc32=", "crashes="])
def test_a_file_of_ours_must_have_all_our_attributes(victim: str) -> None:
    raw = encoded(simple(), b"x\n").replace(victim.encode(), b"#" * (len(victim) - 1) + b"=")
    with pytest.raises(DamagedError):
        decoded(raw)


def test_a_child_may_answer_for_any_number_of_recipients() -> None:
    parent = Parent("bounce", "cd" * 16, "4F3", tuple(range(10_000_000, 10_000_000 + 70 * 200_000, 70)))
    assert decoded(encoded(simple(), b"x\n", parent=parent)).parent == parent


@pytest.mark.parametrize("attributes", [{"content_crc32": "zz"}, {"parent_kind": "bounce"}, {"parent_kind": "bounce",
    "parent_uid": "", "parent_id": "", "parent_rcpts": "x"}])  # fmt: skip
def test_attributes_that_make_no_sense_are_damage_though_the_checksum_is_right(attributes: Mapping[str, str]) -> None:
    with pytest.raises(DamagedError, match="no sense"):
        decoded(encoded(simple(), b"x\n", attributes=attributes))


def test_a_circle_of_pointers_ends() -> None:
    head = b"C\x5f" + b" ".join([b"%15d"] * 6) % (2, 300, 1, 0, 2, 0) + b"T\x011" + b"S\x00"
    circle = record(b"p", b"%15d" % len(head))
    with pytest.raises(DamagedError, match="circle"):
        decoded(head + circle)
    reader = ContentReader(0)
    with pytest.raises(DamagedError, match="circle"):
        while True:
            reader.feed(record(b"p", b"%15d" % 7))


@pytest.mark.parametrize("raw", [
    b"", b"C", b"T\x011S\x00", b"T\x011M\x00X\x00E\x00", b"Q\x00S\x00M\x00X\x00E\x00", b"T\x01xS\x00M\x00X\x00E\x00",
    b"S\x00M\x00N\x01aE\x00", b"S\x00M\x00X\x00Q\x00E\x00", b"S\xff\xff\xff\xff\xff\xff\x01", b"S\xff\xff\xff\x7f",
    b"C\x02-1S\x00M\x00X\x00E\x00", b"C\x00S\x00M\x00X\x00E\x00", b"C\x0299S\x00M\x00X\x00E\x00",
    b"C\x011S\x00M\x00N\x00X\x00E\x00", b"C\x14" + b"9" * 20 + b"S\x00M\x00X\x00E\x00",
])  # fmt: skip
def test_what_is_no_queue_file_is_damaged(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        decoded(raw)


def test_a_foreign_file_may_have_records_we_do_not_use() -> None:
    raw = (
        b"T\x011c\x011I\x01xf\x010d\x010L\x0fsmtp:[filter]:1V\x01=S\x01aW\x010A\x01qO\x01bm\x010R\x01b"
        b"A\x10trace_flags=1024M\x00w\x02  N\x01xX\x00r\x01ae\x01bA\x0dencoding=8bitO\x01dR\x01cE\x00"
    )
    file = decoded(raw)
    assert [(r.address, r.original) for r in file.envelope.recipients] == [("b", ""), ("c", "d")]
    assert file.envelope.attributes["content_filter"] == "smtp:[filter]:1"
    assert file.envelope.encoding == "8bit"
    assert file.content_8bit
    assert text_of(raw, file, 3) == b"x\n"
    assert file.uid == ""
    assert file.identity(255) == "ff.f4240"


def test_content_may_be_read_in_pieces_of_any_size() -> None:
    content = b"x" * 5000 + b"\n\n" + b"y" * 127 + b"\n" + b"z" * 128 + b"\nend\n"
    for blocks in (False, True):
        raw = encoded(simple(), content, blocks=blocks)
        for step in (17, 18, 100, 4096):
            assert text_of(raw, decoded(raw), step) == content


def test_content_that_ends_early_or_holds_other_records_is_damaged() -> None:
    for raw in (b"", b"N", b"N\x05ab", b"N\x80", b"L\x02ab", b"E\x00", b"p\x0f    "):
        reader = ContentReader(0)
        with pytest.raises(DamagedError):
            while not reader.done:
                reader.feed(raw[reader.offset :])


addresses = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)
raw_bytes = st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape"))
values = st.one_of(addresses, raw_bytes)
names = st.sampled_from(["rewrite_context", "log_client_name", "log_helo_name", "sasl_username", "trace_flags"])
recipients = st.builds(
    Recipient, values, values, st.integers(0, 15).map(Notify), values, state=st.sampled_from("RD/")
)  # fmt: skip
envelopes = st.builds(
    Envelope,
    values, st.lists(recipients, max_size=5), st.integers(0, 2**51).map(lambda usec: usec / 1_000_000), values, values,
    st.integers(0, 3).map(Ret), st.sampled_from(["", "7bit", "8bit"]), st.booleans(),
    st.integers(0, 2**33).map(float), st.dictionaries(names, values),
)  # fmt: skip
contents = st.lists(st.one_of(
    st.binary(max_size=50),
    st.builds(lambda n, b: bytes([b]) * n, st.integers(120, 5000), st.integers(11, 255)),
), max_size=8).map(b"\n".join)  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=150)
@given(envelopes, contents, st.booleans())
def test_what_is_written_is_read_back(envelope: Envelope, content: bytes, blocks: bool) -> None:
    raw = encoded(envelope, content, blocks=blocks)
    file = decoded(raw)
    for sent, back in zip(envelope.recipients, file.envelope.recipients, strict=True):
        assert raw[back.offset : back.offset + 1] == sent.state.encode()
        sent.offset = back.offset
        sent.original = "" if sent.original == sent.address else sent.original
    assert file.envelope == envelope
    assert file.end == len(raw)
    if content and not content.endswith(b"\n"):
        content += b"\n"
    assert text_of(raw, file, 1000) == (content or (b"\n" if blocks else b""))
    assert file.content_crc == zlib.crc32(content)


def test_no_flipped_bit_makes_a_file_of_ours_one_without_checksums() -> None:
    """It is damaged, or still the same message by its own checksums."""
    raw = encoded(simple(), b"Subject: x\n\nhello\n")
    whole, in_place = decoded(raw), {decoded(raw).crashes_offset}
    for at in range(len(raw)):
        for bit in range(8):
            broken = bytearray(raw)
            broken[at] ^= 1 << bit
            try:
                file = decoded(bytes(broken))
            except DamagedError:
                continue
            assert (file.uid, file.content_crc, file.envelope) == (whole.uid, whole.content_crc, whole.envelope)
            assert at in in_place or whole.content_offset <= at < whole.content_offset + whole.size


def test_a_size_that_leads_into_the_text_is_damage_also_where_the_text_looks_like_the_end_of_a_file() -> None:
    """Without attributes of ours nothing else would tell; what the text says there would be a recipient."""
    trap = b"X\0R\x0devil@dst.testE\0"
    raw = encoded(simple(), b"x" * 8 + trap + b"y" * (LINE_LIMIT - 8 - len(trap)) + b"\n")
    file = decoded(raw)
    inside = raw.index(trap) - file.content_offset
    broken = raw.replace(b"%15d" % file.size, b"%15d" % inside, 1)
    with pytest.raises(DamagedError, match="size record"):
        decoded(broken)


def test_an_end_with_data_is_damage() -> None:
    raw = encoded(simple(), b"hello\n")
    with pytest.raises(DamagedError, match="end with data"):
        decoded(raw.replace(b"X\0A", b"X\0E", 1))


def test_lines_without_a_last_newline_are_the_same_records() -> None:
    assert encode_lines(b"one\ntwo") == encode_lines(b"one\ntwo\n") == b"N\x03oneN\x03two"


def one_by_one(content: bytes) -> bytes:
    return b"".join(record(b"N", line) for line in content.removesuffix(b"\n").split(b"\n"))


@pytest.mark.parametrize("n", [0, 1, 76, 78, 125, 126, 127, 128, 129, 200])
@pytest.mark.parametrize("before", [b"", b"Received: x\n\tfor y\n\n", b"a\n" * 3000])
@pytest.mark.parametrize("after", [b"", b"last", b"=\n--end--\n", b"b" * 300 + b"\n"])
def test_lines_of_one_length_become_the_records_that_others_become(n: int, before: bytes, after: bytes) -> None:
    for count in (1, 2, 9, 17, 9000 // (n + 1) + 3):
        content = before + (b"N" * n + b"\n") * count + after
        raw = encode_lines(content)
        assert raw == one_by_one(content)
        for step in (300, 4096, len(raw) + 2):
            reader, out = ContentReader(0), b""
            while not reader.done:
                out += reader.feed((raw + b"X\0")[reader.offset : reader.offset + step])
            assert out == content.removesuffix(b"\n") + b"\n"


@pytest.mark.parametrize("odd", [b"", b"x", b"x" * 30 + b"\n" + b"x" * 45, b"x" * 77, b"x" * 200])
@pytest.mark.parametrize("at", [0, 1, 40, 149, 150, 151, 298, 299])
def test_one_odd_line_among_lines_of_one_length_stays_what_it_is(odd: bytes, at: int) -> None:
    lines = [b"x" * 76] * 300
    lines[at] = odd
    content = b"\n".join(lines) + b"\n"
    raw = encode_lines(content)
    assert raw == one_by_one(content)
    reader = ContentReader(0)
    assert reader.feed(raw + b"X\0") == content and reader.done


def test_eight_bit_content_is_known_as_such_again() -> None:
    for given_8bit in (False, True):
        head = encode_head(simple())
        size = encode_size(head, 0, blocks=False)
        tail = encode_tail(head, size, uid="ab" * 16, content_crc=0, content_8bit=given_8bit)
        assert decoded(size + head.data[SIZE_RECORD:] + tail).content_8bit is given_8bit


def test_a_pointer_of_zero_is_room_and_one_beyond_what_was_read_is_followed() -> None:
    """As cleanup(8) edits: a recipient appended far behind, from where another pointer leads back."""
    room = record(b"p", b"%15d" % 0)
    start = b"T\x011S\x01a" + room
    after = start + record(b"p", b"%15d" % 40_000)
    rest = b"R\x01bM\x00N\x01xX\x00E\x00"
    raw = (after + rest).ljust(40_000, b"w") + b"O\x01dR\x01c" + record(b"p", b"%15d" % len(after))
    file = decoded(raw)
    assert [(r.address, r.original, r.offset) for r in file.envelope.recipients] == [
        ("c", "d", 40_003), ("b", "", len(after)),
    ]  # fmt: skip
    assert text_of(raw, file) == b"x\n"


def test_the_first_time_counts_and_the_id_that_a_postfix_gave_is_not_kept() -> None:
    file = decoded(b"T\x011T\x012A\x0dlog_ident=4F3S\x01aR\x01bM\x00X\x00E\x00")
    assert file.envelope.arrival == 1.0
    assert file.envelope.attributes == {}


def test_an_envelope_from_strangers_has_a_limit_of_records() -> None:
    raw = b"T\x011S\x00" + b"R\x01b" * 10 + b"M\x00X\x00E\x00"
    assert len(decode(lambda offset, size: raw[offset : offset + size], limit=14).envelope.recipients) == 10
    for limit in (13, 4):  # in the extracted segment, in the envelope
        with pytest.raises(DamagedError, match="too many"):
            decode(lambda offset, size: raw[offset : offset + size], limit=limit)


def test_a_last_piece_without_its_line_end_gets_one_and_pointers_are_followed_in_content() -> None:
    """postdrop's way with a last line that has no newline; cleanup's with a body that was replaced."""
    first = b"N\x03one" + record(b"p", b"%15d" % 0) + b"w\x02  "
    raw = first + record(b"p", b"%15d" % 60)
    raw = raw.ljust(60, b"?") + b"L\x03two" + b"X\x00"
    for step in (17, 18, 19, 30, 1000):
        reader, out = ContentReader(0), b""
        while not reader.done:
            out += reader.feed(raw[reader.offset : reader.offset + step])
        assert out == b"one\ntwo\n"


def test_content_is_checked_to_its_end_against_what_was_committed() -> None:
    raw = encoded(simple(), b"Subject: x\n\n" + b"text\n" * 30_000)
    file = decoded(raw)
    check_content(lambda offset, size: raw[offset : offset + size], file)
    wrong = raw.replace(b"text", b"test")
    with pytest.raises(DamagedError, match="checksum of the content"):
        check_content(lambda offset, size: wrong[offset : offset + size], file)
    with pytest.raises(DamagedError, match="ends early"):
        check_content(lambda offset, size: raw[offset:70_000], file)
    file.content_crc = None  # of a Postfix
    check_content(lambda offset, size: wrong[offset : offset + size], file)


def test_content_may_be_cut_at_any_byte() -> None:
    content = b"one\n\n" + b"x" * 130 + b"\n" + b"y" * 2049 + b"\nend\n"
    raw = encoded(simple(), content)
    start = decoded(raw).content_offset
    for cut in range(start + 2, len(raw)):
        reader = ContentReader(start)
        out = reader.feed(raw[start:cut])
        while not reader.done:
            out += reader.feed(raw[reader.offset :])
        assert out == content, cut


def test_a_last_block_may_be_large() -> None:
    content = b"z" * (BLOCK + 30_000) + b"\n"
    raw = encoded(simple(), content, blocks=True)
    file = decoded(raw)
    for step in (1000, 30_000, len(raw)):
        assert text_of(raw, file, step) == content
