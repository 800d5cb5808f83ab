"""access(5): keys and status codes."""

import pytest

from mta.smtpd.access import fit_dsn, split_dsn
from mta.smtpd.facts import Stage
from mta.smtpd.restrict_core import HELO, RECIPIENT, SENDER
from tests.unit.policy_fixture import PARENTS, Site


@pytest.mark.parametrize(
    ("detail", "sender", "recipient"),
    [(0, 0, 0), (1, 7, 1), (2, 8, 2), (3, 7, 3), (4, 7, 4), (5, 0, 5), (6, 7, 6), (7, 7, 3), (8, 8, 2), (9, 0, 0)],
)
def test_address_status_codes_fit_what_is_refused(detail: int, sender: int, recipient: int) -> None:
    """As Postfix 3.7.11 maps them."""
    assert fit_dsn(f"5.1.{detail}", SENDER) == f"5.1.{sender}"
    assert fit_dsn(f"5.1.{detail}", RECIPIENT) == f"5.1.{recipient}"
    assert fit_dsn(f"4.1.{detail}", HELO) == "4.0.0"
    assert fit_dsn("4.2.1", HELO) == "4.2.1"


def test_a_status_in_front_of_the_text() -> None:
    assert split_dsn("5.2.2 over quota", "5.7.1") == ("5.2.2", "over quota")
    assert split_dsn("over 5.2.2", "5.7.1") == ("5.7.1", "over 5.2.2")
    assert split_dsn("4.3.9", "5.7.1") == ("4.3.9", "")


@pytest.mark.parametrize(
    "key",
    [
        *("192.0.2.99", "192.0.2", "192.0", "192", "mail.host.example", "host.example", "example"),
        *("Mail.Host.Example",),
    ],
)
async def test_a_client_is_found_by_name_address_and_their_parts(key: str) -> None:
    site = Site(smtpd_client_restrictions=(f"check_client_access inline:{{{key}=REJECT}}",))
    assert (await site.rcpt(client_name="mail.host.example")).startswith(
        "554 5.7.1 <mail.host.example[192.0.2.99]>: Client"
    )


@pytest.mark.parametrize("key", ["2001:db8::5", "2001:db8", "2001"])
async def test_an_ipv6_client_is_found_by_leading_parts(key: str) -> None:
    site = Site(smtpd_client_restrictions=(f"check_client_access inline:{{{key}=REJECT}}",))
    assert (await site.rcpt(client_address="2001:db8::5")).startswith("554 ")


async def test_a_longer_key_wins_and_dunno_ends_the_search_in_this_table() -> None:
    table = "check_client_access inline:{ {192.0.2.99=DUNNO} {192.0.2=REJECT} }"
    assert await Site(smtpd_client_restrictions=(table,)).rcpt() == ""


@pytest.mark.parametrize("key", ["s+x@sub.c.example", "s@sub.c.example", "sub.c.example", "c.example", "s+x@", "s@"])
async def test_a_sender_is_found_by_its_parts(key: str) -> None:
    site = Site(smtpd_sender_restrictions=(f"check_sender_access inline:{{{key}=REJECT}}",))
    assert (await site.rcpt(sender="s+x@sub.c.example")).startswith("554 5.7.1 <s+x@sub.c.example>: Sender")


async def test_subdomains_need_a_dot_when_parents_do_not_stand_for_them() -> None:
    without = tuple(name for name in PARENTS if name != "smtpd_access_maps")
    for key, refused in (("c.example", False), (".c.example", True)):
        site = Site(
            smtpd_sender_restrictions=(f"check_sender_access inline:{{{key}=REJECT}}",),
            parent_domain_matches_subdomains=without,
        )
        assert (await site.rcpt(sender="a@sub.c.example") != "") is refused


async def test_patterns_see_the_whole_address_only() -> None:
    site = Site(
        smtpd_sender_restrictions=("check_sender_access regexp:{{/^c\\.example$/ REJECT} {/@c\\.ex/ OK}}", "reject")
    )
    assert await site.rcpt(sender="a@c.example") == ""


@pytest.mark.parametrize("result", ["FILTER smtp", "REDIRECT nobody", "BCC x", "PREPEND nohdr", "FILTER", "BCC"])
async def test_an_action_without_what_it_needs_is_ignored_with_a_warning(result: str) -> None:
    site = Site(smtpd_recipient_restrictions=(f"check_recipient_access inline:{{ {{user@test.example={result}}} }}",))
    assert await site.rcpt() == ""
    assert "access table" in site.world.log.lines[0]


@pytest.mark.parametrize("table", ["inline:{{user@test.example = }}", "regexp:{{/^user@/}}"])
async def test_a_rule_without_an_action_is_a_fault_and_lets_nobody_through(table: str) -> None:
    site = Site(smtpd_recipient_restrictions=(f"check_recipient_access {table}",))
    refused = "451 4.3.5 <user@test.example>: Recipient address rejected: Server configuration error"
    assert await site.rcpt() == refused
    assert "returns an empty string result" in site.world.log.lines[-1]


async def test_reverse_client_access_asks_for_the_name_and_then_for_the_address() -> None:
    table = "check_reverse_client_hostname_access inline:{192.0.2=REJECT,example=DUNNO}"
    site = Site(smtpd_client_restrictions=(table,))
    refused = "554 5.7.1 <ptr.test>: Unverified Client host rejected: Access denied"
    assert await site.rcpt(reverse_client_name="ptr.test") == refused
    assert await site.rcpt(reverse_client_name="ptr.test", client_address="10.0.0.1") == ""
    assert await site.rcpt(reverse_client_name="ptr.example") == ""  # the name comes first


async def test_what_a_client_claims_permits_nothing() -> None:
    table = "check_reverse_client_hostname_access inline:{ptr.example=OK,ptr2.example=DISCARD}"
    site = Site(smtpd_client_restrictions=(table, "reject"))
    assert await site.rcpt(reverse_client_name="ptr.example") == "451 4.3.5 Server configuration error"
    assert (await site.check(Stage.RCPT, reverse_client_name="ptr2.example")).discard
    mx = Site(smtpd_sender_restrictions=("check_sender_mx_access cidr:{{203.0.113.0/24 OK}}",))
    assert await mx.rcpt(sender="a@good.example") == "451 4.3.5 Server configuration error"
