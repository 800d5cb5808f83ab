"""The words of smtpd_*_restrictions, compiled into checks; and what is wrong with a list, for `mta check`.

A word that cannot be understood becomes a check that ends with a ServerError: whoever comes to it is answered 451,
and the words before it still count.  State: the classes of smtpd_restriction_classes, compiled when first met.

See also: mta/smtpd/restrictions.py (when each list is evaluated), SMTPD_ACCESS_README
"""

from collections.abc import Iterable, Mapping, Sequence

from mta.lookup.context import LookupContext
from mta.lookup.open import open_table, problems, split_list
from mta.smtpd.access import AccessTable
from mta.smtpd.restrict_access import ACCESS, access_check
from mta.smtpd.restrict_core import Ask, Check, Restriction, ServerError, Status, run
from mta.smtpd.restrict_dns import DNS, parse_answers, reject_rbl_client, reject_rhsbl
from mta.smtpd.restrict_relay import RELAY
from mta.smtpd.restrict_simple import LOGIN, SIMPLE

WORDS: dict[str, Check] = {**SIMPLE, **LOGIN, **DNS, **RELAY}
OLD_NAMES = {
    "reject_unknown_client": "reject_unknown_client_hostname",
    "reject_unknown_hostname": "reject_unknown_helo_hostname",
    "reject_unknown_address": "reject_unknown_sender_domain",
    "reject_invalid_hostname": "reject_invalid_helo_hostname",
    "reject_non_fqdn_hostname": "reject_non_fqdn_helo_hostname",
    "check_recipient_maps": "reject_unlisted_recipient",
}
RHSBL = {f"reject_rhsbl_{w}": w for w in ("sender", "recipient", "helo", "client", "reverse_client")}
DEFAULT_ACCESS = {
    "client": "check_client_access",
    "helo": "check_helo_access",
    "sender": "check_sender_access",
    "relay": "check_recipient_access",
    "recipient": "check_recipient_access",
    "etrn": "check_etrn_access",
}
WITH_ARGUMENT = ("check_policy_service", "check_ccert_access", "check_sasl_access", "permit_dnswl_client")


class Compiler:
    """Makes restrictions of words.  classes: name -> words.  parents: parent_domain_matches_subdomains."""

    def __init__(
        self, context: LookupContext, parents: Sequence[str], classes: Mapping[str, Sequence[str]]
    ) -> None:
        self._context, self._parents = context, parents
        self._class_words = {name.lower(): tuple(words) for name, words in classes.items()}
        self._classes: dict[tuple[str, str], Sequence[Restriction]] = {}

    def compile(self, words: str | Iterable[str], stage: str) -> tuple[Restriction, ...]:
        """Turn the words of a list into checks; what cannot be understood becomes a check that answers 451 4.3.5."""
        queue = split_list(words)
        compiled = []
        while queue:
            word = queue.pop(0)
            name = OLD_NAMES.get(word.lower(), word.lower())
            if name == "warn_if_reject":
                compiled.append(Restriction(name, None))
                continue
            if ":" in name and stage in DEFAULT_ACCESS:  # a bare table means the stage's own check
                queue.insert(0, word)
                name = DEFAULT_ACCESS[stage]
            argument = queue.pop(0) if queue and _takes_argument(name) else ""
            compiled.append(Restriction(name, self._check(name, argument, stage)))
        return tuple(compiled)

    def _check(self, name: str, argument: str, stage: str) -> Check:
        if name in WORDS:
            return WORDS[name]
        if name in self._class_words:
            return self._class(name, stage)
        if name == "sleep" and argument.isdigit():
            return _sleep(min(int(argument), 3600))
        if name == "reject_rbl_client" and argument:
            return reject_rbl_client(argument)
        if name in RHSBL and argument:
            return reject_rhsbl(argument, RHSBL[name])
        if name in ACCESS:
            return self._access(name, argument, stage)
        return _broken(f'unknown smtpd restriction: "{name}"')

    def _class(self, name: str, stage: str) -> Check:
        async def check(ask: Ask, about: str, kind: str) -> Status:
            compiled = self._classes.get((name, stage))
            if compiled is None:
                compiled = self._classes[name, stage] = self.compile(self._class_words[name], stage)
            return await run(compiled, ask, about, kind)

        return check

    def _access(self, name: str, argument: str, stage: str) -> Check:
        if ":" not in argument:
            return _broken(f'restriction {name}: bad argument "{argument}": need maptype:mapname')

        def result_list(value: str) -> Sequence[Restriction]:
            return self.compile(value, stage)

        return access_check(name, AccessTable(open_table(argument, self._context), self._parents, result_list))


def _takes_argument(name: str) -> bool:
    return name in ACCESS or name in RHSBL or name in WITH_ARGUMENT or name in ("sleep", "reject_rbl_client")


def _broken(problem: str) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        raise ServerError(problem)

    return check


def _sleep(seconds: int) -> Check:
    async def check(ask: Ask, name: str, kind: str) -> Status:
        await ask.tools.pause(seconds)
        return Status.DUNNO

    return check


def unknown_restrictions(words: str | Iterable[str], classes: Iterable[str] = ()) -> list[str]:
    """Names in a list that are not supported here (each use is answered 451 4.3.5), for the check at start."""
    known = {*WORDS, *OLD_NAMES, *RHSBL, *ACCESS, "warn_if_reject", "sleep", "reject_rbl_client"}
    known |= {name.lower() for name in classes}
    queue, unknown = split_list(words), []
    while queue:
        name = queue.pop(0).lower()
        if ":" in name:
            continue
        if name not in known:
            unknown.append(name)
        if _takes_argument(name) and queue:
            queue.pop(0)
    return unknown


def broken_restrictions(
    words: str | Iterable[str], stage: str, classes: Iterable[str] = (), default_database_type: str = "hash"
) -> list[str]:
    """What in a list of this stage can only answer 451, for `mta check`; names that nobody knows are left out."""
    queue, found = split_list(words), []
    while queue:
        word = queue.pop(0)
        name = word.lower()
        if ":" in name:
            if stage not in DEFAULT_ACCESS:
                found.append(f"{word}: a table needs its check_..._access here")
                continue
            queue.insert(0, word)
            name = DEFAULT_ACCESS[stage]
        if name in {c.lower() for c in classes} or not _takes_argument(name):
            continue
        argument = queue.pop(0) if queue else ""
        expected = "seconds" if name == "sleep" else "type:table" if name in ACCESS else "a domain"
        if not {"seconds": argument.isdigit(), "type:table": ":" in argument}.get(expected, argument):
            found.append(f"{name}: expected {expected}, not {argument!r}")
        elif name in ACCESS:
            found += problems(argument, default_database_type)
        elif (pattern := argument.partition("=")[2]) and not parse_answers(pattern):
            found.append(f"{name}: expected an address such as 127.0.0.[2;4..6], not {pattern!r}")
    return [f"{text}; whoever comes to it is answered 451" for text in found]
