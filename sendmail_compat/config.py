"""A small reader of main.cf for the commands: values with `$name` filled in, no types, no complaints.

The daemon's parser knows every parameter and judges it; the commands need a few paths and must start fast and
with whatever rights the caller has.

See also: postconf(5), mta/config/
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULTS = {
    "queue_directory": "/var/spool/mta",
    "submit_socket": "$queue_directory/public/submit",
    "message_size_limit": "10240000",
    "alias_maps": "hash:/etc/aliases",
    "alias_database": "hash:/etc/aliases",
    "mail_name": "aiomta",
    "mail_owner": "mta",
    "myhostname": "localhost",
    "enable_long_queue_ids": "no",
    "hash_queue_names": "deferred, defer",
    "default_verp_delimiters": "+=",
    "verp_delimiter_filter": "-=+",
}
MAX_DEPTH = 20
_NAME = re.compile(r"\$(?:([A-Za-z0-9_]+)|\{([A-Za-z0-9_]+)(?:([?:])(?:\{([^{}]*)\}|([^{}]*)))?\}|\(([A-Za-z0-9_]+)\))")


class ConfigError(Exception):
    """main.cf cannot be read; str() is the reason, never a part of the file."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a command needs."""

    directory: str
    values: Mapping[str, str]

    def text(self, name: str, depth: int = 0) -> str:
        """The value of a parameter, expanded."""
        return self._expand(self.values.get(name, DEFAULTS.get(name, "")), depth)

    def _expand(self, text: str, depth: int) -> str:
        if "$" not in text or depth > MAX_DEPTH:
            return text

        def fill(match: re.Match[str]) -> str:
            value = self.text(match[1] or match[2] or match[6], depth + 1)
            other = match[4] if match[4] is not None else match[5]
            if match[3] == "?":
                return self._expand(other or "", depth + 1) if value else ""
            if match[3] == ":":
                return value or self._expand(other or "", depth + 1)
            return value

        return _NAME.sub(fill, text.replace("$$", "\0")).replace("\0", "$")

    @property
    def queue(self) -> str:
        """queue_directory."""
        return self.text("queue_directory")

    @property
    def size_limit(self) -> int:
        """message_size_limit in bytes; a value that is no number counts as the default."""
        text = self.text("message_size_limit")
        return int(text) if text.isdigit() else int(DEFAULTS["message_size_limit"])


def opener(path: str, flags: int) -> int:
    """For open(): nobody waits on a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def read(directory: str) -> Config:
    """Read DIRECTORY/main.cf with the caller's rights; raises ConfigError."""
    path = f"{directory}/main.cf"
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"open {path}: not a regular file")
            lines = file.read(1 << 20).split("\n")
    except OSError as error:
        raise ConfigError(f"open {path}: {os.strerror(error.errno or 0)}") from None
    values: dict[str, str] = {}
    name = ""
    for line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if line[0] in " \t":
            if name:
                values[name] += f" {stripped}"
            continue
        name, _, value = line.partition("=")
        name = name.strip()
        values[name] = value.strip()
    return Config(directory, values)
