"""The text of defer/ID: why each recipient was deferred, in the format of Postfix's bounce(8) log.

mailq (ours and theirs) reads it.  Nobody's mail depends on it: a torn or missing file loses reasons only.

See also: postconf(5) backwards_bounce_logfile_compatibility
"""

import re
from collections.abc import Iterable

from mta.envelope import Recipient
from mta.queue.api import Reason

_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+)*")
_CONTROL = {c: "?" for c in (*range(32), 127)}
_UNPRINTABLE = _CONTROL | {c: "?" for c in (*range(128, 160), 0x2028, 0x2029)}  # as Unicode's, and its ends of lines


def quoted(address: str) -> str:
    """An address as it stands in a header or a command: "a b"@dom; "" stays empty."""
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if not local or _ATOM.fullmatch(local):
        return address
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"{at}{domain}'


def printable(text: str) -> str:
    """For people and their terminals: UTF-8 as it is, each control character and other byte as "?"."""
    return text.translate(_UNPRINTABLE).encode("utf-8", "replace").decode()


def _unquoted(address: str) -> str:
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if len(local) < 2 or local[0] != '"' or local[-1] != '"':
        return address
    return re.sub(r"\\(.)", r"\1", local[1:-1]) + at + domain


def encode_reasons(entries: Iterable[tuple[Recipient, Reason]], *, compatible: bool) -> bytes:
    """Return the file; compatible: with the line that readers of old formats look for."""
    out: list[str] = []
    for recipient, reason in entries:
        address = quoted(recipient.address)
        out.append("")
        if compatible:
            out.append(f"<{address}>: {_line(reason.text)}")
        out += [f"recipient={_line(address)}", f"offset={recipient.offset}"]
        if recipient.original and recipient.original != recipient.address:
            out.insert(-1, f"original_recipient={_line(recipient.original)}")
        if recipient.dsn_orig_rcpt:
            out.append(f"dsn_orig_rcpt={_line(recipient.dsn_orig_rcpt)}")
        if recipient.notify:
            out.append(f"notify_flags={int(recipient.notify)}")
        out += [f"status={_line(reason.dsn)}", f"action={_line(reason.action)}"]
        if reason.diag_type:
            out += [f"diag_type={_line(reason.diag_type)}", f"diag_text={_line(reason.diag_text)}"]
        if reason.mta_name:
            out += ["mta_type=dns", f"mta_mname={_line(reason.mta_name)}"]
        out += [f"reason={_line(reason.text)}", ""]
    return "\n".join(out).encode("utf-8", "surrogateescape") + b"\n" if out else b""


def _line(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROL)


def decode_reasons(data: bytes) -> list[tuple[str, int, Reason]]:
    """Return (recipient, offset, reason) in file order; what cannot be read is left out."""
    found = []
    for block in re.split(r"\n(?:[ \t]*\n)+", data.decode("utf-8", "surrogateescape")):
        names = dict(line.split("=", 1) for line in block.split("\n") if "=" in line and line[0] != "<")
        if "recipient" not in names:
            continue
        offset = names.get("offset", "")
        reason = Reason(
            names.get("status", ""), names.get("reason", ""), names.get("action", "delayed"),
            names.get("diag_type", ""), names.get("diag_text", ""), names.get("mta_mname", ""),
        )  # fmt: skip
        number = int(offset) if offset.isascii() and offset.isdigit() else 0
        found.append((_unquoted(names["recipient"]), number, reason))
    return found
