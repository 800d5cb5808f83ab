"""Everything of `sendmail` that is not the common case: maildrop, -bs, mailq, newaliases, -q, usage errors.

Runs with the caller's rights.  Imports the pure parts of mta and the standard library only.

See also: sendmail_compat/fast.py, mta/submit/options.py
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from mta import __version__
from mta.lookup.table import TableError
from mta.lookup.unix import UserLookup
from mta.submit.options import Invocation, Mode, UsageError, argument_recipients, parse_command
from mta.submit.prepare import Caller, Submission, VerpSettings
from sendmail_compat import config as main_cf
from sendmail_compat import fast
from sendmail_compat.tool import LogLine, ToolError, plain_output, syslog_name

EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


def run(argv: list[str], directory: str, stdin: fast.Input | None) -> int:
    """Do what the command line says; return the exit status.

    stdin: what the fast path has read already, when the daemon could not take it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed when we were started
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for the life of the process
    plain_output()
    tool = _TOOLS.get(fast.program(argv))
    if tool is not None:
        return _run_tool(tool, argv)
    try:
        invocation = parse_command(argv, uid=os.getuid())
        if invocation.config_directory:
            directory = fast.config_directory(invocation.config_directory)
        status = _dispatch(invocation, argv, directory, stdin)
        if invocation.mode not in (Mode.SUBMIT, Mode.QUEUE):  # what is queued stays queued, whoever listens
            _flush_output(invocation)
        return status
    except UsageError as error:
        _say(*error.lines)
        return error.status
    except main_cf.ConfigError as error:
        _say(f"{fast.program(argv)}: fatal: {error}")
        return EX_CONFIG
    except ToolError as error:
        _say(f"{fast.program(argv)}: fatal: {error}")
        return EX_CONFIG
    except BrokenPipeError:
        _silence()
        return EX_OK
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
            sys.stderr.flush()


def _silence() -> None:
    """Nobody reads any more: what is printed, or still waits to be, goes nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _flush_output(invocation: Invocation, text: str = "") -> None:
    """What was printed, and this, is out, or it is said that it is not; BrokenPipeError when nobody reads any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"output write error: {os.strerror(error.errno or 0)}"
        raise invocation.fatal(EX_IOERR, reason) from None


def _run_tool(tool: tuple[str, int], argv: list[str]) -> int:
    """One of the programs with options of their own: (module, exit status of its fatal errors)."""
    module, status = tool
    program = fast.program(argv)
    try:
        run_it: Callable[[Sequence[str]], int] = importlib.import_module(f"sendmail_compat.{module}").main
        result = run_it([program, *argv[1:]])
        sys.stdout.flush()
        return result
    except ToolError as error:
        sys.stdout.flush()
        _say(f"{program}: fatal: {error}")
        return status
    except OSError as error:
        _silence()
        if isinstance(error, BrokenPipeError) and program in _LISTERS:
            return EX_OK
        what = f"{error.filename}: " if error.filename else "output write error: "
        _say(f"{program}: fatal: {what}{os.strerror(error.errno or 0)}")
        return status


_LISTERS = ("postqueue", "postcat", "qshape")  # only print: who has read enough has what he wanted
_TOOLS = {  # name: module, exit status of fatal errors (Postfix's)
    "postqueue": ("postqueue", 69), "postsuper": ("postsuper", 1), "postcat": ("postcat", 1), "qshape": ("qshape", 1),
    "postdrop": ("postdrop", 1), "postlog": ("postlog", 1), "postkick": ("postkick", 1), "makemap": ("makemap", 70),
    "rmail": ("rmail", 75), "rsmtp": ("rsmtp", 2),
}  # fmt: skip


def _say(*lines: str) -> None:
    for line in lines:
        fast.say(line)


