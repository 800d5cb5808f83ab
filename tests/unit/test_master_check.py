"""`mta check` on the directories of a spool."""

import os
from pathlib import Path

import pytest

from mta.config.config import Config, load
from mta.config.main_cf import Setting
from mta.fsio.fsio import Fsio
from mta.master.check import check_permissions, check_services, check_tables
from mta.queue.store_spool import create_spool
from tests.queue_support import settings
from tests.system.support_system import directory


def test_a_spool_as_we_make_it_is_no_reason_to_complain(tmp_path: Path) -> None:
    spool, data = tmp_path / "spool", tmp_path / "data"
    create_spool(settings(spool), Fsio())
    data.mkdir(0o700)
    config = Config(str(tmp_path), {n: Setting(n, str(p), "main.cf", 1) for n, p in
                                    (("queue_directory", spool), ("data_directory", data))})  # fmt: skip
    assert check_permissions(config) == []
    os.chmod(spool / "incoming", 0o755)
    (problem,) = check_permissions(config)
    assert not problem.fatal and f"chmod 700 {spool}/incoming" in problem.text


def _config(**values: str) -> Config:
    return Config("/etc/mta", {n: Setting(n, v, "main.cf", at) for at, (n, v) in enumerate(values.items(), 1)})


def test_a_table_that_cannot_work_is_named_with_its_line() -> None:
    config = _config(
        transport_maps="mysql:/etc/x hash:/etc/y",
        smtpd_sender_restrictions="check_sender_access proxy:ldap:x, check_policy_service unix:private/policy",
    )
    first, second, *rest = sorted(map(str, check_tables(config)))
    assert first.startswith("main.cf:1: transport_maps: mysql:/etc/x: unsupported dictionary type: mysql; ")
    assert second.startswith("main.cf:2: smtpd_sender_restrictions: proxy:ldap:x: unsupported dictionary type: ldap; ")
    assert rest == []


def test_a_table_that_mail_owner_may_not_read_is_named_with_its_line() -> None:
    with directory() as path:
        for name, mode in (("open", 0o644), ("secret", 0o0), ("domains", 0o0)):
            (path / name).write_text("a b\n")
            (path / name).chmod(mode)
        config = _config(
            mail_owner="nobody",
            virtual_alias_maps=f"hash:{path}/open proxy:hash:{path}/secret hash:{path}/none",
            mydestination=f"$myhostname {path}/domains",
            smtpd_client_restrictions=f"check_client_access unionmap:{{cidr:{path}/secret}}",
        )
        found = [(p.line, p.text.split(": ")[:2], p.fatal) for p in check_tables(config)]
        assert sorted(found) == [
            (2, ["virtual_alias_maps", f"{path}/secret"], False),
            (3, ["mydestination", f"{path}/domains"], False),
            (4, ["smtpd_client_restrictions", f"{path}/secret"], False),
        ]


@pytest.mark.parametrize(
    ("stage", "words", "complaint"),
    [
        ("sender", "permit_mynetworks, check_sender_access", "check_sender_access: expected type:table, not ''; "),
        ("sender", "check_sender_access nosuch:x", "nosuch:x: unsupported dictionary type: nosuch"),
        ("helo", "check_helo_access unix:shadow", "unix:shadow: unknown map"),
        ("client", "sleep x, reject", "sleep: expected seconds, not 'x'; "),
        ("client", "reject_rbl_client", "reject_rbl_client: expected a domain, not ''; "),
        ("data", "hash:/etc/x", "hash:/etc/x: a table needs its check_..._access here; "),
        ("recipient", "nosuch:x", "nosuch:x: unsupported dictionary type: nosuch"),
        ("recipient", "mine", "check_client_access: expected type:table, not 'hash'; "),
        ("etrn", "hash:/etc/x, sleep 5, reject_rbl_client a.b=127.0.0.2, check_client_access static:OK", ""),
    ],
)
def test_a_restriction_that_can_only_answer_451_is_named(stage: str, words: str, complaint: str) -> None:
    config = _config(
        **{f"smtpd_{stage}_restrictions": words},
        **({"smtpd_restriction_classes": "mine", "mine": "check_client_access hash"} if words == "mine" else {}),
    )
    found = [str(problem).partition(": ")[2].partition(": ")[2] for problem in check_tables(config)]
    assert [text.startswith(complaint) for text in found] == [True] * bool(complaint), found


def test_a_network_that_is_none_is_named_with_its_line() -> None:
    config = _config(mynetworks="127.0.0.0/8 [::1]/128 !10.1.2.3/8 /file cidr:/x 1and1.example", mail_owner="nobody")
    (problem,) = [p for p in check_services(config) if "mynetworks" in p.text]
    assert not problem.fatal
    assert str(problem).startswith('main.cf:1: mynetworks: non-null host address bits in "10.1.2.3/8"')


def test_clients_whose_headers_are_not_completed_are_named() -> None:
    clients = "permit_mynetworks, permit_inet_interfaces, static:all"
    networks = "127.0.0.0/8 !127.0.0.9 [::1]/128"
    config = _config(mynetworks=networks, local_header_rewrite_clients=clients, mail_owner="nobody")
    (problem,) = [p for p in check_services(config) if "local_header" in p.text]
    text = "main.cf:2: local_header_rewrite_clients: not honoured: static:all, !127.0.0.9; "
    assert not problem.fatal and str(problem).startswith(text)


MAIN = """mail_owner = nobody
inet_interfaces = loopback-only
"""
MASTER = """smtp unix - - n - - smtp
local unix - n n - - local
relay unix - - n - - smtp -o syslog_name=postfix/$service_name -o smtp_helo_timeout=5
"""


