"""Brings what lies in maildrop into the queue: mail submitted while the daemon was away, and requeued mail.

A maildrop file is copied, committed as a child of the file (born held), then the file is unlinked durably and the
child released; a crash anywhere in between repeats nothing.  What the file says is believed only as far as its
owner could have said it to sendmail: a file of mail_owner is a requeued message and keeps its envelope.

See also: mta/INTERNALS.md states D1 to D3, pickup(8)
"""

import asyncio
from typing import Protocol

from mta.cleanup.intake import RefusedError
from mta.clock import Clock
from mta.envelope import VERP, Envelope, wants_verp
from mta.lookup.table import TableError
from mta.maillog.maillog import Maillog
from mta.message import HeaderScanner
from mta.queue.api import Draft, Parent, QueueError, QueueStore
from mta.queue.maildrop_rules import is_done
from mta.queue.queue_reader import DamagedError, QueueFile
from mta.queue.store_maildrop import MaildropFile
from mta.record import dataclass
from mta.smtp.parameters import MAX_ENVID, is_orcpt
from mta.submit.intake import Opener, open_local
from mta.submit.limits import UserLimits
from mta.submit.options import CONTROL
from mta.submit.prepare import HEADER_BLOCK_LIMIT
from mta.submit.users import Access

AT_ONCE = 500  # files between two looks at the directory: whoever comes during a flood gets a turn
LONG = 10.0  # seconds between two looks: a file of its limit may take longer than 500 others
SCAN_INTERVAL = 60.0  # seconds, Postfix's wakeup time of pickup


class Store(QueueStore, Protocol):
    """The queue store with its maildrop."""

    async def scan_maildrop(self) -> list[str]: ...

    async def open_maildrop(self, name: str) -> MaildropFile | None: ...

    async def remove_maildrop(self, file: MaildropFile) -> None: ...


@dataclass(frozen=True, slots=True)
class PickupSettings:
    """postconf(5)."""

    hopcount_limit: int
    authorized_submit_users: tuple[str, ...] = ("static:anyone",)
    verp_delimiter_filter: str = "-=+"


