"""showq, flush and pickup on real sockets over a real queue."""

import asyncio
import contextlib
import json
import select
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mta import control
from mta.clock import Clock
from mta.control import Control, ControlSettings, guarded, listing_json, listing_lines
from mta.lookup.context import LookupContext
from mta.lookup.match_list import DomainList
from mta.lookup.table import TableError
from mta.lookup.unix import UserDb
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.queue.api import Listing, Queue
from mta.queue.reasons import quoted
from mta.queue.store_admin import Administrator
from mta.submit.users import Access, User
from tests.inline_fsio import InlineFsio
from tests.queue_support import Spooled, spooled
from tests.unit.test_resolver import Lines


class Nobody:
    """A name service that knows nobody, or does not answer."""

    failing = False

    async def by_uid(self, uid: int) -> User | None:
        if self.failing:
            raise TableError("no name service")
        return None


class Sockets:
    """A Control that listens."""

    def __init__(self, spool: Spooled) -> None:
        self.spool, self.sink = spool, Lines()
        self.flushed: list[Sequence[str] | None] = []
        self.poked = asyncio.Event()
        self.users = Nobody()
        self.log = Maillog(MaillogSettings("", "postfix", "host"), Clock(), self.sink)
        settings = ControlSettings(("!unknown", "static:anyone"), ("root",))
        self.context = LookupContext(spool.fsio, Clock(), self.log, UserDb(spool.fsio, Clock()))
        self.control = Control(
            spool.store, self.flush, self.poked.set, Clock(), self.log, settings, Access(self.users, self.context),
            Administrator(spool.store.spool, spool.fsio, Clock()),
        )  # fmt: skip
        self.directory = ""

    async def flush(self, ids: Sequence[str] | None) -> int:
        self.flushed.append(ids)
        return 7

    async def ask(self, name: str, request: bytes = b"", *, end: bool = False) -> bytes:
        """Everything that comes back."""
        reader, writer = await asyncio.open_unix_connection(f"{self.directory}/{name}")
        writer.write(request)
        if end:
            writer.write_eof()
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        return answer


@pytest.fixture
async def sockets(tmp_path: Path) -> AsyncIterator[Sockets]:
    with spooled(tmp_path / "q") as spool, tempfile.TemporaryDirectory(prefix="ctl-", dir="/tmp") as directory:
        made = Sockets(spool)
        made.directory = directory
        servers = []
        for name in ("showq", "flush", "pickup"):
            handler = guarded(getattr(made.control, name), made.log)
            servers.append(await asyncio.start_unix_server(handler, f"{directory}/{name}"))
        yield made
        for server in servers:
            server.close()
        await asyncio.sleep(0.01)


def test_a_row_is_written_as_postqueue_j_writes_it() -> None:
    reasons = {"b@x.test": 'host "h" said:\\'}
    row = Listing(Queue.DEFERRED, "4FAB", 1795217804.9, 282, False, 'a "b"@x.test', ("b@x.test", "ü@x.test"), reasons)
    assert listing_json(row) == (
        '{"queue_name": "deferred", "queue_id": "4FAB", "arrival_time": 1795217804, "message_size": 282, '
        '"forced_expire": false, "sender": "\\"a \\\\\\"b\\\\\\"\\"@x.test", "recipients": '
        '[{"address": "b@x.test", "delay_reason": "host \\"h\\" said:\\\\"}, {"address": "ü@x.test"}]}'
    )
    bounce = Listing(Queue.HOLD, "4FAC", 1.0, 1, True, "", ("\udcff@x.test",), {})
    assert listing_json(bounce) == (
        '{"queue_name": "hold", "queue_id": "4FAC", "arrival_time": 1, "message_size": 1, "forced_expire": true, '
        '"sender": "MAILER-DAEMON", "recipients": [{"address": "?@x.test"}]}'
    )
    assert json.loads(listing_json(row))["recipients"][0]["delay_reason"] == reasons["b@x.test"]


async def test_others_have_their_turns_while_a_message_to_thousands_is_listed(tmp_path: Path) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    with spooled(tmp_path / "q", fsio=InlineFsio(aio=False)) as spool:  # for the disk nobody waits
        await spool.accept(*(f"{n}@x.test" for n in range(10_000)))
        beside = asyncio.ensure_future(other())
        row, end = [line async for line in listing_lines(spool.store)]
        beside.cancel()
    assert len(json.loads(row)["recipients"]) == 10_000 and end == "0 end" and turns > 5


