"""Who is told what: notices on a real queue, through the real door."""

import asyncio
import email
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from mta.bounce.bounce import BounceSettings, BounceWriter
from mta.cleanup.cleanup import Cleanup
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock
from mta.deliver.request import Result
from mta.envelope import NOTIFY_DEFAULT, Envelope, Notify, Recipient, Ret
from mta.fsio.fsio import Fsio
from mta.lookup.open import open_tables
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.queue.api import Draft, Job, Queue, QueueError
from mta.queue.store import SpoolStore
from mta.queue.store_spool import StoreSettings, create_spool
from mta.smtp.reply import Reply
from tests.unit.local_fixture import Site
from tests.unit.test_local import Lines

REFUSED = Result(
    Reply(550, "5.1.1", "no such user"),
    "host mx[10.0.0.1] said: 550 5.1.1 no such user (in reply to RCPT TO command)",
    relay="mx[10.0.0.1]:25",
    diagnostic="smtp; 550 5.1.1 no such user",
    remote_mta="mx",
)
DEFERRED = Result(Reply(450, "4.2.0", "later"), "host mx[10.0.0.1] said: 450 4.2.0 later")
SENT = Result(Reply(250, "2.0.0", "ok"), "delivered to mailbox", relay="local")
DELIVERED_BODY = b"Hello\n.dot\n"


class Office:
    """A queue with its door and its bounce writer."""

    def __init__(self, directory: Path, main_cf: str = "") -> None:
        site = Site(directory, main_cf=main_cf)
        config = site.config
        self.sink, self.clock, self.fsio = Lines(), Clock(), Fsio(aio=False)
        self.log = Maillog(MaillogSettings("", "postfix", "mx.test"), self.clock, self.sink)
        settings = config.fill(StoreSettings)
        create_spool(settings, self.fsio, owner=None)
        self.store = SpoolStore(settings, self.fsio, self.clock, self.log)
        self.cleanup = Cleanup(
            config.fill(CleanupSettings), self.store, site.router,
            lambda spec: open_tables(spec, site.world.context), self.log, self.clock,
        )  # fmt: skip
        self.writer = BounceWriter(config.fill(BounceSettings), self.cleanup, self.store, self.log, self.clock)

    async def job(
        self, sender: str = "alice@mx.test", body: bytes = DELIVERED_BODY, header: bytes = b"", **fields: object
    ) -> Job:
        """A claimed message to x@rej.test and y@rej.test."""
        recipients = [Recipient("x@rej.test", dsn_orig_rcpt="rfc822;x@rej.test"), Recipient("y@rej.test")]
        envelope = Envelope(sender, recipients, self.clock.now(), envelope_id="env1")
        envelope = replace(envelope, **fields)  # type: ignore[arg-type]  # fields by name
        draft = await self.store.draft(envelope.arrival)
        draft.envelope(envelope)
        draft.write(b"Subject: test\nFrom: alice@mx.test\n" + header + b"\n" + body)
        await draft.commit()
        job = await self.store.claim(draft.queue_id)
        assert job is not None
        return job

    async def read(self, draft: Draft | None) -> tuple[Envelope, Message, bytes]:
        """Release a child and claim it: envelope, parsed message, bytes."""
        assert draft is not None
        assert await self.store.claim(draft.queue_id) is None  # born held
        await self.store.release([draft])
        return await self.claim(draft.queue_id)

    async def claim(self, queue_id: str) -> tuple[Envelope, Message, bytes]:
        job = await self.store.claim(queue_id)
        assert job is not None
        raw = b"".join([chunk async for chunk in self.store.content(job)])
        return job.envelope, email.message_from_bytes(raw), raw

    async def others(self, *known: Draft | Job | None) -> list[str]:
        """Ids in the queue that are not these."""
        ids = {k.queue_id for k in known if k is not None}
        return [i for i, _ in await self.store.scan(Queue.INCOMING) if i not in ids]

    def lines(self) -> list[str]:
        self.log.flush()
        return [line.partition("]: ")[2] for line in self.sink.lines if "/bounce[" in line]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    yield office
    office.fsio.close()