def _dispatch(invocation: Invocation, argv: list[str], directory: str, stdin: fast.Input | None) -> int:
    mode = invocation.mode
    if mode is Mode.VERSION:
        print(f"aiomta {__version__}")
        return EX_OK
    if mode is Mode.HELP:
        print(_HELP)
        return EX_OK
    if mode is Mode.NOTHING:
        return EX_OK
    if invocation.diagnose:
        _diagnose(invocation, directory)
    config = main_cf.read(directory)
    if mode is Mode.SUBMIT:
        return _submit(invocation, argv, config, stdin, asked=stdin is not None)
    _say(*invocation.warnings)
    match mode:
        case Mode.QUEUE:
            from sendmail_compat.queue_tools import mailq

            return mailq(config)
        case Mode.FLUSH:
            return _flush(invocation, directory, config)
        case Mode.ALIASES:
            from sendmail_compat.alias_check import newaliases

            return newaliases(config, invocation.program)
        case Mode.SMTP:
            from sendmail_compat.smtp_relay import relay

            return relay(config.text("submit_socket"), argv)
        case Mode.TEST:
            from sendmail_compat.verify import address_test

            return address_test(directory)
        case Mode.VERIFY:
            from sendmail_compat.verify import verify

            return verify(directory, argument_recipients(invocation))
        case Mode.DAEMON:
            return _start_daemon(invocation, directory)


def _flush(invocation: Invocation, directory: str, config: main_cf.Config) -> int:
    """-q and its forms, of our queue or of another one."""
    from sendmail_compat.queue_tools import flush, wait_until_idle

    other = os.path.abspath(invocation.queue_directory) if invocation.queue_directory else ""
    if other and other != os.path.abspath(config.queue):
        from sendmail_compat.adopt import adopt

        status = adopt(config, other, invocation.program)
        if status:
            return status
    transport = None
    if invocation.flush[0] == "G":
        from sendmail_compat.verify import transports

        transport = transports(directory)
    if invocation.quarantine is not None:
        return _quarantine(config, invocation, transport)
    status = flush(config, invocation.flush, transport)
    if invocation.wait and not status:
        wait_until_idle(config)
    return status


def _quarantine(config: main_cf.Config, invocation: Invocation, transport: Callable[[str], str] | None) -> int:
    """-Qreason: hold what is selected; -Q: release it."""
    from sendmail_compat.queue_admin import administer
    from sendmail_compat.queue_tools import available_lines, parse_row, selected

    kind, argument, negated = invocation.flush
    rows = map(parse_row, available_lines(config))
    ids = [row["queue_id"] for row in rows if selected(row, kind, argument, transport) != negated]
    verb = "hold" if invocation.quarantine else "release"
    log = LogLine(config, f"{syslog_name(config)}/sendmail")
    for queue_id, outcome in administer(config, verb, ids).items():
        if outcome == "done":
            said = f"placed on hold: {invocation.quarantine}" if invocation.quarantine else "released from hold"
            log.write(f"{queue_id}: {said}")
            _say(f"{invocation.program}: {queue_id}: {said}")
        elif outcome.startswith("failed "):
            _say(f"{invocation.program}: warning: {queue_id}: {outcome.removeprefix('failed ')}")
    return EX_OK


def _caller() -> Caller:
    uid = os.getuid()
    environment = {k.decode(): os.fsdecode(os.environb[k]) for k in fast.ENVIRONMENT if k in os.environb}
    user = UserLookup().by_uid_now(uid)
    return Caller(uid, user.name, user.gecos, environment) if user else Caller(uid, environment=environment)


def configured(option: str) -> main_cf.Config:
    """The configuration for programs that have no -C of their own; ToolError."""
    try:
        return main_cf.read(fast.config_directory(option))
    except main_cf.ConfigError as error:
        raise ToolError(str(error)) from None


def submit(argv: list[str], config: main_cf.Config, stdin: fast.Input) -> int:
    """Hand in what has been read, under a command line made here; return the exit status."""
    try:
        return _submit(parse_command(argv, uid=os.getuid()), argv, config, stdin, asked=False)
    except UsageError as error:
        _say(*error.lines)
        return error.status


def _submit(
    invocation: Invocation, argv: list[str], config: main_cf.Config, stdin: fast.Input | None, *, asked: bool
) -> int:
    """Submit with the daemon (unless it was asked before), else by maildrop."""
    try:
        verp = VerpSettings(config.text("default_verp_delimiters"), config.text("verp_delimiter_filter"))
        submission = Submission(invocation, _caller(), verp)
    except TableError:
        _say(f"{invocation.program}: fatal: cannot look up user {os.getuid()}; nothing was queued")
        return EX_TEMPFAIL
    if stdin is None:
        try:
            stdin = fast.read_input(config.size_limit, invocation.dot_ends)
        except OSError as error:
            return fast.unread(argv, error.errno)
        if stdin is None:
            return fast.too_big(argv)
    if not asked:
        with contextlib.suppress(fast.Unavailable):
            return fast.Submitter(config.text("submit_socket"), argv, stdin, os.urandom(16)).submit()
    down = fast.KEY_AND_MODE + len(fast.words(argv)) <= fast.MAX_FRAME
    return _drop(invocation, submission, config, stdin, down=down)


