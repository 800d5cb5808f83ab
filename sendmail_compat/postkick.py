"""postkick(1): send a request to a service.  Here public/qmgr and public/flush mean "try everything now".

Exit 1 when the service is not there.
"""

import socket
import time
from collections.abc import Sequence

from sendmail_compat.queue_tools import DownError, RefusedError, request
from sendmail_compat.tool import ToolError, configuration, options, say

USAGE = "postkick [-c config_dir] [-v] class service request"
_FLUSHES = ("qmgr", "flush")


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, rest = options(argv, "c:v", USAGE)
    if len(rest) != 3:
        raise ToolError(f"usage: {USAGE}")
    config = configuration(found)
    kind, service, letters = rest
    try:
        if (kind, service) in [("public", name) for name in _FLUSHES]:
            request(config, "flush")
            return 0
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{config.queue}/{kind}/{service}")
            sock.sendall(letters.encode("utf-8", "surrogateescape"))
            time.sleep(0)
        return 0
    except RefusedError as error:
        raise ToolError(str(error)) from None
    except (OSError, DownError) as error:
        reason = getattr(error, "strerror", "") or str(error)
        say("postkick", f"warning: unable to look up {kind}/{service}: {reason}")
        say(
            "postkick",
            f"warning: Cannot contact class {kind} service {service} - perhaps the mail system is down",
        )
        return 1
