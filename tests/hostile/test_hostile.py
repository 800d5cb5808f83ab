"""Every session of hostile.jsonl against the listener."""

import asyncio
import gc
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.hostile.runner import Case, Message, Outcome, Player, judge, load, rss_kib
from tests.smtpd_support import Client, MemoryCleanup, Rooms, certificate, serving, with_settings

CASES = list(load(Path(__file__).with_name("hostile.jsonl")))
SETTINGS = with_settings(
    smtpd_helo_required=True,
    smtpd_error_sleep_time=0.005,
    smtpd_timeout=6.0,
    smtpd_min_data_rate=500,
)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A certificate for the whole file: (server's, client's)."""
    return certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def _fixture(tls: ssl.SSLContext) -> AsyncIterator[tuple[Rooms, MemoryCleanup]]:
    cleanup = MemoryCleanup()
    async with serving(SETTINGS, cleanup=cleanup, tls=tls) as rooms:
        yield rooms, cleanup


async def _play(case: Case, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> tuple[Outcome, list[str]]:
    async with _fixture(server_tls) as (rooms, cleanup):
        player = Player(rooms.server, rooms.port, client_tls)
        gc.collect()
        before = rss_kib()
        start = time.monotonic()
        await player.play(case.steps)
        seconds = time.monotonic() - start
        fresh = await Client.connect(rooms.port)
        alive = (await fresh.say("EHLO c.example", "NOOP"))[1].startswith("250 ")
        await fresh.close()
        for _ in range(100):
            if not cleanup.open_now:
                break
            await asyncio.sleep(0.01)
        messages = [
            Message(
                stored.envelope.sender,
                [recipient.address for recipient in stored.envelope.recipients],
                stored.content,
                [stored.envelope.envelope_id, *(r.dsn_orig_rcpt for r in stored.envelope.recipients)],
            )
            for stored in cleanup.messages
        ]
        # Our own client holds what it sends and hears in this process, too.
        rss = max(0.0, (player.peak_kib - before) / 1024 - 2 * len(player.sent) / 2**20)
        outcome = Outcome(
            player.replies, player.closed, seconds, rss, messages, alive, cleanup.open_now, bytes(player.sent)
        )
        return outcome, rooms.log.lines


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_hostile_session(case: Case, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    outcome, log = await _play(case, *contexts)
    assert not judge(case, outcome), f"{case.expect['prose']}\n{outcome.replies[-2000:]}\n" + "\n".join(log[-20:])
    assert not any("internal error" in line for line in log)