def about(job: Job, result: Result, notify: Notify = NOTIFY_DEFAULT) -> list[tuple[Recipient, Result]]:
    for recipient in job.todo:
        recipient.notify = notify
    return [(recipient, result) for recipient in job.todo]


async def test_others_have_their_turns_while_a_report_about_many_is_written(office: Office) -> None:
    sizes: set[int] = set()

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            sizes.update(os.stat(entry).st_size for entry in os.scandir(f"{office.store.spool.root}/incoming"))

    job = await office.job(recipients=[Recipient(f"{n}@rej.test") for n in range(3000)])
    beside = asyncio.ensure_future(other())
    child = await office.writer.bounce(job, about(job, REFUSED))
    beside.cancel()
    assert len(sizes) > 5, "it was seen to grow"
    _, _, raw = await office.read(child)
    assert raw.count(b"\nFinal-Recipient: ") == 3000


async def test_a_failed_message_comes_back_to_its_sender_with_the_null_sender(office: Office) -> None:
    job = await office.job()
    draft = await office.writer.bounce(job, about(job, REFUSED))
    envelope, message, raw = await office.read(draft)
    assert (envelope.sender, [r.address for r in envelope.recipients]) == ("", ["alice@mx.test"])
    assert message["Subject"] == "Undelivered Mail Returned to Sender"
    assert message["To"] == "alice@mx.test" and message["Message-Id"]
    assert raw.startswith(b"Received: by mx.test (aiomta)\n")
    assert b"Original-Envelope-Id: env1\n" in raw and b"Diagnostic-Code: smtp; 550 5.1.1 no such user\n" in raw
    assert b"Content-Type: message/rfc822\n" in raw and b"\n\nHello\n.dot\n\n--" in raw
    assert draft is not None
    assert office.lines() == [f"{job.queue_id}: sender non-delivery notification: {draft.queue_id}"]


async def test_a_bounce_is_a_child_that_names_the_recipients_it_settles(office: Office, tmp_path: Path) -> None:
    job = await office.job()
    second = about(job, REFUSED)[1]
    draft = await office.writer.bounce(job, [second])
    assert draft is not None
    (path,) = (tmp_path / "spool").rglob(draft.queue_id)
    record = path.read_bytes()
    assert b"parent_kind=bounce" in record and f"parent_uid={job.uid}".encode() in record
    assert f"parent_rcpts={second[0].offset}".encode() in record


@pytest.mark.parametrize(
    ("notify", "told"),
    [(Notify(0), True), (Notify.FAILURE, True), (Notify.NEVER, False), (Notify.DELAY, False), (Notify.SUCCESS, False)],
)
async def test_a_bounce_is_sent_as_notify_allows(office: Office, notify: Notify, *, told: bool) -> None:
    job = await office.job()
    assert (await office.writer.bounce(job, about(job, REFUSED, notify)) is not None) is told


@pytest.mark.parametrize(("ret", "size"), [(Ret.HDRS, 10), (Ret(0), 60_000), (Ret.FULL, 60_000)])
async def test_the_body_is_left_out_when_asked_or_too_large(office: Office, ret: Ret, size: int) -> None:
    job = await office.job(body=b"x" * 70 + b"\n" + b"y\n" * size, ret=ret)
    _, _, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert b"Content-Type: text/rfc822-headers\n" in raw and b"Subject: test\n" in raw
    assert b"xxxx" not in raw and len(raw) < 5000


async def test_an_expired_recipient_is_reported_as_failed_with_its_last_status(office: Office) -> None:
    job = await office.job()
    _, _, raw = await office.read(await office.writer.bounce(job, about(job, DEFERRED)))
    assert b"Action: failed\nStatus: 4.2.0\n" in raw


