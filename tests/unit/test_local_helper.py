"""mta-local: one request, one answer; garbage hurts nobody; as root each mailbox is written by its user."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta import local_helper_child
from mta.clock import Clock
from mta.deliver.local_client import GRACE, HelperConnection, through_channel, to_socket
from mta.deliver.local_plan import LocalSettings
from mta.deliver.local_trust import Distrust, UntrustedFileError, check_path, read_trusted
from mta.deliver.local_wire import Answer, Ask, WireError, decode_answer, decode_ask, encode_answer, encode_ask
from mta.local_helper import MAX_OF_ONE_USER, Channel, Helper, Listener, Setup, SetupError
from mta.local_helper_child import become_user
from mta.lookup.unix import User
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.master.local import Reading
from mta.smtp.reply import Reply
from tests.unit.local_fixture import Site
from tests.unit.test_local import Lines

CONTENT = b"Subject: test\n\nHello\n"
OWNER_UID = 60009
ME = os.geteuid() or 60001  # uid of alice and bob; never root's
needs_root = pytest.mark.needs_root


def nobody_else(_user: User, _groups: Iterable[int], _gid: int) -> None:
    """In place of become_user: stay who we are."""


def people(directory: Path, aliases: str = "") -> Site:
    """A site whose users are not root."""
    return Site(directory, aliases, alice=ME, bob=ME)


class Desk:
    """A helper that serves in this loop, over a channel or a socket."""

    def __init__(self, site: Site, become: Callable[[User, Iterable[int], int], None] | None = nobody_else) -> None:
        self.site, self.sink, self.clock = site, Lines(), Clock()
        self.log = Maillog(MaillogSettings("", "postfix", "mx.test"), self.clock, self.sink)
        self.become = become
        # As root, without becoming the user, the mailbox would be root's.
        strict = become is None or os.geteuid() != 0
        self.settings: LocalSettings = replace(site.settings, strict_mailbox_ownership=strict)
        self.broken = ""

    def setup(self, transport: str) -> Setup:
        assert transport == "local"
        if self.broken:
            raise SetupError(self.broken)
        return Setup(self.settings, self.site.planner(), OWNER_UID)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[HelperConnection]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.helper = Helper(Channel(theirs), self.setup, self.site.users, self.clock, self.log, become=self.become)
        task = asyncio.ensure_future(self.helper.run())
        try:
            yield HelperConnection(through_channel(ours), self.clock, 30.0)
        finally:
            ours.close()  # the end of the channel ends the helper
            await task
            self.log.flush()


async def ask(
    connection: HelperConnection, recipient: str, content: bytes = CONTENT, sender: str = "s@src.test"
) -> Answer:
    fd = os.memfd_create("content")
    try:
        os.write(fd, content)
        return await connection.deliver(Ask("4F1", recipient, recipient, sender, "local"), fd)
    finally:
        os.close(fd)


# -- protocol ---------------------------------------------------------------------------------------------


def test_requests_and_answers_survive_the_wire() -> None:
    question = Ask("4F1", "gr\udcfcn@mx.test", "", "", "local")
    assert decode_ask(encode_ask(question)) == question
    answer = Answer(Reply(250, "2.0.0", "x"), ("a@b", "\\c@d"), "owner-x@y")
    assert decode_answer(encode_answer(answer)) == answer
    long = decode_answer(encode_answer(Answer(Reply(451, "4.3.5", 'odd "a\nb\0c"' + "x" * 99_999))))
    assert long.reply.text.startswith('odd "a b c"x')


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"queue_id": 1}',
        b"[" * 100_000,
        json.dumps({"queue_id": "", "recipient": "a\nb", "original": "", "sender": "", "transport": "local"}).encode(),
        json.dumps({"queue_id": "", "recipient": "", "original": "", "sender": "", "transport": "local"}).encode(),
        json.dumps({"queue_id": "", "recipient": "a" * 3000, "original": "", "sender": "", "transport": "l"}).encode(),
        json.dumps({"queue_id": "", "recipient": "a", "original": [], "sender": {}, "transport": "l"}).encode(),
    ],
)
def test_a_request_is_whole_or_refused(line: bytes) -> None:
    with pytest.raises(WireError):
        decode_ask(line)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_protocol_fail_otherwise(line: bytes) -> None:
    for decode, kind in ((decode_ask, Ask), (decode_answer, Answer)):
        with contextlib.suppress(WireError):
            assert isinstance(decode(line), kind)


# -- service ----------------------------------------------------------------------------------------------


async def test_a_request_is_delivered_by_a_child_and_answered(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    async with desk.serving() as connection:
        answer = await ask(connection, "alice@mx.test")
    assert answer == Answer(Reply(250, "2.0.0", "delivered to mailbox"))
    text = (tmp_path / "mail/alice").read_bytes()
    assert text.startswith(b"From s@src.test  ") and text.endswith(b"\n\nHello\n\n")


async def test_aliases_come_back_as_addresses(tmp_path: Path) -> None:
    members = ", ".join(f"member-{i:05}@elsewhere.test" for i in range(5000))
    desk = Desk(people(tmp_path, f"list: alice, x@ok.test\nlong: {members}\n"))
    async with desk.serving() as connection:
        small = await ask(connection, "list@mx.test")
        large = await ask(connection, "long@mx.test")
    assert small.recipients == ("alice@mx.test", "x@ok.test") and small.sender == "s@src.test"
    assert len(large.recipients) == 5000  # more than one packet


@pytest.mark.parametrize("sender", ["s" * 1100 + "@src.test", "\u00f6" * 700 + "@src.test", "a\tb\n\x7f@src.test"])
async def test_an_odd_sender_keeps_nobody_from_having_the_message(tmp_path: Path, sender: str) -> None:
    desk = Desk(people(tmp_path, "list: alice, x@ok.test\n"))
    async with desk.serving() as connection:
        assert (await ask(connection, "bob@mx.test", sender=sender)).reply.code == 250
        assert (await ask(connection, "bob+" + "e" * 1100 + "@mx.test")).reply.code == 250
        assert (await ask(connection, "list@mx.test", sender=sender)).sender == sender
        refused = await ask(connection, "bob@mx.test", sender="s" * 3000)
    assert refused.reply == Reply(451, "4.3.0", "local delivery: malformed sender")
    head = (tmp_path / "mail/bob").read_bytes().split(b"\n\n")[0].split(b"\n")
    assert [line.partition(b":")[0][:4] for line in head] == [b"From", b"Retu", b"X-Or", b"Deli", b"Subj"]


async def test_many_requests_at_once_are_all_answered(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    async with desk.serving() as connection:
        answers = await asyncio.gather(*(ask(connection, f"{n}@mx.test") for n in ["alice", "bob", "nosuch"] * 4))
    assert [a.reply.code for a in answers] == [250, 250, 550] * 4


async def test_deliveries_into_one_mbox_take_turns_and_never_wait_for_its_lock(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    desk.settings = replace(desk.settings, deliver_lock_attempts=1)
    async with desk.serving() as connection:
        answers = await asyncio.gather(*(ask(connection, "alice@mx.test") for _ in range(20)))
    assert [a.reply.code for a in answers] == [250] * 20
    assert (tmp_path / "mail/alice").read_bytes().count(b"\nSubject: test") == 20


async def test_a_delivery_that_waits_for_another_program_does_not_keep_the_next_one_from_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_helper_child, "TURN", 0.01)
    born = tmp_path / "born"

    def note(_user: User, _groups: Iterable[int], _gid: int) -> None:
        with born.open("a") as file:
            file.write("x")

    desk = Desk(people(tmp_path), become=note)
    lock = tmp_path / "mail/alice.lock"
    lock.touch()
    patient = {"deliver_lock_attempts": 1000, "deliver_lock_delay": 0.01, "stale_lock_time": 1e12}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        both = [asyncio.ensure_future(ask(connection, "alice@mx.test")) for _ in range(2)]
        while not born.exists() or born.stat().st_size < 2:  # noqa: ASYNC110  (processes tell no event)
            await asyncio.sleep(0.01)
        lock.unlink()
        assert [(await one).reply.code for one in both] == [250, 250]


async def test_one_user_whose_deliveries_do_not_end_leaves_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_helper_child, "TURN", 0.01)
    desk = Desk(Site(tmp_path, alice=ME, carol=ME + 1))
    (tmp_path / "mail/alice.lock").touch()
    patient = {"deliver_lock_attempts": 100_000, "deliver_lock_delay": 0.01, "stale_lock_time": 1e12}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        waiting = [asyncio.ensure_future(ask(connection, "alice@mx.test")) for _ in range(60)]
        assert await asyncio.ensure_future(ask(connection, "carol@mx.test"))  # behind them
        assert not [one.result() for one in waiting if one.done()]
        (tmp_path / "mail/alice.lock").unlink()
        assert {(await one).reply.code for one in waiting} == {250}


async def test_who_does_not_wait_for_the_answer_any_more_gets_nothing_delivered(tmp_path: Path) -> None:
    started = tmp_path / "started"
    desk = Desk(Site(tmp_path, alice=ME, carol=ME + 1), become=lambda *_: started.touch())
    lock = tmp_path / "mail/alice.lock"
    lock.touch()
    patient = {"deliver_lock_attempts": 100_000, "deliver_lock_delay": 0.01, "stale_lock_time": 1e12}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        first = asyncio.ensure_future(ask(connection, "alice@mx.test"))
        while not started.exists():  # noqa: ASYNC110  (processes tell no event)
            await asyncio.sleep(0.01)
        waiting = [asyncio.ensure_future(ask(connection, "alice@mx.test")) for _ in range(10)]  # for turn or slot
        await ask(connection, "carol@mx.test")  # who is answered: those are there
        for one in waiting:  # the daemon stops: it will try them again
            one.cancel()
        await asyncio.wait(waiting)
        lock.unlink()
        assert (await first).reply.code == 250
    assert (tmp_path / "mail/alice").read_bytes().count(b"\nSubject: test") == 1


async def test_a_child_that_waits_for_a_lock_gives_up_when_nobody_waits_for_its_answer_any_more(tmp_path: Path) -> None:
    born = tmp_path / "born"

    def note(user: User, _groups: Iterable[int], _gid: int) -> None:
        born.write_text(f"{user.name} {os.getpid()}\n")

    desk = Desk(people(tmp_path), become=note)
    lock = tmp_path / "mail/alice.lock"
    lock.touch()
    patient = {"deliver_lock_attempts": 100_000, "deliver_lock_delay": 0.01, "stale_lock_time": 1e12}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        asked = asyncio.ensure_future(ask(connection, "alice@mx.test"))
        while not born.exists() or not born.read_text():  # noqa: ASYNC110  (processes tell no event)
            await asyncio.sleep(0.01)
        asked.cancel()
        async with asyncio.timeout(20):
            await _gone(born)
        lock.unlink()
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
    assert (tmp_path / "mail/alice").read_bytes().count(b"\nSubject: test") == 1


@pytest.mark.parametrize("uid", [0, OWNER_UID])
async def test_root_and_mail_owner_have_no_mailbox_and_their_mail_waits(tmp_path: Path, uid: int) -> None:
    desk = Desk(Site(tmp_path, root=uid))
    async with desk.serving() as connection:
        answer = await ask(connection, "root@mx.test")
    assert (answer.reply.code, answer.reply.enhanced) == (451, "4.3.5")
    assert "add an alias for root" in answer.reply.text
    assert not list((tmp_path / "mail").iterdir())


async def test_mail_for_one_user_in_a_row_is_delivered_by_one_child_and_never_by_another_users(tmp_path: Path) -> None:
    born = tmp_path / "born"

    def note(user: User, _groups: Iterable[int], _gid: int) -> None:
        with born.open("a") as file:
            file.write(f"{user.name} {os.getpid()}\n")

    desk = Desk(people(tmp_path), become=note)
    async with desk.serving() as connection:
        for name in ("alice", "alice", "bob", "alice"):
            assert (await ask(connection, f"{name}@mx.test")).reply.code == 250
        assert [line.split()[0] for line in born.read_text().splitlines()] == ["alice", "bob"]
        for line in born.read_text().splitlines():  # idle ones
            os.kill(int(line.split()[1]), signal.SIGKILL)
        await _gone(born)
        assert (await ask(connection, "alice@mx.test")).reply.code == 250, "one that was killed while idle is replaced"
        desk.settings = replace(desk.settings)
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
    assert [line.split()[0] for line in born.read_text().splitlines()] == ["alice", "bob", "alice", "alice"]
    assert (tmp_path / "mail/alice").read_bytes().count(b"\nSubject: test") == 5
    await _gone(born)  # they end with the helper


async def _gone(born: Path) -> None:
    while _any_alive(born):  # noqa: ASYNC110  (processes tell no event)
        await asyncio.sleep(0)


def _any_alive(born: Path) -> bool:
    return any(_alive(int(line.split()[1])) for line in born.read_text().splitlines())


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_a_child_that_dies_is_a_temporary_failure(tmp_path: Path) -> None:
    def die(_user: User, _groups: Iterable[int], _gid: int) -> None:
        os._exit(1)

    desk = Desk(people(tmp_path), become=die)
    async with desk.serving() as connection:
        answer = await ask(connection, "alice@mx.test")
    assert (answer.reply.code, answer.reply.enhanced) == (451, "4.3.0")
    assert not (tmp_path / "mail/alice").exists()


async def test_a_child_that_cannot_become_the_user_delivers_nothing(tmp_path: Path) -> None:
    def refuse(_user: User, _groups: Iterable[int], _gid: int) -> None:
        raise PermissionError("secret")

    desk = Desk(people(tmp_path), become=refuse)
    async with desk.serving() as connection:
        answer = await ask(connection, "alice@mx.test")
    assert answer.reply.code == 451 and "secret" not in answer.reply.text
    assert not (tmp_path / "mail/alice").exists()


async def test_a_delivery_that_takes_too_long_ends_and_leaves_the_mailbox_as_it_was(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    (tmp_path / "mail/alice.lock").touch()
    patient = {"deliver_lock_attempts": 1000, "stale_lock_time": 1e12, "command_time_limit": 0.2}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        answer = await ask(connection, "alice@mx.test")
    assert answer.reply == Reply(451, "4.3.0", "local delivery took too long")
    assert not (tmp_path / "mail/alice").exists()


async def test_what_the_daemon_does_not_wait_for_any_more_is_not_delivered(tmp_path: Path) -> None:
    born = tmp_path / "born"
    born.touch()

    def note(user: User, _groups: Iterable[int], _gid: int) -> None:
        with born.open("a") as file:
            file.write(f"{user.name} {os.getpid()}\n")

    desk = Desk(people(tmp_path), become=note)
    lock = tmp_path / "mail/alice.lock"
    lock.touch()
    patient = {"deliver_lock_attempts": 100_000, "deliver_lock_delay": 0.01, "stale_lock_time": 1e12}
    desk.settings = replace(desk.settings, **patient)  # type: ignore[arg-type]  # int and float by name
    async with desk.serving() as connection:
        asked = [asyncio.ensure_future(ask(connection, "alice@mx.test")) for _ in range(MAX_OF_ONE_USER + 2)]
        while not born.stat().st_size:  # noqa: ASYNC110  one has its turn, some wait for that, some for a place
            await asyncio.sleep(0.01)
        for one in asked:
            one.cancel()
        for _ in range(500):
            if not desk.helper._tasks:
                break
            await asyncio.sleep(0.01)
        lock.unlink()
        await _gone(born)
        assert not (tmp_path / "mail/alice").exists() or not (tmp_path / "mail/alice").read_bytes()
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
    assert (tmp_path / "mail/alice").read_bytes().count(b"\nSubject: test") == 1


async def test_an_unusable_configuration_makes_everybody_wait(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    desk.broken = "/etc/mta/main.cf is world writable"
    async with desk.serving() as connection:
        answer = await ask(connection, "alice@mx.test")
    assert answer.reply.enhanced == "4.3.5" and "/etc" not in answer.reply.text
    assert any(desk.broken in line for line in desk.sink.lines)


async def test_garbage_ends_its_connection_and_nothing_else(tmp_path: Path) -> None:
    desk = Desk(people(tmp_path))
    null = os.open(os.devnull, os.O_RDONLY)
    async with desk.serving() as connection:
        for data, with_fd in ((b"", False), (b"\xff\0\n", True), (b"x" * 40_000, False), (b"{}\n", False)):
            ours = connection._connect()
            ours.setblocking(False)
            with contextlib.suppress(OSError), ours:
                if with_fd:
                    socket.send_fds(ours, [data], [null])
                elif data:
                    ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ours, 10), 5)
        question = encode_ask(Ask("4F1", "alice@mx.test", "", "", "local"))
        with connection._connect() as ours:
            ours.setblocking(False)
            socket.send_fds(ours, [question], [null])  # not a regular file
            assert await asyncio.get_running_loop().sock_recv(ours, 10) == b""
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
    os.close(null)
    assert sum("request refused" in line for line in desk.sink.lines) >= 5


async def test_without_a_helper_mail_waits(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    for connect in (through_channel(ours), to_socket(str(tmp_path / "nothing"))):
        answer = await ask(HelperConnection(connect, Clock(), 1.0), "alice@mx.test")
        assert (answer.reply.code, answer.reply.enhanced) == (451, "4.3.0")
    ours.close()


async def test_an_answer_that_came_while_the_daemon_was_stopped_counts() -> None:
    """Its mail is in the mailbox: who takes it for late delivers it again."""
    ours, theirs = socket.socketpair()
    asking = asyncio.ensure_future(ask(HelperConnection(lambda: ours, Clock(), 0.01 - GRACE), "alice@mx.test"))
    await asyncio.sleep(0)
    theirs.sendall(encode_answer(Answer(Reply(250, "2.0.0", "delivered to mailbox"))))
    Clock().block(0.02)  # the loop does not run, as after SIGSTOP
    assert (await asking).reply.code == 250
    theirs.close()


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_socket_is_served_for_the_daemon_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, allowed: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    desk = Desk(people(tmp_path))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("local")
    listener.listen()
    uids: list[int] = []

    def may(uid: int) -> bool:
        uids.append(uid)
        return allowed

    helper = Helper(Listener(listener, may), desk.setup, desk.site.users, desk.clock, desk.log, become=nobody_else)
    task = asyncio.ensure_future(helper.run())
    await asyncio.sleep(0)
    answer = await ask(HelperConnection(to_socket("local"), desk.clock, 10.0), "alice@mx.test")
    helper.stop()
    await task
    assert uids == [os.geteuid()]
    assert answer.reply.code == (250 if allowed else 451)


# -- root -------------------------------------------------------------------------------------------------


def let_in(directory: Path) -> None:
    """Let others pass through the private directories that pytest has made, and no further."""
    directory.chmod(0o711)
    for parent in directory.parents:
        if not parent.name.startswith(("pytest-", "popen-")):
            return
        parent.chmod(0o711)


@needs_root
async def test_as_root_the_mailbox_is_written_by_its_user(tmp_path: Path) -> None:
    let_in(tmp_path)
    site = Site(tmp_path, alice=60001, bob=60002)
    spool = tmp_path / "mail"
    os.chown(spool, 0, 60008)
    spool.chmod(0o2775)  # as Debian's /var/mail
    desk = Desk(site, become=None)
    async with desk.serving() as connection:
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
        (spool / "bob").symlink_to(spool / "alice")
        assert (await ask(connection, "bob@mx.test")).reply.enhanced == "4.2.0"
    found = (spool / "alice").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (60001, 60008, 0o600)
    assert (spool / "alice").read_bytes().count(b"Hello") == 1


@needs_root
async def test_as_root_a_home_that_its_user_may_not_enter_holds_no_forward_file(tmp_path: Path) -> None:
    let_in(tmp_path)
    site = Site(tmp_path, alice=60001)
    (tmp_path / "mail").chmod(0o1777)
    home = tmp_path / "home/alice"
    home.mkdir()
    (home / ".forward").write_text("x@ok.test\n")
    home.chmod(0)
    desk = Desk(site, become=None)
    async with desk.serving() as connection:
        assert (await ask(connection, "alice@mx.test")).reply.code == 250
        home.chmod(0o755)
        assert (await ask(connection, "alice@mx.test")).reply.enhanced == "4.3.5"


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(60002, 0o644), (60001, 0o200), (0, 0o600)])
async def test_as_root_a_forward_file_of_others_or_that_its_user_may_not_read_is_none(
    tmp_path: Path, owner: int, mode: int
) -> None:
    let_in(tmp_path)
    site = Site(tmp_path, alice=60001)
    (tmp_path / "mail").chmod(0o1777)
    forward = tmp_path / "home/alice/.forward"
    forward.parent.mkdir()
    forward.write_text("x@ok.test\n" * 999)
    forward.chmod(mode)
    os.chown(forward, owner, 60001)
    async with Desk(site, become=None).serving() as connection:
        assert (await ask(connection, "alice@mx.test")).reply == Reply(250, "2.0.0", "delivered to mailbox")


@needs_root
async def test_as_root_a_home_that_only_its_user_may_enter_works(tmp_path: Path) -> None:
    let_in(tmp_path)
    site = Site(tmp_path, main_cf="home_mailbox = Maildir/\n", alice=60001)
    home = tmp_path / "home/alice"
    home.mkdir(mode=0o700)
    os.chown(home, 60001, 60001)
    async with Desk(site, become=None).serving() as connection:
        assert (await ask(connection, "alice@mx.test")).reply.text == "delivered to maildir"
    (file,) = (home / "Maildir/new").iterdir()
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (60001, 0o600)


@needs_root
@pytest.mark.parametrize("uid", [0, 60001])
def test_as_root_there_is_no_way_back(uid: int) -> None:
    user = User("u", uid, 60001, "", "/", "/bin/sh")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "refused"
        with contextlib.suppress(PermissionError):
            become_user(user, [60001, 60007], 60001)
            said = f"{os.getresuid()} {os.getresgid()} {os.getgroups()}"
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(read, 200).decode()
    os.close(read)
    os.close(write)
    assert said == ("(60001, 60001, 60001) (60001, 60001, 60001) [60001, 60007]" if uid else "refused")


# -- what is believed -------------------------------------------------------------------------------------


def test_files_that_others_can_write_are_not_believed(tmp_path: Path) -> None:
    me = Distrust(os.geteuid(), os.getegid())
    file = tmp_path / "aliases"
    file.write_text("root: alice\n")
    file.chmod(0o644)
    assert read_trusted(str(file)) == b"root: alice\n"
    with pytest.raises(UntrustedFileError, match="owned by mail_owner"):
        read_trusted(str(file), me)
    with pytest.raises(UntrustedFileError, match="owned by mail_owner"):
        check_path(str(file), me)
    file.chmod(0o666)
    with pytest.raises(UntrustedFileError, match="world writable"):
        read_trusted(str(file))
    file.chmod(0o664)
    with pytest.raises(UntrustedFileError, match="group of mail_owner"):
        read_trusted(str(file), Distrust(60009, file.stat().st_gid))
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(UntrustedFileError, match="directory of"):
        check_path(str(file), Distrust(60009, 60009))
    tmp_path.chmod(0o700)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "nothing"):
        with pytest.raises(UntrustedFileError):
            read_trusted(str(tmp_path / name))


@pytest.mark.parametrize("spec", ["hash:{0}", "cdb:{0}", "unionmap:{{hash:{0}, static:x}}", "pipemap:{{ cdb:{0} }}"])
def test_every_file_behind_an_alias_table_is_looked_at(tmp_path: Path, spec: str) -> None:
    file = tmp_path / ("people.cdb" if "cdb" in spec else "people")
    site = Site(tmp_path, main_cf=f"alias_maps = {spec.format(tmp_path / 'people')}\n", mta=60009)
    log = Maillog(MaillogSettings("", "postfix", "mx.test"), Clock(), Lines())
    setup = Reading(str(tmp_path), site.users, Clock(), log)
    file.write_bytes(b"")
    file.chmod(0o644)
    setup("local")
    file.chmod(0o666)
    with pytest.raises(SetupError, match=f"{file} is world writable"):
        setup("local")
