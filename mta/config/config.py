"""The configuration as the rest of the mail system sees it: typed values by Postfix name, never raw text.

    config = load("/etc/mta")                        # ConfigError with every problem, or a Config
    settings = config.fill(SchedulerSettings)        # a frozen dataclass whose fields are parameter names
    config.for_service(service).fill(SessionSettings)

load() has evaluated every honoured parameter, for every service of master.cf, so a value asked for later cannot
be malformed; reload means another Config.

See also: mta/config/params.py (the declarations), docs/parameters.md
"""

import os
from collections.abc import Mapping

from mta.config.check import check_all
from mta.config.check_files import check_files
from mta.config.host import HostFacts, read_host
from mta.config.main_cf import MainCf, Problem, Setting, decode, parse_main_cf
from mta.config.master_cf import Service, parse_master_cf
from mta.config.settings import Config

__all__ = ["Config", "ConfigError", "HostFacts", "Problem", "Service", "check_config", "load"]


class ConfigError(Exception):
    """The configuration cannot be used; problems: everything found, fatal or not."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems if p.fatal))
        self.problems = problems


def load(
    config_directory: str, *, overrides: Mapping[str, str] | None = None, host: HostFacts | None = None
) -> Config:
    """Read main.cf and master.cf of a directory.

    overrides: parameters that win over main.cf.  host: facts of the machine, read from the system when None.
    ConfigError: the files cannot be read, or something in them is malformed or must not be ignored; it carries
    every problem found.
    """
    problems: list[Problem] = []
    main = _read_main(os.path.join(config_directory, "main.cf"), problems)
    master_file = os.path.join(config_directory, "master.cf")
    services: tuple[Service, ...] = ()
    master_text = _read(master_file, problems)
    if master_text is not None:
        services, more = parse_master_cf(master_text, master_file)
        problems += more
    settings = main.settings | {n: Setting(n, v, "command line", 0) for n, v in (overrides or {}).items()}
    config = Config(config_directory, settings, services, host or read_host())
    problems += check_all(config)
    if any(p.fatal for p in problems):
        raise ConfigError(problems)
    return Config(config_directory, settings, services, config.host, tuple(problems))


def check_config(config: Config) -> list[Problem]:
    """What `mta check` looks at beyond load(): files that the configuration names."""
    return check_files(config)


def _read_main(file: str, problems: list[Problem]) -> MainCf:
    text = _read(file, problems)
    main = MainCf(file) if text is None else parse_main_cf(text, file)
    problems += main.problems
    return main


def _read(file: str, problems: list[Problem]) -> str | None:
    try:
        with open(file, "rb") as stream:
            return decode(stream.read())
    except OSError as error:
        problems.append(Problem(file, 0, f"open: {error.strerror}", True))
        return None
