"""smtpd_*_restrictions: lists compiled once, evaluated in Postfix's order.

With smtpd_delay_reject the client, helo and sender lists are evaluated at RCPT, then relay before recipient
restrictions; OK ends one list, REJECT ends all.  What a client may not learn stays in the log: a table that
fails is 451 4.3.0 or 4.3.5, a name nobody knows 451 4.3.5, and neither is ever taken for "no".

State: compiled lists only.  A verdict depends on the facts handed in; what is to be remembered between commands
(with smtpd_delay_reject = no a DEFER_IF_PERMIT, and a DISCARD) is in the verdict, and comes back with the facts.

See also: SMTPD_ACCESS_README, postconf(5), mta/smtpd/facts.py
"""

from collections.abc import Iterable, Mapping, Sequence

from mta.lookup.context import LookupContext
from mta.lookup.match_list import NetworkList, parent_style
from mta.lookup.open import open_table, open_tables, split_list
from mta.lookup.table import Maps, TableError
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.restrict_compile import Compiler
from mta.smtpd.restrict_core import (
    CLIENT,
    CONFIGURATION_ERROR,
    DATA,
    END_OF_DATA,
    ETRN,
    HELO,
    RECIPIENT,
    SENDER,
    Ask,
    Check,
    Dns,
    Restriction,
    RestrictionSettings,
    ServerError,
    Tools,
    run,
)
from mta.smtpd.restrict_relay import reject_unlisted_recipient, reject_unlisted_sender
from mta.trivial_rewrite import Rewriter

BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")

REWRITING = {
    RECIPIENT: ("recipient_canonical", "canonical", "virtual_alias"),
    SENDER: ("recipient_canonical", "sender_canonical", "canonical", "virtual_alias"),
}


