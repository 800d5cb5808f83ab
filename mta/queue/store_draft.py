"""A message being written, up to its commit point.

incoming/USEC.PID is created with mode 0600 and locked; its inode gives the queue id.  Small content stays in
memory until commit and is written at once; more than a block goes to the file as it comes, line by line at first,
and in blocks once it is more than PLAIN_LIMIT.

commit: rest of the content, checksums, end -> mode 0700 -> renamed to the id -> group flush of file and directory
== COMMIT POINT == -> unlocked.  A child (a commit with a parent) stays locked, which is what "born held" means:
claim() skips locked files, in this process and any other, and after a crash recover() settles it first.

See also: mta/INTERNALS.md states S1 to S6
"""

import asyncio
import contextlib
import zlib
from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING

from mta.envelope import Envelope
from mta.queue import queue_file
from mta.queue.api import Parent, Queue, QueueError
from mta.queue.store_spool import READY, WRITING, queue_error

if TYPE_CHECKING:
    from mta.queue.store import SpoolStore


class State(Enum):
    """Life of a draft."""

    OPEN = auto()
    FLUSHING = auto()  # named, on the way to the device: can no longer be taken back
    HELD = auto()  # durable and still locked, until its parent's marks are
    DONE = auto()
    GONE = auto()


class SpoolDraft:
    """Implements mta.queue.api.Draft; made by SpoolStore.draft()."""

    def __init__(self, store: "SpoolStore", fd: int, path: str, queue_id: str, uid: str) -> None:
        self.queue_id = queue_id
        self.uid = uid
        self.size = 0
        self.state = State.OPEN
        self._store, self._fsio = store, store.fsio
        self._fd, self._path = fd, path
        self._head: queue_file.Head | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._spilled = False  # a part of the content is in the file
        self._blocks = False
        self._stored = 0  # bytes of the content section in the file
        self._crc = 0
        self._8bit = False
        self._error: OSError | None = None
        self._outcome: asyncio.Future[None] | None = None
        self._child = self._parked = False
        self._named = 0  # moment before it got its name
        self._fsio.company.here(self)

    def envelope(self, envelope: Envelope) -> None:
        """See Draft."""
        if self._head is not None or self.size:
            raise RuntimeError("the envelope comes once, before any content")
        self._head = queue_file.encode_head(envelope)

    def write(self, content: bytes) -> None:
        """See Draft.  Holds at most a BLOCK, or the last line of less than PLAIN_LIMIT, plus what is passed at once."""
        self.size += len(content)
        self._chunks.append(content)
        self._buffered += len(content)
        if self._buffered > queue_file.BLOCK:
            self._spill()

    def _spill(self) -> None:
        """Write lines, or past PLAIN_LIMIT blocks; at least one byte stays for the record that ends the content."""
        content = self._take()
        if self._error is not None:
            return
        try:
            if not self._spilled:
                self._spilled = True
                self._fsio.write(self._fd, self._encoded_head().data)
            self._blocks = self._blocks or self.size > queue_file.PLAIN_LIMIT
            written = self._write_blocks(content) if self._blocks else self._write_lines(content)
        except OSError as error:
            self._error = error
            return
        self._chunks, self._buffered = [content[written:]], len(content) - written

    def _write_lines(self, content: bytes) -> int:
        end = content.rfind(b"\n", 0, len(content) - 1) + 1
        text = content[:end]
        lines = queue_file.encode_lines(text)
        self._fsio.write(self._fd, lines)
        self._stored += len(lines)
        self._checksum(text)
        return end

    def _write_blocks(self, content: bytes) -> int:
        at, size = 0, queue_file.BLOCK
        while len(content) - at > size:
            piece = content[at : at + size]
            block = queue_file.encode_block(piece)
            self._fsio.write(self._fd, block)
            self._stored += len(block)
            self._checksum(piece)
            at += size
        return at

    def _take(self) -> bytes:
        content = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._buffered = [], 0
        return content

    def _encoded_head(self) -> queue_file.Head:
        if self._head is None:
            raise RuntimeError("content before the envelope")
        return self._head

    def _checksum(self, content: bytes) -> None:
        self._crc = zlib.crc32(content, self._crc)
        self._8bit = self._8bit or not content.isascii()

    async def commit(self, *, parent: Parent | None = None, hold: bool = False,
                     attributes: Mapping[str, str] | None = None) -> None:  # fmt: skip
        """See Draft.  When the waiting task is cancelled the commit still goes on (window W1)."""
        if self.state is not State.OPEN:
            raise RuntimeError(f"{self.queue_id}: commit in state {self.state}")
        self._child, self._parked = parent is not None, hold
        queue = Queue.HOLD if hold else Queue.INCOMING
        try:
            if self._error is not None:
                raise self._error
            self._complete(parent, attributes)
            self._fsio.fchmod(self._fd, READY)
            self._named = self._store.clock.moment()
            self._path = self._store.spool.move(self._path, queue, self.queue_id)
            directory = self._fsio.directory(self._path[: -len(self.queue_id) - 1])
        except OSError as error:
            self.abort()
            raise queue_error(error, "queue file write error") from error
        except QueueError:  # swept away as a file that nobody writes
            self.abort()
            raise
        self.state = State.FLUSHING
        self._fsio.company.gone(self)
        self._outcome = asyncio.get_running_loop().create_future()
        self._fsio.commit(self._fd, directory, self._flushed, large=self._spilled)
        await self._outcome

    def _complete(self, parent: Parent | None, attributes: Mapping[str, str] | None) -> None:
        head, content = self._encoded_head(), self._take()
        if content and content[-1] != 10:
            content += b"\n"
        self._checksum(content)
        self._blocks = self._blocks or self.size > queue_file.PLAIN_LIMIT
        lines = queue_file.encode_last_block(content) if self._blocks else queue_file.encode_lines(content)
        size = queue_file.encode_size(head, self._stored + len(lines), blocks=self._blocks)
        tail = queue_file.encode_tail(
            head, size, uid=self.uid, content_crc=self._crc, content_8bit=self._8bit, parent=parent,
            attributes=attributes,
        )  # fmt: skip
        if self._spilled:
            self._fsio.write(self._fd, lines + tail)
            self._fsio.pwrite(self._fd, size, 0)
        else:
            self._fsio.write(self._fd, b"".join((size, head.data[queue_file.SIZE_RECORD :], lines, tail)))

    def _flushed(self, error: OSError | None) -> None:
        """The group has ended: COMMIT POINT when there is no error."""
        waiting = self._outcome if self._outcome is not None and not self._outcome.done() else None
        if error is None and waiting is not None:
            waiting.set_result(None)  # first: whoever handed it in is answered before anything is done with it
        if error is not None:
            self.state = State.HELD  # for abort()
            self.abort()
            self._store.space.failed(error)
            if waiting is not None:
                waiting.set_exception(queue_error(error, "flush"))
            return
        self._fsio.soon.durable(self._named)
        if not self._child:
            self._let_go()
        else:
            self.state = State.HELD
            if waiting is None:  # the task that waited was cancelled
                self.abort()  # its parent will never be marked, and repeats it

    def _let_go(self) -> None:
        self.state = State.DONE
        self._fsio.unlock(self._fd)  # who claims it in a moment must not find it locked
        with contextlib.suppress(OSError):
            self._fsio.close_fd(self._fd)
        if not self._parked:
            self._store.arrived(self.queue_id, self._named)

    def release(self) -> None:
        """The parent's marks are durable: unlock the child.  Does nothing the second time."""
        if self.state is State.HELD:
            self._let_go()
        elif self.state is not State.DONE:
            raise QueueError(f"{self.queue_id}: released before it was committed")

    def abort(self) -> None:
        """See Draft.  Also takes back a child that was committed and not yet released.

        A file that cannot be removed now gets the mode of an unfinished one: nobody claims it, the next start
        removes it.  When that fails too it stays locked, and scans try to remove it.
        """
        if self.state not in (State.OPEN, State.HELD):
            return
        if self.state is State.OPEN:
            self._fsio.company.gone(self)
        self.state = State.GONE
        self._chunks = []
        try:
            self._fsio.unlink(self._path)
        except OSError:
            try:
                self._fsio.fchmod(self._fd, WRITING)
            except OSError:
                self._store.wait_locked(self.queue_id, self._fd, self._remove)
                return
        with contextlib.suppress(OSError):
            self._fsio.close_fd(self._fd)

    async def _remove(self) -> bool:
        try:
            self._fsio.unlink(self._path)
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return True
