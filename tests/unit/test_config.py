"""The configuration as a whole: values, warnings, errors, services."""

import dataclasses
import importlib
import inspect
import json
import re
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.check import check_all
from mta.config.check_level import check_level
from mta.config.config import Config, ConfigError, HostFacts, check_config, load
from mta.config.host import read_host
from mta.config.main_cf import Setting, one_line, parse_main_cf
from mta.config.params import PARAMS, declared

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "config" / "main.cf"
CORPUS = sorted(p for p in GOLDEN.iterdir() if p.name.endswith("main.cf"))
HOST = HostFacts(
    "vm",
    tuple(map(ip_interface, ("127.0.0.1/8", "192.0.2.2/24", "::1/128", "fd00::2/64"))),
    4,
    {"localhost": (ip_address("127.0.0.1"),)},
)
MASTER = "smtp inet n - n - - smtpd\nsmtp unix - - n - - smtp\n"


def make(tmp_path: Path, main: str, master: str = MASTER, host: HostFacts = HOST) -> Config:
    (tmp_path / "main.cf").write_text(main)
    (tmp_path / "master.cf").write_text(master)
    return load(str(tmp_path), host=host)


def problems(tmp_path: Path, main: str, master: str = MASTER) -> list[str]:
    """Fatal ones are marked "!"; the directory is left out."""
    try:
        found = list(make(tmp_path, main, master).problems)
    except ConfigError as error:
        found = error.problems
    return [("! " if p.fatal else "") + str(p).replace(f"{tmp_path}/", "") for p in found]


@pytest.mark.parametrize("file", CORPUS, ids=lambda p: p.name)
def test_a_real_main_cf_has_the_settings_that_postconf_n_prints(file: Path) -> None:
    cf = parse_main_cf(file.read_text(), str(file))
    printed = file.with_name(file.name + ".postconf-n").read_text().splitlines()
    assert Config("/etc/mta", cf.settings).as_postconf() == printed
    assert not cf.problems


# Parameters whose value is ours on purpose, or comes from the machine where the transcript was made.
OURS = {
    "alias_maps", "data_directory", "local_recipient_maps", "mail_name", "mail_owner", "milter_macro_v", "mynetworks",
    "queue_directory", "smtpd_forbid_bare_newline", "smtpd_forbid_unauth_pipelining", "proxy_read_maps",
    "postscreen_greet_banner", "smtpd_banner", "address_verify_map", "postscreen_cache_map", "myorigin",
    "proxy_write_maps", "tls_random_exchange_name", "process_id", "process_name",
    "smtpd_forbid_bare_newline_exclusions",
    "smtpd_client_event_limit_exceptions", "smtp_tls_session_cache_database", "debugger_command",
}  # fmt: skip


@pytest.mark.parametrize("name", ["debian12-postinst__internet-site_main.cf", "rhel9-default__main.cf"])
def test_every_value_expands_to_what_postconf_x_prints(name: str) -> None:
    file = GOLDEN / name
    text = file.read_text() + "\nmyhostname = host.example.org\n"
    config = Config("/etc/mta", parse_main_cf(text, "main.cf").settings, host=HOST)
    compared = 0
    for line in file.with_name(file.name + ".postconf-x").read_text().splitlines():
        parameter, _, value = line.partition(" =")
        if parameter not in OURS:
            assert one_line(config.text(parameter)) == value.strip(), parameter
            compared += 1
    assert compared > 1000


def test_files_parse_as_postfix_parses_them(tmp_path: Path) -> None:

    for line in (GOLDEN.parent / "files.jsonl").read_text().splitlines():
        case = json.loads(line)
        cf = parse_main_cf(case["text"], "main.cf")
        fatal = [f"{p.file}, line {p.line}: {p.text}" for p in cf.problems if p.fatal]
        assert fatal == case["fatal"], case
        if not fatal:
            config = Config("/etc/mta", cf.settings)
            known_by_form = {"dovecot_destination_recipient_limit = 1"}  # Postfix looks for a transport of that name
            assert set(config.as_postconf()) - known_by_form == set(case["settings"]), case


