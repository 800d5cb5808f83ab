"""Order, results and texts of restrictions: what Postfix 3.7.11 answered to the same commands."""

from pathlib import Path

import pytest

from mta.clock import Clock
from mta.smtpd.facts import PERMIT, Stage
from mta.smtpd.restrict_compile import broken_restrictions, unknown_restrictions
from tests.unit.policy_fixture import Site
from tests.virtual_time import run_virtual

RELAY = "Relay access denied"


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("user@test.example", ""),
        ("USER+ext@Test.Example", ""),
        ("user@TEST.example.", ""),
        ("postmaster", ""),
        ("Postmaster@test.example", ""),
        ("abuse@mx.test.example", ""),
        ("user@[127.0.0.1]", ""),
        ("MAILER-DAEMON@test.example", ""),
        ("double-bounce@test.example", ""),
        ("@test.example", ""),
        (
            "u1@test.example",
            "550 5.1.1 <u1@test.example>: Recipient address rejected: User unknown in local recipient table",
        ),
        ("x@victim.example", f"454 4.7.1 <x@victim.example>: {RELAY}"),
        ("postmaster@victim.example", f"454 4.7.1 <postmaster@victim.example>: {RELAY}"),
        ("x@2130706433", "501 5.1.3 Bad recipient address syntax"),
        ("x@victim..example", "501 5.1.3 Bad recipient address syntax"),
        ("-x@test.example", "501 5.1.3 Bad recipient address syntax"),
        ("x@[::1]", "501 5.1.3 Bad recipient address syntax"),
        ("x@-a.b", "501 5.1.3 Bad recipient address syntax"),
        ("user@", "501 5.1.3 Bad recipient address syntax"),
        ("x@[IPv6:::1]", f"454 4.7.1 <x@[IPv6:::1]>: {RELAY}"),
        ("x@[1.2.3.4]", f"454 4.7.1 <x@[1.2.3.4]>: {RELAY}"),
    ],
)
async def test_a_stranger_reaches_our_users_only(recipient: str, reply: str) -> None:
    assert await Site().rcpt(recipient) == reply


TRICKS = [
    *("x%victim.example@test.example", "x%victim.example", "x%victim.example@[127.0.0.1]", "x@victim.example"),
    *("x@victim.example@test.example", "x@victim.example@[127.0.0.1]", "@mx.test.example:x@victim.example"),
    *("@[127.0.0.1]:x@victim.example", "test.example!victim.example!x", "victim.example!x@[127.0.0.1]"),
    *("x@victim.example.", "x@victim.example\\@test.example", 'x"@test.example"@victim.example'),
    *("x@victim.example,user@test.example", "user@test.example,x@victim.example", "<x@victim.example>@test.example"),
    *("(user@test.example)x@victim.example", "x @victim.example", "x+test.example@victim.example"),
    *("x@victim.example\0.test.example", "postmaster@victim.example", "x@victim..example", "x@2130706433"),
    *("x%victim.example%test.example@test.example", "x%victim.example@localhost@test.example", "x@0x7f.1"),
    *("victim.example!x%test.example", 'x"%victim.example"@test.example', "x@victim.example@", "x@[192.0.2.1]"),
    *("x%[192.0.2.1]@test.example", "a!b!c!victim.example!x@test.example", "x%victim.example.@test.example."),
]


@pytest.mark.parametrize("recipient", TRICKS)
async def test_no_way_of_writing_a_remote_recipient_opens_the_relay(recipient: str) -> None:
    reply = await Site().rcpt(recipient)
    assert reply[:3] in ("454", "501", "550", "450", "451"), reply


@pytest.mark.parametrize("recipient", ["x@y@relay.example", "a%b@relay.example", "a!b@relay.example"])
async def test_mail_for_a_relay_domain_must_not_be_routed_on_by_its_local_part(recipient: str) -> None:
    site = Site(relay_domains=("relay.example",))
    assert await site.rcpt("x@relay.example") == ""
    assert await site.rcpt("x@sub.relay.example") == ""
    assert await site.rcpt(recipient) == f"454 4.7.1 <{recipient}>: {RELAY}"


