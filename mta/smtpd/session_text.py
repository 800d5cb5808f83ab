"""What the SMTP server says: every fixed reply, with Postfix's words, and how its log lines are put together."""

from mta.smtp.path import quote_address
from mta.smtp.reply import Reply
from mta.smtpd.facts import Facts, Stage

OK = Reply(250, "2.0.0", "Ok")
OK_MAIL = Reply(250, "2.1.0", "Ok")
OK_RCPT = Reply(250, "2.1.5", "Ok")
DISCARDED = OK
BYE = Reply(221, "2.0.0", "Bye")
GO_AHEAD = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
READY_FOR_TLS = Reply(220, "2.0.0", "Ready to start TLS")

BAD_SYNTAX = Reply(500, "5.5.2", "Error: bad syntax")
BAD_UTF8 = Reply(500, "5.5.2", "Error: bad UTF-8 syntax")
LINE_TOO_LONG = Reply(500, "5.5.2", "Error: line too long")
UNKNOWN_COMMAND = Reply(500, "5.5.2", "Error: command not recognized")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Error: command not implemented")
NON_SMTP = Reply(221, "2.7.0", "Error: I can break rules, too. Goodbye.")
OUT_OF_SYNC = Reply(554, "5.5.0", "Error: SMTP protocol synchronization")
ACCESS_DENIED = "Error: access denied for"
MUST_STARTTLS = Reply(530, "5.7.0", "Must issue a STARTTLS command first")

HELO_SYNTAX = Reply(501, "", "Syntax: HELO hostname")
EHLO_SYNTAX = Reply(501, "", "Syntax: EHLO hostname")
HELO_FIRST = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
NESTED_MAIL = Reply(503, "5.5.1", "Error: nested MAIL command")
NEED_MAIL = Reply(503, "5.5.1", "Error: need MAIL command")
NEED_RCPT = Reply(503, "5.5.1", "Error: need RCPT command")
NO_RECIPIENTS = Reply(554, "5.5.1", "Error: no valid recipients")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Error: too many recipients")
TOO_LARGE = Reply(552, "5.3.4", "Message size exceeds fixed limit")
TOO_BIG = Reply(552, "5.3.4", "Error: message file too big")
DATA_SYNTAX = Reply(501, "5.5.4", "Syntax: DATA")
RSET_SYNTAX = Reply(501, "5.5.4", "Syntax: RSET")
VRFY_SYNTAX = Reply(501, "5.5.4", "Syntax: VRFY address [SMTPUTF8]")
VRFY_DISABLED = Reply(502, "5.5.1", "VRFY command is disabled")
ETRN_SYNTAX = Reply(500, "", "Syntax: ETRN domain")
ETRN_NAME = Reply(501, "", "Error: invalid parameter syntax")
ETRN_IN_MAIL = Reply(503, "", "Error: MAIL transaction in progress")
STARTTLS_SYNTAX = Reply(501, "5.5.4", "Syntax: STARTTLS")
TLS_ACTIVE = Reply(554, "5.5.1", "Error: TLS already active")
AUTH_NOT_ENABLED = Reply(503, "5.5.1", "Error: authentication not enabled")

INTERNAL_ERROR = Reply(451, "4.3.0", "Error: internal error, try again later")
CONFIGURATION_ERROR = Reply(451, "4.3.5", "Server configuration error")
BUSY = Reply(421, "4.3.2", "All server ports are busy")
QUEUE_ERROR = Reply(451, "4.3.0", "Error: queue file write error")
QUEUE_FULL = Reply(452, "4.3.1", "Insufficient system storage")


def host_reply(code: int, enhanced: str, host: str, text: str) -> Reply:
    """Replies that end a session name the host, as in "421 4.4.2 mx.example Error: timeout exceeded"."""
    return Reply(code, enhanced, f"{host} {text}")


def escape(raw: bytes) -> str:
    """Show input in a log line as Postfix does: \\r, \\n, other control and non-ASCII octets as \\ooo."""
    named = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 92: "\\\\"}
    return "".join(named.get(c) or (chr(c) if 32 <= c <= 126 else f"\\{c:03o}") for c in raw)


def reject_line(stage: Stage, facts: Facts, reply: Reply) -> str:
    """ "NOQUEUE: reject: RCPT from name[address]: 554 5.7.1 ...; from=<s> to=<r> proto=ESMTP helo=<h>"."""
    about = []
    if facts.sender is not None:
        about.append(f"from=<{quote_address(facts.sender)}>")
    if facts.recipient:
        about.append(f"to=<{quote_address(facts.recipient)}>")
    about.append(f"proto={facts.protocol}")
    if facts.helo:
        about.append(f"helo=<{facts.helo}>")
    return f"{facts.queue_id or 'NOQUEUE'}: reject: {stage} from {facts.client}: {reply}; {' '.join(about)}"
