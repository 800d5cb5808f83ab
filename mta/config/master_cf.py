"""Reader of master.cf: which services there are, with the parameters each overrides.

    # service type  private unpriv  chroot  wakeup  maxproc command + args
    smtp      inet  n       -       n       -       -       smtpd
        -o syslog_name=postfix/in -o { smtpd_banner = $myhostname ESMTP }

"-" is the field's default.  Arguments in { } may hold white space.  Lines are continued as in main.cf.  The
values of -o are kept unexpanded: they may refer to main.cf.

See also: master(5)
"""

from collections.abc import Mapping
from dataclasses import field

from mta.config.main_cf import Problem, logical_lines
from mta.config.param import split
from mta.record import dataclass

TYPES = ("inet", "unix", "unix-dgram", "fifo", "pass")
_FIELDS = 8
_VALUED = "imnost"  # options of Postfix's daemons that have a value
_SPACE = " \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class Service:
    """One line of master.cf.

    private, unprivileged, chroot: the flags, with master(5)'s defaults (chroot: no).  wakeup: seconds, 0 = never;
    wakeup_if_used: the "?" suffix.  maxproc: processes or deliveries at once, 0 = no limit, None = the value of
    default_process_limit.  command: program name without directory.  overrides: name -> value as written in -o.
    args: what follows the options; only pipe(8) and spawn(8) have any.
    """

    name: str
    type: str
    private: bool
    unprivileged: bool
    chroot: bool
    wakeup: int
    wakeup_if_used: bool
    maxproc: int | None
    command: str
    args: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    line: int = 0

    @property
    def origin(self) -> str:
        """ "file:line"."""
        return f"{self.file}:{self.line}"


def parse_master_cf(text: str, file: str) -> tuple[tuple[Service, ...], list[Problem]]:
    """Services in file order and what is wrong; never raises.  Of two with one name and type the last counts."""
    found: dict[tuple[str, str], Service] = {}
    problems: list[Problem] = []
    for number, line in logical_lines(text):
        try:
            if line[0] in _SPACE:
                raise ValueError("logical line must not start with whitespace")
            service = _service(line, file, number)
        except ValueError as error:
            problems.append(Problem(file, number, str(error), True))
            continue
        key = (service.name, service.type)
        if key in found:
            text_ = f"overriding earlier entry: {service.name}/{service.type} (line {found[key].line})"
            problems.append(Problem(file, number, text_, False))
            del found[key]
        found[key] = service
    return tuple(found.values()), problems


def _service(line: str, file: str, number: int) -> Service:
    fields = split_args(line)
    if len(fields) < _FIELDS:
        raise ValueError(f"{len(fields)} fields, expected at least {_FIELDS}: service type private unprivileged "
                         "chroot wakeup maxproc command")  # fmt: skip
    name, kind, private, unprivileged, chroot, wakeup, maxproc, command, *rest = fields
    if kind not in TYPES:
        raise ValueError(f'invalid transport type "{kind}", expected one of: {", ".join(TYPES)}')
    if "/" in command:
        raise ValueError(f'invalid command name "{command}": a name without directory is expected')
    args, overrides = _arguments(rest)
    if kind == "inet" and _flag(private, "private", default=False):
        raise ValueError('inet services are not private: field "private" must be n')
    return Service(
        name=name,
        type=kind,
        private=_flag(private, "private", default=kind != "inet"),
        unprivileged=_flag(unprivileged, "unprivileged", default=True),
        chroot=_flag(chroot, "chroot", default=False),
        wakeup=_count(wakeup.removesuffix("?"), "wakeup") or 0,
        wakeup_if_used=wakeup.endswith("?"),
        maxproc=_count(maxproc, "maxproc"),
        command=command,
        args=args,
        overrides=overrides,
        file=file,
        line=number,
    )


def split_args(line: str) -> list[str]:
    """Fields of a line; an argument in { } is one field, without its outer braces and the blanks inside them."""
    fields: list[str] = []
    for item in _words(line):
        if item.startswith("{"):
            if not item.endswith("}") or item.count("{") != item.count("}"):
                raise ValueError(f'unbalanced {{ }} in "{item}"')
            item = item[1:-1].strip(_SPACE)
        fields.append(item)
    return fields


def _words(line: str) -> list[str]:
    """Cut at white space; commas separate nothing here; a field that begins with { lasts to its }."""
    words: list[str] = []
    rest = line.strip(_SPACE)
    while rest:
        if rest.startswith("{"):
            depth = 0
            end = len(rest)
            for i, c in enumerate(rest):
                depth += (c == "{") - (c == "}")
                if not depth:
                    end = i + 1
                    break
            if rest[end : end + 1] not in ("", *_SPACE):
                raise ValueError(f'syntax error after }} in "{rest[:end]}"')
        else:
            end = min((i for i in (rest.find(c) for c in _SPACE) if i >= 0), default=len(rest))
        words.append(rest[:end])
        rest = rest[end:].lstrip(_SPACE)
    return words


def _arguments(rest: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split what follows the command into its arguments and the -o overrides.

    Read as Postfix's daemons read it: options end at the first word that is none (or after "--"), letters may be
    joined ("-vo name=value"), and options other than -o mean nothing here.
    """
    overrides: dict[str, str] = {}
    at = 0
    while at < len(rest) and rest[at].startswith("-") and rest[at] != "-":
        letters = rest[at][1:]
        at += 1
        if letters == "-":
            break
        valued = next((i for i, letter in enumerate(letters) if letter in _VALUED), None)
        if valued is None:
            continue
        value = letters[valued + 1 :]
        if not value:
            value = rest[at] if at < len(rest) else ""
            at += 1
        if letters[valued] == "o":
            name, text = _override(value)
            overrides[name] = text
    return tuple(rest[at:]), overrides


def _override(setting: str) -> tuple[str, str]:
    name, equals, value = setting.partition("=")
    name = name.strip(_SPACE)
    if not equals or not name or len(split(name)) != 1:
        raise ValueError(f"-o {setting}: expected -o name=value or -o {{ name = value }}")
    return name, value.strip(_SPACE)


def _flag(text: str, name: str, *, default: bool) -> bool:
    if text not in ("-", "y", "n"):
        raise ValueError(f'field "{name}": expected y, n or -, not "{text}"')
    return default if text == "-" else text == "y"


def _count(text: str, name: str) -> int | None:
    if text == "-":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ValueError(f'field "{name}": expected a number or -, not "{text}"')
    return int(text)
