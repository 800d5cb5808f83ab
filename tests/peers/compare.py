"""Play the same SMTP sessions against a real Postfix and against ours, and show where they differ.

    python -m tests.peers.compare FILE.jsonl [ID... | MAIN.CF...]     as root; lines as in tests/hostile/hostile.jsonl

Both have the settings of tests/hostile/world.py; with MAIN.CF files (named *.cf) all sessions are played once under
each, its lines added.  Compared are the replies, without what differs by design (banner,
EHLO keywords, queue ids), and of each accepted message the envelope and the content without our trace headers.
A difference is no verdict: several are meant (mta/smtpd/session.py names them).
"""

import asyncio
import contextlib
import difflib
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mta.queue.store import SpoolStore
from tests.hostile.runner import Case, Step, load, raw
from tests.hostile.world import MAIN_CF, world
from tests.peers.build import PEERS
from tests.peers.machine import Machine
from tests.peers.namespace import build, own_network, run_inside
from tests.peers.postfix import Postfix
from tests.smtpd_support import certificate

FIRST = 0.5  # seconds to wait for the first octet of an answer
QUIET = 0.04  # seconds of silence after which an answer is taken to be complete
AT_ONCE = 8  # sessions side by side
LIMIT = 1200.0  # seconds for a run
HELD = ["(held, or discarded)"]

POSTFIX_CF = {
    "inet_protocols": "ipv4",
    "mynetworks": "192.0.2.0/24",
    "maillog_file": "/var/log/mail.log",
    "smtpd_forbid_bare_newline": "normalize",
    "smtpd_forbid_unauth_pipelining": "yes",
    "smtpd_forbidden_commands": "CONNECT GET POST regexp:{{/^[^A-Z]/ Bogus}}",
    "smtpd_discard_ehlo_keywords": "chunking",
    "defer_transports": "local, smtp, error, retry",
    "disable_dns_lookups": "no",
    "alias_database": "",
    "smtputf8_enable": "yes",
    "local_header_rewrite_clients": "",  # the client is trusted by nothing
}


