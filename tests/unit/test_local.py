"""The local agent from request to mailbox, in a daemon that runs as one user."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.deliver.local import IN_MEMORY, LocalAgent, OwnMailboxes
from mta.deliver.local_wire import Answer, Ask
from mta.deliver.request import CorruptContentError, DeliveryRequest, Result
from mta.envelope import Envelope, Recipient
from mta.fsio.fsio import Fsio
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.smtp.reply import Reply
from tests.unit.local_fixture import Site

CONTENT = b"Received: by mx.test\nSubject: test\n\nHello\nFrom here\n"


class Lines:
    """A log sink."""

    with_header = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Desk:
    """An agent at work on a site."""

    site: Site
    sink: Lines = field(default_factory=Lines)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.fsio = Fsio(aio=False)
        self.log = Maillog(MaillogSettings("", "postfix", "mx.test"), self.clock, self.sink)
        site = self.site
        self.backend = OwnMailboxes(
            site.settings, "local", site.router, site.world.context, site.users, self.fsio, self.clock, self.log
        )
        self.agent = LocalAgent(site.settings, self.backend, self.fsio, self.clock)

    async def send(
        self, *addresses: str, content: bytes = CONTENT, sender: str = "s@src.test", corrupt: bool = False
    ) -> list[Result]:
        """Deliver one message; results in order of the addresses."""
        results: dict[str, Result] = {}

        async def chunks() -> AsyncIterator[bytes]:
            for i in range(0, len(content), 65536):
                yield content[i : i + 65536]
            if corrupt:
                raise CorruptContentError

        recipients = tuple(Recipient(a, offset=i) for i, a in enumerate(addresses, 1))
        request = DeliveryRequest(
            "4F1", Envelope(sender, list(recipients), 0.0), "local", "mx.test", recipients, len(content), chunks,
            lambda recipient, result: results.update({recipient.address: result}),
        )  # fmt: skip
        try:
            await self.agent.deliver(request)
        finally:
            await self.agent.close()
            self.fsio.close()
            self.log.flush()
        return [results[a] for a in addresses]


def mailbox(site: Site, name: str) -> Path:
    return site.directory / "mail" / name


async def test_mail_for_a_user_is_appended_to_the_mailbox(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (result,) = await desk.send("Alice+ext@mx.test")
    assert (result.reply, result.text, result.relay) == (
        Reply(250, "2.0.0", "delivered to mailbox"), "delivered to mailbox", "local",
    )  # fmt: skip
    text = mailbox(desk.site, "alice").read_bytes()
    assert b"\nReturn-Path: <s@src.test>\nX-Original-To: Alice+ext@mx.test\nDelivered-To: Alice+ext@mx.test\n" in text
    assert text.endswith(b"Hello\n>From here\n\n")


class LongWait(Clock):
    """Who blocks waits until he is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked, self.go = threading.Event(), threading.Event()

    def block(self, seconds: float) -> None:
        self.blocked.set()
        self.go.wait(60)


async def test_a_delivery_that_is_given_up_while_it_waits_for_a_lock_writes_nothing(tmp_path: Path) -> None:
    clock = LongWait()
    desk = Desk(Site(tmp_path), clock=clock)
    lock = mailbox(desk.site, "alice.lock")
    lock.touch()
    content = os.open(desk.site.directory / "main.cf", os.O_RDONLY)
    ask = Ask("4F1", "alice@mx.test", "alice@mx.test", "s@src.test", "local")
    task = asyncio.create_task(desk.backend.deliver(ask, content))
    while not clock.blocked.is_set():  # noqa: ASYNC110  a thread sets it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.close(content)
    before = set(os.listdir("/proc/self/fd"))
    lock.unlink()
    clock.go.set()
    desk.fsio.close()  # waits for the thread
    desk.log.flush()
    assert not mailbox(desk.site, "alice").exists()
    assert len(set(os.listdir("/proc/self/fd"))) < len(before), "its copy of the content is closed"


