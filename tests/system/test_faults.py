"""The whole system when something around it is broken: a full disk, damaged queue files, tables, DNS.

Whatever it is, the client hears 4xx, the mail waits, and everything that is not touched by it flows on.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.system import System
from tests.queue_support import Spooled
from tests.system.support_client import message, send
from tests.system.support_system import (
    DOMAIN,
    ROOT_TESTS,
    directory,
    local_user,
    log_of,
    mail_system,
    mailbox_of,
    queued,
    sendmail,
    spool_of,
    wait_for,
    whole_log,
)

KB = 1024


def say(system: System, recipient: str, name: str, size: int = 300) -> str:
    """Send one message, return the answer."""
    return asyncio.run(send(system.port, "a@x.test", [recipient], message(name, size)))


def to_user(system: System, name: str, size: int = 300) -> str:
    """Send one message to the local user, return the answer."""
    return say(system, f"{local_user()}@{DOMAIN}", name, size)


def arrived(system: System, name: str) -> int:
    """How often a message is in the mailbox."""
    return mailbox_of(system).count(f"X-Test-Id: {name}\n".encode())


# -- disk -----------------------------------------------------------------------------------------


class Disk:
    """The spool of a running system, on a small file system that only its mount namespace has."""

    def __init__(self, system: System) -> None:
        assert system.process is not None
        self._spool, self._pid = system.spool, system.process.pid
        self.inside = Path(f"/proc/{self._pid}/root{system.spool}")
        self._ballast = self.inside / "ballast"

    def free(self) -> int:
        found = os.statvfs(self.inside)
        return found.f_bavail * found.f_frsize

    def fill(self, left: int) -> None:
        """Take all space but `left` bytes."""
        with self._ballast.open("wb") as file:
            while (room := self.free() - left) >= 4096:
                file.write(bytes(min(room, 64 * KB)))
                file.flush()

    def empty(self) -> None:
        self._ballast.unlink()

    def mount(self, *args: str) -> None:
        """mount(8) or umount(8) in the system's namespace."""
        subprocess.run(["nsenter", "-t", str(self._pid), "-m", *args], check=True)

    def read_only(self) -> None:
        """What is open goes on, as on a disk that has gone bad."""
        self.mount("mount", "--bind", str(self._spool), str(self._spool))
        self.mount("mount", "-o", "remount,ro,bind", str(self._spool))

    def writable(self) -> None:
        self.mount("umount", str(self._spool))

    def files(self) -> list[str]:
        """Names in incoming."""
        return sorted(os.listdir(self.inside / "incoming"))