def _drop(
    invocation: Invocation, submission: Submission, config: main_cf.Config, stdin: fast.Input, *, down: bool
) -> int:
    """The daemon does not answer: maildrop, then SMTP on loopback if that is configured, else 75 and nothing queued.

    down False: it was not asked, a command line this long does not fit into the first frame.
    """
    from sendmail_compat.access import denied
    from sendmail_compat.maildrop import MaildropError, TooManyError, write

    if config.size_limit and stdin.size > config.size_limit:
        _say(f"{invocation.program}: fatal: {submission.who}: message file too big")
        return fast.EX_DATAERR
    try:
        if name := denied(config, "authorized_submit_users"):
            _say(f"{invocation.program}: fatal: User {name}({os.getuid()}) is not allowed to submit mail")
            return EX_NOPERM
        _check_space(config)
        name = write(config.queue, submission, stdin.chunks(), config.size_limit)
    except TableError:
        _say(f"{invocation.program}: fatal: cannot look up who may submit mail, try again later; nothing was queued")
        return EX_TEMPFAIL
    except TooManyError as error:
        _say(f"{invocation.program}: fatal: {submission.who}: {error}; nothing was queued")
        return EX_TEMPFAIL if down else fast.EX_DATAERR  # the daemon takes more, but not on its command line
    except MaildropError as error:
        if server := config.text("submit_fallback_relay"):
            from sendmail_compat.smtp_fallback import send

            return send(server, invocation, submission, stdin)
        _say(f"{invocation.program}: fatal: mail system is down and its maildrop takes nothing: {error}")
        return EX_TEMPFAIL
    _say(*invocation.warnings)
    if down:
        _say(f"{invocation.program}: warning: mail system is down; message kept in maildrop until it is back")
        LogLine(config, f"{syslog_name(config)}/sendmail").write(
            f"warning: maildrop/{name}: uid={os.getuid()}: mail system is down, message kept until it is back",
            warning=True,
        )
    if invocation.verbose:
        fast.write_all(1, f"{name}\n".encode())  # it is queued, whoever can be told
    return EX_OK


def _check_space(config: main_cf.Config) -> None:
    """submit_reserved_space, as the daemon would judge; MaildropError."""
    from sendmail_compat.maildrop import MaildropError

    text = config.text("submit_reserved_space") or "5"
    if os.getuid() == 0 or not text.isdigit():
        return
    with contextlib.suppress(OSError):
        found = os.statvfs(f"{config.queue}/maildrop")
        if 100.0 * found.f_bavail / max(1, found.f_blocks) < int(text):
            raise MaildropError("the queue is nearly full")


def _start_daemon(invocation: Invocation, directory: str) -> int:
    """-bd and -q15m of root: start the mail system."""
    command = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "mta")
    try:
        os.execv(command, [command, "-c", directory, "start"])  # noqa: S606  a fixed program, no shell
    except OSError as error:
        _say(f"{invocation.program}: fatal: {command}: {os.strerror(error.errno or 0)}")
    return EX_UNAVAILABLE


def _diagnose(invocation: Invocation, directory: str) -> None:
    """-d0: what this installation believes, and what is wrong with it; then the rest of the line is obeyed."""
    from sendmail_compat.diagnosis import diagnose

    try:
        _flush_output(invocation, "".join(f"{line}\n" for line in diagnose(directory)))
    except BrokenPipeError:
        _silence()


_HELP = """usage: sendmail [options] [recipient ...]
  -t  recipients from the header        -i  a line "." does not end the message
  -f ADDRESS  envelope sender           -F NAME  full name of the sender
  -bs  SMTP on stdin                    -bp  show the queue (mailq)
  -q  deliver what is queued now        -C DIR  configuration directory
See sendmail(1)."""
