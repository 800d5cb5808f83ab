"""What other rooms do for a connection: judge it, take its message, make that durable, secure it.

No state: what a step gives belongs to the connection that asked (mta/smtpd/server_connection.py).  A step that fails
is answered 4xx and logged; an exception that comes out of one is a bug of ours, which the connection answers likewise.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING

from mta.queue.api import QueueError, QueueFullError
from mta.smtp.reply import Reply
from mta.smtpd.facts import Facts, Stage, Verdict
from mta.smtpd.ports import Intake
from mta.smtpd.server_facts import describe
from mta.smtpd.session_events import Transaction
from mta.smtpd.session_text import CONFIGURATION_ERROR, QUEUE_ERROR, QUEUE_FULL

if TYPE_CHECKING:
    from mta.smtpd.server import SMTPServer


def exceeded(server: "SMTPServer", facts: Facts, verdict: Verdict) -> Verdict:
    """Warn about a client that is over a limit, as Postfix's smtpd does; the verdict without that."""
    for text in verdict.log:
        server.log.warning(server.service, f"{text} from {facts.client} for service smtp")
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
    verdict = exceeded(server, facts, await count(facts.client_address))
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
    server: "SMTPServer", protocol: asyncio.BaseProtocol, transport: asyncio.Transport | None
) -> asyncio.Transport | None:
    """STARTTLS: the transport with TLS, None when there can be none; OSError and others as start_tls raises them."""
    if server.tls is None or transport is None:
        return None
    limit = server.settings.smtpd_starttls_timeout
    return await server.loop.start_tls(
        transport, protocol, server.tls, server_side=True, ssl_handshake_timeout=limit
    )


def why_no_tls(error: Exception) -> str:
    """For the log; ssl.SSLError is an OSError."""
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else type(error).__name__
