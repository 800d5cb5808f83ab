"""Which addresses are listened on, and what happens to sockets that are handed in."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from mta.master.sockets import (
    Address,
    SocketProblemError,
    address_of,
    inherited,
    listen_tcp,
    listen_unix,
    split_service,
    wanted_addresses,
)


@pytest.mark.parametrize(
    ("service", "interfaces", "protocols", "expected"),
    [
        ("smtp", ["all"], ["all"], ["0.0.0.0:25", "[::]:25"]),
        ("smtp", ["all"], ["ipv4"], ["0.0.0.0:25"]),
        ("587", ["loopback-only"], ["ipv4", "ipv6"], ["127.0.0.1:587", "[::1]:587"]),
        ("127.0.0.1:2525", ["all"], ["all"], ["127.0.0.1:2525"]),
        ("[::1]:2525", ["127.0.0.1"], ["all"], ["[::1]:2525"]),
        ("smtps", ["192.0.2.1", "2001:db8::1"], ["ipv6"], ["[2001:db8::1]:465"]),
        ("smtp", ["127.0.0.1", "127.0.0.1"], ["ipv4"], ["127.0.0.1:25"]),
    ],
)
def test_inet_services_expand_as_in_master_cf(
    service: str, interfaces: list[str], protocols: list[str], expected: list[str]
) -> None:
    assert [str(a) for a in wanted_addresses(service, interfaces, protocols)] == expected


@pytest.mark.parametrize("name", ["nosuchservice", "0", "65536", "٢٥", ""])
def test_a_port_that_is_none_is_a_problem_with_its_name(name: str) -> None:
    with pytest.raises(SocketProblemError, match="unknown service name"):
        wanted_addresses(name, ["127.0.0.1"], ["ipv4"])


def test_a_service_name_is_split_at_its_port() -> None:
    assert split_service("[2001:db8::1]:smtp") == ("2001:db8::1", "smtp")
    assert split_service("host.test:25") == ("host.test", "25")
    assert split_service("smtp") == ("", "smtp")


def test_a_busy_port_is_one_clear_line() -> None:
    with listen_tcp(Address("127.0.0.1", 0)) as first:
        bound = address_of(first)
        assert isinstance(bound, Address)
        with pytest.raises(SocketProblemError, match=rf"bind 127.0.0.1:{bound.port}: Address already in use"):
            listen_tcp(bound)


def test_a_port_that_we_may_not_open_names_the_command_for_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SocketProblemError, match=r"^bind 0.0.0.0:25: Permission denied .*mta install --sockets\)$"):
        listen_tcp(Address("0.0.0.0", 25))


def test_unix_sockets_replace_stale_ones_but_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "submit")
    listen_unix(path, 0o666).close()
    with listen_unix(path, 0o666) as sock:
        assert address_of(sock) == path
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SocketProblemError, match="not a socket"):
        listen_unix(str(tmp_path / "file"), 0o666)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_reported() -> None:
    with pytest.raises(SocketProblemError, match="too long for a socket"):
        listen_unix("/tmp/" + "x" * 110, 0o666)


def test_without_systemd_nothing_is_inherited() -> None:
    assert inherited({}, os.getpid()) == []
    assert inherited({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, os.getpid()) == []
    assert inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}, os.getpid()) == []


def test_listeners_say_that_they_are_tcp() -> None:
    with listen_tcp(Address("127.0.0.1", 0)) as sock:
        assert sock.proto == socket.IPPROTO_TCP
