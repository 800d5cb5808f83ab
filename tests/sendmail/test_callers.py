"""Captured calls of real programs, replayed: the right recipients, no Bcc left, no line lost, exit 0."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.sendmail.world import World

Call = dict[str, Any]


def calls() -> list[tuple[str, Call]]:
    out: list[tuple[str, Call]] = []
    name = ""
    for line in (Path(__file__).parent / "callers.jsonl").read_text().splitlines():
        found = json.loads(line)
        if "case" in found:
            name = found["case"]
        else:
            out.append((f"{name}-{len(out)}", found))
    return out


def expected_recipients(call: Call) -> set[str]:
    """From argv after the options, or from the header with -t; every capture uses plain addresses."""
    argv = call["argv"][1:]
    if "-t" in argv:
        header = call["stdin"].replace("\r\n", "\n").split("\n\n")[0]
        lines = re.findall(r"(?im)^(?:to|cc|bcc):((?:.*\n?(?:[ \t].*\n?)*))", header + "\n")
        words = [w.strip() for line in lines for w in line.split(",") if w.strip()]
        found = [re.sub(r".*<(.*)>", r"\1", w) for w in words]
    else:
        found, skip = [], False
        for word in argv:
            if skip or word.startswith("-"):
                skip = not skip and word in ("-f", "-F", "-N", "-R")
            else:
                found.append(word)
    return {w if "@" in w else f"{w}@example.test" for w in found}


@pytest.mark.parametrize(("name", "call"), calls(), ids=[n for n, _ in calls()])
async def test_call(name: str, call: Call, world: World) -> None:
    world.names.name = "root" if call["uid"] == 0 else "alice"
    stdin = call["stdin"].encode("latin-1", "replace")
    done = await world.run(call["argv"][1:], stdin)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    (message,) = await world.queued()
    assert {r.address for r in message.envelope.recipients} == expected_recipients(call)
    assert message.header("Bcc") is None
    body = stdin.replace(b"\r\n", b"\n").split(b"\n\n", 1)[1].decode("utf-8", "surrogateescape")
    lines = body.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not {"-i", "-oi"} & set(call["argv"]) and "." in lines:
        lines = lines[: lines.index(".")]
    assert message.body == lines
