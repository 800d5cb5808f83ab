"""Mailboxes: the format, all or nothing, and what a hostile path can do (nothing)."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.deliver import mailbox
from mta.deliver.local_user import deliver_into
from mta.deliver.mailbox import MailboxError, MailboxSettings, Message, System
from mta.deliver.mbox import quoted

SETTINGS = MailboxSettings(
    mailbox_size_limit=0,
    mailbox_delivery_lock=("fcntl", "dotlock"),
    deliver_lock_attempts=3,
    deliver_lock_delay=1.0,
    stale_lock_time=500.0,
    strict_mailbox_ownership=True,
    myhostname="mx.test",
)
NOW = 1_795_229_044.5
CONTENT = b"Subject: test\n\nHello\nFrom here\n>From there\n.dot\nlast without newline"


class Laboratory:
    """An engine whose waits and flushes are counted, and may do something."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "alice"
        self.waits: list[float] = []
        self.flushed: list[str] = []
        self.seen: list[str] = []  # written out
        self.ordered = False
        self.on_wait: Callable[[], None] = lambda: None
        self.on_fsync: Callable[[int], None] = lambda _fd: None

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.on_wait()

    def written_out(self, fd: int) -> bool:
        self.seen.append(os.readlink(f"/proc/self/fd/{fd}"))
        return self.ordered

    def fsync(self, fd: int) -> None:
        self.flushed.append(os.readlink(f"/proc/self/fd/{fd}"))
        self.on_fsync(fd)

    def deliver(
        self,
        content: bytes = CONTENT,
        settings: MailboxSettings = SETTINGS,
        path: str = "",
        sender: str = "bob@mx.test",
        uid: int | None = None,
    ) -> str:
        fd = os.memfd_create("content")
        try:
            os.write(fd, content)
            message = Message(fd, sender, "alice", "alice@mx.test", NOW)
            owner = os.geteuid() if uid is None else uid
            system = System(self.fsync, self.wait, lambda: NOW, owner, self.written_out)
            return deliver_into(path or str(self.path), message, settings, system)
        finally:
            os.close(fd)

    def fail(self, text: str, code: str = "4.2.0", **arguments: str) -> MailboxError:
        with pytest.raises(MailboxError, match=re.escape(text)) as caught:
            self.deliver(**arguments)  # type: ignore[arg-type]  # only path is ever given
        assert caught.value.reply.enhanced == code
        assert not Path(f"{self.path}.lock").exists()
        return caught.value


@pytest.fixture
def lab(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path)


# -- format -----------------------------------------------------------------------------------------------


def test_an_mbox_looks_as_postfix_writes_it(lab: Laboratory) -> None:
    assert lab.deliver() == "delivered to mailbox"
    first, rest = lab.path.read_bytes().split(b"\n", 1)
    assert re.fullmatch(rb"From bob@mx\.test  \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d 2026", first)
    assert rest == (
        b"Return-Path: <bob@mx.test>\nX-Original-To: alice\nDelivered-To: alice@mx.test\n"
        b"Subject: test\n\nHello\n>From here\n>From there\n.dot\nlast without newline\n\n"
    )
    assert lab.path.stat().st_mode & 0o777 == 0o600
    assert not Path(f"{lab.path}.lock").exists()


def test_the_null_sender_is_mailer_daemon_and_odd_senders_are_quoted(lab: Laboratory) -> None:
    lab.deliver(sender="")
    lab.deliver(sender="a b@mx.test")
    text = lab.path.read_bytes()
    assert text.startswith(b"From MAILER-DAEMON  ") and b"Return-Path: <>\n" in text
    assert b'\nFrom "a b"@mx.test  ' in text


def test_a_new_mailbox_is_flushed_with_its_directory_and_an_old_one_alone(lab: Laboratory) -> None:
    lab.deliver()
    assert lab.flushed == [str(lab.path.parent), str(lab.path)]
    lab.deliver()
    assert lab.flushed[2:] == [str(lab.path)]


