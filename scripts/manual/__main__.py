"""Makes man/ and completions/ from the pages: `python -m scripts.manual`, below the current directory."""

import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.manual import pages_more, pages_mta, pages_queue, pages_submit
from scripts.manual.completion_bash import bash
from scripts.manual.completion_zsh import zsh
from scripts.manual.roff import page

PAGES = (*pages_mta.PAGES, *pages_submit.PAGES, *pages_queue.PAGES, *pages_more.PAGES)


def files() -> Mapping[str, str]:
    """Path below the checkout -> content, of everything that is made."""
    commands = [p for p in PAGES if p.command]
    made = {f"man/{p.name}.{p.section}": page(p) for p in PAGES}
    return made | {"completions/bash/aiomta": bash(commands), "completions/zsh/_aiomta": zsh(commands)}


def main() -> int:
    """Write the files."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, text in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
