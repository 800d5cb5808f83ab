"""The command line of `sendmail`: every option callers use, acted on, accepted and ignored, or refused.

POSIX getopt without permutation: the first word that is no option ends them.  Exit codes are precise (Postfix
answers 75 to everything): 64 usage, 65 data; texts are Postfix's.  Used by the daemon, by the fallback to
maildrop and by the programs that show the queue, so that they cannot differ.

See also: sendmail(1), LSB 5.0 baselib-sendmail-1, RFC 3461 (-N -R -V)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum

from mta.envelope import NOTIFY_DEFAULT, RET_DEFAULT, Notify, Ret
from mta.message_address import parse_list
from mta.record import dataclass

EX_USAGE = 64
EX_DATAERR = 65
EX_NOPERM = 77

_WITH_ARGUMENT = frozenset("ABCFLNORVXbefhopr")
_OPTIONAL_ARGUMENT = frozenset("EJQdq")  # attached or absent
_FLAGS = frozenset("GIUcimnstvx")
_MAX_ENVID = 100  # RFC 3461 s5.4
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")
_LONE_XTEXT = re.compile(r"[!-~]*\Z")
_DIAGNOSIS = re.compile(r"0(?:\.\d*)?\Z")
_INTERVAL = re.compile(r"(?:\d+[smhdw]?)+\Z")
_VIA = re.compile(r"([A-Za-z0-9-]{1,20})(?::([A-Za-z0-9._:\[\]-]{1,255}))?\Z")
_BLANKS = " \t\r\n"  # around an address: what scripts leave that read it from a line
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_BUT_TAB = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # a tab may stand between the words of an argument


class Mode(StrEnum):
    """What is asked for; the value is the word in "X mode requires no recipient"."""

    SUBMIT = "submit"
    SMTP = "stand-alone"
    QUEUE = "display queue"
    ALIASES = "alias initialization"
    FLUSH = "flush queue"
    DAEMON = "daemon"
    VERIFY = "verify"
    TEST = "address test"
    NOTHING = "host status"
    VERSION = "version"
    HELP = "help"


_MODE_LETTERS = {
    "m": Mode.SUBMIT, "s": Mode.SMTP, "p": Mode.QUEUE, "i": Mode.ALIASES, "d": Mode.DAEMON, "D": Mode.DAEMON,
    "l": Mode.DAEMON, "v": Mode.VERIFY, "t": Mode.TEST, "h": Mode.NOTHING, "H": Mode.NOTHING, "V": Mode.VERSION,
}  # fmt: skip
_MODE_BY_NAME = {
    "mailq": Mode.QUEUE, "newaliases": Mode.ALIASES, "smtpd": Mode.DAEMON, "hoststat": Mode.NOTHING,
    "purgestat": Mode.NOTHING, "runq": Mode.FLUSH,
}  # fmt: skip
_REQUIRE_NO_RECIPIENT = (Mode.QUEUE, Mode.FLUSH, Mode.DAEMON, Mode.SMTP, Mode.ALIASES, Mode.TEST)


class UsageError(Exception):
    """Refused.  status: exit status.  lines: for stderr, complete with "PROGRAM: fatal: "."""

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        super().__init__(lines[-1])
        self.status = status
        self.lines = tuple(lines)


@dataclass(slots=True)
class Invocation:
    """A parsed command line.

    sender: of -f or -r, None when not given, "" = null sender.  full_name: of -F, None when not given (an empty
    -F "" asks for a bare address).  dot_ends: a line "." ends the message (no -i).  extract: -t.  envelope_id:
    plain text, xtext decoded.  verp: delimiters of -XV, "" for the default ones, None without it.  remote: -G, no
    local rewriting.  flush: kind "I", "R", "S", "G" or "" (all), argument, negated; wait: -qf.  quarantine: -Q, its
    reason or "" to release.  queue_directory: of -oQ, "" = the configured one.  via: of -p, protocol and host by which
    root's program got the message, for Received; nobody else is believed.  warnings: for stderr; the command
    goes on.
    """

    program: str
    mode: Mode = Mode.SUBMIT
    sender: str | None = None
    full_name: str | None = None
    recipients: list[str] = field(default_factory=list)
    extract: bool = False
    dot_ends: bool = True
    notify: Notify = NOTIFY_DEFAULT
    ret: Ret = RET_DEFAULT
    envelope_id: str = ""
    encoding: str = ""
    verp: str | None = None
    remote: bool = False
    smtputf8: bool = False
    verbose: int = 0
    flush: tuple[str, str, bool] = ("", "", False)
    config_directory: str = ""
    queue_directory: str = ""
    via: tuple[str, str] = ("", "")
    wait: bool = False
    quarantine: str | None = None
    diagnose: bool = False
    warnings: list[str] = field(default_factory=list)

    def fatal(self, status: int, text: str) -> UsageError:
        """The error to raise, with the warnings collected so far."""
        return UsageError(status, [*self.warnings, f"{self.program}: fatal: {text}"])


def program_name(argv0: str) -> str:
    """Base name under which we were called."""
    return argv0.rpartition("/")[2] or "sendmail"


def parse_command(argv: Sequence[str], *, uid: int) -> Invocation:
    """Parse a whole command line, argv[0] included.

    uid: of the caller; some options are for root only.  Raises UsageError.
    """
    result = Invocation(program_name(argv[0] if argv else "sendmail"))
    result.mode = _MODE_BY_NAME.get(result.program, Mode.SUBMIT)
    options, rest, unknown = _getopt(argv)
    if unknown:
        # Both of Postfix's passes complain: the first about each unknown option, the second stops at one.
        lines = [f"{result.program}: {text}" for text in (*unknown, unknown[0])]
        raise UsageError(EX_USAGE, [*lines, f"{result.program}: fatal: usage: {result.program} [options]"])
    for letter, value in options:
        _apply(result, letter, value, uid)
    result.recipients = rest
    _check(result, uid)
    return result


def _getopt(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Split argv into (options, operands, complaints)."""
    options: list[tuple[str, str]] = []
    unknown: list[str] = []
    i = 1
    while i < len(argv):
        word = argv[i]
        if word in ("--version", "--help"):
            options.append(("-", word[2:]))
            i += 1
            continue
        if word == "--":
            i += 1
            break
        if len(word) < 2 or word[0] != "-":
            break
        i += 1
        pos = 1
        while pos < len(word):
            letter = word[pos]
            pos += 1
            if letter in _WITH_ARGUMENT:
                value = word[pos:]
                if not value:
                    if i == len(argv):
                        unknown.append(f"option requires an argument -- '{letter}'")
                        break
                    value = argv[i]
                    i += 1
                options.append((letter, value))
                break
            if letter == "d" and not _DIAGNOSIS.match(word[pos:]):
                unknown.append("invalid option -- 'd'")
            elif letter in _OPTIONAL_ARGUMENT:
                options.append((letter, word[pos:]))
                break
            elif letter in _FLAGS:
                options.append((letter, ""))
            else:
                unknown.append(f"invalid option -- '{CONTROL.sub('?', letter)}'")
    return options, list(argv[i:]), unknown


