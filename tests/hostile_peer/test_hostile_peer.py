"""Servers that attack our SMTP client: every script of hostile_peer.jsonl, judged by what the agent reports.

deferred = each recipient heard 4xx and nothing else; bounced-once = 5xx, once; delivered-once = 2xx, and the peer
has one message.  Two entries contradict each other and RFC 5321 decides: `garbage-mail-code-only` wants "250"
without text refused, `partial-rcpt` wants it accepted; s4.2 says that a client MUST accept it.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.deliver.request import Result
from mta.envelope import Envelope, Recipient
from mta.tls import ClientTls
from tests.smtp_lab import BODY, Lab, opportunistic
from tests.smtp_peer import Certificates, Peer, Step

CORPUS = Path(__file__).with_name("hostile_peer.jsonl")
CASES = {case["id"]: case for case in map(json.loads, CORPUS.read_text().splitlines()) if "server_script" in case}
OVERRULED = {"garbage-mail-code-only": "delivered-once"}
BIG = 40  # repetitions of 1 MiB: more than all socket buffers together


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def labs() -> AsyncIterator[list[Lab | Peer]]:
    things: list[Lab | Peer] = []
    yield things
    for thing in things:
        await thing.close()


def steps_of(name: str) -> list[Step]:
    return list(CASES[name]["server_script"])


def waits(steps: list[Step]) -> bool:
    return any(isinstance(step, dict) and "hang" in step for step in steps)


def limits(steps: list[Step]) -> dict[str, object]:
    """Short where the script wants us to give up, scaled down where it makes us wait for the dot."""
    if any(isinstance(step, dict) and "stop_reading" in step for step in steps):
        return {"smtp_data_xfer_timeout": 0.4, "smtp_discard_ehlo_keywords": ("size",)}  # it claims to take 10 MB
    if waits(steps):
        seconds = 0.4
        return dict.fromkeys(
            ("smtp_helo_timeout", "smtp_mail_timeout", "smtp_rcpt_timeout", "smtp_data_init_timeout",
             "smtp_data_xfer_timeout", "smtp_data_done_timeout", "smtp_quit_timeout"), seconds,
        )  # fmt: skip
    return {"smtp_data_done_timeout": 2.0} if any("sleep" in s for s in steps if isinstance(s, dict)) else {}


def judge(outcome: str, results: list[Result], peer: Peer) -> None:
    codes = [result.reply.code // 100 for result in results]
    for result in results:
        assert result.reply.enhanced.startswith(f"{result.reply.code // 100}."), result
        assert result.text.isprintable() and len(result.text) < 2000
        assert len(result.diagnostic) <= 1100 and result.diagnostic.isprintable()
    if outcome == "deferred":
        assert set(codes) == {4}, results
        assert not peer.messages or "dot" in results[0].text or "end of data" in results[0].text
    elif outcome == "bounced-once":
        assert set(codes) == {5}, results
        assert all(result.diagnostic.startswith("smtp; 5") for result in results)
    elif outcome == "delivered-once":
        assert set(codes) == {2}, results
        assert peer.messages == [BODY.replace(b"\n", b"\r\n")]
    elif outcome == "rcpt1 delivered, rcpt2 deferred, rcpt3 bounced":
        assert codes == [2, 4, 5], results
    else:
        raise AssertionError(f"unknown outcome {outcome}")


@pytest.mark.parametrize("name", CASES)
async def test_script(name: str, tmp_path: Path, labs: list[Lab | Peer], certificates: Certificates) -> None:
    steps = steps_of(name)
    peer = await Peer.start(steps, certificates, time_scale=0.001)
    lab = Lab(tmp_path, tls=opportunistic(), options=limits(steps))
    labs += [lab, peer]
    outcome = OVERRULED.get(name, CASES[name]["expect"]["outcome"])
    recipients = ["one@dst.test"] if not name.startswith("partial") else ["one@x.test", "two@x.test", "three@x.test"]
    big = any(isinstance(step, dict) and "stop_reading" in step for step in steps)
    text = b"x" * 76 + b"\n"
    results = await lab.deliver(
        f"[127.0.0.1]:{peer.port}", recipients,
        body=text * 851 if big else BODY, repeat=BIG * 16 if big else 1,
    )  # fmt: skip
    if outcome == "policy":
        judge("delivered-once", results, peer)
        assert peer.connections == (1 if name in ("tls-self-signed", "tls-starttls-refused") else 2)
    elif outcome == "try-next-mx-then-policy":
        judge("deferred", results, peer)
    elif outcome.startswith("bounced-once if"):
        judge("delivered-once", results, peer)
    else:
        judge(outcome, results, peer)
    if big:
        assert lab.pulled < 16 << 20, "the message is in our memory instead of in the queue"


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["class"] == "tls"])
async def test_above_may_nothing_goes_out(
    name: str, tmp_path: Path, labs: list[Lab | Peer], certificates: Certificates
) -> None:
    peer = await Peer.start(steps_of(name), certificates)
    lab = Lab(tmp_path, tls=ClientTls("encrypt", opportunistic().context))
    labs += [lab, peer]
    judge("deferred", await lab.deliver(f"[127.0.0.1]:{peer.port}", ["one@dst.test"]), peer)
    assert peer.connections == 0


STARTED: list[Step] = [
    "220 x\\r\\n", {"rx": "EHLO"}, "250-x\\r\\n250 STARTTLS\\r\\n", {"rx": "STARTTLS"}, "220 go\\r\\n", {"tls": "ok"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "code", "connections"), [("502 what?", 250, 2), ("550 no", 250, 2), ("421 busy", 421, 1)]
)
async def test_a_server_that_refuses_us_inside_tls_only_is_asked_in_the_clear(
    reply: str, code: int, connections: int, tmp_path: Path, labs: list[Lab | Peer], certificates: Certificates
) -> None:
    helo: list[Step] = [{"rx": "HELO"}, f"{reply}\\r\\n"] if connections == 2 else []
    peer = await Peer.start([*STARTED, {"rx": "EHLO"}, f"{reply}\\r\\n", *helo], certificates)
    lab = Lab(tmp_path, tls=opportunistic())
    labs += [lab, peer]
    (result,) = await lab.deliver(f"[127.0.0.1]:{peer.port}", ["one@dst.test"])
    assert (result.reply.code, peer.connections) == (code, connections)


async def test_a_message_that_needs_smtputf8_is_bounced_where_it_is_not_offered(
    tmp_path: Path, labs: list[Lab | Peer]
) -> None:
    peer = await Peer.start(steps_of("ehlo-no-smtputf8"))
    lab = Lab(tmp_path)
    labs += [lab, peer]
    nexthop = f"[127.0.0.1]:{peer.port}"
    (result,) = await lab.deliver(nexthop, ["pelé@dst.test"])
    assert (result.reply.code, result.reply.enhanced) == (553, "5.6.7")
    envelope = Envelope("a@src.test", [Recipient("x@dst.test")], 0.0, smtputf8=True)
    (result,) = await lab.deliver(nexthop, ["x@dst.test"], envelope=envelope, body="Subject: é\n\nx\n".encode())
    assert result.reply.enhanced == "5.6.7"
    (result,) = await lab.deliver(nexthop, ["x@dst.test"], envelope=envelope, body="Subject: e\n\né\n".encode())
    assert result.reply.code == 250


EARLY = [n for n, case in CASES.items() if n.endswith(("-at-connect", "-at-greeting", "-at-banner", "-at-ehlo"))]


@pytest.mark.parametrize("name", [*EARLY, "554-banner"])
async def test_the_next_address_is_tried_in_the_same_attempt(
    name: str, tmp_path: Path, labs: list[Lab | Peer]
) -> None:
    steps = steps_of(name)
    bad, good = await Peer.start(steps), await Peer.start(["220 x\\r\\n", {"rx": "EHLO"}, "250 x\\r\\n"])
    lab = Lab(tmp_path, options=limits(steps))
    labs += [lab, bad, good]
    results = await lab.deliver(f"[127.0.0.1]:{bad.port}, [127.0.0.1]:{good.port}", ["one@dst.test"])
    judge("delivered-once", results, good)
    assert bad.connections == 1 and not bad.messages
