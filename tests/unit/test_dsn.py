"""Delivery reports as bytes: layout, what programs read out of them, and what no peer can do to them."""

import email
import email.policy
import json
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.bounce.dsn import ADDRESS_LIMIT, TEXT_LIMIT, Kind, Report, ReportRecipient, _line, closing, opening

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dsn"
BOUNDARY = "4F1C31B6611.00112233445566778899aabbccddeeff"
HEADER = b"Received: by mx.test (aiomta)\nSubject: test\nFrom: alice@mx.test\nTo: x@rej.test\n"
BODY = b"\nHello\n--4F1C31B6611\nFrom here\n.dot\n"

REFUSED = ReportRecipient(
    "x@rej.test",
    "",
    "rfc822;x@rej.test",
    "5.1.1",
    "host mx.rej.test[10.0.0.1] said: 550 5.1.1 no such user here (in reply to RCPT TO command)",
    diagnostic="smtp; 550 5.1.1 no such user here",
    remote_mta="mx.rej.test",
)
UNKNOWN = ReportRecipient("nosuch@mx.test", "nosuch", "rfc822;nosuch@mx.test", "5.1.1", 'unknown user: "nosuch"')
REPORT = Report(
    kind=Kind.FAILURE,
    to="alice@mx.test",
    myhostname="mx.test",
    mail_name="aiomta",
    queue_id="4F1C31B6611",
    sender="alice@mx.test",
    date="Sat, 21 Nov 2026 02:43:32 +0000 (UTC)",
    arrival="Sat, 21 Nov 2026 02:43:31 +0000 (UTC)",
    boundary=BOUNDARY,
    recipients=(REFUSED, UNKNOWN),
)
DELAYED = replace(
    REPORT,
    kind=Kind.DELAY,
    recipients=(replace(REFUSED, status="4.2.0", diagnostic="smtp; 450 4.2.0 later"),),
    original="headers",
    retry_until="Thu, 26 Nov 2026 02:43:31 +0000 (UTC)",
    warned_after=4 * 3600.0,
    retried_for=5 * 86400.0,
)
DELIVERED = replace(
    REPORT,
    kind=Kind.SUCCESS,
    original="headers",
    envelope_id="QQ+314",
    recipients=(
        ReportRecipient("bob@mx.test", "bob", "rfc822;bob@mx.test", "2.0.0", "delivery via local: delivered to mailbox",
                        action="delivered"),
        ReportRecipient("list@mx.test", "", "rfc822;list@mx.test", "2.0.0", "delivery via local: forwarded as 4F2",
                        action="expanded"),
    ),
)  # fmt: skip
INTERNATIONAL = replace(
    REPORT,
    to="älice@mx.test",
    sender="älice@mx.test",
    utf8=True,
    recipients=(ReportRecipient("grün@rej.test", "", "utf-8;grün@rej.test", "5.6.7", "SMTPUTF8 is required"), UNKNOWN),
)
POSTMASTER = replace(REPORT, to="postmaster", postmaster=True, original="headers")
CASES = {
    "failure": REPORT,
    "delay": DELAYED,
    "success": DELIVERED,
    "international": INTERNATIONAL,
    "postmaster": POSTMASTER,
    "unreadable": replace(REPORT, original=""),
}


def opened(report: Report) -> bytes:
    return b"".join(opening(report))


def whole(report: Report, header: bytes = HEADER, body: bytes = BODY) -> bytes:
    original = {"message": header + body, "headers": header, "": b""}[report.original]
    return opened(report) + original + closing(report)


def parts(raw: bytes) -> list[Message]:
    message = email.message_from_bytes(raw)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert not message.defects
    found = message.get_payload()
    assert isinstance(found, list)
    return [part for part in found if isinstance(part, Message)]


def status_blocks(part: Message) -> list[Message]:
    """The fields of message/(global-)delivery-status, per message and per recipient."""
    payload = part.get_payload()
    assert isinstance(payload, list)
    blocks = [block for block in payload if isinstance(block, Message)]
    if part.get_content_type() == "message/global-delivery-status":  # read by `email` as one message and its body
        rest = blocks[0].get_payload()
        assert isinstance(rest, str)
        blocks += [email.message_from_string(text) for text in rest.split("\n\n")]
    return [block for block in blocks if block.keys()]


@pytest.mark.parametrize("name", CASES)
def test_reports_are_byte_for_byte_as_agreed(name: str) -> None:
    assert whole(CASES[name]) == (GOLDEN / f"{name}.eml").read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_every_report_can_be_parsed_and_names_its_recipients(name: str) -> None:
    report = CASES[name]
    found = parts(whole(report))
    assert len(found) == (3 if report.original else 2)
    message, *recipients = status_blocks(found[1])
    assert message["Reporting-MTA"] == "dns; mx.test"
    assert message["X-aiomta-Queue-ID"] == "4F1C31B6611"
    assert len(recipients) == len(report.recipients)
    for fields, recipient in zip(recipients, report.recipients, strict=True):
        assert fields["Status"] == recipient.status
        assert fields["Action"] == (recipient.action or report.kind.value)


