"""Judges a run of the bit rot tests: what was given against what came out."""

import contextlib
import mailbox
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.crash.bit_rot_kinds import USER, Message
from tests.crash.bit_rot_sink import Sink


class Verdict:
    """wrong: a sentence for each violation.  directory: of the MTA, with its spool and mail."""

    def __init__(self, messages: Sequence[Message], directory: Path, sink: Sink, log: str) -> None:
        self.wrong: list[str] = []
        self._messages, self._directory, self._log = messages, directory, log
        self._got: dict[str, list[bytes]] = defaultdict(list)
        self._reports: dict[str, list[bytes]] = defaultdict(list)
        self._damaged_lines = Counter(re.findall(r" warning: (\w+): damaged queue file \(", log))
        self._left = self._find_left()
        self._collect(sink)
        self._read_mailbox()
        self._judge_offers(sink)
        for message in messages:
            self._judge(message)
        if "Traceback" in log:
            self._say("a traceback in the log: " + log.partition("Traceback")[2][:1000])

    def _judge_offers(self, sink: Sink) -> None:
        given = {r.address for m in self._messages for r in m.envelope.recipients if r.todo}
        given |= {f"member+{m.number}@sink.test" for m in self._messages if m.kind == "local"}
        senders = {m.envelope.sender for m in self._messages}
        for sender, recipient in sink.offered:
            if recipient not in given and (sender or recipient not in senders):
                self._say(f"<{recipient}> was never given (from <{sender}>)")

    def _say(self, text: str) -> None:
        self.wrong.append(text)

    def _find_left(self) -> dict[str, str]:
        spool = self._directory / "spool"
        queues = ("incoming", "active", "deferred", "hold", "corrupt")
        return {p.name: queue for queue in queues for p in (spool / queue).rglob("*") if p.is_file()}

    def _collect(self, sink: Sink) -> None:
        senders = {m.envelope.sender for m in self._messages if m.envelope.sender}
        for sender, recipient, content in sink.accepted:
            if not sender and recipient in senders and b"multipart/report" in content:
                self._reports[recipient].append(content)
            else:
                self._got[recipient].append(content)

    def _read_mailbox(self) -> None:
        path = self._directory / "mail" / USER
        if not path.exists():
            return
        with contextlib.closing(mailbox.mbox(path, create=False)) as box:
            messages = list(box)
        for message in messages:
            to = str(message["X-Original-To"])
            for name in ("Return-Path", "X-Original-To", "Delivered-To"):
                del message[name]
            self._got[to].append(message.as_bytes())

    def _judge(self, message: Message) -> None:
        name = f"{message.kind} {message.number} ({message.place}, {message.damage or 'whole'}, {message.queue_id})"
        where, lines = self._left.get(message.queue_id, ""), self._damaged_lines[message.queue_id]
        for recipient in message.expected:
            for content in self._got[recipient]:
                if not self._same(message, recipient, content):
                    self._say(f"{name}: altered for <{recipient}>: {content[:300]!r}")
        for report in self._reports[message.envelope.sender]:
            self._judge_report(message, name, report)
        times = [len(self._got[recipient]) for recipient in sorted(message.expected)]
        if where == "corrupt":
            if not message.damage or (message.harmless and "W" not in message.damage):
                self._say(f"{name}: in corrupt")
            if lines != 1:
                self._say(f"{name}: {lines} lines in the log")
            if any(times):
                self._say(f"{name}: damaged, and delivered {times}")
        elif where == "hold" and message.harmless:
            if f"{message.queue_id}: its handler crashed" not in self._log:
                self._say(f"{name}: on hold without a word")
        else:
            self._judge_whole(message, name, where, times)

    def _judge_whole(self, message: Message, name: str, where: str, times: list[int]) -> None:
        if where:
            self._say(f"{name}: still in {where}")
        if message.damage and not message.harmless:
            self._say(f"{name}: not noticed")
        if any(count != 1 for count in times):
            self._say(f"{name}: delivered {times}")
        child_damaged = message.child is not None and self._left.get(message.child.queue_id) == "corrupt"
        if message.kind == "parent" and message.child is not None and not child_damaged:
            bounced = f"bounced.{message.number}@sink.test"
            if self._got[bounced]:
                self._say(f"{name}: delivered although it was bounced")
        if message.refused and len(self._reports[message.envelope.sender]) != 1:
            self._say(f"{name}: {len(self._reports[message.envelope.sender])} reports")
        if not message.damage and message.kind not in ("late", "refused", "refused, header", "refused, large"):
            for line in re.findall(rf" {message.queue_id}: to=.*", self._log):
                if "status=sent" not in line:
                    self._say(f"{name}: not at the first attempt: {line}")

    @staticmethod
    def _same(message: Message, recipient: str, content: bytes) -> bool:
        if recipient.startswith("member"):
            content = content.partition(b"Delivered-To: list+%d@a.example\n" % message.number)[2]
        return content == message.content

    def _judge_report(self, message: Message, name: str, report: bytes) -> None:
        """What it returns of the original is all of it, or its header, or nothing."""
        header = message.content.partition(b"\n\n")[0] + b"\n"
        returned = report.partition(b"\nReturn-Path: <")[2].partition(b"\n")[2]
        whole = returned.startswith(message.content + b"\n--")
        if returned and not whole and not returned.startswith(header + b"\n--"):
            self._say(f"{name}: a report with an altered original: {returned[:300]!r}")
