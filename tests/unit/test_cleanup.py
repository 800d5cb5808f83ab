"""The door into the queue: envelopes, headers, limits and errors; on the real store."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.cleanup.cleanup import LookupFailedError
from mta.envelope import Envelope, Origin, Recipient
from mta.lookup.table import Maps
from mta.message_address import SLICE
from mta.queue.api import Parent, QueueError
from tests.sendmail.world import Message, World

REMOTE = Origin("smtpd", "c.test", "192.0.2.1", 25, "helo.test", "ESMTP")
LOCAL = Origin("pickup", uid=1000, rewrite_local=True)
MESSAGE = b"From: a\nTo: b\n\nbody\n"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as made:
        yield made


async def put(
    world: World, origin: Origin, message: bytes, *recipients: str, step: int = 7
) -> tuple[str, Message | None]:
    envelope = Envelope("s@s.test", [Recipient(r) for r in recipients or ("bob@r.test",)], world.clock.now())
    intake = await world.cleanup.open(origin, envelope)
    for i in range(0, len(message), step):
        intake.write(message[i : i + step])
    reply = await intake.commit()
    found = await world.queued()
    if reply.is_positive:
        assert reply.text == f"Ok: queued as {found[0].queue_id}"
        return str(reply), found[0]
    assert found == []
    return str(reply), None


async def test_remote_headers_are_not_touched(world: World) -> None:
    _, message = await put(world, REMOTE, b"From : a\nTo: b,\n c\nBcc: x\nX-Y:  z\n\nbody\n")
    assert message is not None
    assert message.headers[0] == (
        "Received: from helo.test (c.test [192.0.2.1])\n"
        f"\tby host.example.test (aiomta) with ESMTP id {message.queue_id}\n"
        f"\tfor <bob@r.test>; {message.headers[0].rpartition('; ')[2]}"
    )
    assert message.headers[1:] == ["From : a", "To: b,\n c", "X-Y:  z"]
    assert f"{message.queue_id}: message-id=<>" in world.log


async def test_local_headers_are_completed_in_order(world: World) -> None:
    _, message = await put(world, LOCAL, b"To: b\n\nbody\n")
    assert message is not None
    assert [h.partition(":")[0] for h in message.headers] == ["Received", "To", "Message-Id", "Date", "From"]
    assert message.headers[1] == "To: b@example.test"
    assert f"{message.queue_id}: message-id=<{message.queue_id}@host.example.test>" in world.log


async def test_a_client_of_ours_gets_its_headers_completed(world: World) -> None:
    world.cleanup._local_client = lambda address: address == "192.0.2.1"
    _, message = await put(world, REMOTE, b"To: b\n\nbody\n")
    assert message is not None
    assert message.header("To") == "To: b@example.test"
    assert message.header("From") == "From: s@s.test"


@pytest.mark.parametrize("origin", [REMOTE, Origin("pickup", uid=1000)], ids=["smtp", "sendmail-G"])
async def test_with_remote_header_rewrite_domain_headers_of_others_are_completed_with_it(origin: Origin) -> None:
    maps = ("inline:{x@r.test=y@new.test}",)
    async with World(remote_header_rewrite_domain="domain.invalid", canonical_maps=maps) as world:
        _, message = await put(world, origin, b"From: a\nTo: b, <x@r.test>\nSubject: c\n\nbody\n", "bob")
        assert message is not None
        assert message.headers[1:4] == ["From: a@domain.invalid", "To: b@domain.invalid, <y@new.test>", "Subject: c"]
        assert [h.partition(":")[0] for h in message.headers[4:]] == ["Message-Id", "Date"]
        assert message.envelope.recipients[0].address == "bob@example.test"
        assert message.envelope.attributes["rewrite_context"] == "remote"
        _, message = await put(world, LOCAL, b"From: a\n\nbody\n")
        assert message is not None
        assert message.header("From") == "From: a@example.test"
        _, message = await put(world, Origin("forward"), b"From: a\n\nbody\n")
        assert message is not None
        assert message.headers[1:] == ["From: a"]


async def test_limits_have_their_replies() -> None:
    async with World(message_size_limit=1000, hopcount_limit=5) as world:
        assert (await put(world, REMOTE, b"X: y\n\n" + b"x" * 1000))[0] == "552 5.3.4 Error: message file too big"
        assert (await put(world, REMOTE, b"Received: x\n" * 5 + b"\nb\n"))[0] == "554 5.4.6 Error: too many hops"
        assert (await put(world, REMOTE, b"Received: x\n" * 4 + b"\nb\n"))[0].startswith("250 2.0.0 Ok")


async def test_others_have_their_turns_while_a_list_of_thousands_is_expanded() -> None:
    asked, most = 0, 0

    class Names:
        name = "names"

        async def get(self, key: str) -> str | None:
            nonlocal asked
            asked += 1
            return ", ".join(f"u{n}@x" for n in range(10 * SLICE)) if key == "list@r.test" else None

    async with World(virtual_alias_expansion_limit=10 * SLICE) as world:
        work = asyncio.ensure_future(world.cleanup._envelopes.mapper.expand(Maps((Names(),)), "list@r.test"))
        while not work.done():
            before = asked
            await asyncio.sleep(0)
            most = max(most, asked - before)
        assert len(await work) == 10 * SLICE and most <= 3 * SLICE


async def test_others_have_their_turns_while_the_addresses_of_a_long_header_are_looked_up() -> None:
    asked, most = 0, 0

    class Names:
        name = "names"

        async def get(self, key: str, *, fixed: bool = False) -> str | None:
            nonlocal asked
            asked += 1
            return "new@r.test" if key == "u7@r.test" else None

    async with World(canonical_maps=("inline:{ {x=y} }",)) as world:
        world.cleanup._envelopes.header_recipient = (Maps((Names(),)),)
        names = [f"u{n}@r.test" for n in range(4 * SLICE)]
        header = b"".join(b"%b: %b\n" % (name, ", ".join(names).encode()) for name in (b"To", b"Cc"))
        work = asyncio.ensure_future(put(world, LOCAL, header + b"\nbody\n", step=60_000))
        while not work.done():
            before = asked
            await asyncio.sleep(0)
            most = max(most, asked - before)
        _, message = await work
        assert message is not None and ", new@r.test," in (message.header("To") or "")
        assert asked >= 8 * SLICE and most <= 5 * SLICE


async def test_aliases_expand_recursively_and_keep_the_original() -> None:
    table = "inline:{ {list@example.test=a@x, loop@x, list@example.test} {loop@x=loop@x} {@cat.test=@dog.test} "
    table += "{u@example.test=v} }"
    async with World(virtual_alias_maps=(table,)) as world:
        _, message = await put(
            world, REMOTE, MESSAGE, "list@example.test", "z@cat.test", "u+ext@example.test", "LIST@example.test"
        )
        assert message is not None
        found = [(r.address, r.original) for r in message.envelope.recipients]
        assert found == [
            ("a@x", "list@example.test"),
            ("loop@x", "list@example.test"),
            ("list@example.test", ""),
            ("z@dog.test", "z@cat.test"),
            ("v+ext@example.test", "u+ext@example.test"),
        ]


async def test_endless_aliases_and_failing_tables_accept_nothing() -> None:
    for maps in ("fail:x", "inline:{ {bob@r.test=bob2@r.test} {bob2@r.test=bob@r.test} }"):
        async with World(virtual_alias_maps=(maps,)) as world:
            with pytest.raises(LookupFailedError):
                await put(world, REMOTE, MESSAGE)
            assert await world.queued() == []


@pytest.mark.parametrize("value", ['a@x.test, "b c@y.test', "a@x.test, <b@y.test", "(gone)", "@x.test, (b@y.test", ","])
async def test_an_entry_that_is_no_list_of_addresses_is_neither_half_of_it_nor_none(value: str, tmp_path: Path) -> None:
    """Left out, bob would be unknown, or b would never hear of the mail."""
    table = tmp_path / "virtual"
    table.write_text(f"bob@r.test {value}\n")
    maps = (f"hash:{table}",)
    for made in (World(virtual_alias_maps=maps), World(canonical_maps=maps), World(recipient_bcc_maps=maps)):
        async with made as world:
            with pytest.raises(LookupFailedError):
                await put(world, REMOTE, MESSAGE)
            assert await world.queued() == []
            world.maillog.flush()
            assert any("entry of bob@r.test: " in line for line in world.log)


async def test_canonical_maps_change_envelope_and_local_headers() -> None:
    async with World(canonical_maps=("inline:{ {a@example.test=A.B@new.test} }",)) as world:
        _, message = await put(world, LOCAL, b"From: X <a>\nTo: a, c\n\n" + b"body\n" * 1000, "a")
        assert message is not None
        assert message.header("From") == "From: X <A.B@new.test>"
        assert message.header("To") == "To: A.B@new.test, c@example.test"
        assert message.body == ["body"] * 1000
        assert message.envelope.recipients[0].address == "A.B@new.test"


async def test_what_a_canonical_map_says_is_looked_up_again_until_nothing_changes() -> None:
    async with World(
        recipient_canonical_maps=("inline:{@old.test=@r.test, bob@r.test=carol@r.test, one@r.test=ONE@r.test}",),
        sender_canonical_maps=("inline:{s@s.test=t@s.test, t@s.test=u@s.test}",),
    ) as world:
        recipients = ("bob@old.test", "dan@old.test", "one@r.test")
        _, message = await put(world, LOCAL, b"To: <bob@old.test>\n\nbody\n", *recipients)
        assert message is not None
        assert message.envelope.sender == "u@s.test"
        assert [r.address for r in message.envelope.recipients] == ["carol@r.test", "dan@r.test", "ONE@r.test"]
        assert message.headers[1] == "To: <carol@r.test>"


async def test_a_canonical_map_that_goes_in_circles_is_said_and_ends_after_ten_rounds() -> None:
    async with World(recipient_canonical_maps=("inline:{a@r.test=b@r.test, b@r.test=a@r.test, x@r.test=x+y@r.test}",),
                     recipient_delimiter="+") as world:  # fmt: skip
        reply, message = await put(world, REMOTE, b"\nbody\n", "a@r.test", "x@r.test")
        assert message is not None, reply
        assert [r.address for r in message.envelope.recipients] == ["a@r.test", f"x{'+y' * 10}@r.test"]
        assert "warning: unreasonable canonical map nesting for a@r.test" in world.log


async def test_a_failing_table_in_headers_is_451() -> None:
    async with World(sender_canonical_maps=("fail:x",), sender_canonical_classes=("header_sender",)) as world:
        reply, _ = await put(world, LOCAL, MESSAGE)
        assert reply.startswith("451 4.3.0")


async def test_a_stray_cr_never_reaches_the_queue(world: World) -> None:
    _, message = await put(world, REMOTE, b"A: b\rC: d\n\nx\ry\n", step=3)
    assert message is not None
    assert message.headers[1:] == ["A: b C: d"]
    assert message.body == ["x y"]


async def test_children_are_born_held(world: World) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"Subject: x\n"
        yield b"\nbody\n"

    envelope = Envelope("", [Recipient("s@s.test")], world.clock.now())
    draft = await world.cleanup.inject(
        Origin("bounce", rewrite_local=True), envelope, chunks(), Parent("bounce", "u", "ID")
    )
    assert await world.store.claim(draft.queue_id) is None
    await world.store.release([draft])
    (message,) = await world.queued()
    assert message.header("From") == "From: MAILER-DAEMON"
    assert message.headers[0].startswith(f"Received: by host.example.test (aiomta)\n\tid {message.queue_id}; ")


async def test_an_interrupted_child_leaves_nothing(world: World) -> None:
    def broken() -> AsyncIterator[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"Subject: x\n"
            raise QueueError("gone")

        return chunks()

    with pytest.raises(QueueError):
        await world.cleanup.inject(Origin("forward"), Envelope("a@b", [Recipient("c@d")], 1.0), broken())
    assert list((world.queue / "incoming").iterdir()) == []


async def test_encoding_is_taken_from_the_header_unless_declared(world: World) -> None:
    intake = await world.cleanup.open(LOCAL, Envelope("a", [Recipient("b")], world.clock.now()))
    intake.write(b"Content-Transfer-Encoding: 8BIT\n\nx\n")
    await intake.commit()
    (message,) = await world.queued()
    assert message.envelope.encoding == "8bit"


async def test_a_bug_while_headers_are_rewritten_is_451_and_never_half_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World(sender_canonical_maps=("inline:{a=b}",), sender_canonical_classes=("header_sender",)) as world:

        async def broken(maps: object, address: str) -> str:
            raise RuntimeError(address)

        monkeypatch.setattr(world.cleanup._envelopes.mapper, "replace", broken)
        reply, _ = await put(world, LOCAL, MESSAGE)
        assert reply == "451 4.3.0 Error: address lookup failed"
        assert any("RuntimeError" in line for line in world.log)


async def test_automatic_copies_are_made_of_new_mail_only() -> None:
    async with World(always_bcc="archive") as world:
        _, message = await put(world, REMOTE, MESSAGE)
        assert message is not None
        assert [r.address for r in message.envelope.recipients] == ["bob@r.test", "archive@example.test"]
        for door in ("bounce", "forward"):
            envelope = Envelope("", [Recipient("s@s.test")], world.clock.now())
            child = await world.cleanup.inject(Origin(door), envelope, [MESSAGE], None)
            (found,) = [m for m in await world.queued() if m.queue_id == child.queue_id]
            assert [r.address for r in found.envelope.recipients] == ["s@s.test"]


async def test_a_key_without_domain_is_found_for_myorigin_too() -> None:
    aliases, canonical = ("inline:{ {root=admin@far.test} }",), ("inline:{ {s=boss} }",)
    async with World(virtual_alias_maps=aliases, canonical_maps=canonical, mydestination=()) as world:
        envelope = Envelope("s@example.test", [Recipient("root"), Recipient("root@else.test")], world.clock.now())
        found = await world.cleanup._envelopes.rewrite(envelope)
        assert found.sender == "boss@example.test"
        assert [r.address for r in found.recipients] == ["admin@far.test", "root@else.test"]


async def test_automatic_copies_go_where_canonical_maps_say() -> None:
    async with World(always_bcc="archive", recipient_canonical_maps=("inline:{ {archive=keep@far.test} }",)) as world:
        _, message = await put(world, REMOTE, MESSAGE)
        assert message is not None
        assert [r.address for r in message.envelope.recipients] == ["bob@r.test", "keep@far.test"]


async def test_two_automatic_copies_for_one_address_are_one() -> None:
    canonical = ("inline:{archive@old.test=keep@new.test}",)
    bcc = ("inline:{bob@r.test=keep@new.test}",)
    async with World(always_bcc="archive@old.test", recipient_bcc_maps=bcc, canonical_maps=canonical) as world:
        _, message = await put(world, REMOTE, MESSAGE)
        assert message is not None
        found = [(r.address, r.original) for r in message.envelope.recipients]
        assert found == [("bob@r.test", ""), ("keep@new.test", "")]


async def test_the_original_recipient_of_smtp_is_what_the_client_said() -> None:
    async with World(recipient_canonical_maps=("inline:{bob@r.test=carol@new.test}",)) as world:
        for origin, said in ((REMOTE, "bob@r.test"), (LOCAL, "carol@new.test")):
            _, message = await put(world, origin, MESSAGE)
            assert message is not None
            assert message.envelope.recipients[0].dsn_orig_rcpt == f"rfc822;{said}"


async def test_a_result_longer_than_the_limit_is_unreasonable() -> None:
    async with World(
        virtual_alias_maps=("inline:{ {bob@r.test=robert@far.test} }",), virtual_alias_address_length_limit=10
    ) as world:
        with pytest.raises(LookupFailedError):
            await put(world, REMOTE, MESSAGE)


async def test_the_time_of_the_delay_notice_is_stored_with_the_message() -> None:
    async with World(delay_warning_time=14400.0) as world:
        _, message = await put(world, REMOTE, MESSAGE)
        assert message is not None
        assert message.envelope.warn_time == int(message.envelope.arrival + 14400)
    async with World() as world:
        _, message = await put(world, REMOTE, MESSAGE)
        assert message is not None and message.envelope.warn_time == 0.0


async def test_a_message_that_cannot_be_begun_keeps_neither_file_nor_descriptor(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises((ValueError, OverflowError, OSError)):
            await world.cleanup.open(LOCAL, Envelope("s@s.test", [Recipient("bob")], -9e15))
    assert len(os.listdir("/proc/self/fd")) - before < 10
    assert list((world.queue / "incoming").iterdir()) == []


@pytest.mark.parametrize("origin", [REMOTE, LOCAL], ids=["smtpd", "pickup"])
@pytest.mark.parametrize("sender", ["MAILER-DAEMON", "mailer-daemon@example.test", "Mailer-Daemon@Example.Test"])
async def test_the_name_of_the_null_sender_here_is_the_null_sender(sender: str, origin: Origin, world: World) -> None:
    for given, stored in ((sender, ""), ("mailer-daemon@elsewhere.test", "mailer-daemon@elsewhere.test")):
        intake = await world.cleanup.open(origin, Envelope(given, [Recipient("bob@r.test")], world.clock.now()))
        intake.write(MESSAGE)
        assert (await intake.commit()).is_positive
        (message,) = await world.queued()
        assert message.envelope.sender == stored


async def test_only_the_resent_headers_of_rfc_5322_make_a_message_a_resent_one(world: World) -> None:
    for header, resent in ((b"Resent-Subject", False), (b"Resent-X", False), (b"Resent-Reply-To", True)):
        _, message = await put(world, LOCAL, header + b": x\nTo: b\n\nbody\n")
        assert message is not None
        assert (message.header("Resent-From") is not None) == resent
        assert (message.header("From") is None) == resent


async def test_others_have_a_turn_while_a_long_list_of_recipients_is_rewritten(world: World) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    intake = await world.cleanup.open(
        LOCAL, Envelope("s@s.test", [Recipient(f"u{n}@r.test") for n in range(20_000)], world.clock.now())
    )
    intake.abort()
    task.cancel()
    assert turns >= 20
