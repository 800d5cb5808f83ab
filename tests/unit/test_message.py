"""The header block: where it ends, whatever the cut; Received; address lists and their rewriting."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import Origin
from mta.message import Header, HeaderScanner, from_header, normalised, received
from mta.message_address import (
    SLICE,
    TOKEN_LIMIT,
    finished,
    parse_list,
    parsing,
    quote,
)
from mta.message_rewrite import REWRITE_LIMIT, rewrite_list


def scan(message: bytes, step: int, limit: int = 102400) -> tuple[list[Header], bytes]:
    scanner, headers, rest = HeaderScanner(limit), list[Header](), b""
    for i in range(0, len(message), step):
        if scanner.done:
            rest += message[i : i + step]
        else:
            headers += scanner.feed(message[i : i + step])
    if not scanner.done:
        headers += scanner.end()
    return headers, scanner.rest + rest


@pytest.mark.parametrize(
    ("message", "names", "rest"),
    [
        (b"A: b\n c\nB : x\n\nbody\n", [b"a", b"b"], b"\nbody\n"),
        (b"hello\n", [], b"\nhello\n"),  # no header at all: a blank line is put in front
        (b" x\n", [], b"\n x\n"),
        (b"A: b\nbody x\nC: d\n", [b"a"], b"\nbody x\nC: d\n"),
        (b"A: b\n", [b"a"], b""),
        (b"A: b\n\n", [b"a"], b"\n"),
        (b"\nx", [], b"\nx"),
        (b"", [], b""),
        (b"A: b\n \n c\n\n", [b"a"], b"\n"),
        (b"A: b", [b"a"], b""),
        (b"A\xc3\xa9: b\n", [], b"\nA\xc3\xa9: b\n"),
    ],
)
def test_the_header_ends_at_the_same_place_for_every_cut(message: bytes, names: list[bytes], rest: bytes) -> None:
    for step in range(1, len(message) + 2):
        headers, found = scan(message, step)
        assert ([h.name for h in headers], found) == (names, rest)


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        (b"From x@y Mon Jan 1\nA: b\n\nc\n", b"X-Mailbox-Line: From x@y Mon Jan 1\nA: b\n\nc\n"),
        (b">From x\n>>From y\nA: b\n", b"X-Mailbox-Line: >From x\nX-Mailbox-Line: >>From y\nA: b\n"),
        (b"From x\n\nFrom y\n", b"X-Mailbox-Line: From x\n\nFrom y\n"),
        (b"From x", b"X-Mailbox-Line: From x\n"),
        (b"A: b\nFrom x\n", b"A: b\n\nFrom x\n"),  # not in front: the body begins
        (b"From: x\n", b"From: x\n"),
    ],
)
def test_an_mbox_line_in_front_does_not_push_the_header_into_the_body(message: bytes, stored: bytes) -> None:
    for step in range(1, len(message) + 2):
        scanner, kept = HeaderScanner(mbox_line=True), b""
        for i in range(0, len(message), step):
            part = message[i : i + step]
            kept += part if scanner.done else b"".join(h.raw for h in scanner.feed(part)) + scanner.rest
        kept += b"" if scanner.done else b"".join(h.raw for h in scanner.end()) + scanner.rest
        assert kept == stored


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.lists(st.sampled_from([b"A: b\n", b" c\n", b"\n", b"x", b":", b"\n\n", b"\x00", b"\t\n", b"Received: y\n"])),
    st.integers(1, 7),
    st.sampled_from([5, 12, 102400]),
)
def test_nothing_is_lost_or_invented(parts: list[bytes], step: int, limit: int) -> None:
    message = b"".join(parts)
    headers, rest = scan(message, step, limit)
    together = b"".join(h.raw for h in headers) + rest
    # Only a blank line before a body without one, and a last LF, may be added.
    assert together.replace(b"\n", b"") == message.replace(b"\n", b"")
    assert 0 <= len(together) - len(message) <= 2


def test_an_endless_header_takes_bounded_memory_and_linear_time() -> None:
    scanner = HeaderScanner()
    start = time.perf_counter()
    headers = scanner.feed(b"Subject: ")
    for _ in range(100_000):
        headers += scanner.feed(b"\n x")
    headers += scanner.feed(b"\nTo: y\n\n")
    assert time.perf_counter() - start < 3
    assert b"".join(h.raw for h in headers) == b"Subject: " + b"\n x" * 100_000 + b"\nTo: y\n"
    assert max(len(h.raw) for h in headers) < 110_000
    assert headers[-1].name == b"to"


def test_received_has_the_layout_of_postfix() -> None:
    origin = Origin("smtpd", "c.test", "192.0.2.1", 25, "helo.test", "ESMTP")
    date = "Sat, 21 Nov 2026 02:30:53 +0000 (UTC)"
    assert received(origin, "h.test", "aiomta", "QID", "a b@r.test", date).decode() == (
        "Received: from helo.test (c.test [192.0.2.1])\n\tby h.test (aiomta) with ESMTP id QID\n"
        f'\tfor <"a b"@r.test>; {date}\n'
    )
    assert received(origin, "h.test", "aiomta", "QID", "", date).decode() == (
        f"Received: from helo.test (c.test [192.0.2.1])\n\tby h.test (aiomta) with ESMTP id QID;\n\t{date}\n"
    )
    local = Origin("pickup", uid=1000)
    assert received(local, "h.test", "aiomta", "QID", "", date).decode() == (
        f"Received: by h.test (aiomta, from userid 1000)\n\tid QID; {date}\n"
    )


def test_received_says_how_a_message_came_to_the_program_of_root() -> None:
    def line(**words: str) -> str:
        return received(Origin("pickup", uid=0, **words), "h.test", "aiomta", "QID", "", "date").decode()  # type: ignore[arg-type]

    whole = "Received: from c.test\n\tby h.test (aiomta, from userid 0) with UUCP\n\tid QID; date\n"
    assert line(protocol="UUCP", helo="c.test") == whole
    assert line(protocol="SMTP") == "Received: by h.test (aiomta, from userid 0) with SMTP\n\tid QID; date\n"



def test_no_value_can_end_the_line_of_our_headers() -> None:
    origin = Origin("smtpd", "c\nX: y", "2001:db8::1", 25, "h\r\nBcc: z", "ESMTP")
    text = received(origin, "h.test", "aiomta", "QID", "x\ny@z", "date")
    assert text.count(b"\n") == 3
    assert b"[IPv6:2001:db8::1]" in text
    assert from_header(b"", "A\nB", "a@b").count(b"\n") == 1


@pytest.mark.parametrize(
    ("name", "sender", "line"),
    [
        ("Env Name", "a@x", "From: Env Name <a@x>"),
        ("Alice Q. Tester", "a@x", 'From: "Alice Q. Tester" <a@x>'),
        ('A (x), "Q"', "a@x", 'From: "A (x), \\"Q\\"" <a@x>'),
        ("", "a b@x", 'From: "a b"@x'),
        ("Alice", "", "From: MAILER-DAEMON"),
    ],
)
def test_from_is_written_as_postfix_does(name: str, sender: str, line: str) -> None:
    assert from_header(b"", name, sender).decode() == line + "\n"


def test_blanks_before_the_colon_go() -> None:
    assert normalised(Header(b"subject", b"Subject \t: x\n")) == b"Subject: x\n"
    assert normalised(Header(b"subject", b"Subject: x : y\n")) == b"Subject: x : y\n"


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("a@x, b@y", ["a@x", "b@y"]),
        ("a@x b@y", ["a@x", "b@y"]),
        ("Bob Smith", ["Bob", "Smith"]),
        ("Bob Smith <b@x>", ["b@x"]),
        ('Friends: a, "B, x" <b@r>;, z', ["a", "b@r", "z"]),
        ("undisclosed-recipients:;", []),
        ("a@x; b@y", ["a@x", "b@y"]),
        ("root (Cron Daemon)", ["root"]),
        ("a (b (c) \\) d) @ x", ["a@x"]),
        ("<@h1,@h2:a@r.test>", ["a@r.test"]),
        ('"a b"@x', ["a b@x"]),
        ("=?utf-8?q?a=40victim.example=2C?= <user@x>", ["user@x"]),
        ("=?utf-8?q?a=40victim.example?=", []),
        ("<>", [""]),
        ("", []),
        ("g @ h . i", ["g@h.i"]),
        ("f@[1.2.3.4]", ["f@[1.2.3.4]"]),
        ("jörg@r.test", ["jörg@r.test"]),
        ("h1!h2!user", ["h1!h2!user"]),
    ],
)
def test_lists_as_people_write_them(value: str, addresses: list[str]) -> None:
    parsed = parse_list(value)
    assert (parsed.addresses, parsed.malformed) == (addresses, "")


@pytest.mark.parametrize(
    "value",
    ['"Bob <a@x>', "Bob <a@x", "a@x (b", "a@x>", "a@", "a@, b@x", "@x", "<a b@x>", "a@[1.2", "a)b"],
)
def test_what_cannot_be_understood_is_said(value: str) -> None:
    assert parse_list(value).malformed


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.text(alphabet='ab@.<>(),;:"\\[] \t\n=?', max_size=60))
def test_any_text_parses_and_quoting_survives_a_second_pass(value: str) -> None:
    parsed = parse_list(value)
    if parsed.malformed:
        return
    for address in parsed.addresses:
        if address and not address.startswith("@") and "\n" not in address:
            again = parse_list(quote(address))
            if "[" not in address and address.count("@") <= 1:
                assert again.addresses == [address]


@pytest.mark.parametrize(
    "value", ["(" * 50_000, '"' * 50_001, "<" * 50_000, "a " * 50_000, "\\" * 50_000, ",:;" * 20_000]
)
def test_hostile_lists_take_linear_time(value: str) -> None:
    start = time.perf_counter()
    rewrite_list("To", value, lambda a: a + "@x")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    "element", ["u@r.test", "u", "Uu <u@r.test>", '"u v"@r.test', "u@r.test (u)", "(((((u))))) u@r.test", "g:u;"]
)
@pytest.mark.parametrize("between", [",", ",\n\t"])
def test_a_long_list_is_parsed_in_slices_of_which_none_is_long(element: str, between: str) -> None:
    count = 20 * SLICE
    steps, pauses = parsing(between.join([element] * count)), 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result = done.value
            break
        pauses += 1
    assert result.malformed == ""
    assert len(result.addresses) == count
    assert pauses >= 20


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("<" * 1_000_000, "address too long"),
        ("<>" * 500_000, "address too long"),
        ('"' * 1_000_000, "address too long"),
        ("a " * 500_000, "address too long"),
        ("a" + ". a" * 500_000, "address too long"),
        ("a" + ". a" * 500_000, "address too long"),
        ("a:" * 500_000, "address too long"),
        ("x, " + "(a) " * 300_000, "address too long"),
        ("(" * 1_000_000, "comment nested too deeply"),
        ("(" * 500_000 + ")" * 500_000 + " a@r.test", "comment nested too deeply"),
        ("(" * 100 + ")" * 100 + " a@r.test", ""),
        ('"' + "\\a" * 500_000, "unbalanced quotes"),
        ("a@r.test" + "\n " * 500_000 + ", b@r.test", ""),
        ("a " * (TOKEN_LIMIT - 1), ""),
    ],
    ids=lambda value: value[:6],
)
def test_one_element_has_its_bounds(value: str, why: str) -> None:
    assert parse_list(value).malformed == why


def test_the_text_behind_an_element_that_is_too_long_is_kept() -> None:
    value = " bob, " + "<" * 20_000 + "tail"
    assert rewrite_list("To", value, lambda a: f"{a}@d") == "To: bob@d," + value[5:].replace(" ", "\n\t")


def test_a_header_with_more_addresses_than_anybody_reads_stays_as_it_is() -> None:
    for count, changed in ((REWRITE_LIMIT + 1, True), (REWRITE_LIMIT + 2, False)):
        for separator in (",", ";"):
            found = rewrite_list("To", separator.join(["bob"] * count), lambda a: f"{a}@d")
            assert (found is not None) == changed


def test_the_result_of_slices_comes_without_pauses_too() -> None:
    assert finished(parsing("a@x,b@y")).addresses == ["a@x", "b@y"]


@pytest.mark.parametrize("step", [1, 7, 100, 1000])
def test_a_header_over_the_limit_is_never_whole_whatever_the_cut(step: int) -> None:
    for tail in (b"", b"B: c\n\nbody\n"):
        headers, _ = scan(b"A: " + b"x" * 100 + b"\n" + tail, step, limit=99)
        assert [h.whole for h in headers if h.name in (b"", b"a")] == [False] * (len(headers) - bool(tail))
        assert headers[0].name == b"a"


@pytest.mark.parametrize(
    ("value", "header"),
    [
        (" alice (x y)", "To: alice@d (x y)"),
        (" a@x, (b) bob", "To: a@x, (b) bob@d"),
        (" bob (a) (b), (c) (d)", "To: bob@d (a) (b), (c) (d)"),
        (" g: bob; (a) (b), (c) eve", "To: g: bob@d; (a) (b), (c) eve@d"),
        (" bob,\n carol <carol>", "To: bob@d, carol <carol@d>"),
        (" eve;fred ginny@x", "To: eve@d;, fred@d, ginny@x"),
        (" Friends: a, b;, c", "To: Friends: a@d, b@d;, c@d"),
        (" <@h1.test:a@r.test>", "To: <a@r.test>"),
        (" a@x, b@y", None),
        (" undisclosed-recipients:;", None),
        (" " + "x" * 40 + "@d, " + "y" * 40, "To: " + "x" * 40 + "@d,\n\t" + "y" * 40 + "@d"),
    ],
)
def test_rewriting_keeps_the_text_around(value: str, header: str | None) -> None:
    assert rewrite_list("To", value, lambda a: a if "@" in a else f"{a}@d") == header