def test_all_errors_are_reported_with_their_lines_not_only_the_first(tmp_path: Path) -> None:
    main = "maximal_backoff_time = 5x\nsoft_bounce = true\n\nhopcount_limit = 0\nsmtpd_banner = ${x\n"
    assert problems(tmp_path, main) == [
        "! main.cf:1: maximal_backoff_time = 5x: expected a time such as 300s, 67m or 4d",
        "! main.cf:2: soft_bounce = true: expected yes or no",
        "! main.cf:4: hopcount_limit = 0: too small, the least is 1",
        '! main.cf:5: smtpd_banner = ${x: truncated macro reference: "${x"',
    ]


def test_unknown_names_warn_once_macros_and_transport_parameters_do_not(tmp_path: Path) -> None:
    main = (
        "message_size_limt = 1\nmy_macro = $other\nother = x\nsmtpd_banner = $my_macro\n"
        "dovecot_destination_recipient_limit = 1\nfrom_master = permit\n"
    )
    master = MASTER + "587 inet n - n - - smtpd -o smtpd_client_restrictions=$from_master\n"
    assert problems(tmp_path, main, master) == [
        "main.cf:1: unknown parameter: message_size_limt (did you mean message_size_limit?)"
    ]


def test_a_postfix_name_not_honoured_yet_warns_and_a_name_of_no_consequence_is_silent(tmp_path: Path) -> None:
    main = "biff = no\nreadme_directory = no\npostscreen_greet_wait = 9s\nmilter_protocol = 6\n"
    assert problems(tmp_path, main) == [
        "main.cf:3: postscreen_greet_wait = 9s: not honoured yet",
        "main.cf:4: milter_protocol = 6: not honoured yet",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "smtpd_milters = inet:localhost:8891", "non_smtpd_milters = unix:/x", "content_filter = smtp:[127.0.0.1]:10024",
        "smtp_tls_security_level = dane", "smtp_tls_security_level = encrypt", "smtpd_tls_security_level = encrypt",
        "smtp_enforce_tls = yes", "smtpd_enforce_tls = yes", "smtp_tls_policy_maps = hash:/x",
        "header_checks = regexp:/x",
        "smtp_tls_wrappermode = yes", "smtpd_sasl_auth_enable = yes", "smtp_sasl_auth_enable = yes",
        "smtpd_proxy_filter = 127.0.0.1:25", "body_checks = pcre:/x", "smtp_header_checks = pcre:/x",
        "local_login_sender_maps = hash:/x", "master_service_disable = inet", "smtp_reply_filter = pcre:/x",
        "default_delivery_status_filter = pcre:/x", "best_mx_transport = local",
    ],
)  # fmt: skip
def test_what_would_make_mail_less_safe_stops_the_start(tmp_path: Path, line: str) -> None:
    (found,) = problems(tmp_path, f"{line}\n")
    assert found.startswith("! main.cf:1: ")
    assert "not honoured yet, and ignoring it would be less safe" in found


def test_notices_that_nobody_sends_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path, "notify_classes = bounce, policy, 2bounce, data\n") == [
        "main.cf:1: notify_classes = bounce, policy, 2bounce, data: not honoured yet: data, policy"
    ]
    assert problems(tmp_path, "notify_classes = bounce, 2bounce, delay\n") == []


@pytest.mark.parametrize(
    "line", ["smtpd_milters =", "header_checks = ", "smtpd_sasl_auth_enable = NO", "smtp_enforce_tls=no"]
)
def test_a_feature_that_is_switched_off_is_no_problem(tmp_path: Path, line: str) -> None:
    assert problems(tmp_path, f"{line}\n") == []