@contextlib.contextmanager
def small_disk(settings: dict[str, str]) -> Iterator[tuple[System, Disk]]:
    """A system whose spool has 8 MB."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs mount namespaces; the tests of queue_minfree are for everybody")
    with mail_system(settings, start=False) as system:
        system.spool.mkdir()
        script = 'mount -t tmpfs -o size=8m,mode=755 tmpfs "$0" && exec "$@"'
        system.prefix = ("unshare", "-m", "sh", "-c", script, str(system.spool))
        system.start()
        yield system, Disk(system)


def for_root(test: Callable[[], None]) -> Callable[[], None] | None:
    """Not collected for others, who cannot mount anything (in CI a skip would be a failure)."""
    return test if ROOT_TESTS else None


ON_DISK = {"relayhost": "[127.0.0.1]:9", "message_size_limit": str(1000 * KB), "smtpd_processes": "1"}


@pytest.mark.needs_root
def test_a_full_disk_is_452_leaves_nothing_half_written_and_is_over_when_there_is_room() -> None:
    async def crowd(system: System) -> list[str]:
        user = f"{local_user()}@{DOMAIN}"
        return await asyncio.gather(
            *(send(system.port, "a@x.test", [user], message(f"crowd{i}", 900 * KB)) for i in range(8))
        )

    with small_disk(ON_DISK) as (system, disk):
        assert say(system, "r@remote.test", "waits").startswith("250")  # nobody listens there: deferred
        wait_for(lambda: "status=deferred" in log_of(system), "a deferred message")
        disk.fill(1700 * KB)  # there is room for one message, and clients send eight
        answers = asyncio.run(crowd(system))
        assert {answer[:9] for answer in answers} <= {"250 2.0.0", "452 4.3.1"}, answers
        taken = [f"crowd{i}" for i, answer in enumerate(answers) if answer.startswith("250")]
        assert len(taken) < 8
        wait_for(lambda: all(arrived(system, name) for name in taken), "what was taken is delivered")
        disk.fill(0)
        assert to_user(system, "full").startswith("452 4.3.1")
        assert sendmail(system, local_user(), b"Subject: full\n\nX\n") == 75
        before = log_of(system).count("status=deferred")
        wait_for(lambda: log_of(system).count("status=deferred") > before, "tries go on")
        wait_for(lambda: not disk.files(), "nothing left in incoming")
        disk.empty()
        assert to_user(system, "room").startswith("250")
        wait_for(lambda: arrived(system, "room"), "delivered")
        assert [arrived(system, name) for name in taken] == [1] * len(taken)
        assert "status=bounced" not in whole_log(system)


@pytest.mark.needs_root
def test_a_disk_that_turns_read_only_is_4xx_and_what_was_queued_is_delivered_once_afterwards() -> None:
    with small_disk(ON_DISK) as (system, disk):
        assert say(system, "r@remote.test", "waits").startswith("250")
        wait_for(lambda: "status=deferred" in log_of(system), "a deferred message")
        disk.read_only()
        for _ in range(3):
            assert to_user(system, "refused").startswith("4")
        assert sendmail(system, local_user(), b"Subject: refused\n\nX\n") == 75
        disk.writable()
        wait_for(lambda: to_user(system, "again").startswith("250"), "mail is taken again")
        wait_for(lambda: arrived(system, "again"), "delivered")
        assert arrived(system, "again") == 1 and not arrived(system, "refused")
        before = log_of(system).count("(connect to")
        wait_for(lambda: log_of(system).count("(connect to") > before, "the old message is tried again")
        assert "status=bounced" not in whole_log(system)


def test_less_than_queue_minfree_is_452_and_too_big_a_message_552() -> None:
    with mail_system({"queue_minfree": str(1 << 50), "message_size_limit": "50000"}) as system:
        assert to_user(system, "none").startswith("452 4.3.1")
        assert sendmail(system, local_user(), b"Subject: x\n\nX\n") == 75
        assert not queued(system) and not system.queue()["maildrop"]
    with mail_system({"message_size_limit": "50000"}) as system:
        assert to_user(system, "big", 60000).startswith("552 5.3.4")
        assert to_user(system, "small").startswith("250")
        wait_for(lambda: arrived(system, "small"), "delivered")
        wait_for(lambda: not queued(system), "removed; the refused one never was there")


# -- queue files ----------------------------------------------------------------------------------

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "cut-at-start": lambda data: data[:30],
    "empty": lambda _: b"",
    "garbage": lambda data: bytes((7 * i + 13) % 256 for i in range(len(data))),
    "recipient-bit": lambda data: data.replace(b"damaged@", b"dama\xe7ed@"),
    "content-bit": lambda data: data.replace(b"THE CONTENT", b"THE KONTENT"),
}


def damage(path: Path, kind: str) -> None:
    """Make a queue file what its test is about."""
    if kind in BROKEN:
        data = path.read_bytes()
        broken = BROKEN[kind](data)
        assert broken != data
        path.write_bytes(broken)
        return
    if kind == "foreign":
        return
    path.unlink()
    if kind == "directory":
        path.mkdir(mode=0o700)
    elif kind == "fifo":
        os.mkfifo(path, 0o700)
    elif kind == "symlink":
        path.symlink_to("/etc/passwd")
    elif kind == "dangling":
        path.symlink_to("nowhere")


KINDS = [*BROKEN, "directory", "fifo", "symlink", "dangling", *(["foreign"] if ROOT_TESTS else [])]


@pytest.mark.parametrize("queue", ["incoming", "deferred"])
def test_damaged_queue_files_are_put_aside_and_all_others_flow(queue: str) -> None:
    async def prepare(spool: Spooled) -> dict[str, str]:
        ids = {}
        for kind in KINDS:
            content = b"X-Test-Id: " + kind.encode() + b"\n\nTHE CONTENT\n"
            ids[kind] = await spool.accept(f"damaged@{DOMAIN}", content=content)
        for i in range(10):
            await spool.accept(f"{local_user()}@{DOMAIN}", content=b"X-Test-Id: good%d\n\nx\n" % i)
        for name in spool.names("incoming") if queue == "deferred" else ():
            spool.store.spool.move(str(spool.path("incoming", name)), "deferred", name)
        for kind, name in ids.items():
            damage(spool.path(queue, name), kind)
        return ids

    with mail_system({"relayhost": "[127.0.0.1]:9"}, start=False) as system:
        with spool_of(system) as spool:
            ids = asyncio.run(prepare(spool))
        if ROOT_TESTS:  # somebody else's file; without root there is nobody else
            shutil.chown(spool.path(queue, ids["foreign"]), "root")
        system.start()
        wait_for(lambda: all(arrived(system, f"good{i}") for i in range(10)), "the others delivered")
        for kind in BROKEN:
            wait_for(lambda kind=kind: (system.spool / "corrupt" / ids[kind]).exists(), f"{kind} in corrupt")  # type: ignore[misc]  # the default binds
        assert to_user(system, "fresh").startswith("250")
        wait_for(lambda: arrived(system, "fresh"), "new mail flows")
        log = whole_log(system)
        for kind in BROKEN:
            assert log.count(f"warning: {ids[kind]}: damaged queue file") == 1, kind
        assert log.count("renamed to") == 0
        assert b"damaged@" not in mailbox_of(system)
        assert all(arrived(system, kind) == 0 for kind in KINDS)
        assert "status=bounced" not in log and "Traceback" not in log
        assert len(log.splitlines()) < 500
        if ROOT_TESTS:
            assert spool.path(queue, ids["foreign"]).exists()


# -- tables and DNS -------------------------------------------------------------------------------

TABLES = {
    "unreadable": "hash:{path}/unreadable",
    "missing": "hash:{path}/missing",
    "unknown-type": "nosuchtype:{path}/x",
}


@pytest.mark.parametrize("parameter", ["alias_maps", "virtual_alias_maps", "transport_maps"])
def test_a_broken_table_is_451_for_clients_and_mail_that_is_there_waits(parameter: str) -> None:
    with directory() as path:
        (path / "unreadable").write_text("x: y\n")
        (path / "unreadable").chmod(0)
        for kind, spec in TABLES.items():
            table = spec.format(path=path)
            with mail_system({parameter: table, "relayhost": "[127.0.0.1]:9"}, start=False) as system:
                with spool_of(system) as spool:  # it was there before the table broke
                    content = b"X-Test-Id: waits\n\nx\n"
                    asyncio.run(spool.accept(f"{local_user()}@{DOMAIN}", content=content))
                system.start()
                answer = to_user(system, "refused")
                assert answer.startswith(("451 4.3", "450 4.3")), (kind, answer)
                by_root = ROOT_TESTS and parameter == "alias_maps" and kind == "unreadable"  # mta-local can read it
                if by_root or parameter == "virtual_alias_maps":  # these are looked up once, where mail comes in
                    wait_for(lambda: arrived(system, "waits"), "delivered")
                else:
                    wait_for(lambda: "status=deferred" in log_of(system), f"{kind} deferred")
                    assert not arrived(system, "waits")
                log = whole_log(system)
                assert "status=bounced" not in log and "Traceback" not in log


@contextlib.contextmanager
def broken_dns(answer: str) -> Iterator[int]:
    """A DNS server that says nothing, or SERVFAIL; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    query, client = sock.recvfrom(4096)
                    if answer == "SERVFAIL":
                        flags = bytes([query[2] | 0x80, 0x80 | 2])
                        sock.sendto(query[:2] + flags + b"\0\1" + bytes(6) + _question(query), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def _question(query: bytes) -> bytes:
    end = query.index(0, 12) + 5
    return query[12:end]


@pytest.mark.parametrize("answer", ["SERVFAIL", "silence"])
def test_dns_that_fails_defers_and_refuses_nobody_for_good(answer: str) -> None:
    with broken_dns(answer) as port:
        settings = {
            "dns_servers": f"127.0.0.1:{port}",
            "smtpd_recipient_restrictions": "reject_unknown_sender_domain, permit_mynetworks, reject",
        }
        with mail_system(settings) as system:
            assert to_user(system, "refused").startswith("450 4.1.8")
            assert sendmail(system, "r@remote.test", b"Subject: x\n\nX\n") == 0
            wait_for(lambda: "status=deferred" in log_of(system), "deferred")
            log = whole_log(system)
            assert "Name service error for name=remote.test" in log
            assert "status=bounced" not in log and "Traceback" not in log
