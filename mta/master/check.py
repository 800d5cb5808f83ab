"""Checks that need more than the words of the configuration.  They look only, and repair nothing.

- check_services, at every start and reload: does each service of master.cf understand its settings?
- check_tables, `mta check`: can each lookup table work, and be read?
- check_permissions, `mta check`: are the directories what the processes rely on?  (start repairs them.)

See also: architecture of privileges in mta/INTERNALS.md, postfix-script's warnings
"""

import os
import re
import stat
from collections.abc import Iterator

from mta.config.config import Config, Problem
from mta.config.param import Kind
from mta.config.params import declared
from mta.lookup.match_list import network_of
from mta.lookup.open import files
from mta.lookup.open import problems as table_problems
from mta.lookup.simple import HELP
from mta.lookup.table import TableError
from mta.lookup.unix import UserLookup
from mta.master.build import LOCAL_CLIENTS, not_local_clients
from mta.master.check_services import check_master
from mta.master.listen import tcp_services
from mta.master.owner import OURS, QUEUE_LOCK, OwnerProblemError, acting_as, find_owner, problem_at
from mta.queue.store_spool import DIRECTORIES
from mta.smtpd.restrict_compile import broken_restrictions, unknown_restrictions
from mta.tls import TlsClientSettings, TlsError, TlsServerSettings, client_tls, offered_context

STAGES = ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data", "etrn")
RESTRICTIONS = tuple(f"smtpd_{stage}_restrictions" for stage in STAGES)


def check_services(config: Config, *, running: bool = False) -> list[Problem]:
    """What would make a service of master.cf fail or answer "try again later" for ever.

    running: for a reload, which must not take away from a running instance what it has, a certificate for example.
    """
    try:
        owner = find_owner(config, UserLookup())
    except OwnerProblemError as error:
        return [error.problem]
    except TableError as error:
        return [problem_at(config, "mail_owner", f"mail_owner: {error}")]
    places, problems = tcp_services(config)
    problems += [*check_master(config, places), *_networks(config), *_local_clients(config)]
    with acting_as(owner):  # that is who reads certificates
        for service in config.services:
            if service.type == "inet" and service.command == "smtpd":
                own = config.for_service(service)
                problems += [*_restrictions(own), *_tls_server(own, running=running)]
            elif service.type == "unix" and service.command in ("smtp", "lmtp"):
                problems += _tls_client(config.for_service(service))
    return list(dict.fromkeys(problems))


def _networks(config: Config) -> Iterator[Problem]:
    for word in config.words("mynetworks"):
        try:
            network_of(word.lstrip("!"))
        except ValueError as error:
            text = f"mynetworks: {error}; clients that come to it in the list are answered 451"
            yield problem_at(config, "mynetworks", text, fatal=False)


def _local_clients(config: Config) -> Iterator[Problem]:
    if ignored := not_local_clients(config):
        text = f"{LOCAL_CLIENTS}: not honoured: {', '.join(ignored)}; only permit_inet_interfaces, and the networks of"
        yield problem_at(config, LOCAL_CLIENTS, f"{text} mynetworks for permit_mynetworks", fatal=False)


def _restrictions(config: Config) -> Iterator[Problem]:
    classes = config.restriction_classes()
    lists = {name: config.text(name) for name in RESTRICTIONS} | {n: " ".join(w) for n, w in classes.items()}
    for name, words in lists.items():
        for unknown in unknown_restrictions(words, classes):
            yield problem_at(config, name, f"{name}: unknown smtpd restriction: {unknown}")


def _tls_server(config: Config, *, running: bool) -> Iterator[Problem]:
    try:
        _, why = offered_context(config.fill(TlsServerSettings))
    except TlsError as error:
        yield problem_at(config, _named(str(error), config, "smtpd_tls_"), str(error))
    else:
        if why:
            yield problem_at(config, _named(why, config, "smtpd_tls_"), why, fatal=running)


def _tls_client(config: Config) -> Iterator[Problem]:
    try:
        client_tls(config.fill(TlsClientSettings))
    except TlsError as error:
        yield problem_at(config, _named(str(error), config, "smtp_tls_"), str(error))


def _named(text: str, config: Config, prefix: str) -> str:
    """The parameter that a message is about: named in it, or holding a file named in it."""
    if found := re.search(rf"{prefix}\w+", text):
        return found[0]
    names = [name for name in config.settings() if name.startswith(prefix)]
    files = [name for name in names if any(word in text.split() for word in config.text(name).split())]
    return next(iter(files or names), f"{prefix}security_level")


def check_tables(config: Config) -> list[Problem]:
    """Tables of a type that we do not have, and the like: what is asked there is answered "try again later"."""
    found = []
    for param in declared():
        if param.kind not in (Kind.TABLES, Kind.LIST) or not param.honoured or param.name in RESTRICTIONS:
            continue
        for word in config.words(param.name):  # in other lists unix:private/policy and its like are no tables
            if param.kind is Kind.TABLES or word.removeprefix("proxy:").partition(":")[0] in HELP:
                found += [
                    problem_at(config, param.name, f"{param.name}: {text}", fatal=False)
                    for text in table_problems(word, config.text("default_database_type"))
                ]
    found += _unreadable(config)
    services = (s for s in config.services if s.type == "inet" and s.command == "smtpd")
    for own in (config, *map(config.for_service, services)):
        found += _broken_restrictions(own)
    return list(dict.fromkeys(found))


