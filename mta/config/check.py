"""Is this configuration usable?  Everything wrong with it, not the first thing.

Fatal, the start stops with 78:
- a malformed value of a parameter that is honoured;
- a parameter that is not honoured yet, where ignoring it would make mail less safe, set to anything but its
  default (see unsafe_if_ignored in the declarations);
- values that contradict each other;
- arguments of a service that has none: the rest of a list with blanks that -o has cut off.
A warning: a name that nobody knows, a Postfix parameter not honoured yet, a setting that does nothing.

See also: postconf(5), docs/parameters.md
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from mta.config.macro import MacroError, expand, references
from mta.config.main_cf import Problem, Setting, one_line
from mta.config.master_cf import Service
from mta.config.param import Param
from mta.config.params import PARAMS, READ_ONLY, declared, find
from mta.config.settings import Config

_REQUIRED = ("myhostname", "mydomain", "myorigin", "mail_owner", "queue_directory", "data_directory", "mail_name",
             "syslog_name", "double_bounce_sender", "empty_address_recipient", "local_transport", "default_transport",
             "relay_transport", "virtual_transport", "submit_socket")  # fmt: skip
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
_STOPS_RELAYING = {"reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit",
                   "check_relay_domains"}  # fmt: skip
_NOTICES = {"bounce", "2bounce", "delay"}  # classes of notify_classes that mta/bounce sends
_NO_ARGUMENTS = ("smtpd", "smtp", "lmtp", "local", "error", "discard", "pickup", "cleanup", "qmgr", "trivial-rewrite",
                 "bounce", "showq", "anvil")  # fmt: skip
_FLAGS = re.compile(r"(?i:flags=)[DORX]*")  # of smtp(8) and lmtp(8): headers for final delivery, and "delivered"
_NOT_SERVED = ("postscreen", "qmqpd")  # commands of inet services that we do not have


def check_all(config: Config) -> list[Problem]:
    """Every problem of the settings themselves; reads no file but the one that myorigin may name."""
    used = config.used_names()
    problems: list[Problem] = []
    for setting in config.settings().values():
        problems += _setting(config, setting, used)
    if not any(p.fatal for p in problems):
        problems += _defaults(config)
    if not any(p.fatal for p in problems):
        problems += _contradictions(config)
    for service in config.services:
        problems += _service(config, service, used)
    problems += _chroot(config)
    return problems


def _setting(config: Config, setting: Setting, used: set[str]) -> Iterator[Problem]:
    """What is to be said about one assignment."""
    param = find(setting.name)
    if param is None:
        if setting.name not in used:
            yield _problem(setting, f"unknown parameter: {setting.name}{_hint(setting.name)}", fatal=False)
        return
    if setting.name in READ_ONLY:
        yield _problem(setting, f"read-only parameter assignment: {setting.name}={setting.value}", fatal=False)
        return
    shown = f"{setting.name} = {_short(one_line(setting.value))}"
    try:
        text = config.text(setting.name)
    except ValueError as error:
        yield _problem(setting, f"{shown}: {error}", fatal=True)
        return
    if param.noop:
        return
    if param.honoured:
        try:
            param.parse(text)
        except ValueError as error:
            yield _problem(setting, f"{shown}: {error}", fatal=True)
    elif not param.unsafe_if_ignored:
        yield _problem(setting, f"{shown}: not honoured yet", fatal=False)
    elif not _is_default(config, param, text):
        why = param.unsafe_if_ignored
        yield _problem(setting, f"{shown}: not honoured yet, and ignoring it would be less safe: {why}", fatal=True)


def _is_default(config: Config, param: Param, text: str) -> bool:
    """True when the text means what the parameter's default means."""
    try:
        default = expand(param.default, config.text).strip()
    except MacroError:
        return False
    return one_line(text).lower() == one_line(default).lower()


def _defaults(config: Config) -> Iterator[Problem]:
    """Values that main.cf leaves at their default and that refer to something it sets badly."""
    for param in declared():
        if config.is_set(param.name) or not param.honoured or param.noop:
            continue
        try:
            config.value(param.name)
        except ValueError as error:
            culprit = next((n for n in sorted(references(param.default)) if config.is_set(n)), "")
            text = f"{param.name} = {_short(config.raw(param.name) or '')} (default): {error}"
            yield Problem(*_place(config, culprit), text, True)


def _contradictions(config: Config) -> Iterator[Problem]:
    """Values that are well formed but cannot be meant."""
    for name in _REQUIRED:
        if not config.text(name):
            yield Problem(*_place(config, name), f"{name} = : must not be empty", True)
    for name in ("myhostname", "mydomain"):
        if config.text(name) and not _HOSTNAME.fullmatch(config.text(name)):
            yield Problem(*_place(config, name), f"{name} = {_short(config.text(name))}: not a host name", True)
            break
    message, mailbox = config.integer("message_size_limit"), config.integer("mailbox_size_limit")
    if mailbox and (mailbox < message or not message):
        text = f"mailbox_size_limit = {mailbox}: is smaller than message_size_limit = {message or 'no limit'}"
        culprit = "mailbox_size_limit" if config.is_set("mailbox_size_limit") else "message_size_limit"
        yield Problem(*_place(config, culprit), text, True)
    minfree = config.integer("queue_minfree")
    if 0 < minfree < 1.5 * message:
        text = f"queue_minfree = {minfree}: should be at least 1.5 * message_size_limit = {message * 3 // 2}"
        yield Problem(*_place(config, "queue_minfree"), text, False)
    if config.seconds("maximal_backoff_time") < config.seconds("minimal_backoff_time"):
        text = f"maximal_backoff_time = {config.text('maximal_backoff_time')}: is less than minimal_backoff_time"
        yield Problem(*_place(config, "maximal_backoff_time", "minimal_backoff_time"), text, True)
    yield from _maillog_file(config)
    yield from _notices(config)
    yield from _open_relay(config, "")