@pytest.mark.parametrize(
    "sender",
    ["", "user@test.example", "user@[127.0.0.1]", "root@localhost", "postmaster", "user@test.example@victim.example"],
)
async def test_a_sender_gives_no_right_to_relay(sender: str) -> None:
    assert RELAY in await Site().rcpt("x@victim.example", sender=sender)


@pytest.mark.parametrize(
    ("facts", "permitted"),
    [
        ({"client_address": "10.1.2.3"}, True),
        ({"client_address": "::ffff:10.1.2.3"}, True),
        ({"client_address": "11.1.2.3"}, False),
        ({"client_address": "unknown"}, False),
        ({"sasl_username": "user"}, True),
        ({"client_name": "10.0.0.1"}, False),
    ],
)
async def test_our_networks_and_authenticated_users_relay(facts: dict[str, str], permitted: bool) -> None:
    assert (await Site().rcpt("x@victim.example", **facts) == "") is permitted


@pytest.mark.parametrize(
    "word",
    ["reject_sender_login_mismatch", "reject_authenticated_sender_login_mismatch", "permit_tls_clientcerts"],
)
async def test_restrictions_on_logins_have_no_effect_where_nobody_can_log_in(word: str) -> None:
    site = Site(smtpd_sender_restrictions=(word,), smtpd_relay_restrictions=(word, "reject_unauth_destination"))
    assert unknown_restrictions(word) == []
    assert await site.rcpt("user@test.example", sender="user@test.example") == ""
    assert RELAY in await site.rcpt("x@victim.example")
    assert (await site.rcpt("user@test.example", sasl_username="user")).startswith("451 4.3.5 ")


async def test_relay_comes_before_recipient_restrictions_and_ok_ends_only_one_list() -> None:
    site = Site(smtpd_recipient_restrictions=("reject",))
    assert await site.rcpt("user@test.example", client_address="10.1.1.1") == (
        "554 5.7.1 <user@test.example>: Recipient address rejected: Access denied"
    )
    assert RELAY in await site.rcpt("x@victim.example")
    later = Site(smtpd_recipient_restrictions=("reject",), smtpd_relay_before_recipient_restrictions=False)
    assert "Access denied" in await later.rcpt("x@victim.example")
    permitted = Site(smtpd_client_restrictions=("permit",), smtpd_recipient_restrictions=("permit", "reject"))
    assert RELAY in await permitted.rcpt("x@victim.example")


async def test_with_delay_reject_client_helo_and_sender_are_judged_at_rcpt_in_this_order() -> None:
    site = Site(
        smtpd_client_restrictions=("check_client_access inline:{192.0.2.66=REJECT}",),
        smtpd_helo_restrictions=("check_helo_access inline:{bad=REJECT}",),
        smtpd_sender_restrictions=("check_sender_access inline:{c.example=REJECT}",),
    )
    for stage in (Stage.CONNECT, Stage.EHLO, Stage.MAIL, Stage.DATA):
        assert await site.check(stage, client_address="192.0.2.66") is PERMIT
    assert await site.rcpt(client_address="192.0.2.66", helo="bad") == (
        "554 5.7.1 <unknown[192.0.2.66]>: Client host rejected: Access denied"
    )
    assert await site.rcpt(helo="bad") == "554 5.7.1 <bad>: Helo command rejected: Access denied"
    assert await site.rcpt() == "554 5.7.1 <s@c.example>: Sender address rejected: Access denied"
    assert await site.rcpt("postmaster", helo="bad") == ""


