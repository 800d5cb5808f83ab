"""What all sessions of one listener share: settings, the EHLO answer, the commands that end a session.

Made once per listener, so that a connection costs only its own state.
"""

import re
from dataclasses import replace

from mta.record import dataclass
from mta.smtp.grammar import is_header_like
from mta.smtp.reply import Reply
from mta.smtp.rules import Rules
from mta.smtpd.facts import Stage


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """postconf(5) parameters of the dialogue; sizes in octets, times in seconds, 0 = no limit."""

    myhostname: str
    smtpd_banner: str
    message_size_limit: int
    line_length_limit: int
    smtpd_recipient_limit: int
    smtpd_recipient_overshoot_limit: int
    smtpd_soft_error_limit: int
    smtpd_hard_error_limit: int
    smtpd_error_sleep_time: float
    smtpd_junk_command_limit: int
    smtpd_helo_required: bool
    disable_vrfy_command: bool
    smtpd_discard_ehlo_keywords: tuple[str, ...]
    smtpd_forbid_bare_newline: str
    smtpd_forbid_unauth_pipelining: bool
    smtpd_forbidden_commands: tuple[str, ...]
    smtpd_noop_commands: tuple[str, ...]
    smtpd_tls_security_level: str
    smtputf8_enable: bool
    strict_rfc821_envelopes: bool
    allow_min_user: bool
    soft_bounce: bool


class SessionPlan:
    """Settings worked out.

    tls: a certificate is there, so that STARTTLS can be offered.  silent: stages at which nobody need be asked,
    because nothing is configured that could refuse.
    """

    def __init__(
        self, settings: SessionSettings, *, tls: bool = False, silent: frozenset[Stage] = frozenset()
    ) -> None:
        self.settings = settings
        self.silent = silent
        discard = {word.lower() for word in settings.smtpd_discard_ehlo_keywords}
        self.offers_tls = tls and "starttls" not in discard
        self.requires_tls = self.offers_tls and settings.smtpd_tls_security_level == "encrypt"
        self.offers_pipelining = "pipelining" not in discard
        self.reject_bare_newline = settings.smtpd_forbid_bare_newline == "reject"
        self.greeting = Reply(220, "", settings.smtpd_banner)
        self.helo = Reply(250, "", settings.myhostname)
        offered = Rules(
            size="size" not in discard,
            dsn="dsn" not in discard,
            smtputf8=settings.smtputf8_enable and "smtputf8" not in discard,
            strict=settings.strict_rfc821_envelopes,
            allow_minus=settings.allow_min_user,
        )
        self.esmtp_rules = offered
        # A client that said HELO knows of no extension.
        self.smtp_rules = replace(offered, size=False, dsn=False, smtputf8=False)
        self.lenient_rules = replace(offered, strict=False)  # for VRFY, which never was in brackets
        self.ehlo = self._ehlo(discard, with_tls=self.offers_tls)
        self.ehlo_in_tls = self._ehlo(discard, with_tls=False)
        self._forbidden_words, self._forbidden_patterns = _forbidden(settings.smtpd_forbidden_commands)
        self.noop_words = frozenset(word.upper().encode() for word in settings.smtpd_noop_commands)

    def _ehlo(self, discard: set[str], *, with_tls: bool) -> Reply:
        """The keywords in Postfix's order."""
        limit = self.settings.message_size_limit
        lines = ["PIPELINING", f"SIZE {limit}" if limit else "SIZE"]
        if not self.settings.disable_vrfy_command:
            lines.append("VRFY")
        lines.append("ETRN")
        if with_tls:
            lines.append("STARTTLS")
        lines += ["ENHANCEDSTATUSCODES", "8BITMIME", "DSN"]
        if self.settings.smtputf8_enable:
            lines.append("SMTPUTF8")
        kept = [line for line in lines if line.partition(" ")[0].lower() not in discard]
        return Reply(250, "", "\n".join([self.settings.myhostname, *kept]))

    def is_forbidden(self, verb: bytes) -> bool:
        """True when this first word is another protocol's, or that of mail content (smtpd_forbidden_commands)."""
        if verb in self._forbidden_words or is_header_like(verb):
            return True
        text = verb.decode("latin-1")
        return any(pattern.search(text) for pattern in self._forbidden_patterns)


def _forbidden(words: tuple[str, ...]) -> tuple[frozenset[bytes], tuple[re.Pattern[str], ...]]:
    """Split the list into words and the patterns of inline tables such as regexp:{{/^[^A-Z]/ Bogus}}."""
    plain = set()
    patterns = []
    for word in words:
        if not word.startswith(("regexp:", "pcre:")):
            plain.add(word.upper().encode())
            continue
        # Matched against one word of a command, so no pattern can see more than line_length_limit octets.
        patterns += [re.compile(found, re.IGNORECASE) for found in re.findall(r"\{\s*/((?:[^/\\]|\\.)*)/", word)]
    return frozenset(plain), tuple(patterns)
