"""An SMTP client agent with everything real around it but the outside: for tests of deliveries.

    lab = Lab(tmp_path, options={"smtp_helo_timeout": 0.3})  # any postconf(5) name of SmtpSettings
    fates = await lab.deliver("[127.0.0.1]:2525", ["a@x.test"])  # -> list of Result, in the order of recipients
    ... lab.lines() ...
    await lab.close()

`lab.ports` leads (address, 25) to another port, so that names looked up in a DnsServer can be delivered to.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from mta.clock import Clock
from mta.deliver.connector import NetConnector
from mta.deliver.request import CorruptContentError, DeliveryRequest, Result
from mta.deliver.smtp import SmtpAgent
from mta.deliver.smtp_settings import SmtpSettings
from mta.dns.mx import Shuffle
from mta.dns.resolver import Resolver, ResolverSettings
from mta.envelope import Envelope, Recipient
from mta.maillog.maillog import Maillog, MaillogSettings
from mta.tls import ClientTls, TlsClientSettings, client_tls

P = TypeVar("P", bound=asyncio.BaseProtocol)
BODY = b"From: a@src.test\nSubject: x\n\nhello\n.dot\n" + b"line of text\n" * 400
TIMEOUTS = [f.name for f in fields(SmtpSettings) if f.name.endswith("_timeout")]


class Lines:
    """A log sink that keeps lines."""

    with_header = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, lines: list[str]) -> bool:
        self.lines += lines
        return True

    def reopen(self) -> None:
        """Nothing to reopen."""

    def close(self) -> None:
        """Nothing to close."""


class MappedConnector(NetConnector):
    """NetConnector that leads (address, port) elsewhere."""

    def __init__(self, clock: Clock, ports: dict[tuple[str, int], int]) -> None:
        super().__init__(clock)
        self._ports = ports
        self.attempts: list[tuple[str, int]] = []

    async def connect(
        self,
        protocol_factory: Callable[[], P],
        address: str,
        port: int,
        *,
        local_address: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[asyncio.Transport, P]:
        self.attempts.append((address, port))
        port = self._ports.get((address, port), port)
        return await super().connect(protocol_factory, address, port, local_address=local_address, timeout=timeout)


def settings(**changes: object) -> SmtpSettings:
    """Postfix's defaults with short timeouts."""
    values: dict[str, object] = {
        "myhostname": "client.test", "queue_directory": "/nowhere", "inet_protocols": ("all",), "relayhost": "",
        "smtp_tcp_port": "smtp", "smtp_helo_name": "client.test", "smtp_always_send_ehlo": True,
        "smtp_never_send_ehlo": False, "smtp_discard_ehlo_keywords": (), "smtp_skip_5xx_greeting": True,
        "smtp_bind_address": "", "smtp_bind_address6": "", "smtp_address_preference": "any",
        "smtp_host_lookup": ("dns",),
        "smtp_balance_inet_protocols": True, "smtp_randomize_addresses": True, "smtp_mx_address_limit": 5,
        "smtp_mx_session_limit": 2, "smtp_fallback_relay": (), "smtp_line_length_limit": 998,
        "smtp_defer_if_no_mx_address_found": False, "ignore_mx_lookup_error": False, "disable_dns_lookups": False,
        "smtp_connection_cache_on_demand": True, "smtp_connection_cache_time_limit": 2.0,
        "smtp_connection_reuse_time_limit": 300.0, "smtp_connection_reuse_count_limit": 0,
        **dict.fromkeys(TIMEOUTS, 10.0),
    }  # fmt: skip
    return SmtpSettings(**{**values, **changes})  # type: ignore[arg-type]  # names checked by the dataclass


def opportunistic() -> ClientTls:
    """Level may with Postfix's defaults, each handshake logged."""
    high, medium = "aNULL:-aNULL:HIGH:@STRENGTH", "aNULL:-aNULL:HIGH:MEDIUM:+RC4:@STRENGTH"
    return client_tls(TlsClientSettings("may", False, False, ">=TLSv1", "medium", (), 1, high, medium))


class Lab:
    """See above."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        tls: ClientTls | None = None,
        dns_server: str = "127.0.0.1:9",
        clock: Clock | None = None,
        lmtp: bool = False,
        own_addresses: frozenset[str] = frozenset(),
        shuffle: Shuffle | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.sink = Lines()
        self.log = Maillog(MaillogSettings("", "postfix", "client.test"), self.clock, self.sink)
        self.ports: dict[tuple[str, int], int] = {}
        self.connector = MappedConnector(self.clock, self.ports)
        self.resolv = tmp_path / "resolv.conf"
        self.resolv.write_text("options timeout:1 attempts:1\n")
        self.resolver = Resolver(
            ResolverSettings((dns_server,), ("all",)), self.connector, self.clock, self.log,
            resolv_conf=str(self.resolv), hosts=str(tmp_path / "hosts"),
        )  # fmt: skip
        self.agent = SmtpAgent(
            settings(**(options or {})), self.resolver, self.connector, tls or ClientTls("none", None),
            self.log, self.clock, lmtp=lmtp, own_addresses=own_addresses, shuffle=shuffle,
        )  # fmt: skip
        self.pulled = 0  # octets of content taken by the agent

    async def deliver(
        self,
        nexthop: str,
        recipients: Sequence[str | Recipient],
        *,
        body: bytes = BODY,
        repeat: int = 1,
        corrupt: bool = False,
        envelope: Envelope | None = None,
    ) -> list[Result]:
        """One request; body: LF lines, sent `repeat` times over.  Every recipient must be reported exactly once."""
        given = [r if isinstance(r, Recipient) else Recipient(r) for r in recipients]
        for offset, recipient in enumerate(given):
            recipient.offset = 100 + offset
        fates: dict[int, Result] = {}

        async def content() -> AsyncIterator[bytes]:
            for _ in range(repeat):
                await asyncio.sleep(0)
                self.pulled += len(body)
                yield body
            if corrupt:
                raise CorruptContentError

        def done(recipient: Recipient, result: Result) -> None:
            assert recipient.offset not in fates, "reported twice"
            fates[recipient.offset] = result

        request = DeliveryRequest(
            "4jWXRM61SvzKHls", envelope or Envelope("a@src.test", given, self.clock.now()), "smtp", nexthop,
            tuple(given), len(body) * repeat, content, done, self.clock.monotonic(), not body.isascii(),
        )  # fmt: skip
        await self.agent.deliver(request)
        return [fates[r.offset] for r in given]

    def lines(self) -> list[str]:
        """Log lines so far, from the service name on."""
        self.log.flush()
        return [line.partition(" postfix/")[2] for line in self.sink.lines]

    async def close(self) -> None:
        """Release everything."""
        await self.agent.close()
        await self.resolver.close()