def test_nobody_is_asked_about_a_stage_only_where_nothing_is_configured_for_it() -> None:
    early = {Stage.CONNECT, Stage.HELO, Stage.EHLO}
    late = {Stage.DATA, Stage.END_OF_MESSAGE}
    assert Site().restrictions.silent == early | late
    assert Site(smtpd_delay_reject=False).restrictions.silent == late
    data = Site(smtpd_data_restrictions=("reject_unauth_pipelining",))
    assert data.restrictions.silent == early | {Stage.END_OF_MESSAGE}
    assert Site(smtpd_end_of_data_restrictions=("reject",)).restrictions.silent == early | {Stage.DATA}


async def test_without_delay_reject_each_list_is_judged_with_its_command() -> None:
    site = Site(
        smtpd_delay_reject=False,
        smtpd_client_restrictions=("reject",),
        smtpd_helo_restrictions=("reject",),
        smtpd_sender_restrictions=("reject",),
    )
    for stage in (Stage.CONNECT, Stage.HELO, Stage.EHLO, Stage.MAIL):
        reply = (await site.check(stage)).reply
        assert reply is not None and reply.code == 554
    assert await site.rcpt() == ""


async def test_a_sender_that_is_no_address_is_refused_at_mail() -> None:
    reply = (await Site().check(Stage.MAIL, sender="a@b..c")).reply
    assert str(reply) == "501 5.1.7 Bad sender address syntax"
    assert await Site().check(Stage.MAIL, sender="") is PERMIT


RESULTS = [
    ("DEFER_IF_PERMIT", "450 4.7.1 <user@test.example>: Recipient address rejected: Service unavailable"),
    ("DEFER_IF_REJECT nn", ""),
    ("DEFER_IF_REJECT nn, reject", ""),
    ("reject_invalid_foo", "451 4.3.5 Server configuration error"),
    ("521 go away", "521 5.7.1 <user@test.example>: Recipient address rejected: go away"),
    ("421 bye", "421 4.7.1 <user@test.example>: Recipient address rejected: bye"),
    ("450", ""),
    ("450 4.3.9", "450 4.3.9 <user@test.example>: Recipient address rejected: Access denied"),
    ("REJECT", "554 5.7.1 <user@test.example>: Recipient address rejected: Access denied"),
    ("REJECT 5.1.8 Bad", "554 5.1.2 <user@test.example>: Recipient address rejected: Bad"),
    ("REJECT 4.2.2 f", "554 5.2.2 <user@test.example>: Recipient address rejected: f"),
    ("DEFER 5.2.2 f", "450 4.2.2 <user@test.example>: Recipient address rejected: f"),
    ("defer", "450 4.7.1 <user@test.example>: Recipient address rejected: Access denied"),
    ("warn_if_reject, reject", ""),
    ("reject, permit", "554 5.7.1 <user@test.example>: Recipient address rejected: Access denied"),
    ("permit, reject", ""),
    ("dunno", ""),
    ("OK", ""),
    ("1234", ""),
    ("600 foo", "451 4.3.5 Server configuration error"),
    ("hash:/x", "451 4.3.5 Server configuration error"),
]


@pytest.mark.parametrize(("result", "reply"), RESULTS)
async def test_results_of_access_tables(result: str, reply: str) -> None:
    site = Site(smtpd_recipient_restrictions=(f"check_recipient_access inline:{{ {{user@test.example={result}}} }}",))
    assert await site.rcpt() == reply


