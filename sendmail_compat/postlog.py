"""postlog(1): write lines to the mail log, and to stderr when that is a terminal.  Errors are exit 1."""

import sys
from collections.abc import Sequence

from sendmail_compat.config import Config
from sendmail_compat.tool import LogLine, ToolError, configuration, options, syslog_name

USAGE = "postlog [-c config_dir] [-i] [-p priority] [-t tag] [-v] [text]"
_SEVERITIES = {"info": "", "warn": "warning: ", "warning": "warning: ", "error": "error: ", "err": "error: ",
               "fatal": "fatal: ", "crit": "fatal: ", "panic": "panic: "}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, rest = options(argv, "c:ip:t:v", USAGE)
    named = dict(found)
    config = configuration(found)
    severity = named.get("p", "info")
    if severity not in _SEVERITIES:
        raise ToolError(f'bad severity: "{severity}"')
    tag = named.get("t") or f"{syslog_name(config)}/postlog"
    write = _Writer(config, tag, _SEVERITIES[severity])
    if rest:
        write(" ".join(rest))
    else:
        for line in sys.stdin.buffer:
            write(line.decode("utf-8", "replace").rstrip("\n"))
    return 0


class _Writer:
    def __init__(self, config: Config, tag: str, prefix: str) -> None:
        self._log, self._tag, self._prefix = LogLine(config, tag), tag, prefix

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"{self._tag}: {self._prefix}{text}\n")
        self._log.write(f"{self._prefix}{text}", warning=bool(self._prefix))
