"""`mta install` and `mta uninstall`: put us in the place of the machine's mail system, and take us out again.

    mta install [--prefix DIR] [--alternatives | --divert] [--dry-run]
    mta install --sockets [--dry-run]
    mta uninstall [--prefix DIR] [--dry-run]

For an installation by pip below a prefix; the .deb and the .rpm do this themselves.  --alternatives (the default)
registers us and the present mail system as two choices of one group, --divert only moves its files aside; both end
with a check that sendmail, mailq and newaliases lead to one mail system, or undo everything.  --sockets writes what
systemd opens for us from master.cf, for a package too.

Exit 0 done; 1 not done, nothing changed (or: what could not be undone is said); 64 usage; 77 not root.

See also: docs/install.md, mta/install/steps.py
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mta.config.config import Config, ConfigError, load
from mta.install.journal import Journal
from mta.install.links import (
    PAGES,
    find_tool,
    look,
    pages,
    plan_alternatives,
    plan_diverts,
    plan_links,
    systems,
)
from mta.install.spool import plan_spool, user_exists
from mta.install.steps import (
    Account,
    Compress,
    MakeDirectory,
    MakeLink,
    Step,
    StepError,
    Units,
    WriteFile,
    read_text,
)
from mta.install.units import DROP_IN, drop_in, enabled, port_lists, read_templates, units_for
from mta.record import dataclass

EX_USAGE, EX_NOPERM = 64, 77
ETC, SPOOL, OWNER = "/etc/mta", "/var/spool/mta", "mta"
SYSTEMD = "/etc/systemd/system"
PACKAGED = ("/var/lib/dpkg/info/aiomta.list", "/usr/sbin/sendmail.aiomta")


class Interrupted(BaseException):
    """A signal asks us to end; like KeyboardInterrupt no error that anybody catches by chance."""


@dataclass(slots=True)
class Options:
    """The command line."""

    prefix: str = sys.prefix
    way: str = ""
    dry_run: bool = False
    sockets: bool = False


def say(text: str) -> None:
    """One line to the administrator."""
    print(f"mta: {text}", file=sys.stderr)


def usage() -> int:
    """Print how to call it."""
    print("mta: usage: mta install [--prefix DIR] [--alternatives | --divert] [--dry-run]\n"
          "            mta install --sockets [--dry-run]\n"
          "            mta uninstall [--prefix DIR] [--dry-run]", file=sys.stderr)  # fmt: skip
    return EX_USAGE


def parse(args: Sequence[str], *, install: bool) -> Options | None:
    """Options, None when the command line is wrong."""
    found = Options()
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--prefix":
            found.prefix = value if equals else next(words, "")
        elif word == "--dry-run":
            found.dry_run = True
        elif install and word in ("--alternatives", "--divert") and found.way in ("", word[2:]):
            found.way = word[2:]
        elif install and word == "--sockets":
            found.sockets = True
        else:
            return None
    if not found.prefix or (found.sockets and found.way):
        return None
    found.prefix = os.path.realpath(found.prefix)
    return found


def main(verb: str, args: Sequence[str], directory: str = ETC) -> int:
    """Run `install` or `uninstall`; the exit status."""
    options = parse(args, install=verb == "install")
    if options is None:
        return usage()
    if os.geteuid() != 0 and not options.dry_run:
        say(f"{verb}: only root can do this (--dry-run shows what would be done)")
        return EX_NOPERM
    try:
        if options.sockets:
            return sockets(directory, options)
        return install(directory, options) if verb == "install" else uninstall(options)
    except (StepError, ConfigError, OSError) as error:
        say(f"{verb}: fatal: {error}")
    except (KeyboardInterrupt, Interrupted):
        say(f"{verb}: interrupted")
    return 1


def install(directory: str, options: Options) -> int:
    """Plan, do, check; undo everything when something goes wrong."""
    journal = Journal(options.prefix)
    if any(map(os.path.exists, PACKAGED)):
        raise StepError("aiomta is installed as a package; only --sockets makes sense")
    if journal.exists():
        raise StepError(f"installed already, see {journal.path}; mta uninstall comes first")
    complete_programs(options)
    steps = list(plan(directory, options))
    if options.dry_run:
        print(*(step.describe() for step in steps), sep="\n")
        return 0
    interruptible()
    journal.run([*steps, Check(options.prefix)], say)
    say(f"installed: sendmail, mailq and newaliases are those of {options.prefix}")
    say("next: stop the other mail system, look at /etc/mta/main.cf, then: systemctl start mta (or: mta start)")
    return 0


def complete_programs(options: Options) -> None:
    """Finish what pip does below the prefix: bin/sendmail for an interpreter that starts fast, and its other names."""
    if options.dry_run or os.path.lexists(f"{options.prefix}/bin/mailq"):
        return
    from sendmail_compat.install import install as install_commands  # only needed here

    install_commands(Path(options.prefix))


def interruptible() -> None:
    """SIGTERM and SIGHUP undo what was done, as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)


