"""A real store on a temporary directory, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mta.clock import Clock
from mta.envelope import Envelope, Recipient
from mta.fsio.fsio import Fsio
from mta.queue.api import Parent
from mta.queue.store import SpoolStore, StoreSettings, create_spool
from mta.queue.store_draft import SpoolDraft

NOW = 1_800_000_000.0


class ListLog:
    """Collects warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, service: str, text: str) -> None:
        self.lines.append(f"{service}: {text}")


def settings(root: Path, *, long: bool = False, depth: int = 1, limit: int = 10_240_000) -> StoreSettings:
    return StoreSettings(str(root), long, ("deferred", "defer"), depth, limit, 0, 4000.0, True)


class Spooled:
    """A store with what a test looks at: the directory, the log, and the ids that were announced."""

    def __init__(self, root: Path, *, long: bool = False, depth: int = 1, limit: int = 10_240_000,
                 fsio: Fsio | None = None, owner: bool = True) -> None:  # fmt: skip
        self.root = root
        self.log = ListLog()
        self.fsio = fsio or Fsio()
        self.now = NOW
        self.arrived: list[str] = []
        chosen = settings(root, long=long, depth=depth, limit=limit)
        create_spool(chosen, self.fsio)
        self.store = SpoolStore(chosen, self.fsio, Clock(wall=lambda: self.now), self.log, owner=owner)
        self.store.arrived = lambda queue_id, _: self.arrived.append(queue_id)

    def names(self, queue: str) -> list[str]:
        """Names of files in a queue, hash directories looked through."""
        return sorted(p.name for p in (self.root / queue).rglob("*") if p.is_file())

    def path(self, queue: str, queue_id: str) -> Path:
        return Path(self.store.spool.path(queue, queue_id))

    def only(self, queue: str) -> Path:
        """The one file in a queue."""
        (found,) = [p for p in (self.root / queue).rglob("*") if p.is_file()]
        return found

    async def draft(self, *recipients: str, content: bytes = b"Subject: x\n\nhello\n", sender: str = "a@src.test",
                    warn_time: float = 0.0) -> SpoolDraft:  # fmt: skip
        draft = await self.store.draft(self.now)
        people = [Recipient(r) for r in recipients or ("b@dst.test",)]
        draft.envelope(Envelope(sender, people, self.now, warn_time=warn_time))
        for i in range(0, len(content), 50_000):
            draft.write(content[i : i + 50_000])
        return draft

    async def accept(self, *recipients: str, content: bytes = b"Subject: x\n\nhello\n", sender: str = "a@src.test",
                     parent: Parent | None = None, warn_time: float = 0.0) -> str:  # fmt: skip
        """Commit a message and return its id; a child is released at once."""
        draft = await self.draft(*recipients, content=content, sender=sender, warn_time=warn_time)
        await draft.commit(parent=parent)
        await self.store.release([draft] if parent else [])
        return draft.queue_id


@contextlib.contextmanager
def spooled(root: Path, *, long: bool = False, depth: int = 1, limit: int = 10_240_000,
            fsio: Fsio | None = None) -> Iterator[Spooled]:  # fmt: skip
    """A Spooled, closed at the end."""
    made = Spooled(root, long=long, depth=depth, limit=limit, fsio=fsio)
    try:
        yield made
    finally:
        made.fsio.close()
