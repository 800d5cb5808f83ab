"""The record of what `mta install` has changed, written before each step, so that `mta uninstall` undoes exactly that.

One JSON object per line: {"kind": name of a class in steps.py, ...its fields}.  It lies under the prefix and
is believed only when root owns it and nobody else may write it: what it says is carried out by root.
"""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Sequence

from mta.install import spool as install_spool
from mta.install import steps as install_steps
from mta.install.steps import Step, StepError

PLACE = "share/aiomta/installed.jsonl"
KINDS: tuple[type[Step], ...] = (
    install_steps.MakeDirectory,
    install_steps.WriteFile,
    install_steps.Compress,
    install_steps.MakeLink,
    install_steps.Divert,
    install_steps.Alternative,
    install_steps.Choose,
    install_steps.Account,
    install_steps.Units,
    install_spool.Spool,
)
Say = Callable[[str], None]


def encode(step: Step) -> str:
    """A step as a line."""
    return json.dumps({"kind": type(step).__name__, **vars(step)}) + "\n"


def decode(line: str) -> Step:
    """The step of a line; StepError."""
    try:
        fields = json.loads(line)
        name = fields.pop("kind")
        kind = next(k for k in KINDS if k.__name__ == name)
        return kind(**fields)
    except (ValueError, KeyError, StopIteration, TypeError, AttributeError) as error:
        raise StepError(f"the record of the installation is damaged: {type(error).__name__}") from None


class Journal:
    """The record below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.path = os.path.join(prefix, PLACE)

    def exists(self) -> bool:
        """Has something been installed, or begun?"""
        return os.path.lexists(self.path)

    def read(self) -> list[Step]:
        """Every step that was begun, in order.  StepError when the file is not root's alone, or damaged."""
        try:
            with open(self.path, encoding="utf-8") as file:
                info = os.fstat(file.fileno())
                lines = file.read().splitlines(keepends=True)
        except OSError as error:
            raise StepError(f"{self.path}: {error.strerror}") from None
        if info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StepError(f"{self.path}: not root's alone: not believed")
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the machine stopped while it was written: that step was not begun
        return [decode(line) for line in lines]

    def run(self, steps: Sequence[Step], say: Say) -> None:
        """Do all steps; when one fails, or we are interrupted, undo what was done and raise.

        A step of another kind changes nothing, and has no line.
        """
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        with open(self.path, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            begun: list[Step] = []
            try:
                for step in steps:
                    if isinstance(step, KINDS):
                        file.write(encode(step))
                        file.flush()
                        begun.append(step)
                    step.do()
            except BaseException:
                say("undoing what was done")
                self.undo(begun, say)
                raise

    def undo(self, steps: Sequence[Step], say: Say) -> int:
        """Undo steps, the last first, each whatever happened to the others; the number that could not be undone.

        The record is removed when all are.
        """
        failed = 0
        for step in reversed(steps):
            try:
                kept = step.undo()
            except (StepError, OSError) as error:
                failed += 1
                kept = f"could not undo: {step.describe()}: {error}"
            if kept:
                say(kept)
        if not failed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(self.path))
        return failed
