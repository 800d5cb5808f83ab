"""The standard library's dataclass, with one copy of what is alike in all classes.

    from mta.record import dataclass

dataclasses compiles __repr__, __setattr__ and __delattr__ for every class anew, and each of the latter two keeps the
class alive that a class with slots replaces.  For our 160 classes that is 1 MB in memory and a part of the time
that a start takes; what they do is the same for all, so here it is written once.
"""

import dataclasses
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> Any:
        """See dataclasses.dataclass."""
        return _make(options)(cls) if cls is not None else _make(options)


def _make(options: dict[str, bool]) -> Callable[[type[T]], type[T]]:
    def make(cls: type[T]) -> type[T]:
        shows = options.get("repr", True) and "__repr__" not in cls.__dict__
        made = dataclasses.dataclass(**{**options, "repr": False})(cls)
        shared: dict[str, object] = {"__repr__": _repr} if shows else {}
        if options.get("frozen"):
            shared |= {"__setattr__": _no_assignment, "__delattr__": _no_deletion}
        for name, function in shared.items():
            setattr(made, name, function)
        return made

    return make


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    values = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _no_assignment(self: object, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_deletion(self: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
