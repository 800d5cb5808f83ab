"""Stores with one classic mistake each: the simulator must find them, or it proves nothing."""

import asyncio
import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from mta.fsio.fsio import Fsio
from mta.fsio.soon import Finished
from mta.queue.api import Job
from mta.queue.store import SpoolStore
from mta.queue.store_job import Claimed


def _never_flushed(self: Fsio, fd: int, directory: int, done: Finished, *, large: bool = False) -> None:
    asyncio.get_running_loop().call_soon(done, None)


@contextlib.contextmanager
def no_fsync() -> Iterator[None]:
    """250 is said with nothing on disk."""
    with patch.object(Fsio, "commit", _never_flushed):
        yield


@contextlib.contextmanager
def mark_after_unlink() -> Iterator[None]:
    """The mark is written when the message has been removed: an unlink that undoes itself sends it again."""
    finish = SpoolStore.finish
    flush = SpoolStore.flush_marks

    def remember(self: SpoolStore, held: Claimed, offset: int, data: bytes) -> None:
        held.marks.append((offset, data))

    async def write(self: SpoolStore, job: Job) -> None:
        held = self._claimed(job)
        if job.todo:
            for offset, data in held.marks:
                self.fsio.pwrite(held.fd, data, offset)
            await flush(self, job)

    async def remove(self: SpoolStore, job: Job) -> None:
        held = self._claimed(job)
        marks, held.marks = held.marks, []
        fd = self.fsio.open(held.path, write=True)
        await finish(self, job)
        for offset, data in marks:
            self.fsio.pwrite(fd, data, offset)
        self.fsio.close_fd(fd)

    with (
        patch.object(SpoolStore, "_write_mark", remember), patch.object(SpoolStore, "flush_marks", write),
        patch.object(SpoolStore, "finish", remove),
    ):  # fmt: skip
        yield


@contextlib.contextmanager
def rename_after_fsync() -> Iterator[None]:
    """The textbook order, without its last step: write, flush, rename; the directory is not flushed."""
    rename = Fsio.rename
    names: dict[int, tuple[str, str]] = {}

    def delayed(self: Fsio, source: str, target: str) -> None:
        if "/incoming/" in source and "/incoming/" in target and "." in source:
            names[id(self)] = (source, target)
        else:
            rename(self, source, target)

    def flushed_first(self: Fsio, fd: int, directory: int, done: Finished) -> None:
        kept = names.pop(id(self), None)

        def after(error: OSError | None) -> None:
            if error is None and kept is not None:
                try:
                    rename(self, *kept)
                except OSError as failure:
                    error = failure
            done(error)

        self._commits.add(fd, -1, after)

    with patch.object(Fsio, "rename", delayed), patch.object(Fsio, "commit", flushed_first):
        yield
