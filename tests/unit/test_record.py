"""Our dataclass is the standard library's, only smaller."""

import copy
import dataclasses
import re
from dataclasses import FrozenInstanceError, field
from pathlib import Path

import pytest

from mta.record import dataclass

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Both of our habits."""

    name: str
    numbers: tuple[int, ...] = ()
    secret: str = field(default="x", repr=False)


@dataclass
class Open:
    """Without brackets."""

    inner: object = None


@dataclass(frozen=True)
class Tells(Frozen):
    """A subclass with a __repr__ of its own."""

    more: int = 0

    def __repr__(self) -> str:
        return "mine"


@dataclasses.dataclass(frozen=True, slots=True)
class Standard:
    """Like Frozen, by the standard library."""

    name: str
    numbers: tuple[int, ...] = ()
    secret: str = field(default="x", repr=False)


def test_it_looks_like_the_standard_one() -> None:
    ours, theirs = Frozen("a", (1, 2)), Standard("a", (1, 2))
    assert repr(ours) == repr(theirs).replace("Standard", "Frozen") == "Frozen(name='a', numbers=(1, 2))"
    assert dataclasses.astuple(ours) == dataclasses.astuple(theirs)
    assert Frozen.__match_args__ == Standard.__match_args__
    assert ours == Frozen("a", (1, 2)) != Frozen("b") and hash(ours) == hash(theirs)
    assert dataclasses.replace(ours, name="c") == Frozen("c", (1, 2))
    assert copy.deepcopy(ours) == ours
    assert not hasattr(ours, "__dict__")
    assert repr(Tells("a")) == "mine"


def test_what_refers_to_itself_can_be_shown() -> None:
    one = Open()
    one.inner = one
    assert repr(one) == "Open(inner=...)"


@pytest.mark.parametrize("thing", [Frozen("a"), Tells("a")])
def test_nothing_frozen_changes(thing: Frozen) -> None:
    for name in ("name", "more", "nonsense"):
        with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(thing, name, 1)
        with pytest.raises(FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(thing, name)
    assert thing.name == "a"


def test_everybody_uses_it() -> None:
    for path in (ROOT / "mta").rglob("*.py"):
        if path.name != "record.py":
            assert not re.search(r"^from dataclasses import .*\bdataclass\b", path.read_text(), re.MULTILINE), path
