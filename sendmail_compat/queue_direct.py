"""mailq without the daemon: reads the queue directories itself, for those who may.

See also: mta/queue/store_listing.py
"""

import asyncio
import json

from mta.clock import Clock
from mta.control import listing_json
from mta.fsio import Fsio
from mta.queue.store import SpoolStore, StoreSettings
from sendmail_compat.config import Config
from sendmail_compat.queue_tools import Row


class _Silent:
    """No log: the caller's terminal is not the mail log."""

    def write(self, service: str, text: str) -> None: ...

    def warning(self, service: str, text: str) -> None: ...


def direct_rows(config: Config) -> list[Row]:
    """Every message; raises OSError."""
    names = config.text("hash_queue_names").replace(",", " ").split()
    settings = StoreSettings(config.queue, False, tuple(names), 1, 0, 0, 4000.0, False)  # only read
    return asyncio.run(_collect(settings))


async def _collect(settings: StoreSettings) -> list[Row]:
    fsio = Fsio(aio=False)
    try:
        store = SpoolStore(settings, fsio, Clock(), _Silent(), owner=False)
        return [json.loads(listing_json(row)) async for row in store.listing()]
    finally:
        fsio.close()
