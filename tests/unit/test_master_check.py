"""`mta check` on the directories of a spool."""

import os
from pathlib import Path

from mta.config.config import Config
from mta.config.main_cf import Setting
from mta.fsio import Fsio
from mta.master_check import check_permissions
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
