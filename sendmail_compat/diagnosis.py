"""`sendmail -d0`: the host name, where the configuration is and what it says, and directories that anybody may write.

See also: Sendmail's -d0.4 and its "WARNING: World writable directory"
"""

import os
import socket
import stat
import sys
from collections.abc import Iterator

from mta import __version__
from sendmail_compat import config as main_cf

_SHOWN = ("myhostname", "mydomain", "myorigin", "queue_directory", "submit_socket", "mail_owner", "alias_maps")


def diagnose(directory: str) -> Iterator[str]:
    """Lines for stdout."""
    yield f"Version aiomta {__version__}, Python {sys.version.split()[0]}"
    yield f"Configuration directory: {directory}"
    name = socket.gethostname()
    yield f"host name of the kernel: {name}"
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
        yield f"canonical name: {found[0][3] or name}"
        yield f"addresses: {', '.join(dict.fromkeys(str(entry[4][0]) for entry in found))}"
    except OSError as error:
        yield f"WARNING: {name} has no address: {error.strerror}; set myhostname in {directory}/main.cf"
    try:
        config = main_cf.read(directory)
    except main_cf.ConfigError as error:
        yield f"WARNING: {error}"
        return
    for parameter in _SHOWN:
        yield f"{parameter} = {config.text(parameter)}"
    if "." not in config.text("myhostname"):
        yield f"WARNING: myhostname = {config.text('myhostname')} is not a full domain name"
    yield from _daemon(config.text("submit_socket"))
    seen: set[str] = set()
    for path in (directory, config.queue, os.path.dirname(config.text("submit_socket")), *_files(config)):
        yield from _writable(path, seen)


def _daemon(path: str) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        try:
            sock.connect(path)
            yield "mail system: answers"
        except OSError as error:
            yield f"mail system: does not answer ({os.strerror(error.errno) if error.errno else 'timeout'})"


def _files(config: main_cf.Config) -> Iterator[str]:
    for item in config.text("alias_maps").replace(",", " ").split():
        path = item.rpartition(":")[2]
        if path.startswith("/"):
            yield os.path.dirname(path)


def _writable(path: str, seen: set[str]) -> Iterator[str]:
    """A directory and all above it: who may write one may replace what is below."""
    path = os.path.abspath(path)
    while path not in seen:
        seen.add(path)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            yield f"WARNING: {path}: {error.strerror}"
            mode = 0
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield f"WARNING: World writable directory {path}"
        elif mode & stat.S_IWGRP and not mode & stat.S_ISVTX:
            yield f"WARNING: Group writable directory {path}"
        path = os.path.dirname(path)