def _said(tmp_path: Path, main: str, master: str) -> list[str]:
    """Problems of the services; fatal ones are marked "!"."""
    (tmp_path / "main.cf").write_text(MAIN + main)
    (tmp_path / "master.cf").write_text(master)
    found = check_services(load(str(tmp_path)))
    return [("! " if p.fatal else "") + str(p).replace(f"{tmp_path}/", "") for p in found]


@pytest.mark.parametrize(
    ("main", "master", "said"),
    [
        ("", MASTER, ""),
        ("virtual_mailbox_domains = example.org\n", MASTER, "main.cf:3: virtual_transport = virtual: master.cf has no"),
        ("virtual_transport = v\n", MASTER, ""),
        ("default_transport = smpt\n", MASTER, "main.cf:3: default_transport = smpt: master.cf has no unix service"),
        ("default_transport = dovecot:x\n", MASTER + "dovecot unix - - n - - pipe argv=/x\n",
         "main.cf:3: default_transport = dovecot:x: pipe is not honoured yet"),
        ("relay_domains = a.b\nrelay_transport = r\n", MASTER, "main.cf:4: relay_transport = r: "),
        ("mailbox_transport = dovecot\n", MASTER, "main.cf:3: mailbox_transport = dovecot: not honoured yet; mail"),
        ("", MASTER + "24 inet n - n - - spawn user=x\n", "master.cf:4: 24/inet: spawn is not honoured"),
        ("", MASTER + "24 inet n - n - - smtpdx\n", "master.cf:4: 24/inet: smtpdx is not honoured"),
        ("", MASTER + "x unix n - n - - smtpdx\n", "master.cf:4: x/unix: unknown command smtpdx"),
        ("inet_protocols = ipv4\n", MASTER + "[::1]:2525 inet n - n - - smtpd\n",
         "master.cf:4: [::1]:2525/inet: listens nowhere"),
        ("", MASTER + "x unix n - n - - tlsmgr\ny unix n - n - - spawn user=x\n", ""),
    ],
)  # fmt: skip
def test_what_nobody_would_serve_is_named_with_its_line(tmp_path: Path, main: str, master: str, said: str) -> None:
    found = _said(tmp_path, main, master)
    assert [text.startswith(said) for text in found] == [True] * bool(said), found


@pytest.mark.parametrize(
    ("service", "setting", "said"),
    [
        ("2525 inet n - n - - smtpd", "recipient_delimiter=+", "warn"),
        ("2525 inet n - n - - smtpd", "local_header_rewrite_clients=", "warn"),
        ("2525 inet n - n - - smtpd", "relayhost=a.b", "warn"),
        ("2525 inet n - n - - smtpd", "relay_domains=a.b", "warn"),
        ("2525 inet n - n - - smtpd", "always_bcc=a@b.c", "warn"),
        ("2525 inet n - n - - smtpd", "cleanup_service_name=pre-cleanup", "warn"),
        ("2525 inet n - n - - smtpd", "cleanup_service_name=cleanup", ""),
        ("2525 inet n - n - - smtpd", "mynetworks=10.0.0.0/8", ""),
        ("2525 inet n - n - - smtpd", "mynetworks_style=class", ""),  # ... which decides mynetworks
        ("2525 inet n - n - - smtpd", "smtpd_client_event_limit_exceptions=", ""),
        ("2525 inet n - n - - smtpd", "daemon_timeout=5h", ""),
        ("2525 inet n - n - - smtpd", "mydomain=d.e", ""),  # names are built from it
        ("x unix - - n - - smtp", "smtp_helo_name=a.b", ""),
        ("x unix - - n - - smtp", "soft_bounce=yes", "stop"),
        ("x unix - - n - - smtp", "soft_bounce=no", ""),
        ("x unix - n n - - local", "home_mailbox=Maildir/", ""),
        ("x unix n - n - - cleanup", "always_bcc=a@b.c", "stop"),
        ("x unix n - n - - cleanup", "recipient_bcc_maps=hash:/x", "stop"),
        ("x unix n - n - - cleanup", "virtual_alias_maps=hash:/x", "warn"),
        ("x unix n - n - - trivial-rewrite", "relayhost=a.b", "warn"),
        ("x unix n - n - - qmgr", "bounce_queue_lifetime=1d", "warn"),
    ],
)
def test_a_setting_its_service_does_not_read_is_named(tmp_path: Path, service: str, setting: str, said: str) -> None:
    found = _said(tmp_path, "mydomain = a.example\n", f"{MASTER}{service} -o {setting}\n")
    if not said:
        assert found == []
        return
    (text,) = found
    name, kind, *_ = service.split()
    mark = "! " if said == "stop" else ""
    assert text.startswith(f"{mark}master.cf:4: {name}/{kind}: -o {setting}: not honoured for this service"), text
    assert ("less safe" in text) is (said == "stop")


def test_what_a_service_without_its_own_copies_would_lose_is_compared_with_main_cf(tmp_path: Path) -> None:
    master = f"{MASTER}x unix n - n - - cleanup -o always_bcc=a@b.c -o sender_bcc_maps=\n"
    assert _said(tmp_path, "always_bcc = a@b.c\n", master) == []


def test_a_macro_that_only_a_service_breaks_is_a_problem_not_a_traceback(tmp_path: Path) -> None:
    master = MASTER + "2525 inet n - n - - smtpd -o mine=${ -o recipient_delimiter=+\n"
    (text,) = _said(tmp_path, "mine = x\nsmtpd_banner = $mine\n", master)
    assert text.startswith("! master.cf:4: 2525/inet: truncated macro reference")
