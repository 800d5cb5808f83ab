"""The commands in the documentation that say which test runs them."""

import re

from tests.peers.build import ROOT


def block(page: str, name: str) -> str:
    """The indented lines after `<!-- run by tests/package/test_docs.py: NAME -->` in docs/PAGE."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"(?m)^<!-- run by tests/package/test_docs\.py: {name} -->\n((?:    .*\n)+)", text)
    assert found, f"docs/{page} has no commands named {name}"
    return re.sub(r"(?m)^    ", "", found[1])


def names() -> set[str]:
    """Every name in every page."""
    mark = r"<!-- run by tests/package/test_docs\.py: ([\w-]+) -->"
    return {name for page in (ROOT / "docs").glob("*.md") for name in re.findall(mark, page.read_text())}
