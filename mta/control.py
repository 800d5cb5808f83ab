"""The control sockets in $queue_directory/public: showq, flush, pickup.

Anyone on the machine may connect (0666), as with Postfix; each connection is answered and closed, bounded in
time and size, and its errors end only itself.

- showq: the server writes one JSON object per message, in the form and key order of `postqueue -j`.
- flush: the client sends "flush\\n", "id QUEUEID\\n" or "site DOMAIN\\n"; the answer is "STATUS text\\n" where
  STATUS is the exit status for the caller.
- pickup: any byte means "look into maildrop now"; no answer.

See also: postqueue(1), sendmail-compatible front ends in sendmail_compat/
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from mta.clock import Clock
from mta.envelope import MAILER_DAEMON
from mta.maillog import Maillog
from mta.queue.api import Listing, QueueError, QueueStore

TIMEOUT = 30.0  # seconds a client may take to read or write
MAX_REQUEST = 300  # bytes
EX_UNAVAILABLE = 69

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def listing_json(row: Listing) -> str:
    """One line of `postqueue -j`."""
    recipients: list[dict[str, str]] = []
    for address in row.recipients:
        entry = {"address": address}
        if address in row.reasons:
            entry["delay_reason"] = row.reasons[address]
        recipients.append(entry)
    return json.dumps(
        {
            "queue_name": row.queue.value,
            "queue_id": row.queue_id,
            "arrival_time": int(row.arrival),
            "message_size": row.size,
            "forced_expire": row.force_expire,
            "sender": row.sender or MAILER_DAEMON,
            "recipients": recipients,
        },
        ensure_ascii=False,
    )


class Control:
    """Handlers for the three sockets."""

    def __init__(
        self,
        store: QueueStore,
        flush: Callable[[Sequence[str] | None], Awaitable[int]],
        pickup: Callable[[], None],
        clock: Clock,
        log: Maillog,
    ) -> None:
        self._store, self._flush, self._pickup = store, flush, pickup
        self._clock, self._log = clock, log

    async def showq(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write the queue, slowly readers are cut."""
        async for row in self._store.listing():
            writer.write(listing_json(row).encode("utf-8", "replace") + b"\n")
            async with self._clock.timeout(TIMEOUT):
                await writer.drain()

    async def flush(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do one request."""
        async with self._clock.timeout(TIMEOUT):
            line = await reader.readline()
        status, text = await self._request(line[:MAX_REQUEST].decode("ascii", "replace").strip())
        writer.write(f"{status} {text}\n".encode())
        async with self._clock.timeout(TIMEOUT):
            await writer.drain()

    async def _request(self, request: str) -> tuple[int, str]:
        verb, _, argument = request.partition(" ")
        try:
            if verb == "flush":
                return 0, f"{await self._flush(None)} messages"
            if verb == "id" and argument.isalnum():
                return 0, f"{await self._flush([argument])} messages"
        except QueueError as error:
            self._log.warning("qmgr", f"flush: {error}")
            return EX_UNAVAILABLE, "Cannot flush mail queue"
        if verb == "site":
            return EX_UNAVAILABLE, f'Flush service is not configured for destination "{argument}"'
        return EX_UNAVAILABLE, f'Cannot flush queue ID - invalid name: "{argument}"'

    async def pickup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody left a message in maildrop."""
        async with self._clock.timeout(TIMEOUT):
            await reader.read(1)
        self._pickup()


def guarded(handler: Handler, log: Maillog) -> Handler:
    """Close the connection whatever happens; an error is logged and ends only this connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, TimeoutError, ValueError):
            pass
        except Exception as error:
            log.warning("master", f"control socket: {type(error).__name__}: {error}")
        finally:
            writer.close()

    return serve
