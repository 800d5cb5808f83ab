"""Which mail systems take part."""

import sys
from pathlib import Path

from tests.bench.lab import ROOT, Lab
from tests.bench.others import Exim, OpenSmtpd
from tests.bench.systems import Aiomta, RealPostfix, System

NAMES = ("aiomta", "postfix", "exim", "opensmtpd")


def choose(lab: Lab, names: list[str], tree: Path | None, against: Path | None) -> list[System]:
    """The systems to compare, in the order they take their turns."""
    systems: list[System] = []
    for name in names:
        match name:
            case "aiomta":
                systems.append(Aiomta(lab, tree or ROOT))
            case "postfix":
                systems.append(RealPostfix(lab))
            case "exim":
                systems.append(Exim(lab))
            case "opensmtpd":
                systems.append(OpenSmtpd(lab))
            case _:
                sys.exit(f"bench: {name}: no such mail system; there are {', '.join(NAMES)}")
    if against is not None:
        systems.insert(1, Aiomta(lab, against, "against", 2526))
    return systems
