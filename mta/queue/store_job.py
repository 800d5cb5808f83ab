"""What may be done with a message that is claimed: its content read, recipients marked, the attempt ended.

Order of a settlement, and why: children are durable but locked -> marks of the parent durable (flush_marks)
-> children unlocked (release) -> parent removed or deferred.  A mark is written when a recipient is done and
made durable before the unlink, because an unlink that is not flushed can undo itself in a power cut.

State: of each message, what its Job's handle holds (Claimed).

See also: mta/queue/store.py (how it comes to be claimed), mta/INTERNALS.md "settle"
"""

import contextlib
import errno
import stat
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import field

from mta.clock import Clock
from mta.deliver.request import CorruptContentError
from mta.envelope import Recipient
from mta.fsio.fsio import Fsio
from mta.queue import queue_file
from mta.queue.api import FencedError, Job, Queue, QueueError, Reason
from mta.queue.content_reader import ContentReader, check_content
from mta.queue.queue_reader import DamagedError, QueueFile
from mta.queue.reasons import decode_reasons, encode_reasons
from mta.queue.store_space import Space
from mta.queue.store_spool import CORRUPT_MODE, READY, WRITING, QueueLog, Spool, StoreSettings, queue_error
from mta.record import dataclass

READ_SIZE = 65536  # bytes read at a time: twice as much after decoding and with CRLF is one chunk
REASONS_LIMIT = 4 << 20  # bytes of defer/ID
MANY = 1000  # reasons that are written in a thread: 20 ms
UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)  # what a device or file system says of a damaged file


@dataclass(slots=True)
class Claimed:
    """What the store keeps of a job: the locked descriptor and places in the file."""

    fd: int
    file: QueueFile
    path: str
    mtime: float
    warn_time: float  # as it stands in the file
    marks: list[tuple[int, bytes]] = field(default_factory=list)  # in place, not yet known to be durable
    failed: OSError | None = None
    damage: str = ""  # what was wrong with the content, as it was read