async def test_a_bounce_is_never_bounced(office: Office) -> None:
    job = await office.job(sender="")
    assert await office.writer.bounce(job, about(job, REFUSED)) is None
    assert await office.writer.delay_notice(job, about(job, DEFERRED)) is None
    assert await office.writer.success_notice(job, about(job, SENT, Notify.SUCCESS)) is None
    assert await office.others(job) == []


@pytest.mark.parametrize("wanted", ["2bounce", "bounce"])  # postconf(5): bounce implies 2bounce
async def test_a_bounce_that_fails_goes_whole_to_the_postmaster_when_he_wants_it(tmp_path: Path, wanted: str) -> None:
    office = Office(tmp_path, f"notify_classes = {wanted}\n")
    job = await office.job(sender="")
    envelope, message, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert envelope.sender == "double-bounce@mx.test"
    assert [r.address for r in envelope.recipients] == ["postmaster@mx.test"]
    assert message["Subject"] == "Postmaster Copy: Undelivered Mail"
    assert b"Content-Description: Undelivered Message\nContent-Type: message/rfc822\n" in raw
    assert b"Hello" in raw, "what failed there is in the text of the report"
    assert "postmaster non-delivery notification" in office.lines()[0]
    office.fsio.close()


async def test_a_bounce_that_fails_and_is_large_goes_to_the_postmaster_as_its_header(tmp_path: Path) -> None:
    office = Office(tmp_path, "notify_classes = 2bounce\nbounce_size_limit = 1\n")
    job = await office.job(sender="")
    _, _, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert b"text/rfc822-headers" in raw and b"Hello" not in raw
    office.fsio.close()


async def test_nobody_is_told_that_a_bounce_is_late(tmp_path: Path) -> None:
    office = Office(tmp_path, "notify_classes = 2bounce, bounce, delay\n")
    job = await office.job(sender="")
    assert await office.writer.delay_notice(job, about(job, DEFERRED)) is None
    assert await office.others(job) == []
    office.fsio.close()


async def test_a_double_bounce_that_fails_is_dropped_with_one_line(tmp_path: Path) -> None:
    office = Office(tmp_path, "notify_classes = 2bounce, bounce, delay\n")
    job = await office.job(sender="Double-Bounce@mx.test")
    assert await office.writer.bounce(job, about(job, REFUSED)) is None
    assert await office.writer.delay_notice(job, about(job, DEFERRED)) is None
    assert await office.others(job) == []
    assert office.lines() == [f"warning: {job.queue_id}: undeliverable postmaster notification discarded"]
    office.fsio.close()


async def test_the_postmaster_gets_copies_of_what_he_asked_for(tmp_path: Path) -> None:
    office = Office(tmp_path, "notify_classes = bounce, delay\n")
    job = await office.job()
    child = await office.writer.bounce(job, about(job, REFUSED))
    (copy,) = await office.others(job, child)
    envelope, message, raw = await office.claim(copy)
    assert envelope.sender == "double-bounce@mx.test" and message["Subject"] == "Postmaster Copy: Undelivered Mail"
    assert b"text/rfc822-headers" in raw and b"Hello" not in raw
    assert office.lines()[1] == f"{job.queue_id}: postmaster non-delivery notification: {copy}"
    office.fsio.close()


@pytest.mark.parametrize("kind", ["bounce", "delay"])
async def test_a_notice_whose_copy_cannot_be_stored_is_taken_back_so_that_the_next_try_is_the_only_one(
    tmp_path: Path, kind: str
) -> None:
    office = Office(tmp_path, "notify_classes = bounce, delay\n")
    job = await office.job()
    flushes = 0

    def full_after_one(operation: str, target: str | int) -> None:
        nonlocal flushes
        flushes += operation == "open_excl"
        if operation == "open_excl" and flushes == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    office.fsio.hook = full_after_one
    write = office.writer.bounce if kind == "bounce" else office.writer.delay_notice
    with pytest.raises(QueueError):
        await write(job, about(job, REFUSED))
    assert await office.others(job) == []
    child = await write(job, about(job, REFUSED))
    assert len(await office.others(job, child)) == 1
    office.fsio.close()


