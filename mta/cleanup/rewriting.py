"""The envelope on its way in: completed, canonical, with its bcc recipients and aliases, without duplicates.

Order as in Postfix: rewrite (@myorigin ...) -> sender/recipient canonical -> canonical -> bcc -> virtual alias ->
duplicates dropped.  Envelope addresses are always rewritten in the local context; headers only when the origin
says so.

See also: cleanup(8), ADDRESS_REWRITING_README
"""

from collections.abc import Callable

from mta.cleanup.mapping import AddressMapper, Rewriter
from mta.cleanup.settings import CleanupSettings
from mta.clock import others_run
from mta.envelope import MAILER_DAEMON, Envelope, Notify, Recipient
from mta.lookup.table import Maps
from mta.message_address import SLICE, quote

_DAEMON_AT = f"{MAILER_DAEMON}@".lower()
OpenTables = Callable[[tuple[str, ...]], Maps]


class EnvelopeRewriter:
    """Holds the maps; one per Cleanup."""

    def __init__(
        self, settings: CleanupSettings, rewriter: Rewriter, tables: OpenTables, warn: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._rewriter = rewriter
        self.mapper = AddressMapper(settings, rewriter, warn)
        self._virtual = tables(settings.virtual_alias_maps)
        common = tables(settings.canonical_maps)
        sender, recipient = tables(settings.sender_canonical_maps), tables(settings.recipient_canonical_maps)
        classes = (settings.canonical_classes, settings.sender_canonical_classes, settings.recipient_canonical_classes)
        self._envelope_sender = _chosen("envelope_sender", classes[1], sender, classes[0], common)
        self._envelope_recipient = _chosen("envelope_recipient", classes[2], recipient, classes[0], common)
        self.header_sender = _chosen("header_sender", classes[1], sender, classes[0], common)
        self.header_recipient = _chosen("header_recipient", classes[2], recipient, classes[0], common)
        self._sender_bcc = tables(settings.sender_bcc_maps)
        self._recipient_bcc = tables(settings.recipient_bcc_maps)

    def complete(self, address: str, *, local: bool = True) -> str:
        """Rewrite, in the local context or in that of other clients' headers; "" stays the null sender."""
        return self._rewriter.rewrite(address, local=local) if address else ""

    async def rewrite(self, envelope: Envelope, *, copies: bool = True, smtp: bool = False) -> Envelope:
        """Return the envelope to be stored; raises TableError.

        smtp: the ORCPT that a recipient lacks is what stood in RCPT (RFC 3461 s5.2.1), else its canonical address.
        copies: with automatic BCC recipients, which only new mail gets (postconf(5) always_bcc): a copy of what
        is forwarded or returned would be a second one, or go round for ever.
        """
        sender = self.complete(envelope.sender)
        if sender.lower().startswith(_DAEMON_AT) and sender.lower() == self.complete(MAILER_DAEMON).lower():
            sender = ""  # its name with our domain
        if sender:
            sender = await self.canonical(self._envelope_sender, sender)
        recipients = _Recipients(self._settings.duplicate_filter_limit)
        bcc = [self._settings.always_bcc] if copies and self._settings.always_bcc else []
        if copies and sender and self._sender_bcc:
            bcc += await self._bcc(self._sender_bcc, sender)
        for n, given in enumerate(envelope.recipients):
            if n % SLICE == SLICE - 1:
                await others_run()
            address = self.complete(given.address)
            if self._envelope_recipient:
                address = await self.canonical(self._envelope_recipient, address)
            if copies and self._recipient_bcc:
                bcc += await self._bcc(self._recipient_bcc, address)
            await self._add(recipients, given, address, given.address if smtp else address)
        for copy in dict.fromkeys(bcc):
            address = await self.canonical(self._envelope_recipient, self.complete(copy))
            await self._add(recipients, Recipient(address, notify=Notify.NEVER), address, address)
        return envelope.readdressed(sender, recipients.kept)

    async def canonical(self, maps: tuple[Maps, ...], address: str) -> str:
        """Apply canonical maps one after the other."""
        for table in maps:
            address = await self.mapper.replace(table, address)
        return address

    async def _bcc(self, maps: Maps, address: str) -> list[str]:
        found = await self.mapper.find(maps, address)
        return self.mapper.results(found, address, "bcc")[:1] if found else []

    async def _add(self, recipients: "_Recipients", given: Recipient, address: str, said: str) -> None:
        finals = await self.mapper.expand(self._virtual, address) if self._virtual else (address,)
        original = given.original or given.address
        orcpt = given.dsn_orig_rcpt or f"{'rfc822' if said.isascii() else 'utf-8'};{quote(said)}"
        for final in finals:
            recipients.add(final, original, orcpt, given.notify)


class _Recipients:
    """Recipients without duplicates: the same final address for the same original, compared without case."""

    def __init__(self, limit: int) -> None:
        self.kept: list[Recipient] = []
        self._seen: set[tuple[str, str, str, int]] = set()
        self._limit = limit

    def add(self, address: str, original: str, orcpt: str, notify: Notify) -> None:
        key = (address.lower(), original.lower(), orcpt.lower(), int(notify))
        if key in self._seen:
            return
        if not self._limit or len(self._seen) < self._limit:
            self._seen.add(key)
        shown = "" if original == address else original
        self.kept.append(Recipient(address, original=shown, notify=notify, dsn_orig_rcpt=orcpt))


def _chosen(
    what: str, own_classes: tuple[str, ...], own: Maps, common_classes: tuple[str, ...], common: Maps
) -> tuple[Maps, ...]:
    """The maps that apply to one class of address (postconf(5) canonical_classes), in order."""
    pairs = ((own_classes, own), (common_classes, common))
    return tuple(maps for classes, maps in pairs if maps and what in classes)