def _unreadable(config: Config) -> list[Problem]:
    """Files of tables and lists that mail_owner may not read.  A Postfix opens them as root."""
    try:
        owner = find_owner(config, UserLookup())
    except (OwnerProblemError, TableError):  # check_services says why
        return []
    kind = config.text("default_database_type")
    lists = [p.name for p in declared() if p.kind in (Kind.TABLES, Kind.LIST) and p.honoured]
    asked = [n for n in lists if config.is_set(n) and "_tls_" not in n and n != "maillog_file_prefixes"]
    named = [(name, path) for name in asked for path in files(config.words(name), kind) if os.path.isfile(path)]
    found = []
    with acting_as(owner):
        for name, path in named:
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except PermissionError:
                who = config.text("mail_owner") if owner else "this user"
                text = f"{name}: {path}: {who} may not read it; whoever comes to it is answered 451"
                found.append(problem_at(config, name, text, fatal=False))
    return found


def _broken_restrictions(config: Config) -> Iterator[Problem]:
    classes = config.restriction_classes()
    stages = {f"smtpd_{stage}_restrictions": stage for stage in STAGES}
    for name, stage in [*stages.items(), *((name, "client") for name in classes)]:
        words = config.text(name) if name in stages else classes[name]
        for text in broken_restrictions(words, stage, classes, config.text("default_database_type")):
            yield problem_at(config, name, f"{name}: {text}", fatal=False)


def check_permissions(config: Config) -> list[Problem]:
    """Problems of the queue, data and log directories as they are; a missing spool is made at start, so no problem."""
    return list(_problems(config))


def _problems(config: Config) -> Iterator[Problem]:
    log = config.text("maillog_file")
    if log.startswith("/") and not os.path.isdir(os.path.dirname(log)):
        yield _fatal("maillog_file", log, f"{os.path.dirname(log)} is no directory")
    elif os.path.isdir(log):
        yield _fatal("maillog_file", log, f"{log} is a directory")
    spool = config.text("queue_directory")
    where = ("queue_directory", spool)
    top = _stat(spool)
    if top is None:
        yield _warning(*where, f"{spool} does not exist yet; `mta start` creates it")
        return
    if not stat.S_ISDIR(top.st_mode):
        yield _fatal(*where, f"{spool} is not a directory")
        return
    if top.st_mode & 0o022:
        yield _fatal(*where, f"{spool} is writable by others; chmod 755 {spool}")
    owner = _owner(config, top.st_uid)
    if top.st_uid != owner:
        yield _fatal(*where, f"{spool} is owned by uid {top.st_uid}, not {owner}; `mta start` as root gives it to that")
    lock = _stat(os.path.join(spool, "pid", QUEUE_LOCK))
    if lock is not None and lock.st_uid != owner:
        text = f"{spool}/pid/{QUEUE_LOCK} is owned by uid {lock.st_uid}, not {owner}"
        yield _fatal(*where, f"{text}; `mta start` as root gives it to that, and what else uid {lock.st_uid} has there")
    for name, mode in DIRECTORIES.items():
        path = os.path.join(spool, name)
        info = _stat(path)
        if info is None:
            continue
        if info.st_uid != owner:
            yield _fatal(*where, f"{path} is owned by uid {info.st_uid}, not {owner}; chown it")
        given = lock is not None and lock.st_uid not in (owner, 0)  # at the next start, see take_over()
        if name in OURS and not given and (count := _foreign(path, owner)):
            text = f"{count} file{'s' * (count != 1)} in {path} not owned by uid {owner} cannot be used; stop, then"
            yield _fatal(*where, f"{text} find {path} -links 1 -type f ! -user {owner} -exec chown -h {owner} {{}} +")
        if info.st_mode & 0o077 & ~mode:
            yield _warning(*where, f"{path} has mode {stat.S_IMODE(info.st_mode):o}; chmod {mode:o} {path}")
    maildrop = _stat(os.path.join(spool, "maildrop"))
    if maildrop is not None and stat.S_IMODE(maildrop.st_mode) != 0o3733:
        found = stat.S_IMODE(maildrop.st_mode)
        yield _fatal(*where, f"{spool}/maildrop has mode {found:o}, not 3733: mail of others could be read or lost")
    data = config.text("data_directory")
    info = _stat(data)
    if info is not None and info.st_mode & 0o022:
        yield _fatal("data_directory", data, f"{data} is writable by others")


def _owner(config: Config, found: int) -> int:
    """Whose the queue has to be; who is not root may run one of his own."""
    try:
        owner = find_owner(config, UserLookup())
    except (OwnerProblemError, TableError):  # check_services says why
        return found
    return owner.uid if owner else found


def _foreign(path: str, owner: int) -> int:
    """How many files below are somebody else's."""
    files = (_stat(os.path.join(where, name)) for where, _, names in os.walk(path) for name in names)
    return sum(1 for file in files if file is not None and stat.S_ISREG(file.st_mode) and file.st_uid != owner)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _fatal(name: str, value: str, text: str) -> Problem:
    return Problem(f"{name} = {value}", 0, text, fatal=True)


def _warning(name: str, value: str, text: str) -> Problem:
    return Problem(f"{name} = {value}", 0, text, fatal=False)