def test_no_control_character_of_a_message_reaches_a_terminal() -> None:
    evil = 'a\x1b[2J\x9b\n0123456789ABC!\r\x7f"\u2028@x.test'
    row = Listing(Queue.MAILDROP, "4FAB", 1.0, 1, False, evil, (evil, ""), {evil: evil})
    shown = json.loads(listing_json(row))
    clean = 'a?[2J??0123456789ABC!??"?@x.test'
    assert shown["sender"] == quoted(clean) and shown["recipients"][0]["delay_reason"] == clean
    assert [r["address"] for r in shown["recipients"]] == [quoted(clean), "MAILER-DAEMON"]


async def test_showq_lists_the_queue_and_says_where_the_list_ends(sockets: Sockets) -> None:
    assert await sockets.ask("showq") == b"0 end\n"
    ids = {await sockets.spool.accept("b@dst.test") for _ in range(120)}
    *lines, end = (await sockets.ask("showq")).splitlines()
    assert end == b"0 end"
    rows = [json.loads(line) for line in lines]
    assert {row["queue_id"] for row in rows} == ids


async def test_flush_answers_with_the_callers_exit_status(sockets: Sockets) -> None:
    assert await sockets.ask("flush", b"flush\n") == b"0 7 messages\n"
    assert await sockets.ask("flush", b"id 4FAB\n") == b"0 7 messages\n"
    assert sockets.flushed == [None, ["4FAB"]]
    assert await sockets.ask("flush", b"id ***\n") == b'69 Cannot flush queue ID - invalid name: "***"\n'
    refused = b'69 Flush service is not configured for destination "r.test"\n'
    assert await sockets.ask("flush", b"site r.test\n") == refused


async def test_the_queue_is_looked_through_once_for_many_ids(sockets: Sockets) -> None:
    ids = [f"4F{n}" for n in range(1000)]
    request = "\n".join(("ids", *ids, "", "")).encode()
    assert await sockets.ask("flush", request) == b"0 7 messages\n"
    assert sockets.flushed == [ids]
    assert await sockets.ask("flush", request.replace(b"\n\n", b"\n5F\n\n")) == b"", "too many"
    assert sockets.flushed == [ids]


async def test_a_site_is_flushed_when_it_is_configured(sockets: Sockets) -> None:
    ids = []
    for address in ("a@r.test", "b@sub.r.test", "c@q.test"):
        job = await sockets.spool.store.claim(await sockets.spool.accept(address))
        assert job is not None
        await sockets.spool.store.defer(job, sockets.spool.now + 1000, {})
        ids.append(job.queue_id)
    sockets.control._fast_flush = DomainList("x", ("r.test",), sockets.context, parents=True)
    assert await sockets.ask("flush", b"site R.test\n") == b"0 7 messages\n"
    assert await sockets.ask("flush", b"site sub.r.test\n") == b"0 7 messages\n"
    assert (await sockets.ask("flush", b"site q.test\n")).startswith(b"69 Flush service is not configured")
    assert sockets.flushed == [[ids[0]], [ids[1]]]


async def test_garbage_ends_its_own_connection_only(sockets: Sockets) -> None:
    for rubbish in (b"\0\xff\xfe\n", b"x" * 100_000, b"flush " * 60, b"\n"):
        with contextlib.suppress(ConnectionError):
            assert (await sockets.ask("flush", rubbish)).startswith(b"69 ")
    with contextlib.suppress(ConnectionError):
        assert (await sockets.ask("flush", b"", end=True)).startswith(b"69 ")
    await sockets.ask("pickup", b"\0")
    assert sockets.poked.is_set()
    assert sockets.flushed == []
    assert await sockets.ask("flush", b"flush\n") == b"0 7 messages\n"
    assert [line for line in sockets.sink.lines if "control socket" in line] == []


async def test_who_does_not_read_or_write_is_cut(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.3)
    people = [f"{'r' * 60}{n}@dst.test" for n in range(2000)]
    for _ in range(6):
        await sockets.spool.accept(*people)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{sockets.directory}/showq")
        assert await sockets.ask("flush") == b"", "nothing was asked"
        closed = select.poll()  # whatever was not read yet
        closed.register(sock, 0)
        assert await asyncio.to_thread(closed.poll, 60_000)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                received += piece
    assert len(received) < 6 * 2000 * 60 and b"0 end" not in received
    assert (await sockets.ask("showq")).count(b"\n") == 7


