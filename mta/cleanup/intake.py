"""One message on its way through the door: header filtered, body passed through, committed or refused.

Cheap for the common case: a header scan until the body begins, then chunks go straight to the draft.  Only local
mail with canonical maps needs a pause: its header is kept until the maps have answered, and what arrives of the
body meanwhile is kept too (bounded; the answer takes milliseconds).

See also: mta/cleanup/headers.py, cleanup(8)
"""

import asyncio
from collections.abc import Awaitable, Callable

from mta.cleanup.headers import HeaderFilter, Missing, addresses_in, has_addresses
from mta.clock import in_slices, others_run
from mta.lookup.table import TableError
from mta.message import Header, HeaderScanner
from mta.message_address import SLICE
from mta.queue.api import Draft, Parent, QueueError, QueueFullError
from mta.record import dataclass
from mta.smtp.reply import Reply

TOO_BIG = Reply(552, "5.3.4", "Error: message file too big")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Error: too many hops")
QUEUE_FULL = Reply(452, "4.3.1", "Insufficient system storage")
WRITE_ERROR = Reply(451, "4.3.0", "Error: queue file write error")
LOOKUP_ERROR = Reply(451, "4.3.0", "Error: address lookup failed")
HEADER_BLOCK_LIMIT = 2 << 20  # bytes of header kept while canonical maps are asked
PIECE = 8192  # bytes of header whose addresses are rewritten between two pauses
BACKLOG_LIMIT = 4 << 20  # bytes of body kept meanwhile