async def test_defer_if_reject_turns_a_later_refusal_into_a_deferral_and_unlisted_ones_stay() -> None:
    table = (
        "check_recipient_access inline:{ {user@test.example=DEFER_IF_REJECT nn} {u1@test.example=DEFER_IF_PERMIT x} }"
    )
    site = Site(smtpd_recipient_restrictions=(table, "reject"))
    assert await site.rcpt() == "450 4.7.1 <user@test.example>: Recipient address rejected: nn"
    assert (await Site(smtpd_recipient_restrictions=(table,)).rcpt("u1@test.example")).startswith("450 4.7.1 ")


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("defer", "", "450 4.3.2 <user@test.example>: Recipient address rejected: Try again later"),
        ("defer_if_permit", "", "450 4.7.0 <user@test.example>: Recipient address rejected: defer_if_permit requested"),
        ("reject_plaintext_session", "", "450 4.7.1 Session encryption is required"),
        (
            "reject_unknown_client_hostname",
            "",
            "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.99]",
        ),
        (
            *("reject_unknown_reverse_client_hostname", ""),
            "450 4.7.1 Client host rejected: cannot find your reverse hostname, [192.0.2.99]",
        ),
        ("reject_invalid_helo_hostname", "-bad-", "501 5.5.2 <-bad->: Helo command rejected: Invalid name"),
        ("reject_invalid_helo_hostname", "[1.2.3]", "501 5.5.2 <[1.2.3]>: Helo command rejected: invalid ip address"),
        ("reject_invalid_helo_hostname", "[1.2.3.4", "501 5.5.2 <[1.2.3.4>: Helo command rejected: invalid ip address"),
        ("reject_invalid_hostname", "[127.0.0.1]", ""),
        ("reject_invalid_helo_hostname", "nofqdn", ""),
        (
            "reject_non_fqdn_helo_hostname",
            "nofqdn",
            "504 5.5.2 <nofqdn>: Helo command rejected: need fully-qualified hostname",
        ),
        ("reject_non_fqdn_helo_hostname", "a.b.", ""),
        ("reject_unknown_helo_hostname", "no.example", "450 4.7.1 <no.example>: Helo command rejected: Host not found"),
        ("reject_unknown_helo_hostname", "good.example", ""),
        ("reject_unknown_helo_hostname", "fails.x", "450 4.7.1 <fails.x>: Helo command rejected: Host not found"),
        ("nonsense", "", "451 4.3.5 Server configuration error"),
        ("check_policy_service inet:127.0.0.1:1", "", "451 4.3.5 Server configuration error"),
        ("check_helo_access nocolon", "", "451 4.3.5 Server configuration error"),
        ("permit_inet_interfaces", "", ""),
        ("sleep 0", "", ""),
    ],
)
async def test_words_of_a_list(word: str, kind: str, text: str) -> None:
    assert await Site(smtpd_recipient_restrictions=(word,)).rcpt(helo=kind or "c.example") == text


@pytest.mark.parametrize(
    ("word", "sender", "text"),
    [
        ("reject_unknown_sender_domain", "a@no.example", "450 4.1.8 {}: Domain not found"),
        ("reject_unknown_sender_domain", "a@fails.x", "450 4.1.8 {}: Domain not found"),
        (
            *("reject_unknown_sender_domain", "a@null.example"),
            "550 5.7.27 {}: Domain null.example does not accept mail (nullMX)",
        ),
        ("reject_unknown_sender_domain", "a@good.example", ""),
        ("reject_unknown_sender_domain", "a@test.example", ""),
        ("reject_unknown_sender_domain", "", ""),
        ("reject_unknown_sender_domain", "a@[192.0.2.1]", ""),
        ("reject_non_fqdn_sender", "nofq", "504 5.5.2 {}: need fully-qualified address"),
        ("reject_non_fqdn_sender", "a@host", "504 5.5.2 {}: need fully-qualified address"),
        ("reject_non_fqdn_sender", "a@b.c", ""),
        (
            *("reject_unlisted_sender", "u9@test.example"),
            "550 5.1.0 {}: User unknown in local recipient table",
        ),
        (
            *("reject_rhsbl_sender dbl.example", "x@bad.example"),
            "554 5.7.1 Service unavailable; Sender address [x@bad.example] blocked using dbl.example",
        ),
        ("check_sender_access inline:{{<>=REJECT nulls}}", "", "554 5.7.1 {}: nulls"),
        ("check_sender_mx_access cidr:{{203.0.113.0/24 REJECT}}", "a@good.example", "554 5.7.1 {}: Access denied"),
        ("check_sender_mx_access inline:{{203.0.113=REJECT}}", "a@literal.example", "554 5.7.1 {}: Access denied"),
        ("inline:{{c.example=REJECT bare}}", "s@c.example", "554 5.7.1 {}: bare"),
    ],
)
async def test_words_about_the_sender(word: str, sender: str, text: str) -> None:
    """{} stands for "<sender>: Sender address rejected"."""
    expected = text.format(f"<{sender}>: Sender address rejected")
    assert await Site(smtpd_sender_restrictions=(word,)).rcpt(sender=sender) == expected


