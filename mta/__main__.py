"""Entry of `mta` and `python -m mta`."""

import sys

from mta.spared import spared

with spared("locale"):  # 200 kB of names; asyncio loads it through subprocess, which wants it for text only
    from mta.cli import main

if __name__ == "__main__":
    sys.exit(main())
