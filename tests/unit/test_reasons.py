"""defer/ID: what is written is read back, and no remote text can forge an entry."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import Notify, Recipient
from mta.queue.api import Reason
from mta.queue.reasons import decode_reasons, encode_reasons, quoted


@pytest.mark.parametrize(("address", "text"), [
    ("a@b.test", "a@b.test"), ("a b@dom", '"a b"@dom'), ('a"\\@dom', '"a\\"\\\\"@dom'), ("", ""), ("root", "root"),
    ("two words", '"two words"'), ("a@b@c", '"a@b"@c'), (".a@b", '".a"@b'), ("ü@b", "ü@b"),
])  # fmt: skip
def test_local_parts_are_quoted_where_they_must_be(address: str, text: str) -> None:
    assert quoted(address) == text
    data = encode_reasons([(Recipient(address, offset=1), Reason("4.0.0", "x"))], compatible=True)
    assert decode_reasons(data)[0][0] == address


def test_all_fields_are_in_postfixs_order() -> None:
    recipient = Recipient("a@b", "c@d", Notify.SUCCESS, "rfc822;e@f", 320)
    reason = Reason("4.1.1", "no", "delayed", "smtp", "450 4.1.1 no", "mx.test")
    assert encode_reasons([(recipient, reason)], compatible=False) == (
        b"\nrecipient=a@b\noriginal_recipient=c@d\noffset=320\ndsn_orig_rcpt=rfc822;e@f\nnotify_flags=2\n"
        b"status=4.1.1\naction=delayed\ndiag_type=smtp\ndiag_text=450 4.1.1 no\nmta_type=dns\nmta_mname=mx.test\n"
        b"reason=no\n\n"
    )


def test_nothing_is_an_empty_file() -> None:
    assert encode_reasons([], compatible=True) == b""
    assert decode_reasons(b"") == []


@pytest.mark.parametrize("data", [
    b"garbage", b"\n\n\n", b"offset=1\nreason=x\n\n", b"\xff\xfe=\n\n", b"=\n\n", b"\n=x",
])  # fmt: skip
def test_what_cannot_be_read_is_left_out(data: bytes) -> None:
    assert decode_reasons(data) == []


def test_a_strange_offset_is_none() -> None:
    for offset in ("", "x", "-1", "²"):
        assert decode_reasons(f"recipient=a\noffset={offset}\n\n".encode()) == [("a", 0, Reason("", ""))]


plain = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40)
hostile = st.text(st.sampled_from('a\n\r\t\x00="<>@ \\.:'), max_size=30)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(plain, st.integers(1, 2**40), plain, plain), max_size=5))
def test_plain_entries_come_back(rows: list[tuple[str, int, str, str]]) -> None:
    entries = [(Recipient(a, offset=o), Reason("4.0.0", t, diag_type="smtp", diag_text=d)) for a, o, t, d in rows]
    back = decode_reasons(encode_reasons(entries, compatible=True))
    assert back == [(r.address, r.offset, reason) for r, reason in entries]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(hostile, hostile, hostile), min_size=1, max_size=4))
def test_no_text_makes_another_entry(rows: list[tuple[str, str, str]]) -> None:
    entries = [(Recipient(a, offset=i), Reason("4.0.0", t, mta_name=m)) for i, (a, t, m) in enumerate(rows)]
    back = decode_reasons(encode_reasons(entries, compatible=True))
    assert [offset for _, offset, _ in back] == list(range(len(rows)))