async def test_each_recipient_of_a_message_has_a_fate_of_its_own(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path, "list: alice, x@ok.test\ncmd: |prog\n"))
    alice, nosuch, group, cmd = await desk.send("alice@mx.test", "nosuch@mx.test", "list@mx.test", "cmd@mx.test")
    assert alice.reply.code == 250
    assert (nosuch.reply.enhanced, nosuch.text) == ("5.1.1", 'unknown user: "nosuch"')
    assert group.expansion is not None
    assert group.expansion.recipients == ("alice@mx.test", "x@ok.test")
    assert (group.expansion.sender, group.expansion.delivered_to) == ("s@src.test", "list@mx.test")
    assert cmd.reply.enhanced == "4.3.5" and any("not available yet" in line for line in desk.sink.lines)
    assert mailbox(desk.site, "alice").read_bytes().count(b"Delivered-To:") == 1


@pytest.mark.parametrize("header", ["Delivered-To: alice@mx.test", "DELIVERED-TO:\n\tAlice@MX.test"])
async def test_mail_that_was_here_before_is_a_loop(tmp_path: Path, header: str) -> None:
    desk = Desk(Site(tmp_path))
    looped, other = await desk.send("alice@mx.test", "bob@mx.test", content=header.encode() + b"\n" + CONTENT)
    assert (looped.reply.code, looped.reply.enhanced) == (554, "5.4.6")
    assert looped.text == "mail forwarding loop for alice@mx.test"
    assert other.reply.code == 250


@pytest.mark.parametrize("address", ["alice+\t@mx.test", "alice+\nX-Y: z@mx.test", "alice+" + "e" * 3000 + "@mx.test"])
async def test_what_can_be_no_address_is_a_bad_address(tmp_path: Path, address: str) -> None:
    desk = Desk(Site(tmp_path))
    bad, good = await desk.send(address, "alice@mx.test")
    assert (bad.reply, good.reply.code) == (Reply(550, "5.1.3", "bad address syntax"), 250)


async def test_a_delivered_to_in_brackets_is_none_of_ours(tmp_path: Path) -> None:
    (result,) = await Desk(Site(tmp_path)).send("alice@mx.test", content=b"Delivered-To: <alice@mx.test>\n" + CONTENT)
    assert result.reply.code == 250


async def test_a_delivered_to_in_the_body_is_only_text(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (result,) = await desk.send("alice@mx.test", content=CONTENT + b"\nDelivered-To: alice@mx.test\n")
    assert result.reply.code == 250


async def test_the_child_of_an_alias_reaches_a_user_of_the_same_name(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path, "alice: alice, x@ok.test\n"))
    (result,) = await desk.send("\\alice@mx.test", content=b"Delivered-To: alice@mx.test\n" + CONTENT)
    assert result.reply.code == 250
    assert b"\nDelivered-To: alice@mx.test\nDelivered-To: alice@mx.test\n" in mailbox(desk.site, "alice").read_bytes()


