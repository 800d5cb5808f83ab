"""What callers send, and what becomes of it.

sendmail_cases.jsonl was checked against three real MTAs, more_cases.jsonl against Postfix.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mta.lookup.unix import UserLookup
from tests.sendmail.world import Message, World

CASES = [
    json.loads(line)
    for name in ("sendmail_cases.jsonl", "more_cases.jsonl")
    for line in (Path(__file__).parent / name).read_text().splitlines()
]
OWN_TEXT = {"F-bt", "F-qSx-rcpt", "G19-qp", "G20-bD-user", "E11-f-multi", "G06-mailq-arg", "G07-newaliases-user"}
Case = dict[str, Any]


def _starts_the_daemon(case: Case) -> bool:
    return case.get("user") == "root" and case["prog"] == "sendmail" and case["argv"] == ["-bd"]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c["id"], marks=[pytest.mark.needs_root] if _starts_the_daemon(c) else []) for c in CASES],
)
async def test_case(case: Case, world: World) -> None:
    user = case.get("user", "alice")
    world.names.name = user
    ours = case.get("ours", {})
    become = 1000 if os.getuid() == 0 and user != "root" else None
    if user != "root":
        (world.root / "aliases").chmod(0o444)
    argv = [str(world.config) if a == "/etc/postfix/main.cf" else a for a in case["argv"]]
    argv = [a.replace("<QID>", "4jWbmG5TdmzDLtq") for a in argv]
    done = await world.run(argv, case["stdin"], program=case["prog"], env=case.get("env"), become=become)
    messages = await world.queued()
    assert done.status == ours.get("exit", case["expect_exit"]), done
    if "queued" in ours:
        assert len(messages) == ours["queued"], messages
    if "exit" not in ours and "queued" not in ours:
        check_output(case, done.stdout, done.stderr)
        check_messages(case["expect"].get("messages", []), messages)
    elif done.status and case["id"] not in OWN_TEXT and "stderr" in case["expect"]:
        assert plain(done.stderr) == plain(case["expect"]["stderr"])
    assert "Traceback" not in done.stderr


def plain(text: str) -> str:
    """Without what differs from run to run."""
    uid = 1000 if os.getuid() == 0 else os.getuid()
    user = UserLookup().by_uid_now(uid)
    text = text.replace(f"fatal: {user.name if user else uid}({uid})", "fatal: alice(1000)")
    return re.sub(r"\(\d+\)", "(UID)", text)


def check_output(case: Case, stdout: str, stderr: str) -> None:
    expect = case["expect"]
    if "-bs" in case["argv"]:
        wanted = [line for line in expect["stdout"].split("\r\n") if line[:4] not in ("220 ", "250-")]
        found = [line for line in stdout.split("\r\n") if line[:4] not in ("220 ", "250-")]
        keep = [re.sub(r"queued as \S+", "queued as <QID>", line) for line in found]
        assert [line for line in keep if line != "250 SMTPUTF8"] == [w for w in wanted if w != "250 CHUNKING"]
    else:
        assert stdout == expect.get("stdout", "")
    assert plain(stderr) == plain(expect.get("stderr", ""))


def check_messages(wanted: list[Case], found: list[Message]) -> None:
    assert len(found) == len(wanted), found
    for want, message in zip(wanted, found, strict=True):
        envelope = message.envelope
        if "bounce_to" in want:
            assert envelope.sender in want["bounce_to"]
            assert envelope.attributes["content_filter"].startswith("error:")
            continue
        assert envelope.sender == want["sender"]
        assert sorted(r.address for r in envelope.recipients) == sorted(want["recipients"])
        headers = list(message.headers)
        for name in want["generated"]:  # of several Received ours is the first
            headers.remove(next(h for h in headers if h.lower().startswith(f"{name}:")))
        if want["headers"] and want["headers"][-1].startswith("..."):
            assert headers[:3] == want["headers"][:3]
            assert len(headers) == int(want["headers"][-1][3:].split()[0])
        else:
            assert headers == want["headers"]
        assert len(message.body) == len(want["body"])
        for line, expected in zip(message.body, want["body"], strict=True):
            cut = re.fullmatch(r"(.*)\.\.\.\[(\d+)\]", expected, re.DOTALL)
            if cut:
                assert line.startswith(cut[1])
                assert len(line) == int(cut[2])
            else:
                assert line == expected
        for attribute in want.get("dsn_attrs", []):
            assert attribute in attributes(message), (attribute, envelope)


def attributes(message: Message) -> set[str]:
    envelope = message.envelope
    out = {f"{k}={v}" for k, v in envelope.attributes.items()}
    out |= {f"notify_flags={int(r.notify)}" for r in envelope.recipients}
    return out | {
        f"encoding={envelope.encoding}",
        f"ret_flags={int(envelope.ret)}",
        f"envelope_id={envelope.envelope_id}",
    }