class Restrictions:
    """Answers Policy.check().

    context: for tables; its service is the name under which warnings appear.  classes: name -> words, for each
    name in smtpd_restriction_classes.  own_addresses: of inet_interfaces, as text.
    """

    def __init__(
        self,
        settings: RestrictionSettings,
        rewriter: Rewriter,
        context: LookupContext,
        resolver: Dns,
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        own_addresses: Iterable[str] = (),
    ) -> None:
        self._settings, self._context = settings, context
        parents = settings.parent_domain_matches_subdomains
        maps = _recipient_maps(settings, context)
        self._tools = Tools(
            settings=settings,
            rewriter=rewriter,
            dns=resolver,
            warn=context.warn,
            pause=context.clock.sleep,
            mynetworks=NetworkList(
                "mynetworks", settings.mynetworks, context, parents=parent_style("mynetworks", parents)
            ),
            own_addresses=NetworkList("inet_interfaces", tuple(own_addresses), context),
            recipient_maps=maps,
            rewriting={kind: tuple(maps[name] for name in names if maps[name]) for kind, names in REWRITING.items()},
        )
        s, compiler = settings, Compiler(context, parents, classes or {})
        self._client = compiler.compile(s.smtpd_client_restrictions, "client")
        self._helo = compiler.compile(s.smtpd_helo_restrictions, "helo")
        self._sender = compiler.compile(s.smtpd_sender_restrictions, "sender")
        relay = compiler.compile(s.smtpd_relay_restrictions, "relay")
        recipient = compiler.compile(s.smtpd_recipient_restrictions, "recipient")
        before = s.smtpd_relay_before_recipient_restrictions
        self._at_rcpt = (relay, recipient) if before else (recipient, relay)
        self._data = compiler.compile(s.smtpd_data_restrictions, "data")
        self._end_of_data = compiler.compile(s.smtpd_end_of_data_restrictions, "end_of_data")
        self._etrn = compiler.compile(s.smtpd_etrn_restrictions, "etrn")
        self.silent = self._silent()

    def _silent(self) -> frozenset[Stage]:
        """Stages that nothing is configured for: check() would permit them in any case."""
        silent = {Stage.CONNECT, Stage.HELO, Stage.EHLO} if self._settings.smtpd_delay_reject else set()
        lists = {Stage.DATA: self._data, Stage.END_OF_MESSAGE: self._end_of_data}
        return frozenset(silent | {stage for stage, checks in lists.items() if not checks})

    # -- judging ----------------------------------------------------------------------------------

    async def check(self, stage: Stage, facts: Facts) -> Verdict:
        """May the client do this?  Never raises for a table, DNS or configuration error: those are 4xx."""
        s = self._settings
        if stage is Stage.MAIL and s.smtpd_delay_reject:
            sender = facts.sender or ""
            if not sender or self._tools.rewriter.is_faultless(sender):
                return PERMIT
        ask = Ask(self._tools, stage, facts, discard=facts.discard)
        match stage:
            case Stage.RCPT | Stage.VRFY:
                await self._recipient(ask, facts.recipient)
            case Stage.MAIL:
                await self._syntax(ask, facts.sender or "", BAD_SENDER)
                if ask.reply is None and not s.smtpd_delay_reject:
                    ask.defer_if_permit = facts.postponed_client or facts.postponed_helo
                    await self._judge_sender(ask)
            case Stage.CONNECT if not s.smtpd_delay_reject:
                await self._run(self._client, ask, facts.client, CLIENT)
            case Stage.HELO | Stage.EHLO if not s.smtpd_delay_reject:
                ask.defer_if_permit = facts.postponed_client
                await self._run(self._helo, ask, facts.helo, HELO)
            case Stage.DATA:
                ask.recipient = facts.recipient or None
                await self._whole(self._data, ask, "DATA", DATA)
            case Stage.END_OF_MESSAGE:
                ask.recipient = facts.recipient or None
                await self._whole(self._end_of_data, ask, "END-OF-MESSAGE", END_OF_DATA)
            case Stage.ETRN:
                ask.defer_if_permit = facts.postponed_client or facts.postponed_helo
                if not s.smtpd_delay_reject or await self._delayed(ask):
                    await self._whole(self._etrn, ask, facts.etrn_or_vrfy or facts.recipient, ETRN)
        return _verdict(ask)

    async def _syntax(self, ask: Ask, address: str, bad: Reply) -> None:
        if not address:
            return
        try:
            if (await ask.resolve(address)).error:
                ask.reply = bad
        except TableError:
            return  # whoever needs the answer asks again, and defers

    async def _recipient(self, ask: Ask, recipient: str) -> None:
        if recipient.lower() == "postmaster":
            return  # RFC 5321 s4.5.1
        ask.recipient = recipient
        await self._syntax(ask, recipient, BAD_RECIPIENT)
        if ask.reply is not None or (self._settings.smtpd_delay_reject and not await self._delayed(ask)):
            return
        ask.defer_if_permit = ask.defer_if_permit or ask.facts.postponed_sender
        ask.defer_if_reject = None
        for restrictions in self._at_rcpt:
            if not await self._list(restrictions, ask, recipient, RECIPIENT):
                return
        if self._forced(ask) or ask.discard or not self._settings.smtpd_reject_unlisted_recipient:
            return
        await self._guard(reject_unlisted_recipient, ask, recipient, RECIPIENT)

    async def _delayed(self, ask: Ask) -> bool:
        """Client, helo and sender lists; False when one refuses."""
        facts = ask.facts
        if self._client and not await self._run(self._client, ask, facts.client, CLIENT):
            return False
        if self._helo and facts.helo and not await self._run(self._helo, ask, facts.helo, HELO):
            return False
        return facts.sender is None or await self._judge_sender(ask)

    async def _judge_sender(self, ask: Ask) -> bool:
        sender = ask.facts.sender or ""
        if not await self._run(self._sender, ask, sender, SENDER):
            return False
        if sender and self._settings.smtpd_reject_unlisted_sender and not ask.discard:
            await self._guard(reject_unlisted_sender, ask, sender, SENDER)
        return ask.reply is None

    async def _whole(self, restrictions: Sequence[Restriction], ask: Ask, name: str, kind: str) -> None:
        """A list that judges the message or a name, with what earlier words of this list postponed."""
        if await self._run(restrictions, ask, name, kind):
            self._forced(ask)

    def _forced(self, ask: Ask) -> bool:
        """Refuse now what DEFER_IF_PERMIT postponed, as nothing refused it for good."""
        deferral = ask.defer_if_permit
        if deferral is None:
            return False
        ask.warning, ask.defer_if_reject = 0, None
        ask.reject(deferral.code, deferral.dsn, deferral.text)
        return True

    async def _run(self, restrictions: Sequence[Restriction], ask: Ask, name: str, kind: str) -> bool:
        """Evaluate the list of one command; False when it refuses."""
        ask.defer_if_reject = None
        return await self._list(restrictions, ask, name, kind)

    async def _list(self, restrictions: Sequence[Restriction], ask: Ask, name: str, kind: str) -> bool:
        """Evaluate one list; an earlier one of the same command may have said DEFER_IF_REJECT."""
        ask.warning = 0
        if not restrictions:
            return True
        try:
            await run(restrictions, ask, name, kind)
        except (TableError, ServerError) as error:
            self._stopped(error, ask, name)
        return ask.reply is None

    async def _guard(self, check: Check, ask: Ask, name: str, kind: str) -> None:
        """One check that is in no list, as if it were the last of the list before."""
        ask.warning = 0
        try:
            await check(ask, name, kind)
        except (TableError, ServerError) as error:
            self._stopped(error, ask, name)

    def _stopped(self, error: TableError | ServerError, ask: Ask, name: str) -> None:
        """Turn what stops an evaluation into a reply."""
        self._tools.warn(str(error))
        if isinstance(error, TableError):
            ask.fault(451, "4.3.0", f"<{name}>: Temporary lookup failure")
        else:
            ask.fault(*CONFIGURATION_ERROR)


def _verdict(ask: Ask) -> Verdict:
    log = tuple(ask.log)
    if ask.reply is not None:
        return Verdict(ask.reply, close=ask.reply.code in (421, 521), log=log)
    effects = ask.hold or ask.discard or ask.redirect or ask.bcc or ask.prepend or ask.filter
    if not (log or effects or ask.defer_if_permit):
        return PERMIT
    return Verdict(
        hold=ask.hold,
        discard=ask.discard,
        redirect=ask.redirect,
        bcc=ask.bcc,
        prepend=tuple(ask.prepend),
        filter=ask.filter,
        postponed=ask.defer_if_permit,
        log=log,
    )


def _recipient_maps(settings: RestrictionSettings, context: LookupContext) -> dict[str, Maps]:
    """The tables that list recipients; a table that is also in alias_maps is in aliases(5) syntax."""
    aliases = split_list(settings.alias_maps)
    local = split_list(settings.local_recipient_maps)
    return {
        "local recipient": Maps(tuple(open_table(w, context, aliases=w in aliases) for w in local)),
        "virtual mailbox": open_tables(settings.virtual_mailbox_maps, context),
        "relay recipient": open_tables(settings.relay_recipient_maps, context),
        "virtual_alias": open_tables(settings.virtual_alias_maps, context),
        "canonical": open_tables(settings.canonical_maps, context),
        "recipient_canonical": open_tables(settings.recipient_canonical_maps, context),
        "sender_canonical": open_tables(settings.sender_canonical_maps, context),
    }