def _apply(result: Invocation, letter: str, value: str, uid: int) -> None:
    match letter:
        case "t":
            result.extract = True
        case "i":
            result.dot_ends = False
        case "f" | "r":
            result.sender = _sender(result, value)
        case "F":
            result.full_name = value
        case "b":
            _mode(result, value)
        case "o":
            _option(result, value)
        case "O":
            name, _, setting = value.partition("=")
            if name.strip().lower() == "queuedirectory":
                result.queue_directory = setting
        case "q":
            _queue(result, value, uid)
        case "B":
            if value.upper() not in ("7BIT", "8BITMIME"):
                raise result.fatal(EX_USAGE, "-B option needs 8BITMIME or 7BIT")
            result.encoding = "7bit" if value.upper() == "7BIT" else "8bit"
        case "N" | "R" | "V":
            _dsn(result, letter, value)
        case "X":
            if value[:1] == "V" and len(value) in (1, 3):
                result.verp = value[1:]
        case "C":
            result.config_directory = value
        case "I":
            result.mode = Mode.ALIASES
        case "G":
            result.remote = True
        case "U":
            result.smtputf8 = True
        case "v":
            result.verbose += 1
        case "d":
            result.diagnose = True
        case "Q":
            if uid != 0:
                bad = f"{result.program}: invalid option -- 'Q'"
                raise UsageError(EX_USAGE, [bad, bad, f"{result.program}: fatal: usage: {result.program} [options]"])
            result.quarantine = value
        case "h":
            if not value.isdigit():
                raise result.fatal(EX_USAGE, "-h option needs a number")
        case "p":
            found = _VIA.match(value)
            result.via = (found[1], found[2] or "") if found and uid == 0 else ("", "")
        case "-":
            result.mode = Mode.VERSION if value == "version" else Mode.HELP
        case _:
            pass  # A E J L c e m n s x: seen in the wild, harmless