async def test_a_late_message_is_a_warning_with_its_header(tmp_path: Path) -> None:
    office = Office(tmp_path, "delay_warning_time = 4h\n")
    job = await office.job()
    envelope, message, raw = await office.read(await office.writer.delay_notice(job, about(job, DEFERRED)))
    assert envelope.sender == "" and message["Subject"] == "Delayed Mail (still being retried)"
    assert b"For more than 4 hours" in raw and b"until it is 5 days old" in raw
    assert b"Action: delayed\nStatus: 4.2.0\n" in raw and b"Will-Retry-Until: " in raw
    assert b"text/rfc822-headers" in raw and b"Hello" not in raw
    assert "sender delay notification" in office.lines()[0]
    office.fsio.close()


@pytest.mark.parametrize(("notify", "told"), [(Notify.SUCCESS, True), (Notify(0), False), (Notify.FAILURE, False)])
async def test_a_success_is_reported_only_on_request(office: Office, notify: Notify, *, told: bool) -> None:
    job = await office.job()
    draft = await office.writer.success_notice(job, about(job, SENT, notify))
    assert (draft is not None) is told
    if told:
        _, message, raw = await office.read(draft)
        assert message["Subject"] == "Successful Mail Delivery Report"
        assert b"Action: delivered\nStatus: 2.0.0\n" in raw
        assert b"Diagnostic-Code: X-aiomta; delivery via local: delivered to mailbox\n" in raw
        assert "sender delivery status notification" in office.lines()[0]


async def test_eight_bit_text_is_declared_and_smtputf8_only_where_it_is_needed(office: Office) -> None:
    job = await office.job(body="böse\n".encode())
    _, _, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert raw.count(b"Content-Transfer-Encoding: 8bit\n") == 2 and b"message/global" not in raw
    job = await office.job(smtputf8=True)
    envelope, _, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert not envelope.smtputf8 and b"message/global" not in raw
    job = await office.job(sender="älice@mx.test", smtputf8=True, header="X-Note: grün\n".encode())
    envelope, _, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert envelope.smtputf8 and envelope.recipients[0].address == "älice@mx.test"
    assert b"Content-Type: message/global-delivery-status\n" in raw and b"Content-Type: message/global\n" in raw


async def test_a_damaged_original_is_left_out_and_the_sender_hears_of_the_failure_all_the_same(
    office: Office, tmp_path: Path
) -> None:
    job = await office.job(body=b"0123456789\n" * 100)
    (path,) = (tmp_path / "spool").rglob(job.queue_id)
    damaged = path.read_bytes().replace(b"0123456789", b"0123x56789", 1)
    path.write_bytes(damaged)
    _, message, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert message.is_multipart() and len(message.get_payload()) == 2
    assert b"Diagnostic-Code: smtp; 550 5.1.1 no such user\n" in raw and b"0123x" not in raw
    assert any("notice without the original" in line for line in office.lines())


async def test_a_damaged_original_is_left_out_also_when_only_its_header_goes_back(
    office: Office, tmp_path: Path
) -> None:
    job = await office.job(body=b"x-pad: 0123456789\n" * 5000, ret=Ret.HDRS)
    (path,) = (tmp_path / "spool").rglob(job.queue_id)
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123x56789", 1))
    _, message, raw = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert message.is_multipart() and len(message.get_payload()) == 2
    assert b"0123x" not in raw


async def test_two_notices_about_one_message_have_different_boundaries(office: Office) -> None:
    job = await office.job()
    first = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    second = await office.read(await office.writer.bounce(job, about(job, REFUSED)))
    assert first[1].get_boundary() != second[1].get_boundary()