async def test_a_sender_unknown_in_a_virtual_alias_domain_has_postfix_s_code() -> None:
    site = Site(
        smtpd_sender_restrictions=("reject_unlisted_sender",),
        virtual_alias_domains=("va.example",),
        virtual_alias_maps=("inline:{x@va.example=y@test.example}",),
    )
    assert await site.rcpt(sender="x@va.example") == ""
    assert await site.rcpt(sender="z@va.example") == (
        "550 5.1.7 <z@va.example>: Sender address rejected: User unknown in virtual alias table"
    )


async def test_unknown_recipient_domains_have_their_own_codes() -> None:
    site = Site(smtpd_recipient_restrictions=("reject_unknown_recipient_domain",))
    network = {"client_address": "10.0.0.1"}
    assert (await site.rcpt("a@no.example", **network)).startswith(
        "450 4.1.2 <a@no.example>: Recipient address rejected:"
    )
    assert (await site.rcpt("a@null.example", **network)).startswith("556 5.1.10 ")
    assert await site.rcpt("a@good.example", **network) == ""


async def test_a_client_in_a_block_list_is_refused_and_a_dead_list_blocks_nobody() -> None:
    site = Site(smtpd_client_restrictions=("reject_rbl_client bl.example",))
    assert await site.rcpt(client_address="1.2.3.4") == (
        "554 5.7.1 Service unavailable; Client host [1.2.3.4] blocked using bl.example"
    )
    assert await site.rcpt(client_address="1.2.3.5") == ""
    assert (
        await Site(smtpd_client_restrictions=("reject_rbl_client bl.example=127.0.0.9",)).rcpt(client_address="1.2.3.4")
        == ""
    )


async def test_the_refused_hears_what_the_block_list_says() -> None:
    site = Site(smtpd_sender_restrictions=("reject_rhsbl_sender dbl.example",))
    refusal = "554 5.7.1 Service unavailable; Sender address [x@bad.example] blocked using dbl.example"
    for said, reason in (
        (["see https://dbl.example/", " ", "or ask"], "; see https://dbl.example/ / or ask"),
        (["x" * 10_000], "; " + "x" * 298),
        (["", " "], ""),
    ):
        site.dns.said["bad.example.dbl.example"] = said
        assert await site.rcpt(sender="x@bad.example") == refusal + reason


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ("127.0.0.2", "554 5.7.1 "),
        ("127.0.0.[2..11]", "554 5.7.1 "),
        ("[127].0.[0;5].[1;2..3]", "554 5.7.1 "),
        ("127.0.0.[3..11]", ""),
        ("127.0.0.[4;1]", ""),
        ("127.[1..255].0.2", ""),
        ("127.0.0.[2..", "451 4.3.5 "),  # which answers count is not known
        ("127.0.0.[11..2]", "451 4.3.5 "),
        ("127.0.0.256", "451 4.3.5 "),
        ("127.0.0", "451 4.3.5 "),
        ("", "554 5.7.1 "),  # all that are in 127.0.0.0/8
    ],
)
async def test_answers_of_a_block_list_that_count(answers: str, reply: str) -> None:
    site = Site(smtpd_client_restrictions=(f"reject_rbl_client bl.example={answers}",))
    assert (await site.rcpt(client_address="1.2.3.4"))[:10] == reply
    assert bool(broken_restrictions(f"reject_rbl_client bl.example={answers}", "client")) is reply.startswith("451")


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("x@va.example", "User unknown in virtual alias table"),
        ("known@va.example", ""),
        ("x@vm.example", "User unknown in virtual mailbox table"),
        ("known@vm.example", ""),
        ("x@relay.example", "User unknown in relay recipient table"),
        ("known+ext@relay.example", ""),
    ],
)
async def test_recipients_of_other_classes_must_be_listed(recipient: str, reply: str) -> None:
    site = Site(
        virtual_alias_domains=("va.example",),
        virtual_alias_maps=("inline:{known@va.example=root}",),
        virtual_mailbox_domains=("vm.example",),
        virtual_mailbox_maps=("inline:{known@vm.example=x}",),
        relay_domains=("relay.example",),
        relay_recipient_maps=("inline:{known@relay.example=x}",),
    )
    expected = f"550 5.1.1 <{recipient}>: Recipient address rejected: {reply}" if reply else ""
    assert await site.rcpt(recipient) == expected


