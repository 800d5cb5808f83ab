"""How often a client used each command: the numbers at the end of a session's last line in the log."""

from collections.abc import Iterable


class Counts(dict[str, list[int]]):
    """Name of a counter -> [succeeded, all]; one that was never used is not there."""

    __slots__ = ()

    def __missing__(self, name: str) -> list[int]:
        """At its first use."""
        count = self[name] = [0, 0]
        return count

    def words(self, order: Iterable[str]) -> str:
        """ "ehlo=1 mail=1 rcpt=0/1 commands=2/3", as in Postfix's log."""
        found = [(name, self[name]) for name in order if name in self]
        good, total = (sum(count[i] for _, count in found) for i in (0, 1))
        words = [f"{name}={good}" if good == all_ else f"{name}={good}/{all_}" for name, (good, all_) in found]
        return " ".join([*words, f"commands={good}" if good == total and total else f"commands={good}/{total}"])
