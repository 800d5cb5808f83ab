"""The command line of mta: usage, versions, renaming a log."""

import os
from pathlib import Path

import pytest

from mta import __version__
from mta.cli import VERBS, foreground_log, load_somehow, main, make_log, rotate_file
from mta.config.config import Config
from mta.config.main_cf import Setting


@pytest.mark.parametrize("args", [[], ["nosuch"], ["start", "stop"], ["-x", "start"], ["-c"], ["-c", "/etc"]])
def test_what_is_not_a_command_is_64_and_one_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 64
    assert capsys.readouterr().err == f"mta: usage: mta [-c config_dir] {' | '.join(VERBS)} | queue ...\n"


def test_version_needs_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "/nonexistent", "version"]) == 0
    assert capsys.readouterr().out == f"mail_version = {__version__}\n"


def test_a_missing_configuration_is_78_with_the_name_of_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", str(tmp_path), "start"]) == 78
    error = capsys.readouterr().err
    for name in ("main.cf", "master.cf"):
        assert f"mta: fatal: {tmp_path}/{name}: open: No such file or directory\n" in error
    assert error.endswith("mta: 2 errors, nothing was started or changed\n")


def test_a_broken_configuration_still_says_where_the_spool_is(tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("queue_directory = /somewhere\nmaximal_backoff_time = 5x\n")
    assert load_somehow(str(tmp_path)).text("queue_directory") == "/somewhere"
    assert load_somehow(str(tmp_path / "none")).text("queue_directory") == "/var/spool/mta"


def test_a_log_is_renamed_and_a_new_one_made_like_it(tmp_path: Path) -> None:
    log = tmp_path / "maillog"
    assert rotate_file(str(log), "%Y") == ""
    make_log(str(log), 0o640, os.getuid(), os.getgid())
    assert rotate_file(str(log), "%Y") == "", "an empty one stays"
    log.write_text("line\n")
    old = rotate_file(str(log), "old")
    assert old == f"{log}.old"
    assert Path(old).read_text() == "line\n"
    assert (log.stat().st_size, log.stat().st_mode & 0o777) == (0, 0o640)
    (tmp_path / "link").symlink_to(log)
    log.write_text("line\n")
    assert rotate_file(str(tmp_path / "link"), "x") == "", "a link is left alone"


def test_a_log_that_is_configured_stays_in_the_foreground() -> None:
    config = Config("/etc/mta", {"maillog_file": Setting("maillog_file", "/var/log/mta", "main.cf", 1)})
    assert foreground_log(config) == {}
    assert foreground_log(Config("/etc/mta", {})).get("maillog_file", "/dev/stdout") == "/dev/stdout"
