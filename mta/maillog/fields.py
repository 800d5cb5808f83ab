"""What a log line says, as fields for the journal: docs/logs.md has the table.

The text stays what it is for everybody else; fields are read from it, so one place decides the format.  A peer
chooses its own addresses and names and with them its own fields, but no peer can end a field (everything that is
not printable is "?" by then) or begin another one's line.

    fields("4F3A: to=<a@b.test>, relay=mx[10.0.0.1]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)")
    == {"QUEUE_ID": "4F3A", "MTA_TO": "a@b.test", "MTA_RELAY": "mx[10.0.0.1]:25", ..., "MTA_STATUS": "sent"}
"""

import re

INFO, WARNING, ERROR, CRITICAL = 6, 4, 3, 2  # severities of syslog(3)
_SEVERITY = {"warning": WARNING, "error": ERROR, "fatal": CRITICAL, "panic": CRITICAL}
_LEVEL = re.compile(r"(warning|error|fatal|panic): ")
_DIGIT = "[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-y]"  # of a long queue id
_QUEUE_ID = re.compile(rf"([0-9A-F]{{6,20}}|{_DIGIT}{{10,}}z{_DIGIT}+): ")
_ADDRESS = r'(?:"(?:[^"\\]|\\.)*"[^">]*|[^">]*)'  # as it stands in a command
_CLIENT = r"(?P<CLIENT>[^\[\]\s]+\[[^\]]*\](?::\d+)?)"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"to=<(?P<TO>{_ADDRESS})>,(?: orig_to=<(?P<ORIG_TO>{_ADDRESS})>,)? "
        r"relay=(?P<RELAY>[^,]+),(?: conn_use=(?P<CONN_USE>\d+),)? "
        r"delay=(?P<DELAY>[\d.]+), delays=(?P<DELAYS>[\d./]+), dsn=(?P<DSN>[\d.]+), status=(?P<STATUS>[\w-]+) ",
        rf"from=<(?P<FROM>{_ADDRESS})>, "
        r"(?:size=(?P<SIZE>\d+), nrcpt=(?P<NRCPT>\d+) \(queue active\)|status=(?P<STATUS>[\w-]+),)",
        rf"client={_CLIENT}(?:,|$)",
        r"(?:resent-)?message-id=(?P<MESSAGE_ID>.*)$",
        rf"uid=(?P<UID>\d+) from=<?(?P<FROM>{_ADDRESS})>?$",
        rf"(?:NOQUEUE: )?(?P<ACTION>reject|hold|discard|redirect|filter|warn|info): (?P<STAGE>[\w-]+) from {_CLIENT}: "
        r"(?:(?P<REPLY>\d{3}) )?(?:(?P<DSN>[245]\.\d+\.\d+) )?"
        rf".*?(?:; from=<(?P<FROM>{_ADDRESS})>(?: to=<(?P<TO>{_ADDRESS})>)?"
        r"(?: proto=(?P<PROTO>\w+))?(?: helo=<(?P<HELO>.*)>)?)?$",
        rf"(?:dis)?connect from {_CLIENT}(?: |$)",
        rf"(?:lost connection|timeout|too many errors) after (?P<STAGE>[\w-]+)(?: \([^)]*\))? from {_CLIENT}",
        r"(?:sender|postmaster) (?P<NOTICE>[\w -]+) notification: (?P<CHILD_ID>\w+)$",
    )
)


def severity(text: str) -> int:
    """The severity of syslog(3) that Postfix gives to such a line."""
    found = _LEVEL.match(text)
    return _SEVERITY[found[1]] if found else INFO


def fields(text: str) -> dict[str, str]:
    """QUEUE_ID and MTA_...: what is known of the line besides its text."""
    found: dict[str, str] = {}
    level = _LEVEL.match(text)
    start = level.end() if level else 0
    queue_id = _QUEUE_ID.match(text, start)
    if queue_id:
        found["QUEUE_ID"] = queue_id[1]
        start = queue_id.end()
    for pattern in _PATTERNS:
        match = pattern.match(text, start)
        if match:
            found |= {f"MTA_{name}": value for name, value in match.groupdict().items() if value is not None}
            break
    return found
