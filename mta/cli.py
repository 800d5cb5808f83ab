"""mta(8): start, stop and look after the mail system; postfix(1)'s verbs, words and exit statuses.

    mta [-c DIR] start | start-fg | stop | abort | reload | flush | check | logrotate | status | version

Exit 0 done; 1 it could not be done (already running, not running); 64 usage; 78 configuration broken, every
error with file and line on stderr.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from mta import __version__
from mta.clock import Clock
from mta.config.config import Config, ConfigError, check_config, load
from mta.master_lock import ALREADY_RUNNING, NOT_RUNNING, running, wait_until_stopped

EX_USAGE, EX_CONFIG = 64, 78
VERBS = ("start", "start-fg", "stop", "abort", "reload", "flush", "check", "logrotate", "status", "version")
STOP_LIMIT = 60.0  # seconds `mta stop` waits before it says so


def say(text: str) -> None:
    """One line to the administrator, under the name Postfix's scripts use."""
    print(f"postfix/postfix-script: {text}", file=sys.stderr)


def usage() -> int:
    """Print how to call it."""
    print(f"mta: usage: mta [-c config_dir] {' | '.join(VERBS)}", file=sys.stderr)
    return EX_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    directory = os.environ.get("MAIL_CONFIG", "/etc/mta")
    while args and args[0].startswith("-") and args[0] != "-":
        option = args.pop(0)
        if option == "-c" and args:
            directory = args.pop(0)
        elif option.startswith("-c") and len(option) > 2:
            directory = option[2:]
        elif option in ("-v", "-D"):
            continue
        else:
            return usage()
    if len(args) != 1 or args[0] not in VERBS:
        return usage()
    if args[0] == "version":
        print(f"mail_version = {__version__}")
        return 0
    config = load_or_complain(directory)
    if config is None:
        return EX_CONFIG
    return run(args[0], config)


def load_or_complain(directory: str) -> Config | None:
    """Read the configuration; print every problem; None when it cannot be used."""
    try:
        config = load(directory)
    except ConfigError as broken:
        for problem in broken.problems:
            print(f"mta: {'fatal' if problem.fatal else 'warning'}: {problem}", file=sys.stderr)
        count = sum(problem.fatal for problem in broken.problems)
        print(f"mta: {count} error{'s' * (count != 1)}, nothing was started or changed", file=sys.stderr)
        return None
    for problem in config.problems:
        print(f"mta: warning: {problem}", file=sys.stderr)
    return config


def run(verb: str, config: Config) -> int:
    """Carry out a verb with a usable configuration."""
    spool = config.text("queue_directory")
    pid = running(spool)
    match verb:
        case "start" | "start-fg":
            if pid:
                say(f"fatal: {ALREADY_RUNNING}")
                return 1
            from mta.master import start  # imports the whole mail system: only when it is started

            return start(config, foreground=verb == "start-fg")
        case "check":
            return check(config)
        case "status":
            say(f"the Postfix mail system is running: PID: {pid}" if pid else NOT_RUNNING)
            warn_about_maildrop(spool, running_pid=pid)
            return 0 if pid else 1
    if not pid:
        say(f"fatal: {NOT_RUNNING}")
        return 1
    return signal_master(verb, pid, spool)


def signal_master(verb: str, pid: int, spool: str) -> int:
    """stop, abort, reload, logrotate, flush: talk to the running instance."""
    try:
        match verb:
            case "stop":
                say("stopping the Postfix mail system")
                os.kill(pid, signal.SIGTERM)
                if not wait_until_stopped(spool, Clock(), STOP_LIMIT):
                    say(f"warning: still stopping after {STOP_LIMIT:.0f} s; use abort")
                    return 1
            case "abort":
                say("aborting the Postfix mail system")
                os.kill(pid, signal.SIGKILL)
                wait_until_stopped(spool, Clock(), STOP_LIMIT)
            case "reload":
                say("refreshing the Postfix mail system")
                os.kill(pid, signal.SIGHUP)
            case "logrotate":
                os.kill(pid, signal.SIGUSR1)
            case "flush":
                return asyncio.run(flush(spool))
    except PermissionError:
        say(f"fatal: not permitted to signal process {pid}")
        return 1
    except ProcessLookupError:
        say(f"fatal: {NOT_RUNNING}")
        return 1
    return 0


async def flush(spool: str) -> int:
    """Ask for delivery of everything that is deferred."""
    try:
        reader, writer = await asyncio.open_unix_connection(os.path.join(spool, "public", "flush"))
        writer.write(b"flush\n")
        async with Clock().timeout(60.0):
            answer = (await reader.readline()).decode("utf-8", "replace")
        writer.close()
    except (OSError, TimeoutError) as error:
        say(f"fatal: Cannot flush mail queue - mail system is down ({error})")
        return 69
    status, _, text = answer.strip().partition(" ")
    if status != "0":
        say(f"fatal: {text}")
        return 69
    return 0


def check(config: Config) -> int:
    """Look at configuration and permissions; print what is wrong."""
    from mta.master_check import check_permissions  # the spool's layout: not needed by the other verbs

    problems = [*check_config(config), *check_permissions(config)]
    for problem in problems:
        print(f"mta: {'fatal' if problem.fatal else 'warning'}: {problem}", file=sys.stderr)
    return EX_CONFIG if any(problem.fatal for problem in problems) else 0


def warn_about_maildrop(spool: str, *, running_pid: int) -> None:
    """Mail that was submitted while nobody runs is the first thing an administrator must hear."""
    try:
        waiting = sum(1 for entry in os.scandir(os.path.join(spool, "maildrop")) if entry.is_file())
    except OSError:
        return
    if waiting and not running_pid:
        say(f"warning: {waiting} message{'s' * (waiting != 1)} in maildrop wait for the mail system to be started")
