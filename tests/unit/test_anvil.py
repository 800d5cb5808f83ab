"""Counting clients: limits, time units, and memory that stays bounded."""

from dataclasses import replace

import pytest

from mta.clock import Clock
from mta.smtpd import anvil as module
from mta.smtpd.anvil import Anvil, AnvilSettings
from mta.smtpd.facts import PERMIT
from tests.virtual_time import run_virtual

LIMITS = AnvilSettings("mx.test", 2, 0, 0, 0, 60.0)
IP = "192.0.2.1"


def test_too_many_connections_at_once_are_refused_until_one_ends() -> None:
    async def main(clock: Clock) -> None:
        anvil = Anvil(LIMITS, clock)
        assert [await anvil.connect(IP), await anvil.connect(IP)] == [PERMIT, PERMIT]
        refused = await anvil.connect(IP)
        assert str(refused.reply) == f"421 4.7.0 mx.test Error: too many connections from {IP}" and refused.close
        assert refused.log == ("Connection concurrency limit exceeded: 3",)
        assert await anvil.connect("192.0.2.2") is PERMIT
        anvil.disconnect(IP)
        anvil.disconnect(IP)
        assert await anvil.connect(IP) is PERMIT

    run_virtual(main)


@pytest.mark.parametrize(
    ("event", "setting", "text"),
    [
        ("connect", "smtpd_client_connection_rate_limit", f"421 4.7.0 mx.test Error: too many connections from {IP}"),
        ("mail", "smtpd_client_message_rate_limit", f"450 4.7.1 Error: too much mail from {IP}"),
        ("rcpt", "smtpd_client_recipient_rate_limit", f"450 4.7.1 Error: too many recipients from {IP}"),
    ],
)
def test_rates_count_within_the_time_unit(event: str, setting: str, text: str) -> None:
    async def main(clock: Clock) -> None:
        limits = replace(LIMITS, smtpd_client_connection_count_limit=0)
        limits = replace(limits, **{setting: 3})  # type: ignore[arg-type]  # a limit by name
        anvil = Anvil(limits, clock)

        async def happens() -> str:
            verdict = await {"connect": anvil.connect, "mail": anvil.mail, "rcpt": anvil.rcpt}[event](IP)
            return str(verdict.reply) if verdict.reply else ""

        assert [await happens() for _ in range(4)] == ["", "", "", text]
        await clock.sleep(61)
        assert await happens() == ""

    run_virtual(main)


def test_idle_clients_are_forgotten_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 100)

    async def main(clock: Clock) -> None:
        anvil = Anvil(LIMITS, clock)
        await anvil.connect(IP)
        for i in range(1000):
            await anvil.connect(f"198.51.{i // 250}.{i % 250}")
            anvil.disconnect(f"198.51.{i // 250}.{i % 250}")
        assert len(anvil) <= 101
        await anvil.connect(IP)
        assert (await anvil.connect(IP)).reply is not None  # who holds connections is not forgotten
        await clock.sleep(61)
        for _ in range(3):
            anvil.disconnect(IP)
        anvil.disconnect(IP)
        assert (await anvil.connect(IP)).reply is None

    run_virtual(main)