def test_the_original_comes_back_unchanged() -> None:
    raw = whole(REPORT)
    assert HEADER + BODY in raw
    returned = parts(raw)[2].get_payload()
    assert isinstance(returned, list) and isinstance(returned[0], Message)
    assert returned[0]["Subject"] == "test"
    assert returned[0]["Return-Path"] == "<alice@mx.test>"


def test_a_notice_is_never_answered_automatically() -> None:
    assert b"\nAuto-Submitted: auto-replied\n" in opened(REPORT)
    assert b"\nAuto-Submitted: auto-generated\n" in opened(POSTMASTER)


def test_without_smtputf8_a_foreign_address_is_written_in_ascii() -> None:
    raw = opened(replace(INTERNATIONAL, utf8=False, to="a@b", sender="a@b"))
    assert raw.isascii()
    assert b"Final-Recipient: utf-8; gr\\x{FC}n@rej.test\n" in raw
    assert b"Original-Recipient: utf-8;gr\\x{FC}n@rej.test\n" in raw


def test_the_null_sender_has_no_field_of_its_own() -> None:
    assert b"-Sender:" not in opened(replace(REPORT, sender=""))


def test_a_report_needs_a_valid_boundary() -> None:
    with pytest.raises(ValueError, match="boundary"):
        opened(replace(REPORT, boundary='x"\n--'))


def bounce_injection_texts() -> list[str]:
    cases = Path(__file__).parent / "bounce_injection.jsonl"
    return [json.loads(line)["text"] for line in cases.read_text().splitlines()]


@pytest.mark.parametrize("text", bounce_injection_texts())
def test_a_hostile_reply_stays_one_folded_field(text: str) -> None:
    check_hostile(text, "x@rej.test")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.text(st.characters(), max_size=1500),
    st.text(st.characters(), min_size=1, max_size=1200),
)
def test_nothing_that_came_from_outside_can_leave_its_field(text: str, address: str) -> None:
    check_hostile(text, address)


def check_hostile(text: str, address: str) -> None:
    recipient = ReportRecipient(address, address, f"rfc822;{address}", text, text, diagnostic=f"smtp; {text}",
                                remote_mta=text)  # fmt: skip
    for utf8 in (False, True):
        report = replace(REPORT, to=address, sender=address, recipients=(recipient,), utf8=utf8, envelope_id=text)
        raw = whole(report)
        head = opened(report)
        assert utf8 or head.isascii()
        assert b"\r" not in head and b"\0" not in head
        assert max(map(len, raw.split(b"\n"))) < 998
        assert raw.count(b"\n--" + BOUNDARY.encode()) == 4
        found = parts(raw)
        assert len(found) == 3
        blocks = status_blocks(found[1])
        assert len(blocks) == 2
        assert set(blocks[1].keys()) <= {
            *("Final-Recipient", "Original-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"),
        }
        diagnostic = blocks[1]["Diagnostic-Code"]
        assert diagnostic.isascii() and len("".join(diagnostic.split())) <= TEXT_LIMIT + len("X-aiomta;")


@pytest.mark.parametrize(("seconds", "text"), [
    (30, "30 seconds"), (60, "1 minute"), (5400, "2 hours"), (86400, "1 day"), (432000, "5 days"),
])  # fmt: skip
def test_a_delay_is_told_in_the_largest_unit(seconds: float, text: str) -> None:
    assert f"For more than {text} your message".encode() in opened(replace(DELAYED, warned_after=seconds))


def test_an_address_without_end_is_cut_so_that_its_line_can_be_sent() -> None:
    long = "x" * 5000 + "@rej.test"
    raw = opened(replace(REPORT, recipients=(replace(UNKNOWN, address=long, original=""),)))
    (field,) = [line for line in raw.split(b"\n") if line.startswith(b"Final-Recipient: ")]
    assert field == b"Final-Recipient: rfc822; " + b"x" * ADDRESS_LIMIT
    assert max(map(len, raw.split(b"\n"))) <= 998


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0", "a\x7f", "a\tb"])
def test_the_last_function_before_the_file_writes_one_line_or_none(text: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        _line(text)
    assert _line("\tb") == b"\tb\n"


def test_a_report_about_many_comes_in_small_pieces() -> None:
    pieces = list(opening(replace(REPORT, recipients=(UNKNOWN,) * 3000)))
    assert max(map(len, pieces)) < 65536
    assert b"".join(pieces).count(b"\nFinal-Recipient: ") == 3000