def _notices(config: Config) -> Iterator[Problem]:
    """Postfix's default, written out, is no wish."""
    value, param = config.text("notify_classes"), find("notify_classes")
    unsaid = sorted(set(config.words("notify_classes")) - _NOTICES)
    if unsaid and param and not _is_default(config, param, value):
        text = f"notify_classes = {_short(value)}: not honoured yet: {', '.join(unsaid)}"
        yield Problem(*_place(config, "notify_classes"), text, False)


def _maillog_file(config: Config) -> Iterator[Problem]:
    file = config.text("maillog_file")
    prefixes = config.words("maillog_file_prefixes")
    if file and not any(file == p or file.startswith(p.rstrip("/") + "/") for p in prefixes):
        text = f"maillog_file = {_short(file)}: does not match any of maillog_file_prefixes = {' '.join(prefixes)}"
        yield Problem(*_place(config, "maillog_file"), text, True)


def _open_relay(config: Config, where: str) -> Iterator[Problem]:
    """Postfix's own guard: some restriction has to stop strangers from relaying."""
    names = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions")
    classes = {name.lower(): words for name, words in config.restriction_classes().items()}
    if not any(_stops_relaying(config.words(name), classes) for name in names):
        text = (f"{where}in smtpd_relay_restrictions or smtpd_recipient_restrictions, specify at least one of: "
                "reject_unauth_destination, defer_unauth_destination, reject, defer, defer_if_permit")  # fmt: skip
        yield Problem(*_place(config, *names), text, True)


def _stops_relaying(words: Sequence[str], classes: Mapping[str, Sequence[str]]) -> bool:
    """Does a word stop strangers, itself or through a class?

    Not one that warn_if_reject disarms, and none behind a permit.
    """
    asked = iter(words)
    for word in map(str.lower, asked):
        if word == "permit":
            return False
        if word == "warn_if_reject":
            next(asked, None)
            continue
        others = {name: inner for name, inner in classes.items() if name != word}
        if word in _STOPS_RELAYING or _stops_relaying(classes.get(word, ()), others):
            return True
    return False


def _service(config: Config, service: Service, used: set[str]) -> Iterator[Problem]:
    """Problems of one line of master.cf and its -o settings."""
    where = f"{service.name}/{service.type}"
    if service.type == "inet" and service.command in _NOT_SERVED:
        text = f"{where}: {service.command} is not honoured yet, nobody would answer on this port"
        yield Problem(service.file, service.line, text, True)
    flags = [arg for arg in service.args if service.command in ("smtp", "lmtp") and _FLAGS.fullmatch(arg)]
    if any(not flag.endswith("=") for flag in flags):
        yield Problem(service.file, service.line, f"{where}: {' '.join(flags)}: not honoured yet", False)
    unexpected = [arg for arg in service.args if arg not in flags]
    if unexpected and service.command in _NO_ARGUMENTS:
        text = (f"{where}: unexpected command-line argument: {_short(unexpected[0])}; no blanks in a value of -o, "
                "or -o { name = value }")  # fmt: skip
        yield Problem(service.file, service.line, text, True)
    if not service.overrides:
        return
    its = config.for_service(service)
    found: list[Problem] = []
    for name in service.overrides:
        found += _setting(its, its.settings()[name], used)
    yield from found
    if service.command == "smtpd" and not any(p.fatal for p in found):
        try:
            yield from _open_relay(its, f"{where}: ")
        except ValueError:
            return  # main.cf is to blame, and has been


def _chroot(config: Config) -> Iterator[Problem]:
    """One line for all: Debian's master.cf has y nearly everywhere."""
    for service in config.services:
        if service.chroot:
            text = "chroot = y has no effect: daemons are confined by their user and by systemd"
            yield Problem(service.file, service.line, text, False)
            return


def _problem(setting: Setting, text: str, *, fatal: bool) -> Problem:
    return Problem(setting.file, setting.line, text, fatal)


def _place(config: Config, *names: str) -> tuple[str, int]:
    """File and line of the first of these that is set; the file alone when none is."""
    settings: Mapping[str, Setting] = config.settings()
    for name in names:
        if name in settings:
            return settings[name].file, settings[name].line
    return config.origin(names[0]), 0


def _hint(name: str) -> str:
    import difflib  # for mistakes only

    close = difflib.get_close_matches(name, PARAMS, n=1, cutoff=0.85)
    return f" (did you mean {close[0]}?)" if close else ""


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
