"""Restrictions that need what an earlier command said, on the real rooms: a client, a dialogue, its replies."""

from pathlib import Path

import pytest

from tests.hostile.world import world
from tests.smtpd_support import Client, certificate, until

EHLO, MAIL = "EHLO c.example", "MAIL FROM:<s@c.example>"
USER, ABUSE, RELAY = "RCPT TO:<user@test.example>", "RCPT TO:<abuse@test.example>", "RCPT TO:<a@b.example>"
DATA, TEXT = "DATA", "Subject: x\r\n\r\nx\r\n."
REFUSED = "554 5.7.1 <user@test.example>: Recipient address rejected: Access denied"
ASK_USER = "check_recipient_access inline:{user@test.example=REJECT}"
UNKNOWN = ("virtual_alias_domains = va.example\n", "RCPT TO:<nobody@va.example>")


async def dialogue(root: Path, more: str, *lines: str) -> tuple[list[str], list[str]]:
    """The replies to these lines, on a server with these lines in main.cf; and its log."""
    async with world(root / "world", certificate(root)[0], more) as here:
        client = await Client.connect(here.port)
        replies = [reply.rstrip("\r\n") for reply in await client.say(*lines)]
        await client.close()
        await until(lambda: any("disconnect from" in line for line in here.log.lines))
    return replies, here.log.lines


@pytest.mark.parametrize(("stage", "line"), [("data", "DATA"), ("end_of_data", TEXT)])
async def test_the_only_recipient_is_known_when_the_message_is_judged(tmp_path: Path, stage: str, line: str) -> None:
    more = f"smtpd_{stage}_restrictions = {ASK_USER}\n"
    to_the_end = (DATA,) if line == DATA else (DATA, TEXT)
    replies, log = await dialogue(tmp_path, more, EHLO, MAIL, USER, RELAY, *to_the_end)
    assert replies[-1] == REFUSED
    assert any("to=<user@test.example>" in text for text in log if "reject: " in text and REFUSED in text)


async def test_of_several_recipients_none_is_judged_with_the_message(tmp_path: Path) -> None:
    more = f"smtpd_data_restrictions = {ASK_USER}\nsmtpd_end_of_data_restrictions = {ASK_USER}\n"
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER, ABUSE, DATA, TEXT)
    assert replies[-1].startswith("250 2.0.0 Ok: queued as ")


@pytest.mark.parametrize("delayed", ["yes", "no"])
@pytest.mark.parametrize("stage", ["client", "helo", "sender"])
async def test_defer_if_permit_of_an_earlier_command_applies_at_rcpt(tmp_path: Path, stage: str, delayed: str) -> None:
    more = f"smtpd_delay_reject = {delayed}\nsmtpd_{stage}_restrictions = defer_if_permit\n"
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER, RELAY, "RSET", MAIL, USER)
    told = [reply[:9] for reply in replies]
    assert told[1] == told[5] == "250 2.1.0"
    assert told[2] == told[6] == "450 4.7.0", "refused for a time, in each transaction"
    assert told[3] == "454 4.7.1", "what is refused anyway stays so"


async def test_what_was_said_of_one_sender_is_not_held_against_the_next(tmp_path: Path) -> None:
    table = "check_sender_access inline:{s@c.example=DEFER_IF_PERMIT}"
    more = f"smtpd_delay_reject = no\nsmtpd_sender_restrictions = {table}\n"
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER, "RSET", "MAIL FROM:<t@c.example>", USER, DATA, TEXT)
    assert replies[2].startswith("450 4.7.1 ") and replies[-1].startswith("250 2.0.0 ")


@pytest.mark.parametrize(
    ("recipients", "reply"),
    [
        ("check_client_access inline:{127.0.0.1=DEFER_IF_REJECT}", "450 4.7.1 "),
        ("defer_if_reject", "450 4.7.0 "),
        ("warn_if_reject defer_if_reject, reject", "450 4.7.0 "),
        ("reject", "554 5.7.1 "),
        ("", "550 5.1.1 "),
    ],
)
async def test_defer_if_reject_softens_a_refusal_for_good(tmp_path: Path, recipients: str, reply: str) -> None:
    domain, rcpt = UNKNOWN
    replies, _ = await dialogue(tmp_path, f"{domain}smtpd_recipient_restrictions = {recipients}\n", EHLO, MAIL, rcpt)
    assert replies[-1].startswith(reply)


async def test_defer_if_reject_of_the_relay_list_counts_for_the_recipient_list(tmp_path: Path) -> None:
    more = "smtpd_relay_restrictions = defer_if_reject, permit\nsmtpd_recipient_restrictions = reject\n"
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER)
    assert replies[-1].startswith("450 4.7.0 ")


@pytest.mark.parametrize(
    "more",
    [
        "smtpd_recipient_restrictions = check_recipient_access inline:{user@test.example=DISCARD}, reject\n",
        "smtpd_delay_reject = no\nsmtpd_sender_restrictions = check_sender_access inline:{s@c.example=DISCARD}\n",
    ],
)
async def test_a_discarded_message_may_be_for_anybody(tmp_path: Path, more: str) -> None:
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER, RELAY, DATA, TEXT, MAIL, RELAY)
    assert replies[2] == replies[3] == "250 2.1.5 Ok"
    assert replies[5].startswith("250 2.0.0 Ok")
    assert replies[7].startswith("250 " if "sender" in more else "454 "), "the next message is judged for itself"


@pytest.mark.parametrize("table", ["cidr:{127.0.0.0/8 REJECT}", "regexp:{/^127/ REJECT}"])
async def test_a_table_whose_text_has_no_form_lets_nobody_in(tmp_path: Path, table: str) -> None:
    replies, log = await dialogue(
        tmp_path, f"smtpd_client_restrictions = check_client_access {table}\n", EHLO, MAIL, USER
    )
    assert replies[-1] == (
        "451 4.3.5 <client.example[127.0.0.1]>: Client host rejected: Server configuration error"
    )
    assert any("no '{' at start of text" in line for line in log)


@pytest.mark.parametrize("entry", ["600 x", "DELAY", "nosuch"])
async def test_a_fault_of_the_configuration_is_no_warning(tmp_path: Path, entry: str) -> None:
    table = f"inline:{{ {{ user@test.example = {entry} }} }}"
    more = f"smtpd_recipient_restrictions = warn_if_reject check_recipient_access {table}\n"
    replies, _ = await dialogue(tmp_path, more, EHLO, MAIL, USER)
    assert replies[-1] == "451 4.3.5 Server configuration error"