def test_settings_of_master_cf_are_checked_with_their_own_line(tmp_path: Path) -> None:
    master = MASTER + "587 inet n - n - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n  -o smtpd_timeout=5x -o nosuch=1\n"
    found = problems(tmp_path, "", master)
    assert [f.split(" = ")[0] for f in found] == [
        "! master.cf:3: smtpd_sasl_auth_enable", "! master.cf:3: smtpd_timeout",
        "master.cf:3: unknown parameter: nosuch",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "3101 inet n - n - - smtpd -o smtpd_client_restrictions=permit_mynetworks, reject",
        "relay unix - - n - - smtp -o smtp_tls_protocols=TLSv1.2, TLSv1.3",
        "local unix - n n - - local -v mbox",
    ],
)
def test_words_behind_the_options_of_a_service_that_has_no_arguments_stop_the_start(tmp_path: Path, line: str) -> None:
    (found,) = [p for p in problems(tmp_path, "", f"{MASTER}{line}\n") if p.startswith("!")]
    assert found.startswith(f"! master.cf:3: {line.split()[0]}/{line.split()[1]}: unexpected command-line argument: ")
    assert f": {line.split()[-1]}; " in found and "-o { name = value }" in found


@pytest.mark.parametrize(
    ("line", "flags"),
    [("lmtp unix - - n - - lmtp -o disable_dns_lookups=yes flags=DRX", "flags=DRX"),
     ("relay unix - - n - - smtp flags=O Flags=X", "flags=O Flags=X"), ("relay unix - - n - - smtp flags=", "")],
)  # fmt: skip
def test_flags_of_the_smtp_and_lmtp_clients_are_named_and_do_not_stop_the_start(
    tmp_path: Path, line: str, flags: str
) -> None:
    service = f"{line.split()[0]}/unix"
    expected = [f"master.cf:3: {service}: {flags}: not honoured yet"] if flags else []
    assert problems(tmp_path, "", f"{MASTER}{line}\n") == expected


@pytest.mark.parametrize("argument", ["flags=Q", "flags=d", "flag=D"])
def test_flags_that_postfix_does_not_know_stop_the_start(tmp_path: Path, argument: str) -> None:
    found = problems(tmp_path, "", f"{MASTER}relay unix - - n - - smtp flags=D {argument}\n")[-1]
    assert found.startswith(f"! master.cf:3: relay/unix: unexpected command-line argument: {argument}; ")


@pytest.mark.parametrize("value", ["localhost", "127.0.0.1:99999", "192.0.2.1, [::1]x", "[::1"])
def test_a_name_server_that_is_no_address_stops_the_start(tmp_path: Path, value: str) -> None:
    (found,) = problems(tmp_path, f"\ndns_servers = {value}\n")
    assert found.startswith(f"! main.cf:2: dns_servers = {value}: ")
    assert "expected address, address:port or [v6]:port" in found


def test_a_broken_reference_is_reported_where_it_is_set(tmp_path: Path) -> None:
    assert problems(tmp_path, "mydomain = $mydomain.x\n") == [
        "! main.cf:1: mydomain = $mydomain.x: refers to itself: mydomain -> mydomain"
    ]
    found = problems(tmp_path, "compatibility_level = x\nsmtpd_banner = a\n")
    assert found[0].startswith("! main.cf:1: ") and "malformed compatibility level" in found[0]


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("message_size_limit = 60000000\n", "mailbox_size_limit = 51200000: is smaller"),
        ("smtpd_relay_restrictions = permit_mynetworks\n", "specify at least one of: reject_unauth_destination"),
        (
            "smtpd_relay_restrictions = permit_mynetworks, permit, reject_unauth_destination\n",
            "specify at least one of: reject_unauth_destination",
        ),
        (
            "smtpd_relay_restrictions = permit_mynetworks, warn_if_reject reject_unauth_destination\n",
            "specify at least one of: reject_unauth_destination",
        ),
        (
            "smtpd_relay_restrictions = own\nsmtpd_restriction_classes = own\nown = own, permit_mynetworks\n",
            "specify at least one of: reject_unauth_destination",
        ),
        ("myhostname = a_b..c\n", "not a host name"),
        ("mail_owner =\n", "must not be empty"),
        ("maximal_backoff_time = 60s\n", "less than minimal_backoff_time"),
        ("maillog_file = /tmp/log\n", "does not match any of maillog_file_prefixes"),
        ("myorigin = /no/such/file\n", "No such file or directory"),
    ],
)
def test_values_that_cannot_be_meant_stop_the_start(tmp_path: Path, main: str, words: str) -> None:
    (found,) = problems(tmp_path, main)
    assert found.startswith("! main.cf:1: ")
    assert words in found