@dataclass(frozen=True)
class Check:
    """The last step changes nothing: it fails unless the names lead to one mail system, ours."""

    prefix: str

    def describe(self) -> str:
        return "check that sendmail, mailq and newaliases lead to one mail system"

    def do(self) -> None:
        others = [f"{link} is {os.path.realpath(link)}" for link, ours in systems(self.prefix).items() if not ours]
        if others:
            raise StepError(f"the names do not lead to one mail system: {', '.join(others)}")

    def undo(self) -> str:
        return ""


def plan(directory: str, options: Options) -> Iterator[Step]:
    """Every change, in order: first what harms nobody, the names last."""
    share = Path(options.prefix, "share/aiomta")
    tool = find_tool()
    way = options.way or ("alternatives" if tool else "divert")
    if way == "alternatives" and not tool:
        raise StepError("no update-alternatives on this machine; use --divert")
    found = look(options.prefix)
    if not user_exists(OWNER):
        yield Account(OWNER, SPOOL)
    yield plan_spool(SPOOL, (share / "systemd/aiomta.tmpfiles").read_text())
    yield from plan_configuration(directory, share / "conf")
    yield from plan_units(directory, options.prefix, share)
    yield from plan_local(options.prefix)
    yield from plan_diverts(found)
    if way == "alternatives":
        yield from plan_alternatives(found, options.prefix, tool)
    else:
        yield from plan_links(found, options.prefix)


def plan_configuration(directory: str, source: Path) -> Iterator[Step]:
    """main.cf, master.cf and aliases where there are none; what is there stays as it is."""
    if not os.path.isdir(directory):
        yield MakeDirectory(directory)
    for name, path in (("main.cf", f"{directory}/main.cf"), ("master.cf", f"{directory}/master.cf"),
                       ("aliases", "/etc/aliases")):  # fmt: skip
        if not os.path.lexists(path):
            yield WriteFile(path, (source / name).read_text())


def plan_local(prefix: str) -> Iterator[Step]:
    """Names that are ours alone: the command `mta`, its manual pages."""
    names = [("/usr/local/sbin/mta", f"{prefix}/bin/mta")]
    for page in pages(prefix):
        yield Compress(f"{prefix}/{PAGES}/{page}")
        if page.startswith("mta"):
            section = page.rpartition(".")[2]
            names.append((f"/usr/local/share/man/man{section}/{page}.gz", f"{prefix}/{PAGES}/{page}.gz"))
    made = set()
    for path, target in names:
        if os.path.lexists(path):
            continue
        folder = os.path.dirname(path)
        for each in [*reversed(Path(folder).parents), Path(folder)]:
            if not each.exists() and each not in made:
                made.add(each)
                yield MakeDirectory(str(each))
        yield MakeLink(path, target)


def plan_units(directory: str, prefix: str, share: Path) -> Iterator[Step]:
    """systemd units, where there is a systemd."""
    if not os.path.isdir(SYSTEMD) or not os.access("/usr/bin/systemctl", os.X_OK):
        return
    templates = read_templates(f"{share}/systemd")
    config = configuration(directory, share / "conf")
    units = dict(units_for(templates, prefix, config))
    for name, text in units.items():
        before = read_text(f"{SYSTEMD}/{name}")
        if before is not None and before != text:
            raise StepError(f"{SYSTEMD}/{name}: exists, and is not ours")
        yield WriteFile(f"{SYSTEMD}/{name}", text)
    yield Units(enabled(templates, list(units), port_lists(config)))


def configuration(directory: str, default: Path) -> Config:
    """The configuration there is, or the one that will be written."""
    return load(directory if os.path.exists(f"{directory}/main.cf") else str(default))


def sockets(directory: str, options: Options) -> int:
    """--sockets: drop-ins for the socket units of a package, or of ours, from the configuration."""
    lists = port_lists(load(directory))
    for unit, addresses in lists.items():
        path = DROP_IN.format(unit=unit)
        text = drop_in(directory, addresses)
        if not addresses or read_text(path) == text:
            continue
        if options.dry_run:
            print(f"write {path}: {' '.join(addresses)}")
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        WriteFile(path, text).do()
    on = " ".join(unit for unit, addresses in lists.items() if addresses)
    off = " ".join(unit for unit, addresses in lists.items() if not addresses)
    print("then: systemctl daemon-reload; systemctl stop mta.service")
    for verb, names in (("disable --now", off), ("enable", on), ("restart", f"{on} mta.service")):
        if names:
            print(f"      systemctl {verb} {names}")
    return 0


def uninstall(options: Options) -> int:
    """Undo what the journal says, the last step first."""
    journal = Journal(options.prefix)
    if not journal.exists():
        raise StepError(f"nothing to undo: no {journal.path}")
    steps = journal.read()
    if options.dry_run:
        print(*(f"undo: {step.describe()}" for step in reversed(steps)), sep="\n")
        return 0
    if journal.undo(steps, say):
        return 1
    say(f"uninstalled: {', '.join(f'{link} is {os.path.realpath(link)}' for link in systems(options.prefix))}")
    return 0