def _mode(result: Invocation, value: str) -> None:
    mode = _MODE_LETTERS.get(value[:1])
    if mode is None:
        raise result.fatal(EX_USAGE, f"unsupported: -b{CONTROL.sub('?', value[:1])}")
    result.mode = mode
    if "i" in value[1:]:  # -bsi and the like: bundles that getopt takes for an argument
        result.dot_ends = False


def _option(result: Invocation, value: str) -> None:
    if value[:1] == "i":
        result.dot_ends = False
    elif value[:1] == "Q":
        result.queue_directory = value[1:]


def _queue(result: Invocation, value: str, uid: int) -> None:
    """-q and its forms: now, an interval (a daemon), or a selection."""
    if result.mode is not Mode.QUEUE:
        result.mode = Mode.FLUSH
    negated = value[:1] == "!"
    if negated:
        value = value[1:]
    kind, argument = value[:1], value[1:]
    if kind in ("I", "R", "S", "G") and not (kind == "I" and not argument):
        result.flush = (kind, argument, negated)
    elif value in ("", "f") and not negated:
        result.flush = ("", "", False)
        result.wait = value == "f"
    elif _INTERVAL.match(value.removeprefix("p")) and not negated:
        result.mode = Mode.DAEMON
        if uid != 0:
            raise result.fatal(EX_USAGE, f"-q{value} can be used only by the superuser")
    elif kind == "I":
        raise result.fatal(EX_USAGE, "specify: -qIqueueid")
    else:
        raise result.fatal(EX_USAGE, f"-q{CONTROL.sub('?', value[:1])} is not implemented")


def _dsn(result: Invocation, letter: str, value: str) -> None:
    if letter == "N":
        notify, bad = parse_notify(value)
        if bad is None:
            result.notify = notify
        else:
            shown = CONTROL.sub("?", value)
            if bad:
                result.warnings.append(
                    f'{result.program}: warning: unknown DSN NOTIFY command value "{CONTROL.sub("?", bad)}"'
                    f' in "{shown}"'
                )
            result.warnings.append(f"{result.program}: warning: bad -N option value -- ignored")
    elif letter == "R":
        flags = {"FULL": Ret.FULL, "HDRS": Ret.HDRS}.get(value.upper())
        if flags is None:
            result.warnings.append(f"{result.program}: warning: bad -R option value -- ignored")
        else:
            result.ret = flags
    else:
        result.envelope_id = _envelope_id(result, value)