def test_after_a_torn_message_the_next_one_begins_cleanly(lab: Laboratory) -> None:
    for torn, gap in ((b"From x\nSubject: torn", b"\n\n"), (b"From x\n\ntext\n", b"\n"), (b"From x\n\ntext\n\n", b"")):
        lab.path.write_bytes(torn)
        lab.deliver()
        assert lab.path.read_bytes().startswith(torn + gap + b"From bob@mx.test  ")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.sampled_from([b"From ", b"F", b"r", b"om", b" ", b"\n", b">", b"From", b"x" * 9, b"\nFrom "])))
def test_quoting_does_not_depend_on_how_the_text_is_cut(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    ended = text if text.endswith(b"\n") or not text else text + b"\n"
    expected = re.sub(rb"(?m)^From ", rb">From ", ended) + b"\n"
    assert b"".join(quoted(iter([p for p in pieces if p]))) == expected
    assert b"".join(quoted(iter([bytes([c]) for c in text]))) == expected
    assert b"".join(quoted(iter([text] if text else []))) == expected


def test_a_large_message_goes_through_in_pieces(lab: Laboratory) -> None:
    body = b"Subject: big\n\n" + b"From line\n" * 50_000
    lab.deliver(body)
    assert lab.path.read_bytes().endswith(b"\n\n" + b">From line\n" * 50_000 + b"\n")


# -- all or nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "enhanced"),
    [
        (errno.EDQUOT, "5.2.2"),  # the mailbox is full
        (errno.EFBIG, "5.2.2"),
        (errno.ENOSPC, "4.3.0"),  # the system is full
        (errno.ESTALE, "4.2.0"),
        (errno.EIO, "4.2.0"),  # unknown means temporary
    ],
)
def test_a_failed_write_leaves_the_mailbox_as_it_was(lab: Laboratory, number: int, enhanced: str) -> None:
    lab.path.write_bytes(b"From x\n\nold\n\n")

    def broken(_fd: int) -> None:
        raise OSError(number, "")

    lab.on_fsync = broken
    lab.fail(f"error writing message: {os.strerror(number)}", enhanced)
    assert lab.path.read_bytes() == b"From x\n\nold\n\n"


def test_whatever_interrupts_the_write_leaves_the_mailbox_as_it_was(lab: Laboratory) -> None:
    lab.path.write_bytes(b"old\n\n")

    def interrupted(_fd: int) -> None:
        raise KeyboardInterrupt

    lab.on_fsync = interrupted
    with pytest.raises(KeyboardInterrupt):
        lab.deliver()
    assert lab.path.read_bytes() == b"old\n\n"
    assert not Path(f"{lab.path}.lock").exists()


def test_a_mailbox_that_would_grow_too_large_is_full(lab: Laboratory) -> None:
    lab.path.write_bytes(b"x" * 900 + b"\n\n")
    with pytest.raises(MailboxError, match="File too large") as caught:
        lab.deliver(settings=replace(SETTINGS, mailbox_size_limit=1000))
    assert caught.value.reply.enhanced == "5.2.2"
    assert lab.path.stat().st_size == 902


def test_a_full_device_is_not_the_users_fault(lab: Laboratory) -> None:
    reply = mailbox.failure(OSError(errno.ENOSPC, ""), "x").reply
    assert (reply.code, reply.enhanced) == (452, "4.3.0")


# -- locks ------------------------------------------------------------------------------------------------


def test_a_held_lock_file_is_waited_for_and_then_defers(lab: Laboratory) -> None:
    lock = Path(f"{lab.path}.lock")
    lock.touch()
    with pytest.raises(MailboxError, match=r"unable to create lock file .*alice\.lock: File exists") as caught:
        lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
    assert caught.value.reply.enhanced == "4.2.0"
    assert lab.waits == [1.0, 1.0]
    assert lock.exists() and not lab.path.exists()


def test_a_lock_file_that_goes_away_is_taken(lab: Laboratory) -> None:
    lock = Path(f"{lab.path}.lock")
    lock.touch()
    lab.on_wait = lock.unlink
    lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
    assert lab.waits == [1.0]


