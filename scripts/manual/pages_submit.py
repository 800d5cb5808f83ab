"""The manual pages of the commands that hand in mail."""

from scripts.manual.model import Kind, Option, Page
from scripts.manual.pages_mta import CONFIG_FILES, SPOOL

STATUS = (
    ("0", "The message is in the queue, on disk."),
    ("1", "Standard input is a directory: the interpreter does not start. Nothing was queued."),
    ("64", "Wrong usage, or no recipients: nothing was queued."),
    ("65", "The message cannot be taken: a control character in an address, or it is too large."),
    ("66", "Standard input cannot be read."),
    ("67", "`-bv`: no such user."),
    ("69", "The queue cannot be shown."),
    ("71", "A system call failed."),
    (
        "75",
        "Temporary, or an internal error: a second try may succeed. Nothing was queued, unless standard error says "
        "that it may have.",
    ),
    ("77", "You are not allowed to."),
    ("78", "The configuration is broken."),
)

SENDMAIL = Page(
    name="sendmail",
    section=1,
    about="hand in mail, as every program on Unix does",
    synopsis=("[option...] [recipient...]", "-bp", "-q", "-bs"),
    description="""\
`sendmail` reads a message from standard input up to end of file, or to a line with a single dot, and puts it into the
queue. When it ends with 0 the message is on disk, whether the mail system is running or not: while it is stopped the
message is left in the directory `maildrop`, a line on standard error says so, and it is taken from there later.

Options end at the first word that does not begin with a dash. A recipient that begins with a dash is refused. What
callers of Sendmail, Postfix and Exim use is acted on, or accepted and ignored; whatever is refused names itself.""",
    options=(
        Option(
            "-t",
            "Take recipients from To, Cc and Bcc as well; where there is a Resent-To, Resent-Cc or Resent-Bcc, only"
            " from those. Bcc is removed.",
        ),
        Option("-i", "A line with a single dot does not end the message. Also `-oi`."),
        Option("-f", "Envelope sender; empty or <> for none. The last one counts. Also `-r`.", "address"),
        Option("-r", "The same as `-f`.", "address"),
        Option("-F", "Full name for a From field that has to be made.", "name"),
        Option("-bm", "Hand in mail: the default."),
        Option("-bp", "List the queue, as mailq(1)."),
        Option("-bs", "Speak SMTP on standard input and output."),
        Option("-bi", "Check the alias files, as newaliases(1). Also `-I`."),
        Option("-I", "The same as `-bi`."),
        Option("-bv", "Say for each recipient whether it can be delivered, with your rights; nothing is queued. "
               "Status 67: unknown, 75: it cannot be told now."),
        Option("-bt", "Test addresses, one per line of standard input: how each is rewritten and delivered."),
        Option("-bd", "Start the mail system; for root. Also `-bD` and `-bl`."),
        Option("-bh", "Accepted, reads nothing. Also `-bH`."),
        Option("-bV", "Print the version. Also `--version`."),
        Option("-q", "Try everything that is deferred now. A time, as in `-q15m`, starts the mail system when it "
               "does not run; for root."),
        Option("-qf", "The same as `-q`, and wait, for at most 300 seconds, until nothing is being delivered."),
        Option("-qI", "Try the messages whose queue id contains the text; `-q!I` those whose id does not.", "text",
               attached=True),
        Option("-qR", "The same by recipient.", "text", attached=True),
        Option("-qS", "The same by sender.", "text", attached=True),
        Option("-qG", "The same by transport.", "name", attached=True),
        Option("-Q", "With one of the four above, for root: put the messages on hold; without a reason, release them.",
               "reason", attached=True),
        Option("-oQ", "With `-q`: take over what lies in the queue of another directory, which nobody may be using; "
               "for root and `mail_owner`.", "directory", Kind.DIRECTORY, attached=True),
        Option("-v", "Print the queue id and then the results of the deliveries, for at most 10 seconds."),
        Option("-N", "When to report to the sender, see RFC 3461.", "conditions",
               words=("never", "success", "failure", "delay")),
        Option("-R", "How much of the message a report returns.", "part", words=("full", "hdrs")),
        Option("-V", "Envelope id for reports, in xtext form.", "id"),
        Option("-B", "What the body is.", "type", words=("7BIT", "8BITMIME")),
        Option("-XV", "Send with a sender per recipient (VERP): list@a to bob@b comes from list+bob=b@a; two "
               "characters after it stand for + and =."),
        Option("-p", "How the message came to the caller, as in SMTP:client.example: the Received header says so. For "
               "root; from others it is ignored.", "protocol:host"),
        Option("-G", "The message comes from elsewhere: do not complete its addresses."),
        Option("-U", "Addresses may be in UTF-8."),
        Option("-C", "Configuration directory, opened with your rights.", "directory", Kind.DIRECTORY),
        Option("-d0", "Print how host and configuration are seen, then obey the rest of the line."),
        Option("--help", "Print a summary."),
    ),
    sections=(
        ("Ignored options", "`-A` `-E` `-J` `-L` `-O` `-X` (anything else) `-c` `-e` `-h` `-m` `-n` `-o` (other "
         "letters) `-s` `-x`, with their arguments. No option makes `sendmail` write to "
         "a file of the caller's choice."),
        ("Other names", "Called as `mailq`, `newaliases`, `runq`, `smtpd`, `hoststat` or `purgestat` it does what "
         "these do."),
    ),
    status=STATUS,
    files=(*CONFIG_FILES, SPOOL, ("/var/spool/mta/public/submit", "where the mail system listens for it"),
           ("/var/spool/mta/maildrop", "where messages wait while it is stopped")),
    see=("mailq(1)", "newaliases(1)", "mta(8)", "mta-main.cf(5)"),
)  # fmt: skip

MAILQ = Page(
    name="mailq",
    section=1,
    about="list the mail queue",
    synopsis=("",),
    description="""\
`mailq` lists what is queued: queue id, size, time of arrival, sender, the reason of the last deferral in parentheses,
and the recipients that are left. After the id, `*` means being delivered, `!` on hold, `#` to be given up.

It is sendmail(1) with `-bp`, takes its options, and prints what `postqueue -p` prints. While the mail system is stopped
it reads the queue itself, for root and `mail_owner`.""",
    status=(("0", "Listed."), ("69", "The queue cannot be shown, or the list is not complete."),
            ("77", "`authorized_mailq_users` does not name you.")),
    files=(*CONFIG_FILES, SPOOL),
    see=("postqueue(1)", "qshape(1)", "sendmail(1)", "mta(8)"),
)

NEWALIASES = Page(
    name="newaliases",
    section=1,
    about="check the alias files",
    synopsis=("",),
    description="""\
`newaliases` reads the files of `alias_database` and reports what is wrong in them, with file and line. There is nothing
to build: the mail system reads the text file itself, and sees a change within a second. It is sendmail(1) with
`-bi`.""",
    status=(("0", "No errors."), ("65", "An alias file has errors."), ("78", "The configuration is broken.")),
    files=(("/etc/aliases", "the aliases of this machine"),),
    see=("sendmail(1)", "makemap(8)", "mta(8)"),
)

PAGES = (SENDMAIL, MAILQ, NEWALIASES)
