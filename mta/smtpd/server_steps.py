"""What other rooms do for a connection: name it, judge it, take its message, make that durable, secure it.

No state: what a step gives belongs to the connection that asked (mta/smtpd/server_connection.py).  A step that fails
is answered 4xx and logged; an exception that comes out of one is a bug of ours, which the connection answers likewise.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from mta.lookup.table import TableError
from mta.queue.api import QueueError, QueueFullError
from mta.smtp.reply import Reply
from mta.smtpd.facts import PERMIT, Facts, Stage, Verdict
from mta.smtpd.ports import Intake
from mta.smtpd.server_facts import describe
from mta.smtpd.session_events import Transaction
from mta.smtpd.session_text import CONFIGURATION_ERROR, QUEUE_ERROR, QUEUE_FULL

if TYPE_CHECKING:
    from mta.smtpd.server import SMTPServer
    from mta.smtpd.server_connection import Connection


async def introduce(server: "SMTPServer", connection: "Connection") -> Verdict:
    """Find out who the client is, and whether it has too many connections already."""
    facts = connection.dialogue.facts
    if server.settings.smtpd_peername_lookup:
        found = await server.names.client_name(facts.client_address)
        facts.client_name, facts.client_name_status = found.name, found.name_status
        facts.reverse_client_name, facts.reverse_name_status = found.reverse_name, found.reverse_status
    if connection.transport is None:
        return PERMIT
    server.log.write(server.service, f"connect from {facts.client}")
    connection.counted = True
    return await exceeded(server, facts, await server.anvil.connect(facts.client_address))


async def exceeded(server: "SMTPServer", facts: Facts, verdict: Verdict) -> Verdict:
    """Warn about a client that is over a limit, as Postfix's smtpd does; the verdict without that.

    When the list of exceptions cannot tell, there is no limit.
    """
    if verdict.reply is None:
        return verdict
    try:
        if server.exceptions is not None and await server.exceptions.match(facts.client_address, facts.client_name):
            return PERMIT
    except TableError as error:
        server.log.warning(server.service, f"smtpd_client_event_limit_exceptions: {error}")
        return PERMIT
    for text in verdict.log:
        server.log.warning(server.service, f"{text} from {facts.client} for service {server.entry}")
    return replace(verdict, log=()) if verdict.log else verdict


def judge(server: "SMTPServer", facts: Facts, stage: Stage) -> Coroutine[object, None, Verdict]:
    """Counters first where there are limits, then the restrictions."""
    settings = server.settings
    if stage is Stage.MAIL and settings.smtpd_client_message_rate_limit:
        return _counted(server, facts, stage, server.anvil.mail)
    if stage is Stage.RCPT and settings.smtpd_client_recipient_rate_limit:
        return _counted(server, facts, stage, server.anvil.rcpt)
    return server.policy.check(stage, facts)


async def _counted(
    server: "SMTPServer", facts: Facts, stage: Stage, count: Callable[[str], Coroutine[object, None, Verdict]]
) -> Verdict:
    verdict = await exceeded(server, facts, await count(facts.client_address))
    return verdict if verdict.reply is not None else await server.policy.check(stage, facts)


async def open_message(server: "SMTPServer", facts: Facts, transaction: Transaction, *, in_tls: bool) -> Intake | Reply:
    """Open the message, or say why not."""
    if transaction.filter:  # a filter that is left out would let through what it is there to stop
        server.log.warning(server.service, f"{facts.client}: FILTER is not supported")
        return CONFIGURATION_ERROR
    origin, envelope = describe(facts, transaction, in_tls, server.clock.now())
    try:
        return await server.cleanup.open(
            origin, envelope, hold=transaction.hold, prepend=transaction.prepend, size_hint=transaction.size
        )
    except QueueFullError:
        return QUEUE_FULL
    except QueueError as error:
        server.log.warning(server.service, f"{facts.client}: {error}; answered 451 4.3.0 to DATA")
        return QUEUE_ERROR


async def make_durable(server: "SMTPServer", intake: Intake, log_bug: Callable[[], None]) -> Reply:
    """Commit the message; what is said to the client, whatever happens."""
    try:
        return await intake.commit()
    except QueueFullError:
        return QUEUE_FULL
    except QueueError as error:
        server.log.warning(server.service, f"{intake.queue_id}: {error}; answered 451 4.3.0")
        return QUEUE_ERROR
    except Exception:
        log_bug()
        return QUEUE_ERROR


async def handshake(
    server: "SMTPServer", connection: "Connection", transport: asyncio.Transport | None
) -> asyncio.Transport | None:
    """The transport with TLS, None when there can be none; OSError and others as start_tls raises them.

    What the client has sent too early for that (wrapper mode) is taken from the connection when TLS listens: it must
    come before what is read next, so in the turn in which start_tls begins to read again.
    """
    loop = server.loop
    if server.tls is None or transport is None or transport.is_closing():
        return None
    limit = server.settings.smtpd_starttls_timeout
    starting = loop.create_task(
        loop.start_tls(transport, connection, server.tls, server_side=True, ssl_handshake_timeout=limit)
    )
    loop.call_soon(loop.call_soon, _hand_over, connection, transport)  # behind the two callbacks of start_tls
    return await starting


def _hand_over(connection: "Connection", transport: asyncio.Transport) -> None:
    connection.mute = False
    data, connection.early = connection.early, b""
    while data and not transport.is_closing():
        tls = cast(asyncio.BufferedProtocol, transport.get_protocol())
        buffer = memoryview(tls.get_buffer(len(data)))
        taken = min(len(buffer), len(data))
        buffer[:taken] = data[:taken]
        tls.buffer_updated(taken)
        data = data[taken:]
