"""The local delivery agent: mailboxes and aliases of this system's users.

The content is copied once into a file without a name (memory below 1 MiB), as plain LF text, and its descriptor is
all that the delivering side gets: never a path of the spool.  Copying ends with the stored checksum, so a damaged
message reaches no mailbox.  On the way the Delivered-To: headers are read: a recipient that is named there already
has been here, 5.4.6.

Delivered is either through mta-local (as root: each mailbox with its user's rights) or in this process (a daemon
that runs as one user: every mailbox is its own).

See also: local(8), mta/deliver/local_plan.py (who gets it), mta/local_helper.py
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

from mta.clock import Clock
from mta.deliver.aliases import AliasProblemError, Router
from mta.deliver.local_plan import LocalSettings, Planner, ToOthers, ToUser, Users, local_settings
from mta.deliver.local_trust import UntrustedFileError, read_trusted
from mta.deliver.local_user import UserDelivery, deliver_to_user
from mta.deliver.local_wire import ADDRESS_LIMIT, Answer, Ask, possible
from mta.deliver.mailbox import Message, System
from mta.deliver.request import DeliveryRequest, Expansion, Result
from mta.envelope import Recipient
from mta.fsio.fsio import Fsio, fsync_now
from mta.lookup.context import LookupContext
from mta.lookup.open import open_tables
from mta.maillog.maillog import Maillog
from mta.message import HeaderScanner, text
from mta.message_address import quote
from mta.smtp.reply import Reply
from mta.spared import spared

with spared("aiofiles.tempfile"):
    import aiofiles

IN_MEMORY = 1 << 20  # bytes of content kept in a memory file; more goes to the disk
NO_ROOM = Reply(452, "4.3.0", "no room for a copy of the message")
BAD_ADDRESS = Reply(550, "5.1.3", "bad address syntax")
SERVICE = "local"

__all__ = ["LocalAgent", "LocalSettings", "OwnMailboxes", "local_settings"]


class Backend(Protocol):
    """Who decides and delivers."""

    async def deliver(self, ask: Ask, content: int) -> Answer:
        """Deliver the content of a descriptor to one recipient; every failure is an Answer."""

    async def close(self) -> None:
        """Release what is kept."""


class LocalAgent:
    """Implements DeliveryAgent."""

    def __init__(self, settings: LocalSettings, backend: Backend, fsio: Fsio, clock: Clock) -> None:
        self._settings, self._backend = settings, backend
        self._fsio, self._clock = fsio, clock

    async def deliver(self, request: DeliveryRequest) -> None:
        """See DeliveryAgent.  CorruptContentError goes on to the caller: nothing was delivered."""
        started = self._clock.monotonic()
        content = _Content(request, self._settings.data_directory, self._fsio)
        try:
            try:
                await content.copy()
            except OSError:
                self._report_all(request, NO_ROOM, started)
                return
            for recipient in request.recipients:
                request.done(recipient, await self._one(request, recipient, content, started))
        finally:
            content.close()

    async def close(self) -> None:
        """See DeliveryAgent."""
        await self._backend.close()

    def _report_all(self, request: DeliveryRequest, reply: Reply, started: float) -> None:
        for recipient in request.recipients:
            request.done(recipient, self._result(reply, started))

    def _result(self, reply: Reply, started: float, expansion: Expansion | None = None) -> Result:
        finished = self._clock.monotonic()
        return Result(reply, reply.text, SERVICE, connected=started, finished=finished, expansion=expansion)

    async def _one(self, request: DeliveryRequest, recipient: Recipient, content: "_Content", started: float) -> Result:
        address = recipient.address
        if content.was_delivered_to(address):
            return self._result(Reply(554, "5.4.6", f"mail forwarding loop for {address}"), started)
        if not possible(address):
            return self._result(BAD_ADDRESS, started)
        original = recipient.original if 0 < len(recipient.original) <= ADDRESS_LIMIT else address
        ask = Ask(request.queue_id, address, original, request.envelope.sender, request.transport)
        answer = await self._backend.deliver(ask, content.fd)
        expansion = None
        if answer.recipients:
            named = "forward" in self._settings.prepend_delivered_header
            expansion = Expansion(answer.recipients, answer.sender, quote(address) if named else "")
        return self._result(answer.reply, started, expansion)


class _Content:
    """A private copy of the message.  fd: read-only."""

    def __init__(self, request: DeliveryRequest, directory: str, fsio: Fsio) -> None:
        self.fd = -1
        self._request, self._directory, self._fsio = request, directory, fsio
        self._seen: set[str] = set()

    async def copy(self) -> None:
        """Copy it all; OSError when there is no room."""
        in_memory = self._request.size < IN_MEMORY
        fd = self._create_in_memory() if in_memory else self._create()
        try:
            if in_memory:  # a thread would cost more than the copy
                async for chunk in self._scanned(self._request.content()):
                    _write(fd, chunk)
            else:
                await self._copy_to_disk(fd)
            self.fd = _open_again(fd)
        finally:
            os.close(fd)

    async def _copy_to_disk(self, fd: int) -> None:
        file = await aiofiles.open(fd, "wb", closefd=False, executor=self._fsio.pool())
        try:
            async for chunk in self._scanned(self._request.content()):
                await file.write(chunk)
        finally:
            await file.close()  # "async with" would do this in a thread of its own

    def _create(self) -> int:
        with contextlib.suppress(OSError):  # a file system without O_TMPFILE: memory will do
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self._create_in_memory()

    def _create_in_memory(self) -> int:
        return os.memfd_create("message", os.MFD_CLOEXEC)

    async def _scanned(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        scanner = HeaderScanner()
        async for chunk in chunks:
            if not scanner.done:
                self._note(scanner, chunk)
            yield chunk
        if not scanner.done:
            self._note(scanner, b"")

    def _note(self, scanner: HeaderScanner, chunk: bytes) -> None:
        for header in scanner.feed(chunk) if chunk else scanner.end():
            if header.name == b"delivered-to":
                self._seen.add(text(header.value).strip().lower())

    def was_delivered_to(self, address: str) -> bool:
        """Is there a Delivered-To: header with this address?"""
        return address.lower() in self._seen or quote(address).lower() in self._seen

    def close(self) -> None:
        """The copy is gone with its last descriptor."""
        if self.fd >= 0:
            _close(self.fd)
            self.fd = -1


def _open_again(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # it was only read
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# -- in one process ---------------------------------------------------------------------------------------


class OwnMailboxes:
    """Backend of a daemon that runs as one user: mailboxes belong to that user, whatever their name."""

    def __init__(
        self,
        settings: LocalSettings,
        transport: str,
        router: Router,
        context: LookupContext,
        users: Users,
        fsio: Fsio,
        clock: Clock,
        log: Maillog,
        fsync: Callable[[int], None] = fsync_now,
    ) -> None:
        """transport: the name this agent runs under."""
        self._settings, self._fsio, self._clock, self._log = settings, fsio, clock, log
        maps = open_tables(settings.alias_maps, context, aliases=True)
        self._planner = Planner(
            settings, transport, maps, router, users, self._include, self._warn, lambda spec: open_tables(spec, context)
        )
        self._system = System(fsync, clock.block, clock.now, os.geteuid())

    def _warn(self, text: str) -> None:
        self._log.warning(SERVICE, text)

    async def _include(self, path: str) -> bytes:
        try:
            return await self._fsio.run(read_trusted, path)
        except UntrustedFileError as error:
            raise AliasProblemError(str(error)) from error

    async def deliver(self, ask: Ask, content: int) -> Answer:
        """See Backend."""
        plan = await self._planner.plan(ask.recipient, ask.sender)
        if isinstance(plan, ToOthers):
            return Answer(Reply(250, "2.0.0", "forwarded"), plan.recipients, plan.sender)
        if isinstance(plan, ToUser):
            delivery = user_delivery(plan, ask, content, self._settings, self._clock.now())
            return Answer(await self._in_thread(delivery))
        return Answer(plan)

    async def _in_thread(self, delivery: UserDelivery) -> Reply:
        """Cancelled, it will be asked for again: then the thread, which nobody can stop, begins to write no more."""
        waiting = [True]
        try:  # the caller closes its own; who takes this out closes it
            contents = [_open_again(delivery.message.content)]
        except OSError:
            return NO_ROOM
        system = replace(self._system, wanted=lambda: bool(waiting))

        def work() -> Reply:
            content = contents.pop()
            try:
                return deliver_to_user(replace(delivery, message=replace(delivery.message, content=content)), system)
            finally:
                _close(content)

        try:
            return await self._fsio.run(work)
        finally:
            waiting.clear()
            with contextlib.suppress(IndexError):  # it has begun
                _close(contents.pop())

    async def close(self) -> None:
        """Nothing is kept."""


def user_delivery(plan: ToUser, ask: Ask, content: int, settings: LocalSettings, now: float) -> UserDelivery:
    """Put a delivery to a user together; the mark that suppresses aliases is not part of the address."""
    recipient = ask.recipient.removeprefix("\\")
    return UserDelivery(plan, recipient, Message(content, ask.sender, ask.original, recipient, now), settings)