async def test_a_table_or_user_database_that_fails_defers_and_tells_the_log() -> None:
    site = Site()
    site.world.people.code = 5
    assert await site.rcpt() == "451 4.3.0 <user@test.example>: Temporary lookup failure"
    assert await site.rcpt("u1@test.example") == "451 4.3.0 <u1@test.example>: Temporary lookup failure"
    assert await site.rcpt("postmaster@test.example") == ""
    access = Site(smtpd_recipient_restrictions=("check_recipient_access hash:/nonexist/x",))
    assert await access.rcpt() == (
        "451 4.3.5 <user@test.example>: Recipient address rejected: Server configuration error"
    )
    assert any("hash:/nonexist/x" in line for line in access.world.log.lines)
    broken = ("hash:/nonexist/x",)
    for failing in (Site(mydestination=broken), Site(relay_domains=broken), Site(mynetworks=broken)):
        assert (await failing.rcpt("a@remote.example"))[:3] == "451"


async def test_unknown_names_are_known_before_the_first_client() -> None:
    known = "permit_mynetworks, check_sender_access hash:/x, warn_if_reject, reject_rbl_client a.b, mine, static:x"
    assert unknown_restrictions(known, ["mine"]) == []
    assert unknown_restrictions("foo, check_policy_service unix:x, permit") == ["foo", "check_policy_service"]


async def test_restriction_classes_and_their_recursion() -> None:
    classes = {"strict": ("reject_non_fqdn_sender, reject_unknown_sender_domain",), "loop": ("loop",)}
    table = "check_recipient_access inline:{ {user@test.example=strict} {root@test.example=loop} }"
    site = Site(smtpd_recipient_restrictions=(table,), classes=classes)
    assert "need fully-qualified address" in await site.rcpt(sender="x")
    assert "Domain not found" in await site.rcpt(sender="x@no.example")
    assert await site.rcpt(sender="x@good.example") == ""
    assert await site.rcpt("root@test.example") == "451 4.3.5 Server configuration error"


async def test_warn_if_reject_before_a_class_is_for_all_that_is_in_it() -> None:
    classes = {"strict": ("reject_unknown_sender_domain, reject_non_fqdn_recipient, reject",)}
    site = Site(smtpd_recipient_restrictions=("warn_if_reject, strict, reject_non_fqdn_sender",), classes=classes)
    warned = await site.check(Stage.RCPT, sender="x@no.example")
    assert warned.reply is None
    assert [line.partition(";")[0].partition(": RCPT")[0] for line in warned.log] == ["NOQUEUE: reject_warning"] * 2
    assert "need fully-qualified address" in await site.rcpt(sender="x")  # and not for what stands behind it