@dataclass
class Seen:
    """What came of a session: lines of replies, and the messages by envelope and content."""

    replies: list[str]
    closed: bool
    messages: list[list[str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """All of it, for a comparison."""
        return [*self.replies, *(["(closed)"] if self.closed else []), *(line for m in self.messages for line in m)]


async def play(case: Case, host: str, port: int) -> tuple[Seen, list[str]]:
    """Run a session; what came back, and the ids of accepted messages."""
    reader, writer = await asyncio.open_connection(host, port, local_addr=("127.0.0.1", 0))
    heard = bytearray()
    closed = await _answer(reader, heard)
    for step in case.steps:
        if closed:
            break
        data = raw(step) if isinstance(step, str) else _data(step)
        if data is None:
            await asyncio.sleep(0.1)
            break
        with contextlib.suppress(OSError):
            writer.write(data)
            async with asyncio.timeout(10):
                await writer.drain()
        closed = await _answer(reader, heard)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    text = heard.decode("utf-8", "backslashreplace")
    ids = re.findall(r"queued as (\w+)", text)
    return Seen(_plain(text), closed), ids


async def _answer(reader: asyncio.StreamReader, heard: bytearray) -> bool:
    """Read what there is; True when the server has closed."""
    wait = FIRST
    while True:
        try:
            data = await asyncio.wait_for(reader.read(65536), wait)
        except TimeoutError:
            return False
        except OSError:
            return True
        if not data:
            return True
        heard += data
        wait = QUIET


def _data(step: Step) -> bytes | None:
    """The octets of a step; None for one that ends the session or that is about time."""
    if "repeat" in step:
        return raw(step["repeat"]) * step["n"]
    if "seq" in step:
        text = step["seq"]
        lines = (text.replace("{i}", str(i)).replace("{i1}", str(i + 1)) for i in range(step["n"]))
        return b"".join(raw(line) for line in lines)
    return None


def _plain(text: str) -> list[str]:
    """Reply lines without banner, EHLO keywords and queue ids."""
    text = re.sub(r"queued as \w+", "queued as ID", text)
    lines = text.split("\r\n")[:-1]
    kept = []
    for line in lines:
        if re.match(r"220 \S+ ESMTP|250-(?!2\.)", line):
            continue
        kept.append("250 EHLO" if re.fullmatch(r"250 (SMTPUTF8|CHUNKING|DSN)", line) else line)
    return kept


def _content(data: bytes) -> list[str]:
    """Lines of a message behind its first Received: header."""
    text = data.decode("utf-8", "backslashreplace")
    text = re.sub(r"\AReceived: .*?\n(?![ \t])", "", text, flags=re.DOTALL)
    return [f"|{line}" for line in text.split("\n")]


def _from_postfix(postfix: Postfix, queue_id: str) -> list[str]:
    """Envelope and content of a queued message."""
    found = postfix.machine.run("postcat", "-qe", queue_id, status=None)
    if found.returncode or postfix.machine.path(f"/var/spool/postfix/hold/{queue_id}").exists():
        return HELD
    envelope = found.stdout.decode("utf-8", "backslashreplace")
    shown: list[str] = []
    for kind, value in re.findall(r"(?m)^(sender|recipient|named_attribute): ?(.*)$", envelope):
        if kind == "named_attribute":
            shown += [value] if value.startswith(("envelope_id=", "dsn_orig_rcpt=")) else []
        else:
            shown.append(f"{kind} {value}")
    return [*shown, *_content(postfix.machine.run("postcat", "-qbh", queue_id).stdout)]


async def compare(cases: list[Case], postfix: Postfix, directory: Path, more: str) -> int:
    """Print the differences; how many sessions differ."""
    server_tls, _ = certificate(directory)
    different = 0
    turns = asyncio.Semaphore(AT_ONCE)
    async with world(directory / "ours", server_tls, more) as here:

        async def both(case: Case) -> tuple[Seen, Seen]:
            async with turns:
                theirs, ids = await play(case, "127.0.0.1", 25)
                for queue_id in ids:
                    theirs.messages.append(await asyncio.to_thread(_from_postfix, postfix, queue_id))
                ours, ids = await play(case, "127.0.0.1", here.port)
                ours.messages = [await _from_ours(here.store, queue_id) for queue_id in ids]
            return theirs, ours

        tasks = [asyncio.create_task(both(case)) for case in cases]
        for case, task in zip(cases, tasks, strict=True):
            theirs, ours = await task
            diff = difflib.unified_diff(theirs.lines(), ours.lines(), "postfix", "ours", lineterm="", n=1)
            shown = [line[:200] for line in diff][:30]
            if shown:
                different += 1
                print(f"== {case.id}", *shown, sep="\n   ", flush=True)
        for line in here.log.lines:
            if "internal error" in line or "Traceback" in line:
                print("log:", line)
    return different


async def _from_ours(store: SpoolStore, queue_id: str) -> list[str]:
    """As _from_postfix()."""
    job = await store.claim(queue_id)
    if job is None:
        return HELD
    content = b"".join([chunk async for chunk in store.content(job)])
    envelope = job.envelope
    shown = [f"envelope_id={envelope.envelope_id}"] if envelope.envelope_id else []
    shown += [f"sender {envelope.sender}"]
    for recipient in envelope.recipients:
        shown += [f"dsn_orig_rcpt={recipient.dsn_orig_rcpt}", f"recipient {recipient.address}"]
    return [*shown, *_content(content)]


def inside(arguments: list[str]) -> int:
    """In the namespaces: start Postfix, and compare."""
    own_network()
    run = Path(os.environ["AIOMTA_PEERS_RUN"])
    machine = Machine("postfix", "192.0.2.11", "postfix", run)
    postfix = Postfix(machine)
    settings = dict(re.findall(r"(?m)^(\w+) = ?(.*)$", MAIN_CF.replace("{{", "{").replace("}}", "}")))
    for name in ("queue_directory", "data_directory"):
        del settings[name]
    common = "".join(f"{name} = {value}\n" for name, value in {**settings, **POSTFIX_CF}.items())
    files = [name for name in arguments[1:] if name.endswith(".cf")]
    wanted = set(arguments[1:]) - set(files)
    cases = [case for case in load(Path(arguments[0])) if not wanted or case.id in wanted]
    try:
        for file in files or [""]:
            more = Path(file).read_text() if file else ""
            machine.write("/etc/postfix/main.cf", common + more)
            postfix.start()
            with tempfile.TemporaryDirectory() as directory:
                different = asyncio.run(compare(cases, postfix, Path(directory), more))
            print(f"{different} of {len(cases)} sessions differ {file}", flush=True)
            postfix.stop()
    finally:
        postfix.stop()
        machine.close()
    return 0


def main() -> int:
    """Enter the namespaces, or be in them."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2:])
    if not (PEERS / "layers/postfix/stamp").exists():
        build()
    return run_inside([sys.executable, "-m", "tests.peers.compare", "--inside", *sys.argv[1:]], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
