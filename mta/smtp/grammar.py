"""SMTP commands as bytes: verb, argument, MAIL and RCPT.

Every function either returns a value or the Reply that refuses the input; none raises on any input.  Texts and
codes are Postfix's.  No state.

See also: mta/smtp/path.py, mta/smtp/parameters.py, RFC 5321 s4.1, postconf(5)
"""

from mta.smtp.parameters import MailCommand, RcptCommand, mail_parameters, rcpt_parameters
from mta.smtp.path import BAD_RECIPIENT, BAD_SENDER, parse_path, split_path
from mta.smtp.reply import Reply
from mta.smtp.rules import Rules

MAIL_SYNTAX = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")


def split_command(line: bytes) -> tuple[bytes, bytes]:
    """Return (verb in upper case, rest without blanks around it) of a line that has no line end any more."""
    verb, _, rest = line.strip(b" \t").partition(b" ")
    if b"\t" in verb:
        verb, _, more = verb.partition(b"\t")
        rest = more + b" " + rest
    return verb.upper(), rest.strip(b" \t")


def parse_mail(argument: bytes, rules: Rules) -> MailCommand | Reply:
    """Parse what follows "MAIL "."""
    if argument[:5].upper() != b"FROM:":
        return MAIL_SYNTAX
    path, parameters = split_path(argument[5:])
    if not path:
        return MAIL_SYNTAX
    if path == b"<>":
        command = MailCommand("")
    else:
        # The parameter decides whether the address may be UTF-8, so it is looked for first.
        utf8 = rules.smtputf8 and parameters != b"" and b"SMTPUTF8" in parameters.upper().split()
        sender = parse_path(path, rules, BAD_SENDER, smtputf8=utf8)
        if isinstance(sender, Reply):
            return sender
        command = MailCommand(sender)
    if parameters:
        refused = mail_parameters(command, parameters, rules)
        if refused is not None:
            return refused
    return command


def parse_rcpt(argument: bytes, rules: Rules, *, smtputf8: bool) -> RcptCommand | Reply:
    """Parse what follows "RCPT "; smtputf8: MAIL declared it."""
    if argument[:3].upper() != b"TO:":
        return RCPT_SYNTAX
    path, parameters = split_path(argument[3:])
    if not path:
        return RCPT_SYNTAX
    recipient = parse_path(path, rules, BAD_RECIPIENT, smtputf8=smtputf8)
    if isinstance(recipient, Reply):
        return recipient
    command = RcptCommand(recipient)
    if parameters:
        refused = rcpt_parameters(command, parameters, rules, smtputf8=smtputf8)
        if refused is not None:
            return refused
    return command


def is_header_like(word: bytes) -> bool:
    """True for a first word such as "Subject:": a mail header, or HTTP, sent to us as a command."""
    name, colon, _ = word.partition(b":")
    return bool(colon) and bool(name) and all(33 <= c <= 126 for c in name)