class Pickup:
    """Owns maildrop/ while it runs."""

    def __init__(
        self,
        settings: PickupSettings,
        store: Store,
        cleanup: Opener,
        owner_uid: int,
        log: Maillog,
        clock: Clock,
        *,
        access: Access | None = None,
        limits: UserLimits | None = None,
    ) -> None:
        """owner_uid: of mail_owner, whose files are requeued messages.  access, limits: of the other users."""
        self._access, self._limits = access, limits
        self._settings, self._store, self._cleanup = settings, store, cleanup
        self._owner_uid, self._log, self._clock = owner_uid, log, clock
        self._poked = asyncio.Event()
        self._refused: set[str] = set()
        self._waiting: set[int] = set()  # users over their limit, until the next scan

    def poke(self) -> None:
        """Somebody left a message."""
        self._poked.set()

    async def run(self) -> None:
        """Scan now, when poked, and every minute; until cancelled."""
        while True:
            self._poked.clear()
            await self.scan()
            try:
                async with self._clock.timeout(SCAN_INTERVAL):
                    await self._poked.wait()
            except TimeoutError:
                pass

    async def scan(self) -> int:
        """Bring in AT_ONCE complete files, or for LONG; return how many.  Errors are logged and leave the file.

        Owners take turns, who has the fewest first, and while there is more it scans again at once.
        """
        done, self._waiting = 0, set()
        try:
            names = await self._store.scan_maildrop()
        except (OSError, QueueError) as error:
            self._log.warning("pickup", f"maildrop: {error}")
            return 0
        self._refused.intersection_update(names)
        names = [name for name in names if name not in self._refused]
        known, look_again = len(self._refused), self._clock.monotonic() + LONG
        for number, name in enumerate(names, 1):
            done += await self._guarded(name)
            if number == len(names) or not (done or len(self._refused) > known):
                continue  # what cannot be taken now is no reason to look again
            if number >= AT_ONCE or self._clock.monotonic() >= look_again:
                self.poke()
                break
        return done

    async def _guarded(self, name: str) -> bool:
        """One file; whatever it holds, the next one is not held up."""
        try:
            return await self._one(name)
        except DamagedError as error:
            self._refused.add(name)  # a file of its owner, who may look at it; never removed by us
            self._log.warning("pickup", f"maildrop/{name}: not a message: {error}")
        except RefusedError as error:
            if error.reply.is_permanent:
                self._refused.add(name)
            self._log.warning("pickup", f"maildrop/{name}: {error.reply}")
        except (OSError, QueueError) as error:
            self._log.warning("pickup", f"maildrop/{name}: {error}; will try again")
        except Exception as error:
            self._refused.add(name)
            self._log.warning("pickup", f"maildrop/{name}: internal error: {type(error).__name__}: {error}")
        return False

    async def _one(self, name: str) -> bool:
        file = await self._store.open_maildrop(name)
        if file is None:
            return False
        try:
            if not await self._permitted(file):
                return False
            found = await file.read(requeued=file.owner == self._owner_uid)
            if is_done(found.envelope):  # it was put on hold while it was delivered, and requeued from there
                await self._store.remove_maildrop(file)
                self._log.write("pickup", f"{name}: removed")  # requeued, and done for all recipients
                return True
            child = await self._copy(file, found)
            try:
                await self._store.remove_maildrop(file)
            except QueueError:  # what is there is copied again
                child.abort()
                raise
        finally:
            file.close()
        await self._store.release([child])
        return True

    async def _permitted(self, file: MaildropFile) -> bool:
        """May its owner submit mail, and now?  A file that waits is looked at again by the next scan."""
        uid = file.owner
        if uid == self._owner_uid or uid in self._waiting:
            return uid == self._owner_uid
        if self._access is not None:
            try:
                denied = await self._access.denied(self._settings.authorized_submit_users, uid)
            except TableError as error:
                raise QueueError(f"authorized_submit_users: {error}") from None
            if denied:
                raise DamagedError(f"User {denied}({uid}) is not allowed to submit mail")
        refusal = self._limits.refusal(uid) if self._limits is not None else None
        if refusal:
            self._waiting.add(uid)
            self._log.warning("pickup", f"maildrop: uid={uid}: {refusal}")
        return not refusal

    async def _copy(self, file: MaildropFile, found: QueueFile) -> Draft:
        requeued = file.owner == self._owner_uid
        envelope = self._envelope(found.envelope, file, requeued=requeued)
        intake = await open_local(
            self._cleanup,
            envelope,
            file.owner,
            self._log,
            hops=await _hops(file, found),
            hop_limit=self._settings.hopcount_limit,
            requeued=requeued,
        )
        try:
            async for chunk in file.content(found):
                intake.write(chunk)
            return await intake.store(Parent("maildrop", file.uid, file.name))
        except BaseException:
            intake.abort()
            raise

    def _envelope(self, given: Envelope, file: MaildropFile, *, requeued: bool) -> Envelope:
        """What of the file's envelope counts."""
        given.recipients = [r for r in given.recipients if r.todo]
        _forget_bad_details(given)
        if not requeued:
            permitted = self._settings.verp_delimiter_filter
            verp = wants_verp(given) and all(c in permitted for c in given.attributes[VERP])
            keep = ("rewrite_context", VERP) if verp else ("rewrite_context",)
            given.attributes = {k: v for k, v in given.attributes.items() if k in keep}
            given.arrival = min(given.arrival if given.arrival > 0 else max(0.0, file.mtime), self._clock.now())
            given.warn_time = 0.0
            given.smtputf8 = not all(a.isascii() for a in (given.sender, *(r.address for r in given.recipients)))
        return given


def _forget_bad_details(envelope: Envelope) -> None:
    """What goes into the commands of SMTP and is wrong there is left out: the mail matters more than its DSN."""
    if CONTROL.search(envelope.envelope_id) or len(envelope.envelope_id) > MAX_ENVID:
        envelope.envelope_id = ""
    if envelope.encoding not in ("7bit", "8bit"):
        envelope.encoding = ""
    for r in envelope.recipients:
        if r.original and CONTROL.search(r.original):
            r.original = ""
        if r.dsn_orig_rcpt and not is_orcpt(r.dsn_orig_rcpt):
            r.dsn_orig_rcpt = ""


async def _hops(file: MaildropFile, found: QueueFile) -> int:
    """Count Received headers."""
    scanner, hops, size = HeaderScanner(), 0, 0
    async for chunk in file.content(found):
        size += len(chunk)
        hops += sum(h.name == b"received" for h in scanner.feed(chunk))
        if scanner.done or size > HEADER_BLOCK_LIMIT:
            return hops
    return hops + sum(h.name == b"received" for h in scanner.end())
