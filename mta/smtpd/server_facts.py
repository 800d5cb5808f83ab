"""From sockets, TLS and what was said to the values other rooms take."""

import socket
import ssl

from mta.envelope import Envelope, Origin, Recipient
from mta.smtpd.facts import Facts
from mta.smtpd.session_events import Transaction


def describe(facts: Facts, transaction: Transaction, in_tls: bool, now: float) -> tuple[Origin, Envelope]:
    """What cleanup must know of a message, from what was said."""
    kind = "UTF8SMTP" if transaction.smtputf8 else facts.protocol
    origin = Origin(
        door="smtpd",
        client_name=facts.client_name,
        client_address=facts.client_address,
        client_port=facts.client_port,
        helo=facts.helo,
        protocol=kind + "S" if in_tls and kind != "SMTP" else kind,
        sasl_username=facts.sasl_username,
        tls=facts.tls,
    )
    recipients = [Recipient(transaction.redirect)] if transaction.redirect else transaction.recipients
    recipients = [*recipients, *(Recipient(address) for address in transaction.bcc)]
    envelope = Envelope(
        transaction.sender,
        recipients,
        now,
        envelope_id=transaction.envelope_id,
        ret=transaction.ret,
        encoding=transaction.encoding,
        smtputf8=transaction.smtputf8,
    )
    return origin, envelope


def address_of(name: object) -> tuple[str, int]:
    """Address and port of getpeername(); a v4 client of a v6 socket is a v4 client."""
    if not isinstance(name, tuple) or len(name) < 2:
        return "127.0.0.1", 0  # a unix socket: who may open it is local
    address = str(name[0]).partition("%")[0]
    if address.lower().startswith("::ffff:") and "." in address:
        address = address[7:]
    return address, int(name[1])


def no_delay(sock: socket.socket | None) -> None:
    """asyncio does this itself only for a listener made with proto=IPPROTO_TCP; without it replies wait 40 ms."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto != socket.IPPROTO_TCP:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tls_description(tls: "ssl.SSLObject | None") -> str:
    """ "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)", as in Received: and the log."""
    cipher = tls.cipher() if tls is not None else None
    if tls is None or cipher is None:
        return "TLS"
    name, _, bits = cipher
    return f"{tls.version()} with cipher {name} ({bits}/{bits} bits)"