async def test_effects_and_log_lines_of_access_results() -> None:
    table = (
        "check_recipient_access inline:{ {user@test.example=HOLD} {root@test.example=PREPEND X-A: b} "
        "{abuse@test.example=DISCARD quietly} {a@remote.example=warn_if_reject,reject} }"
    )
    site = Site(smtpd_recipient_restrictions=(table,))
    held = await site.check(Stage.RCPT, client_name="h", queue_id="ABC")
    assert held.hold and held.reply is None
    assert held.log == (
        "ABC: hold: RCPT from h[192.0.2.99]: <user@test.example>: Recipient address triggers HOLD action; "
        "from=<s@c.example> to=<user@test.example> proto=ESMTP helo=<c.example>",
    )
    assert (await site.check(Stage.RCPT, "root@test.example")).prepend == ("X-A: b",)
    discarded = await site.check(Stage.RCPT, "abuse@test.example")
    assert discarded.discard and "discard: RCPT" in discarded.log[0] and "quietly" in discarded.log[0]
    warned = await site.check(Stage.RCPT, "a@remote.example", client_address="10.0.0.1")
    assert warned.reply is None
    assert warned.log[0].startswith(
        "NOQUEUE: reject_warning: RCPT from unknown[10.0.0.1]: 554 5.7.1 <a@remote.example>:"
    )


async def test_a_table_does_not_open_the_relay_for_an_address_routed_by_its_local_part() -> None:
    site = Site(
        smtpd_relay_restrictions=("check_recipient_access inline:{remote.example=OK}", "reject_unauth_destination")
    )
    assert await site.rcpt("a@remote.example") == ""
    assert await site.rcpt("a%b@remote.example") == f"554 5.7.1 <a%b@remote.example>: {RELAY}"


async def test_a_bounce_has_one_recipient() -> None:
    site = Site(smtpd_data_restrictions=("reject_multi_recipient_bounce",))
    assert (await site.check(Stage.DATA, sender="", recipient_count=1)).reply is None
    refused = (await site.check(Stage.DATA, sender="", recipient_count=2)).reply
    assert str(refused) == "550 5.5.3 <DATA>: Data command rejected: Multi-recipient bounce"


async def test_vrfy_is_judged_like_rcpt_and_etrn_by_its_own_list() -> None:
    site = Site(smtpd_etrn_restrictions=("check_etrn_access inline:{test.example=REJECT}",))
    assert await site.check(Stage.VRFY, "root@test.example") is PERMIT
    assert await site.check(Stage.VRFY, "postmaster") is PERMIT
    refused = (await site.check(Stage.VRFY, "x@remote.example")).reply
    assert str(refused) == f"454 4.7.1 <x@remote.example>: {RELAY}"
    assert (await site.check(Stage.ETRN, etrn_or_vrfy="test.example")).reply is not None
    assert await site.check(Stage.ETRN, etrn_or_vrfy="other.example") is PERMIT


async def test_soft_bounce_makes_every_refusal_temporary() -> None:
    assert (await Site(soft_bounce=True).rcpt("u1@test.example")).startswith("450 4.1.1 ")


async def test_the_usual_recipient_is_judged_without_waiting() -> None:
    site = Site()
    await site.rcpt()
    question = site.check(Stage.RCPT)
    with pytest.raises(StopIteration):
        question.send(None)


def test_sleep_waits() -> None:
    async def main(clock: Clock) -> None:
        before = clock.monotonic()
        assert await Site(smtpd_client_restrictions=("sleep 30",), clock=clock).rcpt() == ""
        assert clock.monotonic() - before >= 30

    run_virtual(main)


async def test_aliases_are_local_recipients_in_their_own_file_syntax(tmp_path: Path) -> None:
    spec = f"hash:{tmp_path}/aliases"
    (tmp_path / "aliases").write_text('postmaster: root\n"two words": root\nlist: user,\n  root\n')
    site = Site(local_recipient_maps=("unix:passwd.byname", spec), alias_maps=(spec,))
    assert await site.rcpt("List+ext@test.example") == ""
    assert await site.rcpt("two words@test.example") == ""
    assert (await site.rcpt("nolist@test.example")).startswith("550 5.1.1 ")
    (tmp_path / "aliases").unlink()
    missing = Site(local_recipient_maps=("unix:passwd.byname", spec), alias_maps=(spec,))
    for recipient in ("user@test.example", "nolist@test.example"):  # user@test.example is asked before user
        assert await missing.rcpt(recipient) == f"451 4.3.0 <{recipient}>: Temporary lookup failure"
