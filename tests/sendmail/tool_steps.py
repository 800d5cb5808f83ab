"""Calls of Postfix's queue tools on a small spool; golden/postfix_tools.txt is what Postfix 3.7.11 printed for them.

`python tests/sendmail/tool_steps.py DIRECTORY` makes the spool there and prints the three ids.
"""

import asyncio
import re
import sys
from pathlib import Path

from mta.queue.api import Reason
from tests.queue_support import spooled

FIRST = b"From: a\nSubject: t\n folded\nTo: bob\n\nhello\nworld\n"
LONG = b"X: y\n\n" + b"z" * 3000 + b"\n"


async def make(root: Path) -> dict[str, str]:
    """A: deferred, one of two recipients done.  B: a bounce.  C: a quoted sender, a long line."""
    with spooled(root) as spool:
        first = await spool.accept("bob@r.test", "carol@q.test", content=FIRST)
        second = await spool.accept("zed@q.test", sender="")
        third = await spool.accept("zed@q.test", sender='a "b@x.test', content=LONG)
        job = await spool.store.claim(first)
        assert job is not None
        spool.store.mark(job, job.todo[0])
        await spool.store.defer(job, spool.now + 1000, {r.offset: Reason("4.0.0", "captured") for r in job.todo})
    return {"A": first, "B": second, "C": third}


def neutral(text: str, ids: dict[str, str]) -> str:
    """Without what differs from run to run."""
    for name, queue_id in ids.items():
        text = text.replace(queue_id, f"{name * 11}")
    text = re.sub(r"(uid|content_crc32|envelope_crc32)=[0-9a-f]+", r"\1=0", text)
    text = re.sub(r"postqueue: warning: (?:unable to look up|connect to) public/\w+: .*\n", "", text)
    text = re.sub(r"(?m)^postcat: (?:name_mask|inet_addr_local|been_here|mynetworks_core): .*\n", "", text)  # of -v
    text = re.sub(r"postqueue: warning: \d+ messages? in maildrop .*\n", "", text)  # ours says that too
    objects = sorted(line for line in text.splitlines(keepends=True) if line.startswith("{"))
    if objects:  # messages of one queue come in the order of the directory
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("{")) + "".join(objects)
    head, sep, rest = text.partition("-Sender/Recipient-------\n")
    *messages, end = rest.split("\n\n")
    return head + sep + "\n\n".join([*sorted(messages), end])


_CAT = ("-e", "-b", "-h", "-bh", "-eb", "-o", "-d", "-r", "-v", "-vo", "-do")
STEPS: list[tuple[list[str], str]] = [
    *((["postcat", "-q", "{A}"], ""), (["postcat", "-q", "{B}", "{C}"], ""), (["postcat", "-q", "nosuch"], "")),
    *((["postcat", option, "-q", name], "") for option in _CAT for name in ("{A}", "{C}")),
    *((["postcat", *words], "") for words in (["-q", "../x"], ["-x"], ["/etc/passwd"], ["/nosuch"], ["-q"])),
    *((["postqueue", *words], "") for words in (["-p"], ["-j"], ["-f"], ["-i", "{A}"], ["-i", "b!d"], [])),
    *((["postqueue", *words], "") for words in (["-s", "bad..x"], ["-x"], ["-p", "-j"], ["-p", "extra"], ["-f", "x"])),
    (["postsuper", "-h", "{A}", "-e", "{B}", "-e", "{B}", "-d", "x", "-r", "y"], ""),
    (["postqueue", "-p"], ""),
    (["postsuper", "-f", "{A}", "-f", "{C}"], ""),
    *((["postsuper", "-d", "ALL", *words], "") for words in (["-d", "{A}", "hold"], ["corrupt"], ["hold", "no"])),
    (["postsuper", "-d", "ALL", "defer"], ""),
    *((["postsuper", *words], "") for words in (["-h", "hold"], ["-h"], ["-x"], ["-s", "nosuch"], ["-d", ""])),
    (["postsuper", "-e", "{A}", "-h", "{A}", "-H", "{A}", "-r", "{A}"], ""),
    (["postsuper", "-h", "{B}"], ""),
    (["postsuper", "-h", "{B}"], ""),
    (["postsuper", "-H", "-"], "{B}\n{C}  \n\n bad/id\n"),
    *((["postsuper", *words], "") for words in (["-h", "ALL"], ["-H", "ALL"], ["-h", "ALL", "incoming"])),
    (["postsuper", "-r", "ALL"], ""),
    (["postqueue", "-p"], ""),
    (["postsuper", "-d", "ALL"], ""),
    (["postqueue", "-p"], ""),
    *((["postlog", *words], "") for words in (["-p", "info", "x"], ["x", "y"], ["-t", "tag", "x"])),
    *((["postkick", *words], "") for words in ([], ["-x"], ["public", "nosuch", "x"])),
    (["postdrop", "-x"], ""),
]  # fmt: skip

if __name__ == "__main__":
    print(*asyncio.run(make(Path(sys.argv[1]))).values())