AskMaps = Callable[[bytes, str], Awaitable[str]]  # (header name, address) -> address


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided about a message before its content comes.

    add: complete the header with what is missing.  ask: canonical maps for header addresses, None = none apply.
    size_limit, hop_limit: 0 = unlimited.
    """

    missing: Missing
    date: str
    add: bool
    ask: AskMaps | None
    hold: bool
    size_limit: int
    hop_limit: int
    encoding: str
    log: Callable[[str], None]
    warn: Callable[[str], None]
    attributes: dict[str, str]


class Intake:
    """See mta.smtpd.ports.Intake; made by Cleanup.open()."""

    __slots__ = ("_answers", "_backlog", "_draft", "_filter", "_headers", "_kept", "_plan", "_refused", "_scanner",
                 "_size", "_task", "queue_id", "uid")  # fmt: skip

    def __init__(self, draft: Draft, plan: Plan, scanner: HeaderScanner, header_filter: HeaderFilter) -> None:
        self.queue_id = draft.queue_id
        self.uid = draft.uid
        self._draft, self._plan, self._filter = draft, plan, header_filter
        self._scanner: HeaderScanner | None = scanner
        self._size = 0
        self._refused: Reply | None = None
        self._headers: list[Header] = []  # kept for the canonical maps
        self._kept = 0
        self._answers: dict[tuple[bytes, str], str] = {}
        self._task: asyncio.Task[None] | None = None
        self._backlog: list[bytes] = []

    def write(self, content: bytes) -> None:
        """Append LF lines, cut anywhere.  A stray CR becomes a blank (postconf(5) cleanup_replace_stray_cr_lf)."""
        if self._refused is not None:
            return
        if b"\r" in content:
            content = content.replace(b"\r", b" ")
        self._size += len(content)
        if self._plan.size_limit and self._size > self._plan.size_limit:
            self._refuse(TOO_BIG)
        elif self._scanner is None:
            self._body(content)
        elif content:
            self._header(self._scanner.feed(content))
            if self._scanner.done:
                self._header_done(self._scanner)

    def answer(self, name: bytes, address: str) -> str:
        """The canonical form of a header address found beforehand."""
        return self._answers.get((name, address), address)

    def _refuse(self, reply: Reply) -> None:
        """Nothing will be stored: give the space back at once, answer at commit."""
        self._refused = reply
        self._backlog, self._headers = [], []
        self._draft.abort()

    def _header(self, headers: list[Header]) -> None:
        if self._plan.ask is not None:
            self._headers += headers
            self._kept += sum(len(h.raw) for h in headers)
            if self._kept > HEADER_BLOCK_LIMIT:
                self._refuse(TOO_BIG)
            return
        if headers:
            self._store_headers(headers)

    def _store_headers(self, headers: list[Header]) -> None:
        take = self._filter.take
        self._draft.write(b"".join([take(header) for header in headers]))
        limit = self._plan.hop_limit
        if limit and self._filter.hops >= limit:
            self._refuse(TOO_MANY_HOPS)

    def _header_done(self, scanner: HeaderScanner) -> None:
        self._scanner = None
        if self._refused is not None:
            return
        if self._plan.ask is not None and any(map(has_addresses, self._headers)):
            self._task = asyncio.get_running_loop().create_task(self._ask(self._plan.ask))
            self._backlog.append(scanner.rest)
            return
        self._after_header(scanner.rest)

    async def _ask(self, ask: AskMaps) -> None:
        """Store each header when the maps have answered; a header may be long, so others have turns meanwhile."""
        headers, self._headers, size = self._headers, [], 0
        try:
            for header in headers:
                for key in await in_slices(addresses_in(header)):
                    if key not in self._answers:
                        self._answers[key] = await ask(*key)
                        if len(self._answers) % SLICE == 0:
                            await others_run()
                if self._refused is not None:
                    return
                self._store_headers([header])
                size += len(header.raw)
                if size > PIECE:
                    size = 0
                    await others_run()
            if self._refused is None:
                backlog, self._backlog, self._task = self._backlog, [], None
                self._after_header(b"".join(backlog))
        except TableError as error:
            self._plan.warn(f"{self.queue_id}: {error}")
            self._refuse(LOOKUP_ERROR)
        except Exception as error:  # a bug of ours: what is stored now would lack its header
            self._plan.warn(f"{self.queue_id}: internal error: {type(error).__name__}: {error}")
            self._refuse(LOOKUP_ERROR)

    def _after_header(self, rest: bytes) -> None:
        if self._headers:
            headers, self._headers = self._headers, []
            self._store_headers(headers)
            if self._refused is not None:
                return
        plan = self._plan
        if plan.add:
            rest = self._filter.added(plan.missing, plan.date) + rest
        self._filter.note_absent()
        for note in self._filter.notes:
            plan.log(f"{self.queue_id}: {note}")
        if rest:
            self._draft.write(rest)

    def _body(self, content: bytes) -> None:
        if self._task is None:
            self._draft.write(content)
            return
        self._backlog.append(content)
        if sum(map(len, self._backlog)) > BACKLOG_LIMIT:
            self._task.cancel()
            self._refuse(LOOKUP_ERROR)

    async def commit(self) -> Reply:
        """Make it durable; every error is a Reply."""
        try:
            await self.store(None)
        except RefusedError as error:
            return error.reply
        except QueueFullError as error:
            self._plan.warn(f"{self.queue_id}: {error}")
            return QUEUE_FULL
        except QueueError as error:
            self._plan.warn(f"{self.queue_id}: {error}")
            return WRITE_ERROR
        return Reply(250, "2.0.0", f"Ok: queued as {self.queue_id}")

    async def store(self, parent: Parent | None) -> Draft:
        """Commit, born held with a parent; raises RefusedError or QueueError."""
        if self._scanner is not None and self._refused is None:
            scanner = self._scanner
            self._header(scanner.end())
            if self._refused is None:
                self._header_done(scanner)
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._refused is not None:
            self._draft.abort()
            raise RefusedError(self._refused)
        attributes = dict(self._plan.attributes)
        if self._filter.encoding and not self._plan.encoding:
            attributes["encoding"] = self._filter.encoding
        await self._draft.commit(parent=parent, hold=self._plan.hold, attributes=attributes)
        return self._draft

    def abort(self) -> None:
        """Forget the message without trace; never raises."""
        if self._task is not None:
            self._task.cancel()
        self._refused = self._refused or WRITE_ERROR
        self._backlog, self._headers = [], []
        self._draft.abort()


class RefusedError(QueueError):
    """The content was refused; reply says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply
