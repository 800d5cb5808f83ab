"""The cases, and what ours has to reach beside Postfix in each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.bench.backlog import backlog
from tests.bench.idle import idle
from tests.bench.lab import Lab
from tests.bench.receivers import Receiver
from tests.bench.run import (
    RATE,
    Figures,
    Generator,
    Load,
    sendmail,
    smtp,
    tls,
    to_mailbox,
    to_maildir,
    to_mbox,
    to_sink,
)
from tests.bench.systems import System


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table.

    figure: what is compared, a key of Figures.  target: ours / Postfix's, at least for a rate, at most for a time.
    settings: of main.cf, besides the common ones; {disk}, {certificate} are filled in.
    alone: measures something else than a load, once, or repeated, in each round.  limits: what ours may have at most.
    without: mail systems that cannot do it, or of whom nobody asks.
    """

    name: str
    title: str
    load: Load
    target: float | None = None
    figure: str = RATE
    generator: Generator = smtp
    receiver: Callable[[Lab, Load], Receiver] = to_sink
    settings: Mapping[str, str] = field(default_factory=dict)
    alone: Callable[[Lab, System], Figures] | None = None
    repeated: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    @property
    def more_is_better(self) -> bool:
        """False for times and memory."""
        return self.figure in (RATE, "accept")


LOCAL = {"mydestination": "mx.bench.test", "mail_spool_directory": "{disk}/mail"}
MAILDIR = {**LOCAL, "home_mailbox": "Maildir/"}
NOTHING = Load(0, 0)
CLIENTS = {"default_process_limit": "1100", "smtpd_client_connection_count_limit": "1100"}
NO_EC = ("opensmtpd",)  # 6.8 cannot use an EC key: its process for keys knows RSA only
ALONE = ("exim", "opensmtpd")
IDLE = {"idle_mb": 40.0, "connection_kib": 4.0}
LONG = {"passing_growth": 1.2, "flushed_growth": 1.2}
TLS = {"smtpd_tls_security_level": "may", "smtpd_tls_chain_files": "{certificate}"}

CASES: tuple[Case, ...] = (
    Case("5k-1", "5 KB, 1 session", Load(1000, 1), 1.2),
    Case("5k-10", "5 KB, 10 sessions", Load(3000, 10), 2.0),
    Case("5k-100", "5 KB, 100 sessions", Load(4000, 100), 3.0),
    Case("5k-10-reuse", "5 KB, 10 sessions, connection reused", Load(3000, 10, reuse=True)),
    Case("200k-10", "200 KB, 10 sessions", Load(600, 10, 200_000), 1.5),
    Case("5m-4", "5 MB, 4 sessions", Load(48, 4, 5_000_000), 1.0),
    Case("50-rcpt", "5 KB to 50 recipients of one domain, 10 sessions", Load(800, 10, recipients=50), 1.0),
    Case("tls-10", "5 KB, 10 sessions, STARTTLS", Load(1000, 10), generator=tls, settings=TLS, without=NO_EC),
    Case("sendmail", "sendmail -t -i, one after the other", Load(150, 1, 1000), 1.0, "median_ms", sendmail),
    Case("sendmail-10", "sendmail -t -i, 10 at a time", Load(500, 10, 1000), 1.0, generator=sendmail),
    Case("mbox", "5 KB to one mbox, 10 sessions", Load(800, 10), None, RATE, to_mailbox, to_mbox, LOCAL),
    Case("maildir", "5 KB to one Maildir, 10 sessions", Load(1000, 10), None, RATE, to_mailbox, to_maildir, MAILDIR),
    Case("idle", "MB with 1,000 connections", NOTHING, 0.1, "memory_mb", settings=CLIENTS, alone=idle,
         limits=IDLE, without=ALONE),
    Case("backlog", "ms per message beside 100,000", NOTHING, None, "passing_many", alone=backlog,
         repeated=True, limits=LONG, without=ALONE),
)  # fmt: skip
