"""mta install: options, the record, the steps that need no package tool, and the units made from master.cf."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mta.config.config import Config, load
from mta.install.install import main, parse
from mta.install.journal import KINDS, Journal, decode, encode
from mta.install.links import NAMES, plan_alternatives, plan_diverts, plan_links, systems
from mta.install.links import Found as FoundNames
from mta.install.spool import Spool, messages, plan_spool
from mta.install.steps import (
    Account,
    Alternative,
    Choose,
    Compress,
    Divert,
    MakeDirectory,
    MakeLink,
    Step,
    StepError,
    Units,
    WriteFile,
)
from mta.install.units import drop_in, enabled, port_lists, read_templates, units_for, with_ports
from mta.master.lock import running

ROOT = Path(__file__).resolve().parents[2]
EACH: list[Step] = [
    MakeDirectory("/a"),
    WriteFile("/a/b", "text \udce9\n", 0o600, "before"),
    Compress("/a/page.1"),
    MakeLink("/a/l", "b"),
    Divert("/usr/sbin/sendmail", "/usr/sbin/sendmail.postfix"),
    Alternative("update-alternatives", "mta", "/usr/sbin/sendmail", "/opt/s", 20, [["/l", "n", "/p"]]),
    Choose("update-alternatives", "mta", "/opt/s", "/usr/sbin/sendmail.postfix"),
    Account("mta", "/var/spool/mta"),
    Units(["mta.service"]),
    Spool("/var/spool/mta", [["/var/spool/mta", "0755", "mta", "mta"]], ["/var/spool/mta"]),
]


def test_every_kind_of_step_comes_back_from_the_record_as_it_was() -> None:
    assert {type(step) for step in EACH} == set(KINDS)
    for step in EACH:
        assert decode(encode(step)) == step
        assert step.describe() and "\n" not in step.describe()


@pytest.mark.parametrize("line", ["", "{}", "[]", "null", '{"kind": "os.system"}', '{"kind": "MakeLink"}', "{"])
def test_a_damaged_record_is_said_and_nothing_is_done(line: str) -> None:
    with pytest.raises(StepError, match="damaged"):
        decode(line)


class Failing:
    """A step that fails, after the ones before it were made."""

    def describe(self) -> str:
        return "fail"

    def do(self) -> None:
        raise StepError("no")

    def undo(self) -> str:
        return ""


def test_a_failure_undoes_everything_and_leaves_no_record(tmp_path: Path) -> None:
    journal, said = Journal(str(tmp_path / "prefix")), list[str]()
    (tmp_path / "old").write_text("old")
    steps: list[Step] = [
        MakeDirectory(str(tmp_path / "d")),
        WriteFile(str(tmp_path / "d/f"), "new"),
        WriteFile(str(tmp_path / "old"), "new", before="old"),
        MakeLink(str(tmp_path / "link"), "d/f"),
        Failing(),
    ]
    with pytest.raises(StepError):
        journal.run(steps, said.append)
    assert said == ["undoing what was done"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old", "prefix"]
    assert (tmp_path / "old").read_text() == "old"
    assert not journal.exists()


def test_what_somebody_has_changed_since_is_kept_and_said(tmp_path: Path) -> None:
    written, linked = WriteFile(str(tmp_path / "f"), "ours"), MakeLink(str(tmp_path / "l"), "f")
    written.do()
    linked.do()
    (tmp_path / "f").write_text("theirs")
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("elsewhere")
    assert "changed since" in written.undo() and "no longer" in linked.undo()
    assert (tmp_path / "f").read_text() == "theirs" and os.readlink(tmp_path / "l") == "elsewhere"


def test_undoing_what_never_was_done_changes_nothing(tmp_path: Path) -> None:
    top = str(tmp_path)
    steps: list[Step] = [MakeDirectory(f"{top}/d"), WriteFile(f"{top}/f", "x"), MakeLink(f"{top}/l", "f"),
                         Compress(f"{top}/p"), Spool(f"{top}/q", [[f"{top}/q", "0755", "root", "root"]], [f"{top}/q"])]
    assert [step.undo() for step in steps] == [""] * len(steps)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_link_where_something_else_is_fails(tmp_path: Path) -> None:
    (tmp_path / "l").write_text("a file")
    with pytest.raises(StepError, match="exists"):
        MakeLink(str(tmp_path / "l"), "x").do()


def test_a_page_is_compressed_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "mailq.1").write_bytes(b".TH")
    step = Compress(str(tmp_path / "mailq.1"))
    step.do()
    assert gzip.decompress((tmp_path / "mailq.1.gz").read_bytes()) == b".TH"
    step.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mailq.1"]


def test_a_queue_that_was_there_before_is_not_touched_by_undo(tmp_path: Path) -> None:
    queue = tmp_path / "mta"
    text = f"d {queue} 0755 mta mta\nd {queue}/maildrop 3733 mta mta\n"
    assert plan_spool(str(queue), text).made == [str(queue)]
    (queue / "maildrop").mkdir(parents=True)
    spool = plan_spool(str(queue), text)
    assert spool.made == []
    (queue / "maildrop/x").write_text("mail")
    assert messages(str(queue)) == 1
    assert spool.undo() == "" and (queue / "maildrop/x").exists()


def found(moves: dict[str, str], owner: str) -> FoundNames:
    return FoundNames(NAMES, moves, owner)


def test_a_daemon_that_uses_the_queue_is_stopped_before_the_queue_goes(tmp_path: Path) -> None:
    for name in ("pid", "data"):
        (tmp_path / "q" / name).mkdir(parents=True)
    take = "import sys, time; from mta.master.lock import take; kept = take(*sys.argv[1:]); print(flush=True)"
    command = [sys.executable, "-c", f"{take}; time.sleep(99)", str(tmp_path / "q"), str(tmp_path / "q/data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout and daemon.stdout.readline()
            step = Spool(str(tmp_path / "q"), [[str(tmp_path / "q"), "0755", "nobody", "nobody"]], [])
            step.undo()
            assert daemon.poll() is None and running(step.queue), "not ours: it was there before"
            step.made.append(step.queue)
            assert step.undo() == ""
            assert daemon.wait(10) == -signal.SIGTERM and not os.path.exists(step.queue)
        finally:
            daemon.kill()


def test_the_other_mail_system_is_a_choice_before_ours_is_and_ours_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.install.links.chosen", lambda tool: "")
    moves = {"/usr/sbin/sendmail": "/usr/sbin/sendmail.postfix", "/usr/bin/mailq": "/usr/bin/mailq.postfix"}
    theirs, ours, choose = plan_alternatives(found(moves, "postfix"), "/opt/x", "update-alternatives")
    assert isinstance(theirs, Alternative) and isinstance(ours, Alternative) and isinstance(choose, Choose)
    assert (theirs.path, theirs.priority) == ("/usr/sbin/sendmail.postfix", 60)
    assert [name for _, name, _ in theirs.slaves] == ["mta-mailq"]
    assert (ours.path, ours.priority, len(ours.slaves)) == ("/opt/x/bin/sendmail", 20, len(NAMES) - 1)
    assert choose.path == "/opt/x/bin/sendmail"
    assert [type(s) for s in plan_diverts(found(moves, "postfix"))] == [Divert, Divert]
    links = list(plan_links(found({}, ""), "/opt/x"))
    assert MakeLink("/usr/lib/sendmail", "/opt/x/bin/sendmail") in links and len(links) == len(NAMES)


def test_names_lead_to_us_only_below_our_prefix(tmp_path: Path) -> None:
    assert not any(systems(str(tmp_path)).values())


def configuration(tmp_path: Path, services: str, interfaces: str = "127.0.0.1") -> Config:
    (tmp_path / "main.cf").write_text(f"compatibility_level = 3.6\ninet_interfaces = {interfaces}\n"
                                      "inet_protocols = ipv4\nmyhostname = h.example.test\n")  # fmt: skip
    (tmp_path / "master.cf").write_text(services)
    return load(str(tmp_path))


def test_systemd_opens_what_master_cf_names_and_nothing_else(tmp_path: Path) -> None:
    services = "smtp inet n - n - - smtpd\n127.0.0.2:submission inet n - n - - smtpd\n2525 inet n - n - - smtpd\n"
    config = configuration(tmp_path, services)
    lists = port_lists(config)
    assert lists == {
        "mta-smtp.socket": ["127.0.0.1:25", "127.0.0.1:2525"],
        "mta-submission.socket": ["127.0.0.2:587"],
        "mta-submissions.socket": [],
    }
    templates = read_templates(str(ROOT / "systemd"))
    units = dict(units_for(templates, "/opt/x", config))
    assert "mta-submissions.socket" not in units
    listens = [line for line in units["mta-smtp.socket"].splitlines() if line.startswith("ListenStream=")]
    assert listens == ["ListenStream=127.0.0.1:25", "ListenStream=127.0.0.1:2525"]
    assert "ExecStart=/opt/x/bin/mta start-fg\n" in units["mta.service"]
    assert "/usr/sbin/mta" not in units["mta.service"] + units["mta-local.service"]
    on = enabled(templates, list(units), lists)
    assert {"mta.service", "mta-smtp.socket", "mta-submission.socket", "mta-submit.socket"} <= set(on)
    assert drop_in("/etc/mta", lists["mta-smtp.socket"]).endswith(
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:25\nListenStream=127.0.0.1:2525\n"
    )
    with pytest.raises(StepError):
        with_ports("[Socket]\n", [])


@pytest.mark.parametrize(
    "args",
    [["now"], ["--prefix"], ["--prefix="], ["--divert", "--alternatives"], ["--sockets", "--divert"], ["--help"]],
)
def test_what_is_no_option_is_64(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("install", args) == 64
    assert "usage: mta install" in capsys.readouterr().err


def test_uninstall_takes_no_way() -> None:
    assert parse(["--divert"], install=False) is None and main("uninstall", ["--sockets"]) == 64
    options = parse(["--prefix", "/opt/x/../y", "--dry-run"], install=False)
    assert options and options.prefix == "/opt/y" and options.dry_run


def test_nothing_installed_is_nothing_to_undo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("uninstall", ["--dry-run", "--prefix", str(tmp_path)]) == 1
    assert "nothing to undo" in capsys.readouterr().err
