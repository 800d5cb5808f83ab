"""The rules of the house that a program can check: what a room may import and call."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MTA = ROOT / "mta"
FORBIDDEN_IN_PURE = {"asyncio", "socket", "ssl", "os", "time", "random", "logging", "secrets", "selectors", "threading"}
OWNERS = {  # what only these modules may import
    "aiosmtpd": {"mta/smtpd/server.py"},
    "dns": {"mta/dns/__init__.py", "mta/dns/answers.py", "mta/dns/exchange.py"},
    "time": {"mta/clock.py"},
    "pwd": set(),
    "grp": set(),
    "random": {"mta/master/build.py"},
}
FSYNC = {"os.fsync", "os.fdatasync", "os.sync"}
FLUSHING = ("fsio/fsio", "fsio/flusher", "fsio/linux_aio")
THREADS = {"to_thread", "run_in_executor"}
WAITING = {"call_later", "call_at"}

PURE = [
    *("smtp/*", "smtpd/session*", "smtpd/facts", "smtpd/ports", "message*", "envelope", "dns/mx"),
    *("queue/queue_file", "queue/queue_reader", "queue/content_reader", "queue/reasons", "queue/queue_id", "queue/api"),
    "queue/maildrop_rules",
    *("bounce/dsn", "qmgr/scheduler", "qmgr/backoff", "qmgr/grouping", "qmgr/intake"),
    *("record", "deliver/request", "submit/options", "submit/prepare", "lookup/table", "lookup/cdb", "queue_admin"),
]
LAYERS = {  # first match wins; a module may import only its own layer or lower ones
    0: PURE,
    1: [
        *("awake", "clock", "company", "deadlines", "descriptors", "eager", "fsio/*", "linux_*", "maillog/*", "memory"),
        *("outbox", "spared"),
        *("config/*", "deliver/connector"),
        *("__init__", "*/__init__"),
    ],
    2: ["lookup/*", "dns/*", "tls", "sasl/*", "queue/*"],
    3: ["trivial_rewrite", "cleanup/*", "smtpd/restrict*", "smtpd/access*", "smtpd/anvil*"],
    4: [
        *("smtpd/server*", "pickup", "submit/*", "qmgr/*", "deliver/*", "bounce/*"),
        *("control*", "local_helper*", "worker*"),
    ],
    5: ["master/*", "__main__", "cli*", "install/*"],
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(MTA.rglob("*.py")):
        yield path.relative_to(MTA).with_suffix("").as_posix(), path


def matches(name: str, patterns: list[str]) -> bool:
    return any(re.fullmatch(p.replace("*", "[^/]*"), name) for p in patterns)


def layer(name: str) -> int:
    for number, patterns in LAYERS.items():
        if matches(name, patterns):
            return number
    raise AssertionError(f"mta/{name}.py has no layer: put it into a room in LAYERS")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2].lstrip("_")
            yield f"{owner}.{node.attr}" if owner in ("clock", "os") else node.attr, node.lineno


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[n for n, _ in modules()])
def test_a_module_keeps_to_its_room(name: str, path: Path) -> None:
    mine = layer(name)
    file = f"mta/{name}.py"
    names = set(imports(path))
    tops = {n.split(".")[0] for n in names}
    if matches(name, PURE):
        assert not tops & FORBIDDEN_IN_PURE, f"{file} is pure"
    for package, owners in OWNERS.items():
        assert package not in tops or file in owners, f"{file} imports {package}"
    for imported in names:
        if imported.startswith("mta."):
            other = imported.removeprefix("mta.").replace(".", "/")
            if not (MTA / f"{other}.py").exists():
                continue
            assert layer(other) <= mine, f"{file} (layer {mine}) imports upwards: {imported}"
    for attribute, line in calls(path):
        assert attribute not in FSYNC | THREADS or name in FLUSHING, f"{file}:{line} calls {attribute}"
        assert attribute not in WAITING or name == "clock", f"{file}:{line} calls {attribute}"


def test_nobody_but_the_clock_waits_or_reads_the_time() -> None:
    for name, path in modules():
        if name == "clock":
            continue
        text = path.read_text()
        assert "asyncio.sleep" not in text, name
        assert "loop.time(" not in text, name
        assert not re.search(r"get_running_loop\(\)\.time\(", text), name
