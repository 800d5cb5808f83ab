"""What the programs under Postfix's names share: options, fatal errors, the log.

Options are POSIX getopt's without permutation, as in Postfix; a fatal error is "PROG: fatal: text" on stderr and the
program's own exit status.

See also: sendmail_compat/slow.py (where they are called)
"""

import getopt
import io
import os
import socket
import sys
import time
from collections.abc import Sequence

from sendmail_compat import config as main_cf
from sendmail_compat import fast
from sendmail_compat.config import Config

LOG_LIMIT = 2000  # characters of one line in the log


class ToolError(Exception):
    """Ends the program: str() is said after "fatal: "."""


def options(argv: Sequence[str], letters: str, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(letter, value) of each option, and the operands; ToolError with the usage line, after Postfix's complaint."""
    try:
        found, rest = getopt.getopt(list(argv[1:]), letters)
    except getopt.GetoptError as error:
        what = "option requires an argument" if "requires" in error.msg else "invalid option"
        say(argv[0], f"{what} -- '{error.opt}'")
        raise ToolError(f"usage: {usage}") from None
    return [(name[1:], value) for name, value in found], rest


def configuration(found: Sequence[tuple[str, str]]) -> Config:
    """The configuration that -c, MAIL_CONFIG or the default names; ToolError."""
    given = [value for letter, value in found if letter == "c"]
    try:
        return main_cf.read(fast.config_directory(given[-1] if given else ""))
    except main_cf.ConfigError as error:
        raise ToolError(str(error)) from None


def plain_output() -> None:
    """What is printed is UTF-8 in every locale, and bytes that are none come out as they went in."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def say(program: str, text: str) -> None:
    """One line on stderr under the program's name; nobody listening is no error."""
    fast.say(f"{os.path.basename(program)}: {text}")


def plural(count: int) -> str:
    """ "1 message", "2 messages"."""
    return f"{count} message{'s' * (count != 1)}"


class LogLine:
    """Lines for the mail log: appended to maillog_file when we may write there, else sent to syslog."""

    def __init__(self, config: Config, tag: str, *, with_pid: bool = True) -> None:
        """tag: complete, such as "postfix/postsuper"."""
        self._path = config.text("maillog_file")
        self._host = config.text("myhostname").partition(".")[0]
        self._tag = f"{tag}[{os.getpid()}]" if with_pid else tag

    def write(self, text: str, *, warning: bool = False) -> bool:
        """Log one line; False when it could not be written."""
        clean = "".join(c if c.isprintable() else "?" for c in text)[:LOG_LIMIT]
        stamp = time.strftime("%b %e %H:%M:%S", time.localtime())
        try:
            if not self._path:
                return self._syslog(f"<{20 if warning else 22}>{stamp} {self._tag}: {clean}")
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(self._path, flags)
            try:
                os.write(fd, f"{stamp} {self._host} {self._tag}: {clean}\n".encode("utf-8", "replace"))
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    @staticmethod
    def _syslog(line: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect("/dev/log")
            sock.send(line.encode("utf-8", "replace"))
        return True


def syslog_name(config: Config) -> str:
    """Word before the "/" of log lines."""
    return config.text("syslog_name") or "postfix"