def _envelope_id(result: Invocation, value: str) -> str:
    """ENVID: xtext (RFC 3461 s4.4); what is printable but no xtext (a "+=") is taken as it is."""
    if not _LONE_XTEXT.match(value) or len(value) > _MAX_ENVID:
        raise result.fatal(EX_USAGE, "-V option needs an envelope id in xtext form")
    if not _XTEXT.match(value):
        return value
    plain = re.sub(r"\+([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), value) if "+" in value else value
    if CONTROL.search(plain):
        raise result.fatal(EX_DATAERR, "-V option: control character in the envelope id")
    return plain


def parse_notify(value: str) -> tuple[Notify, str | None]:
    """Return (flags, None), or what is wrong: the unknown word, "" for a bad combination."""
    names = {"NEVER": Notify.NEVER, "SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}
    flags = Notify(0)
    for word in re.split(r"[, \t\r\n]+", value.strip(", \t\r\n")):
        flag = names.get(word.upper())
        if flag is None:
            return Notify(0), word
        flags |= flag
    if Notify.NEVER in flags and flags != Notify.NEVER:
        return Notify(0), ""
    return flags, None


def _sender(result: Invocation, value: str) -> str:
    """The address in -f: any mailbox form; exactly one, or none for the null sender."""
    value = value.strip(_BLANKS)
    parsed = parse_list(value)
    if _CONTROL_BUT_TAB.search(value) or any(map(CONTROL.search, parsed.addresses)):
        raise result.fatal(EX_DATAERR, "-f option: control character in the sender address")
    if parsed.malformed or len(parsed.addresses) > 1:
        result.warnings.append(f"{result.program}: warning: -f option specified malformed sender: {value}")
        raise result.fatal(EX_USAGE, "-f option needs one address")
    sender = parsed.addresses[0] if parsed.addresses else ""
    return "" if sender.upper() == "MAILER-DAEMON" else sender  # the null sender's name, for those who cannot say <>


def _check(result: Invocation, uid: int) -> None:
    """Combinations that make no sense, in Postfix's order and words."""
    mode = result.mode
    if mode in (Mode.VERSION, Mode.HELP, Mode.NOTHING):
        return
    if result.extract and mode is Mode.VERIFY:
        raise result.fatal(EX_USAGE, "-t option cannot be used with -bv")
    if result.extract and mode is not Mode.SUBMIT:
        raise result.fatal(EX_USAGE, "-t can be used only in delivery mode")
    if mode in _REQUIRE_NO_RECIPIENT and result.recipients:
        raise result.fatal(EX_USAGE, f"{mode.value} mode requires no recipient")
    if mode is Mode.DAEMON and uid != 0:
        raise result.fatal(EX_USAGE, "daemon mode can be used only by the superuser")
    if result.quarantine is not None and (mode is not Mode.FLUSH or not result.flush[0]):
        raise result.fatal(EX_USAGE, "-Q needs -qI, -qR, -qS or -qG")
    if mode is Mode.VERIFY and not result.recipients:
        raise result.fatal(EX_USAGE, "Recipient addresses must be specified on the command line")
    if result.flush[0] and mode not in (Mode.FLUSH, Mode.QUEUE, Mode.DAEMON):
        raise result.fatal(EX_USAGE, "-q can be used only in flush queue mode")


def check_recipients(result: Invocation, addresses: Sequence[str]) -> None:
    """Refuse what would only bounce, or be taken for an option by another program; raises UsageError."""
    for address in addresses:
        if not address:
            raise result.fatal(EX_USAGE, "empty recipient address")
        if CONTROL.search(address):
            raise result.fatal(EX_DATAERR, "control character in a recipient address")
        if address.startswith("-"):
            raise result.fatal(EX_USAGE, f"recipient address must not begin with '-': {address}")


def argument_recipients(result: Invocation) -> list[str]:
    """The addresses of the operands, each parsed like a header: `Bob <b@x>`, `a@x,b@y`; raises UsageError."""
    out: list[str] = []
    for operand in (word.strip(_BLANKS) for word in result.recipients):
        if _CONTROL_BUT_TAB.search(operand):
            raise result.fatal(EX_DATAERR, "control character in a recipient address")
        parsed = parse_list(operand)
        if not parsed.addresses and not parsed.malformed:
            raise result.fatal(EX_USAGE, "empty recipient address")
        check_recipients(result, parsed.addresses)
        if parsed.malformed:
            raise result.fatal(EX_DATAERR, f"malformed recipient address: {operand}: {parsed.malformed}")
        out += parsed.addresses
    return out


def full_name(result: Invocation, environment: Mapping[str, str], gecos: str, login: str) -> str:
    """-F, else $NAME, else the gecos field up to its first comma with "&" = the login name with a capital."""
    name = result.full_name
    if name is None:
        name = environment.get("NAME")
    if name is None:
        name = gecos.partition(",")[0].replace("&", login[:1].upper() + login[1:])
    return CONTROL.sub("?", " ".join(name.split()))
