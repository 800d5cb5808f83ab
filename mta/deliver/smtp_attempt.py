"""One request of the SMTP and LMTP agent: next hop -> servers -> one conversation after the other, until each
recipient has its fate.

State per request: the recipients left, and for each why it is still here.  When a server fails:
- no connection, bad greeting or EHLO, lost connection, protocol error: the next address is tried; when there is
  none the recipients left are deferred with the last reason (bounced after a permanent refusal, as in Postfix);
- one of several next hops does not exist: what counts is why one before it could not be reached;
- a relayhost or fallback relay that does not exist, refuses to talk to us or is ourselves: deferred 4.3.5 and warned
  about, since that is the administrator's error and says nothing of the recipients (as in Postfix);
- TLS fails at level may: the same address once more, on a new connection, in the clear;
- a recipient that cannot stand in a command (from a table): bounced, and the others have their mail;
- a 4xx for a recipient: the next address, unless this was the last; a 5xx: bounced;
- the cached connection turns out to be dead: a fresh one to the same address, nobody hears of it;
- the stored message is damaged: the connection is dropped before the final dot, deferred 4.3.0.
A recipient is reported in the same call that read its reply: see smtp_session.py.

See also: smtp(8), lmtp(8), RFC 5321 s4.5.4, s5.1
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from mta.deliver.request import DeliveryRequest, Result
from mta.deliver.smtp_failure import Failure, words
from mta.deliver.smtp_pool import Key
from mta.deliver.smtp_route import RouteError
from mta.deliver.smtp_session import Session
from mta.deliver.smtp_settings import SMTP_PORT, Destination, NexthopError
from mta.dns.mx import Target
from mta.envelope import Recipient
from mta.smtp.client_events import Fate
from mta.smtp.commands import Transaction, sendable
from mta.smtp.reply import Reply
from mta.tls import describe, needs_more_than_may

if TYPE_CHECKING:
    from mta.deliver.smtp import SmtpAgent

BAD_ADDRESS = Reply(550, "5.1.3", "bad address syntax")


class Attempt:
    """One request: which recipients are left, and what was the matter."""

    def __init__(self, agent: "SmtpAgent", request: DeliveryRequest) -> None:
        self._agent, self._request = agent, request
        self._left: dict[int, Recipient] = dict(enumerate(request.recipients))
        self._kept: dict[int, Result] = {}  # what a server that was not the last said about a recipient
        self._why: Result | None = None
        self._unreached: Result | None = None  # why next hops before one that does not exist could not be reached
        self._session: Session | None = None  # the one that is talking
        self._numbers: tuple[int, ...] = ()  # recipients of its transaction
        self._final = False  # nobody is left to ask after it
        self._connected = 0.0
        self._heard_something = False

    # -- servers ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Walk through next hops and addresses; whoever is left at the end gets the last reason."""
        agent, request = self._agent, self._request
        for number, recipient in enumerate(request.recipients):
            if not sendable(recipient.address):
                request.done(self._left.pop(number), Result(BAD_ADDRESS, BAD_ADDRESS.text))
        if needs_more_than_may(agent.tls.level):
            text = f"TLS security level {agent.tls.level} is not honoured yet"
            self._note(Failure(Reply(451, "4.7.5", text), text, site=False))
        else:
            try:
                destinations = agent.destinations(request.nexthop)
            except NexthopError as error:
                agent.log.warning(request.transport, f"{request.queue_id}: {error}")
                text = "Server configuration error"
                self._note(Failure(Reply(451, "4.3.5", text), text, site=False))
            else:
                for destination in destinations:
                    if self._left:
                        await self._try_destination(destination, last=destination is destinations[-1])
        self._blame_settings()
        self._report_left()

    def _blame_settings(self) -> None:
        """No recipient is given back because the relay of all mail is wrong, or one next hop of several."""
        why, settings, lmtp = self._why, self._agent.settings, self._agent.lmtp
        if why is None or not self._left or not why.reply.is_permanent:
            return
        if settings.smtp_fallback_relay and not lmtp:
            name = "smtp_fallback_relay"
        elif settings.relayhost and self._request.nexthop == settings.relayhost and not lmtp:
            name = "relayhost"
        else:
            self._why = self._unreached or why
            return
        self._agent.log.warning(self._request.transport, f"{name} configuration problem")
        self._why = replace(why, reply=Reply(451, "4.3.5", why.reply.text), site_failed=True)

    def _report_left(self) -> None:
        """The recipients that are left get what a server said about them, else the last reason."""
        for number, recipient in self._left.items():
            result = self._kept.get(number) or self._why
            if result is not None:
                self._request.done(recipient, result)
        self._left.clear()

    async def _try_destination(self, destination: Destination, *, last: bool) -> None:
        if destination.path:
            targets = [Target(destination.host, destination.path)]
        else:
            try:
                targets = await self._agent.router.targets(destination)
            except RouteError as error:
                reply, before = error.reply, self._unreached or self._why
                self._note(Failure(reply, reply.text, site=reply.is_temporary))
                if before is not None and before.reply.is_temporary:
                    self._unreached = before
                return
        if len(targets) > 1:
            pool, port = self._agent.pool, destination.port
            targets.sort(key=lambda t: not pool.has((t.host, t.address, port)))
        limit = self._agent.settings.smtp_mx_session_limit
        sessions = 0
        for target in targets:
            last_target = last and target is targets[-1]
            session = await self._get_session(destination, target, last=last_target)
            if session is None:
                continue
            sessions += 1
            enough = sessions == limit
            await self._talk(session, destination, target, final=last_target or (last and enough))
            if enough or not self._left:
                return

    async def _get_session(self, destination: Destination, target: Target, *, last: bool) -> Session | None:
        """A connection that is ready for a message: a waiting one, else a new one, if need be without TLS."""
        agent = self._agent
        cached = agent.pool.take(_key(destination, target))
        if cached is not None and cached.alive:
            return cached
        use_tls = agent.tls.context is not None and not destination.path
        for with_tls in (True, False) if use_tls else (False,):
            session = agent.new_session(target, destination, use_tls=with_tls)
            failure = await agent.connect(session, destination)
            if failure is not None:
                agent.log.write(self._request.transport, failure.text)
                self._note(failure)
                return None
            failure = await session.open(agent.tls.context)
            if failure is None:
                failure = self._loop(session, destination, best=target.best)
            if failure is None:
                self._log_tls(session)
                return session
            if failure.handshake:
                agent.log.write(
                    self._request.transport, f"SSL_connect error to {session.relay}: {failure.handshake}"
                )
            if failure.tls:
                agent.pool.forget(session)  # its transport may be gone without a word to the session
            if not (with_tls and failure.tls):
                self._note(failure, session)
                self._say_skipped(failure.text, final=last)
                return None
            self._say_skipped(f"{failure.text}; trying {session.relay} without TLS", final=False)
        return None

    def _loop(self, session: Session, destination: Destination, *, best: bool) -> Failure | None:
        """Did we reach ourselves?  Looked at on port 25 only: elsewhere it may be meant so."""
        agent, name = self._agent, session.client.server_name
        own = agent.settings.myhostname
        if agent.lmtp or destination.port != SMTP_PORT or name.lower() != own.lower():
            return None
        agent.log.warning(
            self._request.transport, f"host {session.relay} replied to HELO/EHLO with my own hostname {own}"
        )
        text = f"mail for {destination.host} loops back to myself"
        agent.pool.dismiss(session)
        return Failure(Reply(554, "5.4.6", text) if best else Reply(451, "4.4.6", text), text)

    def _log_tls(self, session: Session) -> None:
        if session.client.tls and self._agent.tls.loglevel > 0:
            text = f"Untrusted TLS connection established to {session.relay}: {describe(session.ssl_object)}"
            self._agent.log.write(self._request.transport, text)

    def _say_skipped(self, text: str, *, final: bool) -> None:
        """What is not in a status= line because another server is tried."""
        if not final:
            self._agent.log.write(self._request.transport, f"{self._request.queue_id}: {text}")

    def _note(self, failure: Failure, session: Session | None = None) -> None:
        """Remember why the recipients that are left are left."""
        now = self._agent.clock.monotonic()
        heard, self._unreached = failure.heard, None
        self._why = Result(
            failure.reply,
            failure.text,
            relay=session.relay if session is not None else "none",
            diagnostic=f"smtp; {words(heard)}" if heard is not None else "",
            remote_mta=session.host if session is not None and heard is not None else "",
            conn_use=max(1, session.uses) if session is not None else 1,
            connected=self._connected or now,
            finished=now,
            site_failed=failure.site,
        )

    # -- a conversation ---------------------------------------------------------------------------

    async def _talk(self, session: Session, destination: Destination, target: Target, *, final: bool) -> None:
        """Send the message to the recipients that are left."""
        self._final = final
        failure = await self._send(session)
        while failure is not None and session.uses > 1 and not self._heard_something:
            # The server had closed the waiting connection: that says nothing about this message.
            other = await self._get_session(destination, target, last=final)
            if other is None:
                return
            session, failure = other, await self._send(other)
        if failure is not None and self._left:
            self._note(failure, session)
            if failure.reply.is_permanent and not failure.site:
                self._report_left()
            self._say_skipped(failure.text, final=final or not self._left)
        pool, site = self._agent.pool, self._request.nexthop
        if session.reset_needed and pool.wanted(site, session):
            session.reusable = await session.reset()
        pool.put(site, _key(destination, target), session)

    async def _send(self, session: Session) -> Failure | None:
        self._connected = self._agent.clock.monotonic()
        self._heard_something = False
        self._session = session
        before = session.client.progress
        request = self._request
        try:
            utf8 = await self._needs_smtputf8()
        except BaseException:
            session.abort()
            raise
        refusal = self._unfit(session, utf8=utf8)
        if refusal is not None:
            session.reusable = self._heard_something = True  # its EHLO said so
            return refusal
        self._numbers = tuple(self._left)
        envelope = request.envelope
        message = Transaction(
            envelope.sender,
            tuple(self._left.values()),
            request.size,
            "8bit" if request.has_8bit else envelope.encoding,
            utf8 or envelope.smtputf8,
            envelope.envelope_id,
            envelope.ret,
        )
        failure = await session.send(message, request.content, self._on_fate)
        self._heard_something = session.client.progress != before
        return failure

    def _unfit(self, session: Session, *, utf8: bool) -> Failure | None:
        """A message that this server cannot take; permanent, as in Postfix."""
        features, size = session.client.features, self._request.size
        if features.size_limit and size > features.size_limit:
            text = f"message size {size} exceeds size limit {features.size_limit} of server {session.namaddr}"
            return Failure(Reply(552, "5.3.4", text), text, site=False)
        if utf8 and "SMTPUTF8" not in features:
            text = f"SMTPUTF8 is required, but was not offered by host {session.namaddr}"
            return Failure(Reply(553, "5.6.7", text), text, site=False)
        return None

    async def _needs_smtputf8(self) -> bool:
        """An address, or a header of a message sent under SMTPUTF8, is not ASCII (RFC 6531 s3.2)."""
        request = self._request
        envelope = request.envelope
        if not envelope.sender.isascii() or not all(r.address.isascii() for r in self._left.values()):
            return True
        if not (envelope.smtputf8 and request.has_8bit):
            return False
        chunks = request.content()
        first = b""
        async for chunk in chunks:
            first = chunk
            break
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
        return not first.partition(b"\n\n")[0].isascii()

    def _on_fate(self, fate: Fate) -> None:
        """The server has spoken about one recipient.  No await between its words and done()."""
        session = self._session
        if session is None:
            raise RuntimeError("no session")
        number = self._numbers[fate.index]
        heard, reply = fate.heard, fate.heard.reply
        if reply.is_positive:
            text = words(heard)
            action = "" if "DSN" in session.client.features else "delivered" if self._agent.lmtp else "relayed"
        else:
            text = f"host {session.namaddr} said: {words(heard)} (in reply to {fate.command})"
            action = ""
        result = Result(
            reply,
            text,
            session.relay,
            f"smtp; {words(heard)}",
            session.host,
            action,
            session.uses,
            self._connected,
            self._agent.clock.monotonic(),
            site_failed=heard.code == 421,
        )
        if reply.is_temporary and not self._final:
            self._kept[number] = result
            self._say_skipped(text, final=False)
            return
        self._request.done(self._left.pop(number), result)


def _key(destination: Destination, target: Target) -> Key:
    return (target.host, target.address, destination.port)