class JobStore:
    """The part of QueueStore that takes a Job."""

    settings: StoreSettings
    fsio: Fsio
    clock: Clock
    log: QueueLog
    spool: Spool
    space: Space

    def _claimed(self, job: Job) -> Claimed:
        if not isinstance(job.handle, Claimed):
            raise FencedError(f"{job.queue_id}: not held any more")
        return job.handle

    def _let_go(self, job: Job, held: Claimed) -> None:
        job.handle = None
        self._close(held.fd)

    def _close(self, fd: int) -> None:
        if fd >= 0:
            try:
                self.fsio.close_fd(fd)
            except OSError as error:
                self.log.warning("qmgr", f"close: {error.strerror}")

    def to_corrupt(self, queue_id: str, queue: str, path: str, fd: int, why: str) -> None:
        """Put a damaged file aside, never over another one; FencedError when it is gone."""
        target, n = f"{self.spool.root}/corrupt/{queue_id}", 0
        while self.spool.exists(target):
            n += 1
            target = f"{self.spool.root}/corrupt/{queue_id}_{n}"
        mode = READY
        if fd >= 0:
            with contextlib.suppress(OSError):
                mode = stat.S_IMODE(self.fsio.fstat(fd).st_mode)
                self.fsio.fchmod(fd, CORRUPT_MODE)
        try:
            self.fsio.rename(path, target)
        except FileNotFoundError:
            if fd >= 0:  # on hold it must stay a message
                with contextlib.suppress(OSError):
                    self.fsio.fchmod(fd, mode)
            raise FencedError(f"{queue_id}: not there any more") from None
        self.log.warning(
            "qmgr", f'{queue_id}: damaged queue file ({why}): saving corrupt file "{queue_id}" from queue "{queue}" '
            'to queue "corrupt"'
        )  # fmt: skip

    # -- content ------------------------------------------------------------------------------------

    async def content(self, job: Job) -> AsyncIterator[bytes]:
        """See QueueStore.  QueueError when it cannot be read now."""
        held = self._claimed(job)
        crc, damage = 0, ""
        reader = ContentReader(held.file.content_offset)
        while not reader.done:
            if job.handle is not held:  # let go meanwhile: the descriptor may be another file's by now
                raise FencedError(f"{job.queue_id}: not held any more")
            try:
                text = reader.feed(await self.fsio.read(held.fd, READ_SIZE, reader.offset))
            except DamagedError as error:
                damage = str(error)
                break
            except OSError as error:
                if error.errno not in UNREADABLE:  # our trouble, not the file's
                    raise queue_error(error, f"{job.queue_id}: read") from error
                damage = str(error)
                break
            crc = zlib.crc32(text, crc)
            if text:
                yield text
        if not damage and held.file.content_crc not in (None, crc):
            damage = "checksum of the content"
        if damage:
            held.damage = damage
            raise CorruptContentError(f"{job.queue_id}: {damage}")

    async def header(self, job: Job, limit: int) -> bytes:
        """See QueueStore."""
        out, size = [], 0
        async for chunk in self.content(job):
            out.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
        return b"".join(out)[:limit]

    # -- marks --------------------------------------------------------------------------------------

    async def begin_attempt(self, job: Job) -> None:
        """See QueueStore.  In the page cache when it returns, which survives whatever a message can do to us."""
        self._count_crashes(self._claimed(job), min(job.crashes + 1, queue_file.MAX_CRASHES))

    def _count_crashes(self, held: Claimed, count: int) -> None:
        if held.file.crashes_offset and held.file.crashes != count:
            try:
                self.fsio.pwrite(held.fd, b"%d" % count, held.file.crashes_offset)
            except OSError as error:
                raise queue_error(error, "attempt not recorded") from error
            held.file.crashes = count

    def mark(self, job: Job, recipient: Recipient) -> None:
        """See QueueStore.  A disk error is kept and raised by flush_marks."""
        recipient.state = "D"
        if recipient.offset:
            self._write_mark(self._claimed(job), recipient.offset, b"D")

    def _write_mark(self, held: Claimed, offset: int, data: bytes) -> None:
        held.marks.append((offset, data))
        try:
            self.fsio.pwrite(held.fd, data, offset)
        except OSError as error:
            held.failed = error

    async def flush_marks(self, job: Job) -> None:
        """See QueueStore.  After an error the marks are written again: the kernel has dropped the pages."""
        held = self._claimed(job)
        if held.warn_time and not job.envelope.warn_time:
            held.warn_time = 0.0
            self._write_mark(held, held.file.warn_offset + queue_file.WARN_DATA, queue_file.warn_digits(0))
        if not held.marks:
            return
        flushed = set(held.marks)
        try:
            if held.failed is not None:
                held.failed = None
                for offset, data in held.marks:
                    self.fsio.pwrite(held.fd, data, offset)
            await self.fsio.flush_data(held.fd)
        except OSError as error:
            held.failed = error
            self.space.failed(error)
            raise queue_error(error, f"{job.queue_id}: marks not durable") from error
        held.marks = [m for m in held.marks if m not in flushed]  # others may have come meanwhile

    # -- the end of an attempt ----------------------------------------------------------------------

    async def finish(self, job: Job) -> None:
        """See QueueStore.  Taking the name away is the mark of all recipients; its flush follows within SOON."""
        held = self._claimed(job)
        try:
            directory = self.fsio.directory(held.path.rpartition("/")[0])  # first: it may need a descriptor
            self._remove_reasons(job, held)
            self.fsio.unlink(held.path)
            self.fsio.flush_soon(directory, self._removed)
        except FileNotFoundError:
            self._check_gone(job, held)
            await self.flush_marks(job)  # on hold only they say who has it
            self._let_go(job, held)
            raise FencedError(f"{job.queue_id}: not there any more") from None
        except OSError as error:
            raise queue_error(error, f"{job.queue_id}: remove") from error
        self._let_go(job, held)

    def _check_gone(self, job: Job, held: Claimed) -> None:
        """QueueError when it is where it was and its path leads elsewhere: the spool was moved, or something is
        mounted over it.  It is ours when the spool is back."""
        try:
            self.fsio.entry(self.fsio.directory(held.path.rpartition("/")[0]), job.queue_id)
        except OSError:
            return
        raise QueueError(f"{job.queue_id}: {self.spool.root} was moved away, or something is mounted over it")

    def _removed(self, error: OSError | None) -> None:
        if error is not None:
            self.space.failed(error)

    def _remove_reasons(self, job: Job, held: Claimed) -> None:
        """Drop defer/ID, and what a Postfix may have left.  A message of ours in incoming never has any."""
        names: tuple[str, ...] = ("defer",) if job.origin_queue is Queue.DEFERRED else ()
        if not held.file.uid:
            names = ("defer", "bounce", "trace")
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.fsio.unlink(self.spool.path(name, job.queue_id))

    async def defer(self, job: Job, next_attempt: float, reasons: Mapping[int, Reason]) -> None:
        """See QueueStore.  A message whose content is damaged, at a second look too, goes to CORRUPT instead."""
        held = self._claimed(job)
        await self.flush_marks(job)
        try:
            if held.damage:
                await self._second_look(job, held)
            if held.damage:
                self.to_corrupt(job.queue_id, Queue.ACTIVE, held.path, held.fd, f"content: {held.damage}")
                self._let_go(job, held)
                return
            self._count_crashes(held, 0)
            await self._write_reasons(job, reasons)
            self.fsio.utime(held.fd, next_attempt)
        except FencedError:
            self._let_go(job, held)
            raise
        except OSError as error:
            raise queue_error(error, f"{job.queue_id}: defer") from error
        self._move_away(job, held, Queue.DEFERRED)

    async def _second_look(self, job: Job, held: Claimed) -> None:
        """Was it the device or the file that was wrong?  Content that can be read now is as good as any."""
        first, held.damage = held.damage, await self.fsio.run(self._damage, held)
        if not held.damage:
            self.log.warning("qmgr", f"{job.queue_id}: content read wrong once ({first}), not damaged as far as known")

    def _damage(self, held: Claimed) -> str:
        try:
            check_content(lambda offset, size: self.fsio.pread(held.fd, size, offset), held.file)
        except DamagedError as error:
            return str(error)
        except OSError as error:
            return str(error) if error.errno in UNREADABLE else ""
        return ""

    async def _write_reasons(self, job: Job, reasons: Mapping[int, Reason]) -> None:
        todo = job.todo
        if any(r.offset not in reasons for r in todo):  # not tried this time: what was said last time stands
            reasons = {**await self.reasons(job), **reasons}
        known = [(r, reasons[r.offset]) for r in todo if r.offset in reasons]
        if len(known) > MANY:
            await self.fsio.run(self._store_reasons, job.queue_id, known)
        else:
            self._store_reasons(job.queue_id, known)

    def _store_reasons(self, queue_id: str, known: Sequence[tuple[Recipient, Reason]]) -> None:
        data = encode_reasons(known, compatible=self.settings.backwards_bounce_logfile_compatibility)
        path = self.spool.path("defer", queue_id)
        try:
            self.fsio.write_file(path, data, WRITING)
        except FileNotFoundError:
            self.spool.make_hashed("defer", queue_id)
            self.fsio.write_file(path, data, WRITING)

    def _move_away(self, job: Job, held: Claimed, queue: Queue) -> None:
        try:
            self.spool.move(held.path, queue, job.queue_id)
        except FencedError:
            self._check_gone(job, held)
            with contextlib.suppress(OSError):
                if not self.fsio.fstat(held.fd).st_nlink:  # deleted, and not on hold: nobody will ask why it waits
                    self.fsio.unlink(self.spool.path("defer", job.queue_id))
            self._let_go(job, held)
            raise
        except OSError as error:
            raise queue_error(error, f"{job.queue_id}: move to {queue}") from error
        self.fsio.unlock(held.fd)
        self._let_go(job, held)

    async def hold(self, job: Job) -> None:
        """See QueueStore.  Crashes are forgotten, so that an administrator's release gives it new tries."""
        held = self._claimed(job)
        await self.flush_marks(job)
        self._count_crashes(held, 0)
        self._move_away(job, held, Queue.HOLD)

    async def give_back(self, job: Job, *, crashed: bool = False) -> None:
        """See QueueStore."""
        held = self._claimed(job)
        await self.flush_marks(job)
        if not crashed:
            self._count_crashes(held, 0)
        queue = Queue.DEFERRED if job.origin_queue is Queue.DEFERRED else Queue.INCOMING
        try:
            self.fsio.utime(held.fd, held.mtime)
        except OSError as error:
            raise queue_error(error, f"{job.queue_id}: give back") from error
        self._move_away(job, held, queue)

    async def reasons(self, job: Job) -> dict[int, Reason]:
        """See QueueStore."""
        path = self.spool.path("defer", job.queue_id)
        try:
            data = await self.fsio.run(self.fsio.read_file, path, REASONS_LIMIT)
        except OSError:
            return {}
        return {offset: reason for _, offset, reason in decode_reasons(data)}
