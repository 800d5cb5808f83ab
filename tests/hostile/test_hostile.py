"""Every session of hostile.jsonl against the listener and the rooms behind it, down to the queue files."""

import asyncio
import gc
import ssl
import time
from pathlib import Path

import pytest

from tests.hostile.runner import Case, Outcome, Player, judge, load, return_what_is_freed, rss_kib
from tests.hostile.world import world
from tests.smtpd_support import Client, certificate

CASES = list(load(Path(__file__).with_name("hostile.jsonl")))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A certificate for the whole file: (server's, client's)."""
    return certificate(tmp_path_factory.mktemp("tls"))


async def play(
    case: Case, root: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> tuple[Outcome, list[str]]:
    """Run one case; what came of it, and the log."""
    async with world(root, server_tls) as here:
        player = Player(here.server, here.port, client_tls)
        return_what_is_freed()
        gc.collect()
        before = rss_kib()
        start = time.monotonic()
        await player.play(case.steps)
        seconds = time.monotonic() - start
        fresh = await Client.connect(here.port)
        alive = (await fresh.say("EHLO c.example", "NOOP"))[1].startswith("250 ")
        await fresh.close()
        for _ in range(2000):
            if not here.server.connections:
                break
            await asyncio.sleep(0.005)
        messages = await here.messages()
        # Our own client holds what it sends and hears in this process, too.
        rss = max(0.0, (player.peak_kib - before) / 1024 - 2 * len(player.sent) / 2**20)
        outcome = Outcome(
            player.replies, player.closed, seconds, rss, messages, alive, here.left_open(len(messages)),
            bytes(player.sent),
        )  # fmt: skip
    return outcome, here.log.lines


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_hostile_session(case: Case, tmp_path: Path, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    outcome, log = await play(case, tmp_path, *contexts)
    wrong = judge(case, outcome)
    assert not wrong, f"{case.expect['prose']}\n{outcome.replies[-2000:]}\n" + "\n".join(log[-20:])
    assert not any("internal error" in line for line in log), log
