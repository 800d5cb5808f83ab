"""What mta/smtpd/server.py relies on in aiosmtpd, by name: a release that changes it fails here, not at night."""

import asyncio
import inspect

import aiosmtpd.smtp
import pytest

from mta.smtpd.server import SHARED, SMTPConnection
from tests.smtpd_support import Client, serving


def test_the_class_is_a_stream_protocol_that_we_may_sit_in_front_of() -> None:
    assert issubclass(SMTPConnection, aiosmtpd.smtp.SMTP)
    assert issubclass(SMTPConnection, asyncio.BufferedProtocol)
    order = SMTPConnection.__mro__
    assert order.index(asyncio.BufferedProtocol) < order.index(aiosmtpd.smtp.SMTP) < order.index(asyncio.Protocol)


@pytest.mark.parametrize(
    "name",
    [
        *("connection_made", "connection_lost", "eof_received", "data_received", "pause_writing", "resume_writing"),
        *("get_buffer", "buffer_updated", "session", "envelope", "__init__", "__del__"),
    ],
)
def test_nothing_of_aiosmtpd_runs_on_the_way_of_a_byte(name: str) -> None:
    function = inspect.getattr_static(SMTPConnection, name)
    function = function.fget if isinstance(function, property) else function
    assert function.__module__.startswith("mta.smtpd.server")


def test_the_constructor_takes_what_we_give_it() -> None:
    parameters = inspect.signature(aiosmtpd.smtp.SMTP.__init__).parameters
    for name in ("handler", "data_size_limit", "enable_SMTPUTF8", "hostname", "ident", "tls_context", "loop"):
        assert name in parameters


def test_session_and_envelope_have_the_attributes_we_fill() -> None:
    envelope = aiosmtpd.smtp.Envelope()
    for name in ("mail_from", "rcpt_tos", "smtp_utf8", "content"):
        assert hasattr(envelope, name)
    source = inspect.getsource(aiosmtpd.smtp.Session.__init__)
    for name in ("peer", "ssl", "host_name", "extended_smtp", "authenticated"):
        assert f"self.{name}" in source


async def test_a_live_connection_shows_aiosmtpds_view() -> None:
    async with serving() as rooms:
        client = await Client.connect(rooms.port)
        await client.say("EHLO c.example", "MAIL FROM:<>", "RCPT TO:<user@test.example>")
        [connection] = rooms.server.connections
        assert isinstance(connection, SMTPConnection)
        assert all(hasattr(connection, name) for name in SHARED)
        assert connection.event_handler is rooms.server
        assert connection.session.host_name == "c.example" and connection.session.extended_smtp
        assert str(connection.session.peer).startswith("('127.0.0.1', ")
        assert connection.envelope.mail_from == "" and connection.envelope.rcpt_tos == ["user@test.example"]
        await client.close()