@pytest.mark.parametrize(
    "main",
    [
        "smtpd_relay_restrictions = own\nsmtpd_restriction_classes = own\nown = permit_mynetworks, reject\n",
        "smtpd_relay_restrictions = warn_if_reject reject_unknown_client_hostname, Reject_Unauth_Destination\n",
        "smtpd_relay_restrictions =\nsmtpd_recipient_restrictions = permit_mynetworks, reject\n",
    ],
)
def test_what_stops_strangers_may_stand_in_a_class(tmp_path: Path, main: str) -> None:
    assert problems(tmp_path, main) == []


def test_missing_files_are_problems_not_tracebacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path), host=HOST)
    assert [(p.fatal, "No such file" in p.text) for p in caught.value.problems] == [(True, True)] * 2


def test_myorigin_may_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "mailname").write_text("mail.example\nsecond line\n")
    config = make(tmp_path, f"myorigin = {tmp_path}/mailname\nsmtpd_banner = $myorigin\n")
    assert config.text("myorigin") == config.text("smtpd_banner") == "mail.example"


@pytest.mark.parametrize(
    ("main", "networks"),
    [
        ("compatibility_level = 3.6", "127.0.0.1/32 192.0.2.2/32 [::1]/128 [fd00::2]/128"),
        ("", "127.0.0.1/32 192.0.2.2/32 [::1]/128 [fd00::2]/128"),
        (
            "compatibility_level = 0\nsmtpd_relay_restrictions = reject",
            "127.0.0.0/8 192.0.2.0/24 [::1]/128 [fd00::]/64",
        ),
        ("mynetworks_style = class", "127.0.0.0/8 192.0.2.0/24 [::1]/128 [fd00::]/64"),
        ("inet_interfaces = loopback-only\nmynetworks_style = subnet", "127.0.0.0/8 [::1]/128"),
        ("inet_interfaces = localhost\nmynetworks_style = subnet", "127.0.0.0/8"),
        ("inet_interfaces = 192.0.2.2", "192.0.2.2/32"),
        ("inet_interfaces =", ""),
        ("inet_protocols = ipv6\nmynetworks_style = subnet", "[::1]/128 [fd00::]/64"),
    ],
)
def test_mynetworks_is_what_postfix_computes(tmp_path: Path, main: str, networks: str) -> None:
    assert make(tmp_path, f"{main}\n").text("mynetworks") == networks


@pytest.mark.parametrize(
    ("hostname", "main", "name", "domain"),
    [
        ("vm", "", "vm.localdomain", "localdomain"),
        ("mx.a.example", "", "mx.a.example", "a.example"),
        ("vm", "mydomain = foo.bar", "vm.foo.bar", "foo.bar"),
        ("vm", "myhostname = a.b.c", "a.b.c", "b.c"),
        ("vm", "myhostname = abc", "abc", "localdomain"),
    ],
)
def test_host_name_and_domain_complete_each_other(
    tmp_path: Path, hostname: str, main: str, name: str, domain: str
) -> None:
    config = make(tmp_path, f"{main}\n", host=HostFacts(hostname))
    assert (config.text("myhostname"), config.text("mydomain")) == (name, domain)


def test_own_addresses_are_those_listened_on_and_the_proxies(tmp_path: Path) -> None:
    config = make(tmp_path, "inet_interfaces = localhost\nproxy_interfaces = 198.51.100.7\n")
    assert config.own_addresses() == ("127.0.0.1", "198.51.100.7")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    smtpd_timeout: float
    message_size_limit: int
    soft_bounce: bool
    myhostname: str
    mydestination: tuple[str, ...]
    alias_maps: str
    _2bounce_notice_recipient: str