async def test_who_reads_slowly_gets_it_all(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 1.0)
    people = [f"{'r' * 60}{n}@dst.test" for n in range(2000)]
    for _ in range(6):
        await sockets.spool.accept(*people)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect(f"{sockets.directory}/showq")
        received = b""
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(sock, 65536):
            received += piece
            await asyncio.sleep(0.08)
    assert received.count(b"\n") == 7 and received.endswith(b"\n0 end\n")


async def test_who_is_not_authorized_is_told_so(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    await sockets.spool.accept("b@dst.test")
    monkeypatch.setattr(control, "peer_uid", lambda writer: 4_000_000)
    shown, flushed = b"view the mail queue\n", b"flush the mail queue\n"
    assert await sockets.ask("showq") == b"77 User unknown(4000000) is not allowed to " + shown
    assert await sockets.ask("flush", b"flush\n") == b"77 User unknown(4000000) is not allowed to " + flushed
    assert sockets.flushed == []
    sockets.users.failing = True
    assert await sockets.ask("flush", b"flush\n") == b"75 Temporary lookup failure\n"
    monkeypatch.setattr(control, "peer_uid", lambda writer: 0)
    assert await sockets.ask("flush", b"flush\n") == b"0 7 messages\n"
    assert (await sockets.ask("showq")).startswith(b"{")


async def test_more_connections_than_allowed_are_closed_at_once(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 2)
    waiting = [await asyncio.open_unix_connection(f"{sockets.directory}/flush") for _ in range(2)]
    await asyncio.sleep(0.05)
    with contextlib.suppress(ConnectionError):
        assert await sockets.ask("flush", b"flush\n") == b""
    for reader, writer in waiting:
        writer.write(b"flush\n")
        assert await reader.read() == b"0 7 messages\n"
        writer.close()


async def test_root_and_the_owner_administer_the_queue_over_the_socket(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sorted([await sockets.spool.accept("b@dst.test") for _ in range(3)])
    request = f"admin hold\n{ids[0]}\nNOSUCH\n\nadmin delete incoming\n*\n\n".encode()
    answer = (await sockets.ask("flush", request, end=True)).decode().splitlines()
    assert answer[:3] == [f"done {ids[0]}", "absent NOSUCH", "0 done"]
    assert sorted(answer[3:]) == ["0 done", f"done {ids[1]}", f"done {ids[2]}"]
    assert sockets.flushed == []
    assert (await sockets.ask("flush", f"admin release\n{ids[0]}\n\n".encode(), end=True)).startswith(b"done ")
    assert sockets.flushed == [[]], "the queue is looked at once, afterwards"
    assert (await sockets.ask("flush", f"admin requeue\n{ids[0]}\n\n".encode(), end=True)).startswith(b"done ")
    assert sockets.poked.is_set() and sockets.spool.names("maildrop") == [ids[0]]
    monkeypatch.setattr(control, "peer_uid", lambda writer: 4_000_000)
    refused = await sockets.ask("flush", f"admin delete\n{ids[0]}\n\n".encode(), end=True)
    assert refused.startswith(b"77 ") and sockets.spool.names("maildrop") == [ids[0]]


async def test_nonsense_to_the_administrator_ends_its_own_connection(sockets: Sockets) -> None:
    kept = await sockets.spool.accept("b@dst.test")
    many = b"admin delete\n" + b"X\n" * 2000
    for rubbish in (b"admin\n", b"admin burn\nx\n\n", b"admin delete nosuch\nALL\n\n", many):
        with contextlib.suppress(ConnectionError):
            assert b"0 done" not in await sockets.ask("flush", rubbish, end=True)
    assert sockets.spool.names("incoming") == [kept]


async def test_one_user_cannot_take_all_connections(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_PER_UID", 1)
    monkeypatch.setattr(control, "peer_uid", lambda writer: 4_000_000)
    waiting = await asyncio.open_unix_connection(f"{sockets.directory}/flush")
    await asyncio.sleep(0.05)
    with contextlib.suppress(ConnectionError):
        assert await sockets.ask("flush", b"flush\n") == b""
    monkeypatch.setattr(control, "peer_uid", lambda writer: 0)
    assert await sockets.ask("flush", b"flush\n") == b"0 7 messages\n"
    waiting[1].close()
