"""Settings over defaults: typed values by parameter name.

Knows nothing of files; config.py makes one of these from main.cf and master.cf, and check.py says what is wrong
with it.  A Config does not change; the texts it has expanded are kept.

See also: mta/config/params.py (the declarations)
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import TypeVar, get_type_hints

from mta.config.computed import compute, own_addresses
from mta.config.host import HostFacts
from mta.config.macro import MacroError, expand, references
from mta.config.main_cf import Problem, Setting, one_line
from mta.config.master_cf import Service
from mta.config.param import INTS, LISTS, TEXTS, Kind, Param, Value, split
from mta.config.params import PARAMS, UNEXPANDED, find

T = TypeVar("T")

_NATURAL: dict[Kind, tuple[object, ...]] = {  # field types that fill() accepts, by kind
    **dict.fromkeys(TEXTS, (str,)),
    **dict.fromkeys(LISTS, (tuple[str, ...], str)),
    **dict.fromkeys(INTS, (int,)),
    Kind.BOOL: (bool,),
    Kind.TIME: (float,),
    Kind.NUMBER: (float,),
}


class Config:
    """Settings of main.cf and master.cf over the declared defaults.

    directory: of main.cf.  services: of master.cf.  problems: warnings that load() found.
    """

    def __init__(
        self,
        directory: str,
        settings: Mapping[str, Setting],
        services: tuple[Service, ...] = (),
        host: HostFacts | None = None,
        problems: tuple[Problem, ...] = (),
        *,
        service: Service | None = None,
    ) -> None:
        self.directory = directory
        self.services = services
        self.problems = problems
        self.host = host or HostFacts()
        self._settings = settings
        self._service = service
        self._texts: dict[str, str] = {}
        self._evaluating: list[str] = []
        self._filled: dict[type, object] = {}
        self._per_service: dict[int, Config] = {}

    # What there is

    def is_set(self, name: str) -> bool:
        """True when main.cf (or -o) sets it."""
        return name in self._settings

    def origin(self, name: str) -> str:
        """ "file:line" of the setting, or what it defaults to: main.cf's name."""
        setting = self._settings.get(name)
        return setting.origin if setting else os.path.join(self.directory, "main.cf")

    def settings(self) -> Mapping[str, Setting]:
        """All that main.cf and -o set, unexpanded."""
        return self._settings

    def raw(self, name: str) -> str | None:
        """The text before expansion: as set, or the declared default; None for a name nobody knows."""
        if name in self._settings:
            return self._settings[name].value
        if name == "config_directory":
            return self.directory
        if name == "smtp_tls_security_level" and (self.is_set("smtp_use_tls") or self.is_set("smtp_enforce_tls")):
            return ""  # the administrator speaks the old language: our `may` must not override it
        param = find(name)
        return None if param is None else param.default

    # Values

    def text(self, name: str) -> str:
        """The expanded text; "" for an unknown name, as $name gives.  MacroError for malformed text."""
        known = self._texts.get(name)
        if known is not None:
            return known
        if name in self._evaluating:
            raise MacroError(f"refers to itself: {' -> '.join([*self._evaluating, name])}")
        self._evaluating.append(name)
        try:
            value = compute(self, name)
            if value is None:
                raw = self.raw(name) or ""
                value = raw if name in UNEXPANDED else expand(raw, self.text).strip()
        finally:
            self._evaluating.pop()
        self._texts[name] = value
        return value

    def value(self, name: str) -> Value:
        """The typed value: bool, int, seconds as float, tuple for lists, else str.  ValueError when malformed."""
        return self._param(name).parse(self.text(name))

    def boolean(self, name: str) -> bool:
        """A yes/no parameter."""
        return bool(self._typed(name, Kind.BOOL))

    def integer(self, name: str) -> int:
        """A number, a size in bytes, or a reply code."""
        value = self._typed(name, *INTS)
        return value if isinstance(value, int) else 0

    def seconds(self, name: str) -> float:
        """A time."""
        value = self._typed(name, Kind.TIME)
        return value if isinstance(value, float) else 0.0

    def words(self, name: str) -> tuple[str, ...]:
        """The items of a list."""
        value = self._typed(name, *LISTS)
        return value if isinstance(value, tuple) else ()

    def fill(self, cls: type[T]) -> T:
        """An instance of a dataclass whose field names are parameter names.

        Field types: str, int, float (seconds), bool, tuple[str, ...]; a list parameter may also be a str.  For a
        name that begins with a digit the field begins with "_" ("_2bounce_notice_recipient").  TypeError is a
        bug of the dataclass: no such parameter, or a type that does not fit it.  Remembered: instances are frozen.
        """
        known = self._filled.get(cls)
        if not isinstance(known, cls):
            known = self._filled[cls] = self._new(cls)
        return known

    def _new(self, cls: type[T]) -> T:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a dataclass")
        hints = get_type_hints(cls)
        values: dict[str, Value] = {}
        for field in dataclasses.fields(cls):
            where = f"{cls.__name__}.{field.name}"
            name = field.name[1:] if field.name[:1] == "_" and field.name[1:2].isdigit() else field.name
            param = find(name)
            if param is None:
                raise TypeError(f"{where}: no parameter of this name is declared in mta/config/params_*.py")
            wanted = hints[field.name]
            if wanted not in _NATURAL[param.kind]:
                raise TypeError(f"{where}: {wanted} does not fit {name}, which is declared as {param.kind.value}")
            values[field.name] = self.text(name) if wanted is str and param.kind in LISTS else self.value(name)
        return cls(**values)

    # Services and transports

    def for_service(self, service: Service) -> "Config":
        """The configuration that a service sees: with the -o settings of its master.cf line."""
        known = self._per_service.get(service.line)
        if known is None:
            over = {n: Setting(n, v, service.file, service.line) for n, v in service.overrides.items()}
            known = self._per_service[service.line] = Config(
                self.directory, {**self._settings, **over}, self.services, self.host, self.problems, service=service
            )
        return known

    @property
    def service(self) -> Service | None:
        """The service this Config was made for by for_service(), else None."""
        return self._service

    def transport_value(self, transport: str, suffix: str) -> int:
        """<transport>_<suffix>, such as ("smtp", "destination_concurrency_limit"), else what it defaults to."""
        return self.integer(f"{transport}_{suffix}")

    def transport_seconds(self, transport: str, suffix: str) -> float:
        """The same for times, such as ("smtp", "destination_rate_delay")."""
        return self.seconds(f"{transport}_{suffix}")

    def own_addresses(self) -> tuple[str, ...]:
        """Addresses this host receives mail on: inet_interfaces (within inet_protocols) and proxy_interfaces."""
        return own_addresses(self)

    def restriction_classes(self) -> dict[str, tuple[str, ...]]:
        """Class name -> its restrictions, for every name in smtpd_restriction_classes that is defined."""
        names = self.words("smtpd_restriction_classes")
        return {name: split(self.text(name)) for name in names if self.is_set(name)}

    def used_names(self) -> set[str]:
        """Names that some value refers to as $name, in main.cf, in a default or in master.cf, and restriction
        classes: those that an administrator may define although nobody declared them."""
        texts = [setting.value for setting in self._settings.values()]
        texts += (param.default for param in PARAMS.values())
        for service in self.services:
            texts += (*service.overrides.values(), *service.args)
        classes = self._settings.get("smtpd_restriction_classes")
        return set().union(*map(references, texts), split(classes.value) if classes else ())

    def as_postconf(self) -> list[str]:
        """ "name = value" lines like `postconf -n`: what main.cf sets and something uses, sorted, unexpanded."""
        used = self.used_names()
        shown = {n: s.value for n, s in self._settings.items() if n in used or find(n)}
        return [f"{name} = {one_line(value)}".rstrip() for name, value in sorted(shown.items())]

    def _param(self, name: str) -> Param:
        param = find(name)
        if param is None:
            raise KeyError(f"{name}: no parameter of this name is declared in mta/config/params_*.py")
        return param

    def _typed(self, name: str, *kinds: Kind) -> Value:
        param = self._param(name)
        if param.kind not in kinds:
            raise TypeError(f"{name} is declared as {param.kind.value}")
        return param.parse(self.text(name))
