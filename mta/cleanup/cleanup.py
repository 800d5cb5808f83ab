"""The one door into the queue.

open() rewrites the envelope, begins the queue file and puts our Received: header in front; the Intake takes the
content.  inject() does all of it for mail that the MTA makes itself, as a child that is born held.

See also: cleanup(8), mta/INTERNALS.md (commit, children)
"""

from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

from mta.cleanup.headers import SENDER_HEADERS, HeaderFilter, Missing
from mta.cleanup.intake import Intake, Plan
from mta.cleanup.mapping import Rewriter
from mta.cleanup.rewriting import EnvelopeRewriter, OpenTables
from mta.cleanup.settings import CleanupSettings
from mta.clock import Clock, rfc5322_date, stamp
from mta.envelope import Envelope, Origin
from mta.lookup.table import TableError
from mta.maillog.maillog import Maillog
from mta.message import HeaderScanner, clean, received
from mta.queue.api import Draft, Parent, QueueError, QueueStore


class LookupFailedError(QueueError):
    """A table failed while addresses were rewritten: 451 4.3.0, nothing was begun."""


class Cleanup:
    """Implements mta.smtpd.ports.Cleanup."""

    def __init__(
        self,
        settings: CleanupSettings,
        store: QueueStore,
        rewriter: Rewriter,
        tables: OpenTables,
        log: Maillog,
        clock: Clock,
        *,
        local_client: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """tables: opens a list of "type:name" as one Maps.

        local_client: is this client address one of local_header_rewrite_clients (its headers are completed)?
        """
        self.settings = settings
        self._store, self._clock, self._log = store, clock, log
        self._local_client = local_client
        self._envelopes = EnvelopeRewriter(settings, rewriter, tables, self._warn)
        self._drop = frozenset(name.lower().encode() for name in settings.message_drop_headers)
        self._date_second, self._date_text = -1, ""

    async def open(
        self,
        origin: Origin,
        envelope: Envelope,
        *,
        hold: bool = False,
        prepend: tuple[str, ...] = (),
        size_hint: int = 0,
        attributes: dict[str, str] | None = None,
    ) -> Intake:
        """Begin a message.

        hold: it goes to the hold queue.  prepend: header lines in front of our Received.  size_hint: judged by
        the server already.  attributes: for the queue file, stored with the commit.  Raises QueueError when
        nothing can be taken now or a table fails.
        """
        internal = origin.door in ("bounce", "forward")
        local = origin.rewrite_local or (origin.door == "smtpd" and self._local_client(origin.client_address))
        try:
            stored = await self._envelopes.rewrite(envelope, copies=not internal, smtp=origin.door == "smtpd")
        except TableError as error:
            self._log.warning("cleanup", f"{error}; message not accepted, try again later")
            raise LookupFailedError("address rewriting") from error
        draft = await self._store.draft(envelope.arrival)
        try:
            self._attributes(origin, stored, local=local)
            if self.settings.delay_warning_time and not stored.warn_time:
                stored.warn_time = stored.arrival + self.settings.delay_warning_time
            draft.envelope(stored)
            date = self._date(envelope.arrival)
            only = envelope.recipients[0].address if len(envelope.recipients) == 1 else ""
            settings = self.settings
            trace = received(origin, settings.myhostname, settings.mail_name, draft.queue_id, only, date)
            lines = b"".join(clean(line) + b"\n" for line in prepend)
            draft.write(lines + trace)
            extra = attributes or {}
            return self._intake(origin, stored, draft, date, local=local, hold=hold, internal=internal, extra=extra)
        except BaseException:  # nothing may keep its descriptor
            draft.abort()
            raise

    def _intake(
        self,
        origin: Origin,
        envelope: Envelope,
        draft: Draft,
        date: str,
        *,
        local: bool,
        hold: bool,
        internal: bool,
        extra: dict[str, str],
    ) -> Intake:
        settings = self.settings
        rewritten = local or bool(settings.remote_header_rewrite_domain and not internal)
        mapped = self._envelopes.header_sender or self._envelopes.header_recipient
        plan = Plan(
            missing=Missing(draft.queue_id, self._message_id, envelope.full_name, envelope.sender),
            date=date,
            add=rewritten or (settings.always_add_missing_headers and not internal),
            ask=partial(self._ask, local=local) if rewritten and mapped else None,
            hold=hold,
            size_limit=0 if internal or origin.requeued else settings.message_size_limit,
            hop_limit=0 if origin.door in ("bounce", "pickup") else settings.hopcount_limit,
            encoding=envelope.encoding if settings.detect_8bit_encoding_header else "off",
            log=self._note,
            warn=self._warn,
            attributes=extra,
        )
        scanner = HeaderScanner(settings.header_size_limit, mbox_line=origin.door == "smtpd")
        if not rewritten:
            return Intake(draft, plan, scanner, HeaderFilter(self._drop, None))
        if plan.ask is None:
            complete = partial(self._envelopes.complete, local=local)
            return Intake(draft, plan, scanner, HeaderFilter(self._drop, lambda _, address: complete(address)))
        header_filter = HeaderFilter(self._drop, lambda name, address: intake.answer(name, address))
        intake = Intake(draft, plan, scanner, header_filter)
        return intake

    async def inject(
        self,
        origin: Origin,
        envelope: Envelope,
        chunks: AsyncIterator[bytes] | Iterable[bytes],
        parent: Parent | None = None,
    ) -> Draft:
        """Store a message of our own; with a parent it is born held.  Raises QueueError: nothing was stored."""
        intake = await self.open(origin, envelope)
        try:
            if isinstance(chunks, AsyncIterator):
                async for chunk in chunks:
                    intake.write(chunk)
            else:
                for chunk in chunks:
                    intake.write(chunk)
            return await intake.store(parent)
        except BaseException:
            intake.abort()
            raise

    async def _ask(self, name: bytes, address: str, *, local: bool) -> str:
        maps = self._envelopes.header_sender if name in SENDER_HEADERS else self._envelopes.header_recipient
        return await self._envelopes.canonical(maps, self._envelopes.complete(address, local=local))

    def _note(self, text: str) -> None:
        self._log.write("cleanup", text)

    def _warn(self, text: str) -> None:
        self._log.warning("cleanup", text)

    def _message_id(self, queue_id: str) -> str:
        """Long queue ids are never reused; short ones need the time."""
        host = self.settings.myhostname
        if self.settings.enable_long_queue_ids:
            return f"<{queue_id}@{host}>"
        now = stamp(self._clock.now(), "%Y%m%d%H%M%S", utc=True)
        return f"<{now}.{queue_id}@{host}>"

    def _date(self, when: float) -> str:
        if int(when) != self._date_second:
            self._date_second, self._date_text = int(when), rfc5322_date(int(when))
        return self._date_text

    @staticmethod
    def _attributes(origin: Origin, envelope: Envelope, *, local: bool) -> None:
        """What Postfix keeps about the origin, for log lines and macros of later steps."""
        named = dict(envelope.attributes)
        named.setdefault("rewrite_context", "local" if local else "remote")
        if origin.door == "smtpd":
            named.setdefault("log_client_name", origin.client_name or "unknown")
            named.setdefault("log_client_address", origin.client_address)
            named.setdefault("log_client_port", str(origin.client_port))
            named.setdefault("log_message_origin", f"{origin.client_name or 'unknown'}[{origin.client_address}]")
            named.setdefault("log_helo_name", origin.helo)
            named.setdefault("log_protocol_name", origin.protocol)
            if origin.sasl_username:
                named.setdefault("sasl_username", origin.sasl_username)
        else:
            named.setdefault("log_message_origin", "local")
        envelope.attributes = {name: value for name, value in named.items() if value}
