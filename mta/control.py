"""The control sockets in $queue_directory/public: showq, flush, pickup.

Anyone on the machine may connect (0666), as with Postfix; each connection is answered and closed, bounded in
time and size, and its errors end only itself.

- showq: the server writes one JSON object per message, in the form and key order of `postqueue -j`, then
  "warning TEXT\\n" for what it could not read, and "0 end\\n": an answer without that was cut off.
- flush: the client sends "flush\\n", "id QUEUEID\\n", "ids\\n" with ids, one per line, and an empty line, or
  "site DOMAIN\\n"; the answer is "STATUS text\\n" where STATUS is the exit status for the caller.
  Root and mail_owner may also send "admin VERB [QUEUE,...]\\n" with ids,
  one per line ("*" alone = all of them), and an empty line; the answer is "OUTCOME ID\\n" for each ("failed ID TEXT\\n"
  where the system did not let us), then "0 done\\n", and another such request may follow.
  VERB: hold release requeue expire delete, flush.
- pickup: any byte means "look into maildrop now"; no answer.

Whom authorized_mailq_users or authorized_flush_users does not name (by SO_PEERCRED) gets "STATUS text\\n" too.

See also: postqueue(1), sendmail-compatible front ends in sendmail_compat/
"""

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from mta.clock import Clock, others_run
from mta.envelope import MAILER_DAEMON
from mta.lookup.match_list import DomainList
from mta.lookup.table import TableError
from mta.maillog.maillog import Maillog
from mta.queue.api import Listing, Queue, QueueError, QueueStore
from mta.queue.reasons import printable, quoted
from mta.queue.store_admin import EVERYTHING, Administrator, Outcome, Verb
from mta.record import dataclass
from mta.submit.users import Access

TIMEOUT = 30.0  # seconds a client may take to write, or to read anything at all
MAX_REQUEST = 300  # bytes
MAX_CLIENTS = 100  # connections of one kind at once
MAX_PER_UID = 20  # of one user who is not root
MAX_IDS = 1000  # queue ids in one request
SLICE = 1000  # recipients of a message that are listed between two pauses
MAX_WARNINGS = 20  # in one listing, the rest is counted
EX_UNAVAILABLE, EX_IOERR, EX_TEMPFAIL, EX_NOPERM = 69, 74, 75, 77

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """postconf(5)."""

    authorized_mailq_users: tuple[str, ...]
    authorized_flush_users: tuple[str, ...]
    fast_flush_domains: tuple[str, ...] = ()


_JSON = {ord('"'): '\\"', ord("\\"): "\\\\"}


def _string(text: str) -> str:
    """A JSON string as postqueue(1) writes it: UTF-8 as it is, control characters and other bytes as "?"."""
    return f'"{printable(text).translate(_JSON)}"'


def listing_json(row: Listing) -> str:
    """One line of `postqueue -j`."""
    return _json(row, [_recipient_json(row, address) for address in row.recipients])


def _recipient_json(row: Listing, address: str) -> str:
    reason = f', "delay_reason": {_string(row.reasons[address])}' if address in row.reasons else ""
    return f'{{"address": {_string(quoted(address or MAILER_DAEMON))}{reason}}}'


def _json(row: Listing, recipients: Sequence[str]) -> str:
    sender = quoted(row.sender) if row.sender else MAILER_DAEMON
    return (
        f'{{"queue_name": {_string(row.queue.value)}, "queue_id": {_string(row.queue_id)}, '
        f'"arrival_time": {int(row.arrival)}, "message_size": {row.size}, '
        f'"forced_expire": {"true" if row.force_expire else "false"}, "sender": {_string(sender)}, '
        f'"recipients": [{", ".join(recipients)}]}}'
    )


async def listing_lines(store: QueueStore) -> AsyncIterator[str]:
    """What the showq socket answers, line by line without LF."""
    unread: list[str] = []
    more = 0

    def failed(name: str, error: OSError) -> None:
        nonlocal more
        if len(unread) < MAX_WARNINGS:
            unread.append(f"{name}: {error.strerror}")
        else:
            more += 1

    async for row in store.listing(failed):
        recipients = []
        for n, address in enumerate(row.recipients):
            if n % SLICE == SLICE - 1:
                await others_run()
            recipients.append(_recipient_json(row, address))
        yield _json(row, recipients)
    for text in unread:
        yield f"warning {printable(text)}"
    if more:
        yield f"warning {more} others cannot be read either"
    yield "0 end"


class Control:
    """Handlers for the three sockets.  settings, access: who may; None: everybody."""

    def __init__(
        self,
        store: QueueStore,
        flush: Callable[[Sequence[str] | None], Awaitable[int]],
        pickup: Callable[[], None],
        clock: Clock,
        log: Maillog,
        settings: ControlSettings | None = None,
        access: Access | None = None,
        administrator: Administrator | None = None,
        fast_flush: DomainList | None = None,
    ) -> None:
        """administrator: None = "admin" requests are not answered.  fast_flush: domains for `postqueue -s`."""
        self._fast_flush = fast_flush
        self._administrator = administrator
        self._store, self._flush, self._pickup = store, flush, pickup
        self._clock, self._log = clock, log
        self._settings, self._access = settings, access

    async def showq(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write the queue; who reads nothing is cut."""
        allowed = self._settings.authorized_mailq_users if self._settings else ()
        refused = await self._refused(writer, allowed, "view the mail queue")
        if refused:
            await self._answer(writer, refused)
            return
        warned = False
        async for line in listing_lines(self._store):
            if line.startswith("warning ") and not warned:  # anybody can ask, and leave such files in maildrop
                warned = True
                self._log.warning("showq", line.removeprefix("warning "))
            writer.write(line.encode() + b"\n")
            await self._drain(writer)
        await self._sent(writer)

    async def flush(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do one request, or several of an administrator."""
        lines = _Lines(reader, self._clock)
        line = await lines.next()
        if line.startswith("admin ") and self._administrator is not None:
            await self._administer(self._administrator, line, lines, writer)
            return
        async with self._clock.timeout(TIMEOUT):
            queue_ids = await lines.ids() if line == "ids" else []  # read also for whom it is refused to
        allowed = self._settings.authorized_flush_users if self._settings else ()
        answer = await self._refused(writer, allowed, "flush the mail queue")
        await self._answer(writer, answer or await self._request(line, queue_ids))

    async def _administer(
        self, administrator: Administrator, line: str, lines: "_Lines", writer: asyncio.StreamWriter
    ) -> None:
        """Requests until the client has no more; what can be delivered now is looked for once, at the end."""
        if peer_uid(writer) not in (0, os.geteuid()):
            await self._answer(writer, (EX_NOPERM, "this is reserved for the superuser and the owner of the queue"))
            return
        again: set[str] = set()
        try:
            while line:
                _, verb, *rest = line.split(" ")
                queues = [Queue(name) for name in (rest[0].split(",") if rest else ())]
                queue_ids = await lines.ids()
                again.add(verb)
                await self._do(administrator, verb, queue_ids, queues, writer)
                line = await lines.next()
        except OSError as error:
            self._log.warning("qmgr", f"queue administration: {error}")
            await self._answer(writer, (EX_IOERR, f"queue: {error.strerror}"))
        finally:
            if again & {Verb.RELEASE, Verb.EXPIRE, "flush"}:
                await self._flush([])
            if Verb.REQUEUE in again:
                self._pickup()

    async def _do(
        self, administrator: Administrator, verb: str, queue_ids: list[str], queues: list[Queue],
        writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        why: dict[str, str] = {}

        def failed(name: str, error: OSError) -> None:
            why[name] = error.strerror or str(error)
            self._log.warning("qmgr", f"{name}: {verb}: {why[name]}")

        if verb == "flush":
            await self._store.wake(queue_ids)
            found = dict.fromkeys(queue_ids, Outcome.DONE)
        else:
            if queue_ids == [EVERYTHING]:
                queue_ids = await administrator.everything(Verb(verb), queues, failed)
            found = await administrator.act(Verb(verb), queue_ids, queues, failed)
        lines = [f"{outcome} {queue_id}\n" for queue_id, outcome in found.items() if queue_id not in why]
        lines += [f"{Outcome.FAILED} {name} {text}\n" for name, text in why.items()]
        for line in lines:
            writer.write(line.encode("utf-8", "replace"))
        await self._answer(writer, (0, "done"))

    async def _answer(self, writer: asyncio.StreamWriter, answer: tuple[int, str]) -> None:
        status, text = answer
        writer.write(f"{status} {text}\n".encode("utf-8", "replace"))
        await self._sent(writer)

    async def _sent(self, writer: asyncio.StreamWriter) -> None:
        """Wait until everything has been taken, so that close() leaves nothing behind that nobody reads."""
        writer.transport.set_write_buffer_limits(0)
        await self._drain(writer)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        """Wait until there is room, for as long as the client reads; TimeoutError when it does not."""
        before = -1
        while True:
            try:
                async with self._clock.timeout(TIMEOUT):
                    await writer.drain()
                return
            except TimeoutError:
                left = _unread(writer)
                if 0 <= before <= left:
                    raise
                before = left

    async def _refused(self, writer: asyncio.StreamWriter, allowed: Sequence[str], what: str) -> tuple[int, str] | None:
        """None when the user at the other end may; else the answer."""
        if self._access is None:
            return None
        uid = peer_uid(writer)
        if uid == os.geteuid():  # mail_owner
            return None
        try:
            name = await self._access.denied(allowed, uid)
        except TableError as error:
            self._log.warning("qmgr", f"may uid {uid} {what}? {error}")
            return EX_TEMPFAIL, "Temporary lookup failure"
        return None if name is None else (EX_NOPERM, f"User {name}({uid}) is not allowed to {what}")

    async def _request(self, request: str, queue_ids: Sequence[str]) -> tuple[int, str]:
        """Exit status and text.  queue_ids: of the request "ids": the queue is looked through once."""
        verb, _, argument = request.partition(" ")
        try:
            if verb == "flush" and not argument:
                return 0, f"{await self._flush(None)} messages"
            if verb == "id" and argument.isalnum():
                return 0, f"{await self._flush([argument])} messages"
            if request == "ids":
                return 0, f"{await self._flush(queue_ids)} messages"
            if verb == "site" and self._fast_flush is not None and await self._fast_flush.match(argument):
                return 0, f"{await self._flush(await self._for_site(argument.lower()))} messages"
        except (QueueError, TableError) as error:
            self._log.warning("qmgr", f"flush: {error}")
            return EX_UNAVAILABLE, "Cannot flush mail queue"
        if verb == "site":
            return EX_UNAVAILABLE, f'Flush service is not configured for destination "{argument}"'
        return EX_UNAVAILABLE, f'Cannot flush queue ID - invalid name: "{argument}"'

    async def _for_site(self, domain: str) -> list[str]:
        """Deferred messages with a recipient in this domain."""
        return [
            row.queue_id
            async for row in self._store.listing()
            if row.queue is Queue.DEFERRED and any(r.rpartition("@")[2].lower() == domain for r in row.recipients)
        ]

    async def pickup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody left a message in maildrop."""
        async with self._clock.timeout(TIMEOUT):
            await reader.read(1)
        self._pickup()


class _Lines:
    """Requests of one client; what is longer than MAX_REQUEST, or ends without a newline, is cut there."""

    def __init__(self, reader: asyncio.StreamReader, clock: Clock) -> None:
        self._reader, self._clock, self._rest = reader, clock, b""

    async def next(self) -> str:
        """One line; "" at the end."""
        async with self._clock.timeout(TIMEOUT):
            while len(self._rest) < MAX_REQUEST and b"\n" not in self._rest:
                piece = await self._reader.read(4096)
                if not piece:
                    break
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line[:MAX_REQUEST].decode("ascii", "replace").strip()

    async def ids(self) -> list[str]:
        """Up to an empty line, or the end; ValueError when they are too many."""
        found: list[str] = []
        while queue_id := await self.next():
            found.append(queue_id)
            if len(found) > MAX_IDS:
                raise ValueError("too many ids")
        return found


def _unread(writer: asyncio.StreamWriter) -> int:
    """Bytes the client has not read yet; OSError."""
    waiting = fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return int(writer.transport.get_write_buffer_size() + struct.unpack("i", waiting)[0])


def peer_uid(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end of a unix socket; OSError."""
    sock: socket.socket = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def guarded(handler: Handler, log: Maillog) -> Handler:
    """Close the connection whatever happens; an error is logged and ends only this connection.

    Not logged: the client is gone, too slow, or says what nobody understands.

    Connections beyond MAX_CLIENTS, or MAX_PER_UID of one user, are closed at once.
    """
    clients: Counter[int] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer)
        clients[uid] += 1
        try:
            if clients.total() <= MAX_CLIENTS and (clients[uid] <= MAX_PER_UID or uid in (0, os.geteuid())):
                await handler(reader, writer)
            writer.close()
        except (ConnectionError, TimeoutError, ValueError):
            writer.transport.abort()
        except Exception as error:
            log.warning("master", f"control socket: {type(error).__name__}: {error}")
            writer.transport.abort()
        finally:
            clients[uid] -= 1
            if not clients[uid]:
                del clients[uid]

    return serve
