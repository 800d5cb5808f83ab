"""The laboratory as fixtures: one network of machines for the whole run, our MTA anew for each module."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.peers import dns_server
from tests.peers.exim import Exim
from tests.peers.host import Host
from tests.peers.machine import Machine
from tests.peers.namespace import own_network
from tests.peers.postfix import Postfix


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of the mail logs of everybody who took part."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, Host | Postfix | Exim):
                report.sections.append((f"log of {name}", "\n".join(value.log().splitlines()[-40:])))
    return report


@pytest.fixture(scope="session")
def run_directory() -> Path:
    """Where the overlays live; only `python -m tests.peers` provides it, with the namespaces around us."""
    where = os.environ.get("AIOMTA_PEERS_RUN")
    if not where:
        pytest.skip("run me with `make test-peers`")
    own_network()
    return Path(where)


@pytest.fixture(scope="session")
def dns(run_directory: Path) -> Iterator[Machine]:
    """A real resolver on 127.0.0.53."""
    machine = Machine("dns", "127.0.0.53", "dns", run_directory)
    dns_server.start(machine)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def postfix_machine(run_directory: Path) -> Iterator[Postfix]:
    """A machine with Postfix that does not run."""
    machine = Machine("postfix", "192.0.2.11", "postfix", run_directory)
    found = Postfix(machine)
    yield found
    found.stop()
    machine.close()


@pytest.fixture(scope="session")
def postfix(postfix_machine: Postfix, dns: Machine) -> Postfix:
    """A real Postfix on 192.0.2.11, port 25."""
    postfix_machine.start()
    return postfix_machine


@pytest.fixture(scope="session")
def exim(run_directory: Path, dns: Machine) -> Iterator[Exim]:
    """A real Exim on 192.0.2.12, port 25."""
    machine = Machine("exim", "192.0.2.12", "exim", run_directory)
    found = Exim(machine)
    found.start()
    yield found
    machine.close()


@pytest.fixture(scope="session")
def installed(run_directory: Path, dns: Machine) -> Iterator[Host]:
    """Our MTA, installed and not running."""
    machine = Machine("host", "127.0.0.1", "host", run_directory)
    found = Host(machine)
    yield found
    found.stop()
    machine.close()


@pytest.fixture
def host(installed: Host) -> Iterator[Host]:
    """Our MTA, freshly started with an empty queue and empty mailboxes."""
    installed.purge()
    installed.restart()
    yield installed
    installed.stop()