def test_a_lock_file_left_by_a_crash_is_removed(lab: Laboratory) -> None:
    lock = Path(f"{lab.path}.lock")
    lock.touch()
    system_now = lock.stat().st_ctime + 501
    fd = os.memfd_create("content")
    try:
        system = System(lab.fsync, lab.wait, lambda: system_now, os.geteuid())
        deliver_into(str(lab.path), Message(fd, "", "", "", NOW), SETTINGS, system)
    finally:
        os.close(fd)
    assert not lock.exists()


@pytest.mark.parametrize("zeros", [1, 700, 200_000])
def test_zeros_that_a_power_cut_left_at_the_end_are_taken_away(lab: Laboratory, zeros: int) -> None:
    """A file system may have written the new length of the mailbox and not the text."""
    lab.deliver()
    before = lab.path.read_bytes()
    lab.path.write_bytes(before + bytes(zeros))
    lab.deliver()
    assert lab.path.read_bytes() == before + before


def test_zeros_inside_a_mailbox_are_left_alone(lab: Laboratory) -> None:
    lab.deliver(b"Subject: t\n\n\0\0\n")
    before = lab.path.read_bytes()
    lab.deliver()
    assert lab.path.read_bytes().startswith(before)


@pytest.mark.parametrize(("mode", "age", "taken"), [(0o400, 3.0, True), (0o400, 1.0, False), (0o600, 3.0, False)])
def test_a_lock_file_of_ours_that_a_power_cut_emptied_is_removed(
    lab: Laboratory, mode: int, age: float, taken: bool
) -> None:
    """Its name can be on the disk without its content; 500 s would pass until stale_lock_time."""
    lock = Path(f"{lab.path}.lock")
    lock.touch()
    lock.chmod(mode)
    system_now = lock.stat().st_ctime + age
    fd = os.memfd_create("content")
    try:
        system = System(lab.fsync, lab.wait, lambda: system_now, os.geteuid())
        with contextlib.nullcontext() if taken else pytest.raises(MailboxError, match="File exists"):
            deliver_into(str(lab.path), Message(fd, "", "", "", NOW), SETTINGS, system)
    finally:
        os.close(fd)
    assert lab.path.exists() == taken


@pytest.mark.parametrize("how", ["fcntl", "flock"])
def test_a_mailbox_locked_by_another_program_defers(lab: Laboratory, how: str) -> None:
    lab.path.write_bytes(b"old\n\n")
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with lab.path.open("r+b") as file:
            (fcntl.lockf if how == "fcntl" else fcntl.flock)(file, fcntl.LOCK_EX)
            os.write(ready[1], b"1")
            os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        with pytest.raises(MailboxError, match="unable to lock for exclusive access"):
            lab.deliver(settings=replace(SETTINGS, mailbox_delivery_lock=(how,)))
    finally:
        os.write(done[1], b"1")
        os.waitpid(child, 0)
        for fd in (*ready, *done):
            os.close(fd)
    assert lab.path.read_bytes() == b"old\n\n"


