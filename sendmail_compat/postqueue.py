"""postqueue(1): list the queue, as text or JSON; flush it, one message or one site.  Errors are 69, as Postfix's.

See also: mta/control.py
"""

import sys
from collections.abc import Sequence

from mta.lookup.names import literal_address, valid_hostname
from mta.queue.queue_id import is_queue_id
from sendmail_compat.queue_tools import CutOffError, DownError, RefusedError, list_json, list_text, request
from sendmail_compat.tool import ToolError, configuration, options

USAGE = "postqueue -f | postqueue -i queueid | postqueue -j | postqueue -p | postqueue -s site"
DOWN = "Cannot flush mail queue - mail system is down"


def main(argv: Sequence[str]) -> int:
    """Run it; return the exit status."""
    found, rest = options(argv, "c:fi:jps:v", USAGE)
    modes = [(letter, value) for letter, value in found if letter not in "cv"]
    if len(modes) != 1 or rest:
        raise ToolError(f"usage: {USAGE}")
    config = configuration(found)
    letter, value = modes[0]
    try:
        match letter:
            case "p":
                list_text(config)
            case "j":
                list_json(config, sys.stdout.write)
            case "f":
                request(config, "flush")
            case "i":
                if not is_queue_id(value):
                    raise ToolError(f'Cannot flush queue ID - invalid name: "{value}"')
                request(config, f"id {value}")
            case _:
                if literal_address(value) is None and not valid_hostname(value):
                    raise ToolError(f'Cannot flush mail queue - invalid destination: "{value}"')
                request(config, f"site {value}")
    except CutOffError as error:
        raise ToolError(str(error)) from None
    except DownError as error:
        raise ToolError(str(error) if letter in "pj" else DOWN) from None
    except RefusedError as error:
        raise ToolError(str(error)) from None
    return 0