def test_fill_gives_typed_values_by_field_name(tmp_path: Path) -> None:
    config = make(tmp_path, "soft_bounce = Yes\nmyhostname = a.b\nsmtpd_timeout = 2m\n2bounce_notice_recipient = x\n")
    assert config.fill(Sample) == Sample(
        120.0, 10240000, True, "a.b", ("a.b", "localhost.b", "localhost"), "hash:/etc/aliases", "x"
    )


def test_fill_refuses_a_dataclass_that_does_not_fit_the_declarations() -> None:
    config = Config("/etc/mta", {})
    for name, kind in (("nosuch", str), ("smtpd_timeout", int), ("soft_bounce", str), ("myhostname", tuple[str, ...])):
        with pytest.raises(TypeError, match=name):
            config.fill(dataclasses.make_dataclass("Wrong", [(name, kind)]))


def test_a_service_sees_its_own_settings_and_its_name(tmp_path: Path) -> None:
    master = MASTER + "587 inet n - n - - smtpd -o smtpd_banner=$myhostname/$service_name -o { syslog_name = a b }\n"
    config = make(tmp_path, "myhostname = a.b\n", master)
    (service,) = [s for s in config.services if s.name == "587"]
    its = config.for_service(service)
    assert (its.text("smtpd_banner"), its.text("syslog_name")) == ("a.b/587", "a b")
    assert config.text("smtpd_banner") == "a.b ESMTP aiomta"
    assert its.origin("smtpd_banner") == f"{tmp_path}/master.cf:3"
    assert its.is_set("syslog_name") and not config.is_set("syslog_name")


def test_a_transport_has_its_own_limits_or_the_general_ones(tmp_path: Path) -> None:
    config = make(tmp_path, "default_destination_concurrency_limit = 7\nslow_destination_concurrency_limit = 1\n")
    wanted = {"slow": 1, "smtp": 7, "local": 2}
    assert {t: config.transport_value(t, "destination_concurrency_limit") for t in wanted} == wanted
    assert config.transport_seconds("smtp", "destination_rate_delay") == 0.0


def test_the_old_tls_and_dns_parameters_keep_their_meaning(tmp_path: Path) -> None:
    assert make(tmp_path, "").text("smtp_tls_security_level") == "may"
    assert make(tmp_path, "smtp_use_tls = no\n").text("smtp_tls_security_level") == ""
    assert make(tmp_path, "smtp_dns_support_level = disabled\n").boolean("disable_dns_lookups")
    assert not make(tmp_path, "disable_dns_lookups = yes\nsmtp_dns_support_level = enabled\n").boolean(
        "disable_dns_lookups"
    )


def test_restriction_classes_are_lists_under_their_names(tmp_path: Path) -> None:
    config = make(
        tmp_path, "smtpd_restriction_classes = strict\nstrict = reject_non_fqdn_sender, { reject_x a } permit\n"
    )
    assert config.problems == ()
    assert config.restriction_classes() == {"strict": ("reject_non_fqdn_sender", "{ reject_x a }", "permit")}


def test_there_may_be_as_many_workers_as_processors(tmp_path: Path) -> None:
    assert make(tmp_path, "").integer("smtpd_processes") == 4
    assert make(tmp_path, "", host=HostFacts()).integer("smtpd_processes") == 1
    assert make(tmp_path, "smtpd_processes = 0\n").integer("smtpd_processes") == 0


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    make(tmp_path, "soft_bounce = yes\n")
    config = load(str(tmp_path), overrides={"soft_bounce": "no"}, host=HOST)
    assert not config.boolean("soft_bounce")


def test_the_files_we_ship_have_no_problem(tmp_path: Path) -> None:
    conf = ROOT / "conf"
    config = make(tmp_path, (conf / "main.cf").read_text(), (conf / "master.cf").read_text())
    assert config.problems == ()
    assert make(tmp_path, (conf / "main.cf.default").read_text()).problems == ()


