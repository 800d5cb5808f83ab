"""A sender that names the recipient, from `sendmail -XV` to the delivery and the bounce."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mta.deliver.request import DeliveryRequest, Expansion, Result
from mta.envelope import VERP, Envelope, Recipient, verp_sender, wants_verp
from mta.queue.api import Queue
from mta.smtp.reply import Reply
from mta.submit.options import UsageError, parse_command
from mta.submit.prepare import Caller, Submission, VerpSettings
from sendmail_compat.maildrop import record
from tests.sendmail.world import World as Door
from tests.unit.test_bounce import Office
from tests.unit.test_pickup import drop, message
from tests.unit.test_qmgr import OK, World, simulate

MESSAGE = b"To: bob@r.test\nSubject: s\n\nbody\n"


@pytest.mark.parametrize(("sender", "recipient", "made"), [
    ("list@s.test", Recipient("bob@r.test"), "list+bob=r.test@s.test"),
    ("list@s.test", Recipient("real@other.test", original="bob@r.test"), "list+bob=r.test@s.test"),
    ("list", Recipient("bob"), "list+bob"),
    ("a@b@s.test", Recipient("c@d@r.test"), "a@b+c@d=r.test@s.test"),
])  # fmt: skip
def test_the_recipient_as_it_was_given_stands_before_the_senders_domain(
    sender: str, recipient: Recipient, made: str
) -> None:
    assert verp_sender(Envelope(sender, [recipient], 0.0, attributes={VERP: "+="}), recipient) == made


@pytest.mark.parametrize("value", ["", "+", "+=-"])
def test_without_two_delimiters_or_a_sender_there_is_none(value: str) -> None:
    assert not wants_verp(Envelope("list@s.test", [], 0.0, attributes={VERP: value}))
    assert not wants_verp(Envelope("", [], 0.0, attributes={VERP: "+="}))


@pytest.mark.parametrize(("word", "stored"), [("-XV", "#+"), ("-XV-=", "-="), ("-X/tmp/log", None), ("-i", None)])
def test_the_option_chooses_the_delimiters(word: str, stored: str | None) -> None:
    verp = VerpSettings("#+", "-=+#")
    submission = Submission(parse_command(["sendmail", word, "bob"], uid=1), Caller(1, "al"), verp)
    assert submission.envelope(0.0).attributes.get(VERP) == stored


@pytest.mark.parametrize(("words", "text"), [
    (("-XVab",), "-V requires two characters from -=+"),
    (("-XV", "-f", ""), "(1): -V option requires non-null sender address"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_the_words_of_postfix(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(UsageError) as error:
        Submission(parse_command(["sendmail", *words, "bob"], uid=1), Caller(1, "al"))
    assert (error.value.status, error.value.lines) == (64, (f"sendmail: fatal: {text}",))


async def test_it_is_the_same_by_the_daemon_and_by_maildrop_and_stands_where_postfix_has_it() -> None:
    async with Door() as door:
        command = ["-XV", "-i", "-f", "list@s.test", "bob@r.test"]
        assert (await door.run(command, MESSAGE)).status == 0
        ((queue_id, _),) = await door.store.scan(Queue.INCOMING)
        data = (door.queue / "incoming" / queue_id).read_bytes()
        assert record(b"S", b"list@s.test") + record(b"V", b"+=") in data
        (found,) = await door.queued()
        assert found.envelope.attributes[VERP] == "+="
        await door.stop()
        assert (await door.run(command, MESSAGE)).status == 0
        (name,) = os.listdir(door.queue / "maildrop")
        data = (door.queue / "maildrop" / name).read_bytes()
        assert record(b"S", b"list@s.test") + record(b"V", b"+=") in data and b"verp" not in data
        await door.start()
        assert await door.pickup.scan() == 1
        (found,) = await door.queued()
        assert found.envelope.attributes[VERP] == "+="


async def test_of_a_file_in_maildrop_only_permitted_delimiters_count() -> None:
    async with Door() as door:
        for i, value in enumerate((b"-+", b"ab", b"+")):
            whole = message(sender=b"list@s.test").replace(
                record(b"S", b"list@s.test"), record(b"S", b"list@s.test") + record(b"V", value)
            )
            drop(door, whole, f"V{i}")
        assert await door.pickup.scan() == 3
        found = [m.envelope.attributes.get(VERP, "") for m in await door.queued()]
        assert sorted(found) == ["", "", "-+"]


def test_each_recipient_is_delivered_by_itself_with_its_own_sender_and_has_its_own_bounce(tmp_path: Path) -> None:
    no = Reply(550, "5.1.1", "no")
    senders: list[tuple[str, str]] = []

    async def story(w: World) -> None:
        deliver = w.agent.deliver

        async def watched(request: DeliveryRequest) -> None:
            (recipient,) = request.recipients
            senders.append((recipient.address, request.envelope.sender))
            await deliver(request)

        w.agent.deliver = watched  # type: ignore[method-assign]  # to see the request
        await w.submit("x@b.test", "y@b.test", "z@b.test", sender="list@a.test", attributes={VERP: "+="})  # type: ignore[arg-type]  # a field
        await w.clock.sleep(1)
        ours = sorted(pair for pair in senders if pair[1].startswith("list"))
        assert ours == [(f"{c}@b.test", f"list+{c}=b.test@a.test") for c in "xyz"]
        assert sorted(w.notices.bounced) == [("x@b.test",), ("y@b.test",)]

    simulate(tmp_path, lambda r, n: Result(no, "no") if r.address[0] in "xy" else OK, story)


@pytest.mark.parametrize("room", [5, 1000])
@pytest.mark.parametrize("aliases", [False, True])
def test_hundreds_of_children_do_not_take_all_descriptors(tmp_path: Path, aliases: bool, room: int) -> None:
    def fate(r: Recipient, n: int) -> Result:
        if r.address[0] != "u":
            return OK
        if aliases:
            expansion = Expansion((f"x{r.address}",), "s@a.test", "")
            return Result(Reply(250, "2.0.0", ""), "", "local", expansion=expansion)
        return Result(Reply(550, "5.1.1", "no"), "no")

    async def story(w: World) -> None:
        fields: dict[str, Any] = {} if aliases else {"attributes": {VERP: "+="}}
        queue_id = await w.submit(*(f"u{n}@b.test" for n in range(200)), **fields)
        before, most = len(os.listdir("/proc/self/fd")), 0

        def watch(operation: str, _: str | int) -> None:
            nonlocal most
            if operation == "open_excl":
                used = len(os.listdir("/proc/self/fd")) - before
                if used >= room:
                    raise OSError(errno.EMFILE, "Too many open files")
                most = max(most, used)

        w.fsio.hook = watch
        await w.clock.sleep(400_000)
        assert f"{queue_id}: removed" in w.lines()
        assert len(w.children if aliases else set(w.notices.bounced)) == 200
        assert most < 50

    simulate(tmp_path, fate, story, recipients=1)


@pytest.mark.parametrize(("disabled", "to"), [
    (False, "list+x=rej.test@mx.test"), (True, "list@mx.test"),
])  # fmt: skip
async def test_the_bounce_goes_to_the_sender_that_names_the_recipient(tmp_path: Path, disabled: bool, to: str) -> None:
    office = Office(tmp_path, f"disable_verp_bounces = {'yes' if disabled else 'no'}\n")
    job = await office.job("list@mx.test", attributes={VERP: "+="})
    assert office.writer.one_by_one(job) is not disabled
    failed = [(job.todo[0], Result(Reply(550, "5.1.1", "no"), "no"))]
    envelope, notice, _ = await office.read(await office.writer.bounce(job, failed))
    assert [r.address for r in envelope.recipients] == [to] and notice["To"] == to
    late = [(job.todo[0], Result(Reply(450, "4.1.1", "no"), "no"))]
    envelope, _, _ = await office.read(await office.writer.delay_notice(job, late))
    assert [r.address for r in envelope.recipients] == ["list@mx.test"], "a warning goes to the sender itself"
    office.fsio.close()
