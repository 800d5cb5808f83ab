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
        words = []
        good = total = 0
        for name in order:
            if name in self:
                done, tried = self[name]
                words.append(f"{name}={done}" if done == tried else f"{name}={done}/{tried}")
                good += done
                total += tried
        words.append(f"commands={good}" if good == total and total else f"commands={good}/{total}")
        return " ".join(words)