def test_files_that_are_named_but_missing_are_found_by_check(tmp_path: Path) -> None:
    main = f"alias_maps = hash:{tmp_path}/no\nsmtpd_tls_security_level = may\nsmtpd_tls_cert_file = {tmp_path}/no.pem\n"
    config = make(tmp_path, main + "alias_database =\n")
    found = {(p.line, p.text.split(":")[0], p.fatal) for p in check_config(config) if "does not exist" in p.text}
    assert {(1, "alias_maps", False), (3, "smtpd_tls_cert_file", False)} <= found


def test_the_facts_of_this_machine_can_be_read() -> None:
    host = read_host()
    assert host.hostname and host.processors >= 1
    assert any(i.ip.is_loopback for i in host.interfaces)


def test_every_settings_class_of_the_mail_system_can_be_filled() -> None:
    config = Config("/etc/mta", {}, host=HOST)
    filled = 0
    for path in sorted((ROOT / "mta").rglob("*.py")):
        if "Settings" not in path.read_text() or "config" in path.parts or path.name == "__main__.py":
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if name.endswith("Settings") and cls.__module__ == module.__name__ and dataclasses.is_dataclass(cls):
                config.fill(cls)
                filled += 1
    assert filled


# Honoured inside mta/config itself: they select or compute the values of others, or are found by suffix.
BY_CONFIG = {
    "compatibility_level", "mynetworks_style", "maillog_file_prefixes", "stress", "multi_instance_name", "process_name",
    "service_name", "process_id", "mail_release_date", "smtp_dns_support_level",
    "default_destination_concurrency_limit", "default_destination_concurrency_failed_cohort_limit",
    "default_destination_recipient_limit", "local_destination_concurrency_limit", "local_destination_recipient_limit",
}  # fmt: skip


def test_a_parameter_is_honoured_only_when_some_room_asks_for_it() -> None:
    rooms = [p for top in ("mta", "sendmail_compat") for p in (ROOT / top).rglob("*.py") if "config" not in p.parts]
    words = set(re.findall(r"\w+", " ".join(p.read_text() for p in rooms)))
    asked = words | {word[1:] for word in words if word.startswith("_")} | BY_CONFIG
    assert not [p.name for p in declared() if p.honoured and not p.noop and p.name not in asked]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(sorted(PARAMS)), st.text("$abc{}?:=<> 019,smhd/.-yesno\x00é", max_size=15), max_size=4
    )
)
def test_any_settings_give_a_config_or_problems(values: dict[str, str]) -> None:

    config = Config("/etc/mta", {n: Setting(n, v.strip(), "main.cf", 1) for n, v in values.items()}, host=HOST)
    if not any(p.fatal for p in check_all(config)):
        for param in declared():
            if param.honoured:
                assert isinstance(config.value(param.name), bool | int | float | str | tuple)


def test_a_main_cf_without_level_is_told_which_defaults_are_others_in_postfix(tmp_path: Path) -> None:
    said = [str(p) for p in check_level(make(tmp_path, "mydestination = ours.example\n"))]
    unset = f"{tmp_path}/main.cf: compatibility_level is not set: "
    assert f"{unset}mynetworks_style = host (default); Postfix: subnet" in said
    assert f"{unset}append_dot_mydomain = no (default); Postfix: yes" in said
    assert f"{unset}relay_domains = empty (default); Postfix: ours.example" in said
    decided = "mynetworks = 192.0.2.0/24\nappend_dot_mydomain = yes\nrelay_domains = \n"
    said = [str(p) for p in check_level(make(tmp_path, decided))]
    assert [p for p in said if any(f"set: {w}" in p for w in ("mynetworks", "append_dot", "relay_domains"))] == []
    assert check_level(make(tmp_path, "compatibility_level = 2\n")) == []


def test_names_that_mean_the_recipient_are_left_in_place(tmp_path: Path) -> None:
    config = make(tmp_path, "luser_relay = $user@other.example\nforward_path = $home/.f, /x/$user\n")
    assert config.text("luser_relay") == "$user@other.example"
    assert config.words("forward_path") == ("$home/.f", "/x/$user")
    assert problems(tmp_path, "process_name = x\n") == ["main.cf:1: read-only parameter assignment: process_name=x"]