async def test_a_damaged_message_reaches_no_mailbox(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    with pytest.raises(CorruptContentError):
        await desk.send("alice@mx.test", corrupt=True)
    assert not mailbox(desk.site, "alice").exists()


async def test_a_large_message_is_copied_to_a_file_without_a_name(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    body = CONTENT + b"x" * 99 + b"\n"
    body += b"0123456789" * (IN_MEMORY // 10) + b"\n"
    (result,) = await desk.send("alice@mx.test", content=body)
    assert result.reply.code == 250
    assert mailbox(desk.site, "alice").stat().st_size > IN_MEMORY
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("name", [".forward", ".forward+ext"])
async def test_a_user_with_a_forward_file_waits(tmp_path: Path, name: str) -> None:
    desk = Desk(Site(tmp_path))
    home = tmp_path / "home/alice"
    home.mkdir()
    (home / name).write_text("x@ok.test\n")
    (result,) = await desk.send("alice+ext@mx.test")
    assert (result.reply.code, result.reply.enhanced) == (451, "4.3.5")
    assert result.text == f"{home}/{name} exists, but forwarding by users is not available yet"
    assert not mailbox(desk.site, "alice").exists()


async def test_an_empty_forward_file_forwards_nothing(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice").mkdir()
    (tmp_path / "home/alice/.forward").touch()
    (result,) = await desk.send("alice@mx.test")
    assert result.reply.code == 250


@pytest.mark.parametrize("text", ["\n \n", "# x@ok.test\n\n# y\n", None])
async def test_a_forward_file_that_says_nothing_forwards_nothing(tmp_path: Path, text: str | None) -> None:
    desk = Desk(Site(tmp_path))
    forward = tmp_path / "home/alice/.forward"
    forward.parent.mkdir()
    if text is None:
        forward.mkdir()
    else:
        forward.write_text(text)
    (result,) = await desk.send("alice@mx.test")
    assert result.reply.code == 250


@pytest.mark.parametrize("text", ["#\nx@ok.test", " # a\n", "#" * 99_999, "\0", "\\alice\n", "|cat"])
async def test_a_forward_file_that_says_something_or_more_than_is_read_waits(tmp_path: Path, text: str) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice").mkdir()
    (tmp_path / "home/alice/.forward").write_text(text)
    (result,) = await desk.send("alice@mx.test")
    assert result.reply.enhanced == "4.3.5"


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "written by others"])
async def test_a_forward_file_that_nobody_believes_forwards_nothing(tmp_path: Path, kind: str) -> None:
    desk = Desk(Site(tmp_path))
    forward, other = tmp_path / "home/alice/.forward", tmp_path / "home/alice/x"
    forward.parent.mkdir()
    other.write_text("x@ok.test\n")
    if "link" in kind:
        forward.symlink_to("x" if kind == "link" else "y")
    elif kind == "fifo":
        os.mkfifo(forward)
    else:
        other.rename(forward).chmod(0o666)
    (result,) = await desk.send("alice@mx.test")
    assert result.reply == Reply(250, "2.0.0", "delivered to mailbox")


@pytest.mark.parametrize("name", [".forward+ext", ".forward+EXT"])
async def test_the_first_forward_file_that_exists_is_the_only_one(tmp_path: Path, name: str) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice").mkdir()
    (tmp_path / "home/alice/.forward").write_text("x@ok.test\n")
    (tmp_path / "home/alice" / name).touch()
    result, other = await desk.send(f"alice{name.removeprefix('.forward')}@mx.test", "alice+other@mx.test")
    assert result.reply == Reply(250, "2.0.0", "delivered to mailbox")
    assert other.reply.enhanced == "4.3.5"


@pytest.mark.parametrize("kind", ["file", "device", "none", "loop"])
async def test_a_home_that_exists_is_enough_and_one_that_does_not_is_named(tmp_path: Path, kind: str) -> None:
    desk = Desk(Site(tmp_path, main_cf="require_home_directory = yes\n"))
    home = tmp_path / "home/alice"
    if kind == "file":
        home.touch()
    elif kind != "none":
        home.symlink_to("/dev/null" if kind == "device" else home)
    (result,) = await desk.send("alice@mx.test")
    if kind in ("file", "device"):
        assert result.reply == Reply(250, "2.0.0", "delivered to mailbox")
    else:
        reason = os.strerror(errno.ENOENT if kind == "none" else errno.ELOOP)
        assert result.reply == Reply(451, "4.3.0", f"cannot access home directory {home}: {reason}")


async def test_a_home_that_is_a_link_to_itself_has_no_forward_file(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice").symlink_to("alice")
    (result,) = await desk.send("alice@mx.test")
    assert result.reply == Reply(250, "2.0.0", "delivered to mailbox")


async def test_an_extension_too_long_for_the_name_of_a_file_has_no_forward_file_of_its_own(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice").mkdir()
    (result,) = await desk.send(f"alice+{'x' * 300}@mx.test")
    assert result.reply == Reply(250, "2.0.0", "delivered to mailbox")


async def test_an_extension_cannot_walk_through_directories(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    (tmp_path / "home/alice/.forward+..").mkdir(parents=True)
    (tmp_path / "home/alice/secret").write_text("x")
    (result,) = await desk.send("alice+../../alice/secret@mx.test")
    assert result.reply.code == 250


@pytest.mark.parametrize(
    ("main_cf", "recipient", "code"),
    [
        ("home_mailbox = Maildir/\n", "alice", 250),
        ("luser_relay = admin@mx.test\n", "nosuch", 451),
        ("luser_relay = admin@mx.test\n", "alice", 250),
        ("fallback_transport = smtp:x\n", "nosuch", 451),
        ("mailbox_transport = lmtp:unix:x\n", "alice", 451),
        ("mailbox_command = procmail\n", "alice", 451),
        ("require_home_directory = yes\n", "bob", 451),
    ],
)
async def test_what_is_not_built_makes_its_recipients_wait(
    tmp_path: Path, main_cf: str, recipient: str, code: int
) -> None:
    site = Site(tmp_path, main_cf=main_cf)
    (tmp_path / "home/alice").mkdir()
    (result,) = await Desk(site).send(f"{recipient}@mx.test")
    assert result.reply.code == code
    if code == 451:
        assert result.reply.enhanced in ("4.3.5", "4.3.0")
        assert not list((tmp_path / "mail").iterdir())
    if "Maildir" in main_cf:
        assert result.text == "delivered to maildir"
        assert len(list((tmp_path / "home/alice/Maildir/new").iterdir())) == 1


@pytest.mark.parametrize("parameter", ["mailbox_transport_maps", "mailbox_command_maps", "fallback_transport_maps"])
async def test_with_a_table_only_the_users_in_it_wait(tmp_path: Path, parameter: str) -> None:
    (tmp_path / "table").write_text("bob smtp:x\nghost smtp:x\n")
    os.utime(tmp_path / "table", (0, 0))
    site = Site(tmp_path, main_cf=f"{parameter} = hash:{tmp_path}/table\n")
    alice, bob, ghost, nosuch = await Desk(site).send("alice@mx.test", "Bob+x@mx.test", "ghost@mx.test", "no@mx.test")
    fallback = parameter.startswith("fallback")
    assert (alice.reply.code, nosuch.reply.code) == (250, 550)
    assert bob.reply.enhanced == ("2.0.0" if fallback else "4.3.5")
    assert ghost.reply.enhanced == ("5.1.1" if parameter == "mailbox_command_maps" else "4.3.5")


async def test_a_failing_name_service_is_no_unknown_user(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.accounts.code = 24  # EMFILE
    for result in await Desk(site).send("alice@mx.test", "nosuch@mx.test"):
        assert (result.reply.code, result.text) == (451, "user lookup error")


@pytest.mark.parametrize("address", ["postmaster@mx.test", "MAILER-DAEMON@mx.test"])
async def test_the_postmaster_is_always_somebody(tmp_path: Path, address: str) -> None:
    desk = Desk(Site(tmp_path, root=os.geteuid()))
    (result,) = await desk.send(address)
    assert result.reply.code == 250 and mailbox(desk.site, "root").exists()
    assert any("required alias not found" in line for line in desk.sink.lines)


async def test_mail_to_the_sender_of_double_bounces_is_dropped(tmp_path: Path) -> None:
    (result,) = await Desk(Site(tmp_path)).send("double-bounce@mx.test")
    assert result.reply == Reply(250, "2.0.0", "undeliverable postmaster notification discarded")


async def test_a_broken_mailbox_is_said_with_its_path_and_defers(tmp_path: Path) -> None:
    desk = Desk(Site(tmp_path))
    mailbox(desk.site, "alice").mkdir()
    (result,) = await desk.send("alice@mx.test")
    path = mailbox(desk.site, "alice")
    assert result.reply.enhanced == "4.2.0"
    assert result.text == f"cannot update mailbox {path} for user alice. cannot open file: Is a directory"


class Remembering:
    """A backend that only looks."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self.asks: list[Ask] = []
        self.look = look

    async def deliver(self, ask: Ask, content: int) -> Answer:
        self.asks.append(ask)
        self.look(content)
        return Answer(Reply(250, "2.0.0", "ok"))

    async def close(self) -> None: ...


async def test_the_delivering_side_gets_a_read_only_descriptor_and_names(tmp_path: Path) -> None:
    def look(fd: int) -> None:
        assert os.pread(fd, 1 << 20, 0) == CONTENT
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")

    desk = Desk(Site(tmp_path))
    backend = Remembering(look)
    desk.agent = LocalAgent(desk.site.settings, backend, desk.fsio, desk.clock)
    await desk.send("alice@mx.test")
    assert backend.asks == [Ask("4F1", "alice@mx.test", "alice@mx.test", "s@src.test", "local")]
