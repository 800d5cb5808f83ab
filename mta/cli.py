"""mta(8): start, stop and look after the mail system; postfix(1)'s verbs, words and exit statuses.

    mta [-c DIR] start | start-fg | stop | abort | reload | flush | check | logrotate | status | version
    mta [-c DIR] queue list | show | hold | release | requeue | expire | delete | flush ...

Exit 0 done; 1 it could not be done (already running, not running); 64 usage; 78 configuration broken, every
error with file and line on stderr.
"""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence

from mta import __version__
from mta.clock import Clock, stamp
from mta.config.check_level import check_level
from mta.config.config import Config, ConfigError, check_config, load
from mta.config.main_cf import decode, parse_main_cf
from mta.master.lock import ALREADY_RUNNING, NOT_RUNNING, running, wait_until_stopped

EX_USAGE, EX_IOERR, EX_CONFIG = 64, 74, 78
VERBS = ("start", "start-fg", "stop", "abort", "reload", "flush", "check", "logrotate", "status", "version")
STOP_LIMIT = 60.0  # seconds `mta stop` waits before it says so


def say(text: str) -> None:
    """One line to the administrator, under the name Postfix's scripts use."""
    print(f"postfix/postfix-script: {text}", file=sys.stderr)


def usage() -> int:
    """Print how to call it."""
    print(f"mta: usage: mta [-c config_dir] {' | '.join(VERBS)} | queue ...", file=sys.stderr)
    return EX_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.  What is closed is /dev/null; output that is lost is an error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for the life of the process
    status = _command(argv)
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter will try again
        if not isinstance(error, BrokenPipeError):
            print(f"mta: fatal: output write error: {os.strerror(error.errno or 0)}", file=sys.stderr)
            return status or EX_IOERR
    return status


def _command(argv: Sequence[str] | None) -> int:
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
    if args and args[0] in ("install", "uninstall"):
        from mta.install.install import main as install_main  # tools that nothing else needs

        return install_main(args[0], args[1:], os.path.abspath(directory))
    if args[:1] == ["queue"]:
        from mta.cli_queue import main as queue  # its own commands and options

        return queue(args[1:], os.path.abspath(directory))
    if len(args) != 1 or args[0] not in VERBS:
        return usage()
    if args[0] == "version":
        print(f"mail_version = {__version__}")
        return 0
    return run(args[0], os.path.abspath(directory))


def run(verb: str, directory: str) -> int:
    """Carry out a verb."""
    match verb:
        case "start":
            config = load_or_complain(directory)
            return EX_CONFIG if config is None else start(config, {})
        case "start-fg":
            config = load_or_complain(directory)
            if config is None:
                return EX_CONFIG
            overrides = foreground_log(config)
            return start(load(directory, overrides=overrides) if overrides else config, overrides, foreground=True)
        case "check":
            config = load_or_complain(directory)
            return EX_CONFIG if config is None else check(config)
        case "reload":
            config = load_or_complain(directory)
            if config is None:
                return EX_CONFIG
        case _:
            config = load_somehow(directory)
    return talk(verb, config)


def load_or_complain(directory: str) -> Config | None:
    """Read the configuration; print every problem; None when it cannot be used."""
    try:
        config = load(directory)
        problems = list(config.problems)
    except ConfigError as broken:
        config, problems = None, broken.problems
    if config is not None:
        from mta.master.check import check_services  # most of the mail system: only where it is about to be used

        problems += check_services(config)
    for problem in problems:
        print(f"mta: {'fatal' if problem.fatal else 'warning'}: {problem}", file=sys.stderr)
    count = sum(problem.fatal for problem in problems)
    if count:
        print(f"mta: {count} error{'s' * (count != 1)}, nothing was started or changed", file=sys.stderr)
        return None
    return config


def load_somehow(directory: str) -> Config:
    """The settings even when some are broken: a running instance must not be out of reach because of that."""
    main = os.path.join(directory, "main.cf")
    try:
        return load(directory)
    except ConfigError as broken:
        count = sum(problem.fatal for problem in broken.problems)
        print(f"mta: warning: {directory}: {count} error{'s' * (count != 1)}; see `mta check`", file=sys.stderr)
    try:
        with open(main, "rb") as stream:
            settings = parse_main_cf(decode(stream.read()), main).settings
    except OSError:
        settings = {}
    return Config(directory, settings)


def foreground_log(config: Config) -> dict[str, str]:
    """In the foreground of a machine without syslog, standard output is the log; settings that say so."""
    if config.text("maillog_file") or os.path.exists("/dev/log"):
        return {}
    return {"maillog_file": "/dev/stdout", "maillog_file_prefixes": "/dev/stdout"}


def start(config: Config, overrides: Mapping[str, str], *, foreground: bool = False) -> int:
    """start, start-fg."""
    with contextlib.suppress(PermissionError):  # said by who opens it for writing
        if running(config.text("queue_directory")):
            say(f"fatal: {ALREADY_RUNNING}")
            return 1
    from mta.master.master import start as start_master  # imports the whole mail system: only when it is started

    return start_master(config, foreground=foreground, overrides=overrides)


def talk(verb: str, config: Config) -> int:
    """stop, abort, reload, logrotate, flush, status: of the running instance."""
    spool = config.text("queue_directory")
    try:
        pid = running(spool)
    except PermissionError as error:
        say(f"fatal: {error.filename}: {error.strerror}")
        return 1
    if verb == "status":
        say(f"the Postfix mail system is running: PID: {pid}" if pid else NOT_RUNNING)
        warn_about_maildrop(spool, running_pid=pid)
        return 0 if pid else 1
    if verb == "logrotate":
        return logrotate(config, pid)
    if not pid:
        say(f"fatal: {NOT_RUNNING}")
        return 1
    return signal_master(verb, pid, spool)


def logrotate(config: Config, pid: int) -> int:
    """Give maillog_file a new name, as postfix(1) does, and let the running instance begin a new one.

    A file that somebody else has renamed already, or an empty one, is only opened again.
    """
    path = config.text("maillog_file")
    if not path.startswith("/") or path == "/dev/stdout":
        say("fatal: maillog_file does not name a file: nothing to rotate")
        return 1
    try:
        old = rotate_file(path, config.text("maillog_file_rotate_suffix"))
        if pid:
            if not os.path.exists(path):
                owner = os.stat(f"/proc/{pid}")
                make_log(path, 0o640, owner.st_uid, owner.st_gid)
            os.kill(pid, signal.SIGUSR1)
        compressor = config.text("maillog_file_compressor")
        if old and compressor:
            Clock().block(1.0 if pid else 0.0)  # as postfix-script: who has it open writes its last lines
            subprocess.run([compressor, old], check=True)  # noqa: S603  (the administrator's own setting)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"fatal: logfile '{path}' rotation failed: {error}")
        return 1
    return 0


def rotate_file(path: str, suffix: str) -> str:
    """Rename a log that has content and make a new one, with the same owner; return the old one's name."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(info.st_mode) or not info.st_size:
        return ""
    old = f"{path}.{stamp(Clock().now(), suffix)}"
    os.rename(path, old)
    make_log(path, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return old


def make_log(path: str, mode: int, uid: int, gid: int) -> None:
    """An empty log file, made here because mail_owner may not be allowed to make files in that directory."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def signal_master(verb: str, pid: int, spool: str) -> int:
    """stop, abort, reload, flush: talk to the running instance."""
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
    from mta.master.check import check_permissions, check_tables  # the spool's layout: not needed by the other verbs

    problems = [*check_config(config), *check_level(config), *check_tables(config), *check_permissions(config)]
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
