"""`mta check` on the directories of a spool."""

import os
from pathlib import Path

from mta.config.config import Config
from mta.config.main_cf import Setting
from mta.fsio import Fsio
from mta.master_check import check_permissions, check_services, check_tables
from mta.queue.store_spool import create_spool
from tests.queue_support import settings


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


def test_a_network_that_is_none_is_named_with_its_line() -> None:
    config = _config(mynetworks="127.0.0.0/8 [::1]/128 !10.1.2.3/8 /file cidr:/x 1and1.example", mail_owner="nobody")
    (problem,) = [p for p in check_services(config) if "mynetworks" in p.text]
    assert not problem.fatal
    assert str(problem).startswith('main.cf:1: mynetworks: non-null host address bits in "10.1.2.3/8"')
