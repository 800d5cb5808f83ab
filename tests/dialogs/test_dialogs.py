"""Plays each *.smtp file on the pure session and on a socket.

"C: text" is a line sent, CR LF is added; "C+ text" goes out in one packet with the line before.  Escapes: \\xNN,
\\r, \\n, \\t; "{1000}" at the end repeats what stands before it.  "S: text" is a line that must come; "*" at its
end stands for any rest.  "S: (closed)": the server has closed.  "# " begins a comment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mta.smtp.reply import Reply
from mta.smtpd.facts import Facts, Stage, Verdict
from tests.smtpd_support import Client, Driven, LocalPolicy, serving

FILES = sorted(Path(__file__).parent.glob("*.smtp"))


@dataclass
class Exchange:
    """What is sent at once, and the lines that must come then."""

    sent: bytes = b""
    heard: list[str] = field(default_factory=list)


def exchanges(path: Path) -> Iterator[Exchange]:
    """The parts of a dialogue file."""
    current = Exchange()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        kind, text = line[:2], line[3:]
        if line.startswith("#"):
            continue
        if kind == "C:" and (current.heard or current.sent):
            yield current
            current = Exchange()
        if kind in ("C:", "C+"):
            current.sent += _line(text)
        elif kind == "S:":
            current.heard.append(text)
        else:
            raise ValueError(f"{path}:{number}: {line}")
    yield current


def _line(text: str) -> bytes:
    repeated = re.fullmatch(r"(.*)\{(\d+)\}", text)
    if repeated is not None:
        text = repeated[1] * int(repeated[2])
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1") + b"\r\n"


def fits(expected: str, line: str) -> bool:
    """True when a line of the server is as the file says."""
    return line.startswith(expected[:-1]) if expected.endswith("*") else line == expected


def _judge(stage: Stage, facts: Facts) -> Verdict:
    """LocalPolicy never waits: its coroutine ends at the first step."""
    try:
        LocalPolicy().check(stage, facts).send(None)
    except StopIteration as stop:
        verdict: Verdict = stop.value
        return verdict
    return Verdict(Reply(451, "4.3.0", "waits"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_dialogue_on_the_pure_session(path: Path) -> None:
    driven = Driven.make()
    driven.judge = _judge
    said = driven.start()
    for exchange in exchanges(path):
        said += driven.say(exchange.sent) if exchange.sent else ""
        lines = said.splitlines()
        said = ""
        expected = [line for line in exchange.heard if line != "(closed)"]
        assert len(lines) == len(expected), (exchange.sent, lines, expected)
        for want, line in zip(expected, lines, strict=True):
            assert fits(want, line), (exchange.sent, want, line)
        assert driven.closed == ("(closed)" in exchange.heard)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
async def test_dialogue_on_a_socket(path: Path) -> None:
    async with serving() as rooms:
        client = await Client.connect(rooms.port, greeting=False)
        for exchange in exchanges(path):
            if exchange.sent:
                await client.send(exchange.sent)
            for want in exchange.heard:
                line = (await client.reader.readline()).decode()
                if want == "(closed)":
                    assert line == ""
                else:
                    assert line.endswith("\r\n") and fits(want, line[:-2]), (exchange.sent, want, line)
        await client.close()