def test_two_threads_of_one_process_exclude_each_other(lab: Laboratory) -> None:
    inside: list[int] = []
    overlap: list[bool] = []
    gate = threading.Event()

    def slow(_fd: int) -> None:
        inside.append(1)
        overlap.append(len(inside) > 1)
        gate.wait(0.05)
        inside.pop()

    lab.on_fsync = slow

    def moment() -> None:
        gate.wait(0.005)

    lab.on_wait = moment
    patient = replace(SETTINGS, mailbox_delivery_lock=("fcntl",), deliver_lock_attempts=500)
    lab.path.touch()
    threads = [threading.Thread(target=lab.deliver, kwargs={"settings": patient}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlap == [False] * 5, "four messages, and the directory of the empty mailbox"
    assert lab.path.read_bytes().count(b"\n\nFrom bob@mx.test  ") == 3


# -- attacks ----------------------------------------------------------------------------------------------


def test_a_symlink_is_not_followed(lab: Laboratory, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    lab.path.symlink_to(target)
    lab.fail("cannot open file: Too many levels of symbolic links")
    assert target.read_bytes() == b"precious"


def test_a_dangling_symlink_creates_nothing(lab: Laboratory, tmp_path: Path) -> None:
    lab.path.symlink_to(tmp_path / "target")
    lab.fail("cannot open file")
    assert not (tmp_path / "target").exists()


def test_a_hard_link_is_refused(lab: Laboratory, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    os.link(target, lab.path)
    lab.fail("file has 2 hard links")
    assert target.read_bytes() == b"precious"


def test_a_fifo_does_not_block_and_is_refused(lab: Laboratory) -> None:
    os.mkfifo(lab.path)
    lab.fail("not a regular file")


def test_a_directory_is_refused(lab: Laboratory) -> None:
    lab.path.mkdir()
    lab.fail("cannot open file: Is a directory")


def test_a_socket_is_refused(lab: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(lab.path.name)
        lab.fail("cannot open file")


def test_a_mailbox_of_somebody_else_is_refused(lab: Laboratory) -> None:
    lab.path.write_bytes(b"")
    with pytest.raises(MailboxError, match="is not owned by recipient") as caught:
        lab.deliver(uid=os.geteuid() + 1)
    assert caught.value.reply.is_temporary
    assert lab.path.read_bytes() == b""


def test_a_mailbox_replaced_while_it_is_locked_is_refused(lab: Laboratory, tmp_path: Path) -> None:
    lab.path.write_bytes(b"old\n\n")
    with lab.path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def replaced() -> None:
            (tmp_path / "new").write_bytes(b"new\n\n")
            os.replace(tmp_path / "new", lab.path)
            fcntl.flock(held, fcntl.LOCK_UN)

        lab.on_wait = replaced
        with pytest.raises(MailboxError, match=r"hard links|replaced"):
            lab.deliver(settings=replace(SETTINGS, mailbox_delivery_lock=("flock",)))
    assert lab.path.read_bytes() == b"new\n\n"


def test_a_mailbox_replaced_between_open_and_check_is_refused(
    lab: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.path.write_bytes(b"old\n\n")
    (tmp_path / "precious").write_bytes(b"precious")
    real = os.open

    def racing(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real(path, flags, mode)
        if path == str(lab.path):
            os.rename(lab.path, tmp_path / "aside")
            os.symlink(tmp_path / "precious", lab.path)
        return fd

    monkeypatch.setattr(os, "open", racing)
    with pytest.raises(MailboxError, match="replaced"):
        lab.deliver()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "aside").read_bytes() == b"old\n\n"


def test_a_lock_file_that_is_a_link_creates_nothing(lab: Laboratory, tmp_path: Path) -> None:
    Path(f"{lab.path}.lock").symlink_to(tmp_path / "target")
    with pytest.raises(MailboxError, match="unable to create lock file"):
        lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
    assert not (tmp_path / "target").exists()


def test_a_huge_sparse_mailbox_is_full_and_not_read(lab: Laboratory) -> None:
    with lab.path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MailboxError) as caught:
        lab.deliver(settings=replace(SETTINGS, mailbox_size_limit=1 << 30))
    assert caught.value.reply.enhanced == "5.2.2"
    assert lab.path.stat().st_size == 1 << 40


# -- Maildir ----------------------------------------------------------------------------------------------


def test_a_maildir_gets_one_file_flushed_before_it_is_seen(lab: Laboratory, tmp_path: Path) -> None:
    assert lab.deliver(path=f"{tmp_path}/Maildir/") == "delivered to maildir"
    (file,) = (tmp_path / "Maildir/new").iterdir()
    assert re.fullmatch(r"1795229044\.V[0-9a-f]+I[0-9a-f]+M500000\.mx\.test", file.name)
    assert file.read_bytes() == (
        b"Return-Path: <bob@mx.test>\nX-Original-To: alice\nDelivered-To: alice@mx.test\n" + CONTENT + b"\n"
    )
    assert not list((tmp_path / "Maildir/tmp").iterdir())
    assert sorted(p.name for p in (tmp_path / "Maildir").iterdir()) == ["cur", "new", "tmp"]
    assert "/Maildir/tmp/" in lab.flushed[-2] and lab.flushed[-1].endswith("/Maildir/new")
    assert (tmp_path / "Maildir").stat().st_mode & 0o777 == 0o700


def test_where_the_journal_keeps_the_order_a_written_file_gets_its_name_and_one_flush(
    lab: Laboratory, tmp_path: Path
) -> None:
    lab.deliver(path=f"{tmp_path}/Maildir/")  # makes the directories
    lab.flushed.clear()
    lab.seen.clear()
    lab.ordered, names = True, []
    lab.on_fsync = lambda fd: names.extend(os.listdir(tmp_path / "Maildir/new"))
    lab.deliver(path=f"{tmp_path}/Maildir/")
    assert len(lab.flushed) == 1 and "/Maildir/tmp/" in lab.flushed[0]
    assert len(lab.seen) == 1 and not lab.seen[0].endswith(" (deleted)"), "written out before it has its name"
    assert len(names) == 2, "flushed when it has its name"
    assert not list((tmp_path / "Maildir/tmp").iterdir())


def test_a_file_whose_only_flush_fails_is_in_no_directory(lab: Laboratory, tmp_path: Path) -> None:
    lab.deliver(path=f"{tmp_path}/Maildir/")
    before = list((tmp_path / "Maildir/new").iterdir())
    lab.ordered = True

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "")

    lab.on_fsync = broken
    lab.fail("error flushing", path=f"{tmp_path}/Maildir/")
    assert list((tmp_path / "Maildir/new").iterdir()) == before
    assert not list((tmp_path / "Maildir/tmp").iterdir())


@pytest.mark.parametrize("flush", ["/Maildir/tmp/", "/Maildir/new"])
def test_a_failed_maildir_delivery_leaves_nothing(lab: Laboratory, tmp_path: Path, flush: str) -> None:
    lab.deliver(path=f"{tmp_path}/Maildir/")
    before = sorted(tmp_path.rglob("*"))

    def broken(fd: int) -> None:
        if flush in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EDQUOT, "")

    lab.on_fsync = broken
    lab.fail("maildir delivery failed: error", "5.2.2", path=f"{tmp_path}/Maildir/")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_maildir_that_cannot_be_made_defers(lab: Laboratory, tmp_path: Path) -> None:
    (tmp_path / "Maildir").write_bytes(b"")
    lab.fail("maildir delivery failed: create maildir directory", path=f"{tmp_path}/Maildir/")


def test_maildir_works_where_links_are_not_allowed(
    lab: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "")

    monkeypatch.setattr(os, "link", refuse)
    lab.deliver(path=f"{tmp_path}/Maildir/")
    assert len(list((tmp_path / "Maildir/new").iterdir())) == 1
    assert not list((tmp_path / "Maildir/tmp").iterdir())


def test_a_lock_file_of_a_dead_process_is_removed_at_once_and_that_of_a_living_one_is_not(lab: Laboratory) -> None:
    lock = Path(f"{lab.path}.lock")
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    lock.write_text(f"{gone.pid}\n")
    lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
    assert not lock.exists()
    lock.write_text(f"{os.getpid()}\n1\n")  # this number, but begun at another time: it was used again
    lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    for text in (f"{os.getpid()}\n", f"{os.getpid()}\n{started}\n"):
        lock.write_text(text)
        with pytest.raises(MailboxError):
            lab.deliver(settings=replace(SETTINGS, stale_lock_time=1e12))
        assert lock.exists()


def test_the_name_of_an_empty_mailbox_is_made_durable_before_anything_is_in_it(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    lab.path.touch(0o600)  # by a delivery that was killed before it had flushed the directory
    lab.on_fsync = lambda _: sizes.append(lab.path.stat().st_size)
    sizes: list[int] = []
    lab.deliver()
    lab.deliver()
    assert lab.flushed == [str(tmp_path), str(lab.path), str(lab.path)]
    assert sizes[0] == 0
