"""For all tests: the event loops they run on, skips that CI does not forgive, and nothing left behind.

Every async test runs once per loop (asyncio, and uvloop where it is installed).  A test that is about one of them
says so: `@pytest.mark.asyncio(loop_factories=["asyncio"])`.  `--loops asyncio` runs a faster round.
"""

import asyncio
import os
import selectors
from collections.abc import Callable, Generator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
_BEFORE = pytest.StashKey[Set[object]]()
CACHES = {".git", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__", ".venv", "var"}


def _selector_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.DefaultSelector())


def _factories() -> dict[str, LoopFactory]:
    found: dict[str, LoopFactory] = {"asyncio": _selector_loop}
    try:
        import uvloop
    except ImportError:  # an extra: the lower-bounds environment goes without
        return found
    found["uvloop"] = uvloop.new_event_loop
    return found


FACTORIES = _factories()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loops", default="all", choices=["all", *FACTORIES], help="event loops for async tests")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """The loops of one async test, by name."""
    marker = item.get_closest_marker("asyncio")
    own = marker.kwargs.get("loop_factories") if marker else None  # what a test is about is not to be chosen
    wanted = own or (FACTORIES if config.getoption("--loops") == "all" else [config.getoption("--loops")])
    return {name: factory for name, factory in FACTORIES.items() if name in wanted}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked needs_root: skipped for a user; in CI left to the run of root (make test-root)."""
    if os.geteuid() == 0:
        return
    theirs = [item for item in items if item.get_closest_marker("needs_root")]
    if IN_CI:
        config.hook.pytest_deselected(items=theirs)
        items[:] = [item for item in items if item not in set(theirs)]
    for item in theirs:
        item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skip is a failure: what is not run there is not tested."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that skips itself is no better."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def _files() -> set[str]:
    found = set()
    for directory, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in CACHES and not n.startswith(".venv")]
        found |= {os.path.join(directory, f) for f in files if not f.endswith(".pyc")}
    return found


def _children() -> list[str]:
    """Command lines of processes whose parent we are."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        if parent == os.getpid() and command:
            found.append(command)
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    if IN_CI and not hasattr(session.config, "workerinput"):
        session.config.stash[_BEFORE] = _files()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI: no file in the checkout and no process that was not there before."""
    if _BEFORE not in session.config.stash:
        return
    left = [os.path.relpath(path, ROOT) for path in sorted(_files()) if path not in session.config.stash[_BEFORE]]
    left += [] if session.config.pluginmanager.hasplugin("dsession") else _children()
    if left:
        print("\nleft behind by the tests:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
