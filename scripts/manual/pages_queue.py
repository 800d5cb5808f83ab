"""The manual pages of the commands that look at the queue and change it."""

from scripts.manual.model import Kind, Option, Page
from scripts.manual.pages_mta import CONFIG, CONFIG_FILES, SPOOL

VERBOSE = Option("-v", "Ignored, for the sake of callers of Postfix's command.")
ALL = "A queue id, or ALL for every message, or - to read ids from standard input. May be given more than once."
FILES = (*CONFIG_FILES, SPOOL)

POSTQUEUE = Page(
    name="postqueue",
    section=1,
    about="list or flush the mail queue",
    synopsis=("[-c directory] -p", "[-c directory] -j", "[-c directory] -f", "[-c directory] -i queue_id",
              "[-c directory] -s site"),
    description="""\
`postqueue` asks the running mail system to list its queue or to try deferred mail now. While it is stopped, root and
`mail_owner` are shown the queue all the same.""",
    options=(
        CONFIG,
        Option("-p", "List the queue, as mailq(1) does."),
        Option("-j", "List it as JSON, one object per line: `queue_name`, `queue_id`, `arrival_time`, `message_size`, "
               "`forced_expire`, `sender`, and `recipients` with `address` and `delay_reason`."),
        Option("-f", "Try everything that is deferred now."),
        Option("-i", "Try this message now.", "queue_id", Kind.QUEUE_ID),
        Option("-s", "Try all mail for this destination now.", "site"),
        VERBOSE,
    ),
    status=(("0", "Done."), ("69", "The mail system is down, the list is not complete, or you are not allowed to.")),
    files=FILES,
    see=("mailq(1)", "postsuper(1)", "qshape(1)", "sendmail(1)", "mta(8)"),
)  # fmt: skip

POSTSUPER = Page(
    name="postsuper",
    section=1,
    about="hold, release, requeue, expire or delete queued mail",
    synopsis=("[-c directory] [-d queue_id] [-h queue_id] [-H queue_id] [-r queue_id] [-e queue_id] [-f queue_id] "
              "[-psSv] [queue...]",),
    description="""\
`postsuper` changes queued messages, one by one or all of them; it works while the mail system runs and while it does
not. For root and `mail_owner`. A repair comes first, then the options in their order. Queue names limit where it looks.
Without one of these options it checks the structure of the queue.

`mta queue` does the same with filters, and can say beforehand what it would do.""",
    options=(
        CONFIG,
        Option("-d", f"Delete. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-h", f"Put on hold: not tried until released. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-H", f"Release from hold. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-r", f"Requeue: address rewriting and routing happen anew. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-e", f"Expire: return to the sender at the next attempt. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-f", f"Expire, and release from hold. {ALL}", "queue_id", Kind.QUEUE_ID),
        Option("-p", "Remove files that were never finished."),
        Option("-s", "Check the structure of the queue, and repair it."),
        Option("-S", "The same."),
        VERBOSE,
    ),
    operands=Kind.QUEUE,
    status=(("0", "Done."), ("1", "It could not be done, or not to every message: the others were done.")),
    files=FILES,
    see=("postqueue(1)", "postcat(1)", "mta(8)"),
)  # fmt: skip

POSTCAT = Page(
    name="postcat",
    section=1,
    about="show the contents of a queue file",
    synopsis=("[-c directory] [-bdehoqrv] [file_or_queue_id...]",),
    description="""\
`postcat` prints queue files; without `-b`, `-e` and `-h` all of it: envelope, header, body. Without an argument it
reads a queue file from standard input. It reads what you may read.""",
    options=(
        CONFIG,
        Option("-q", "The arguments are queue ids, to be looked for in the queue."),
        Option("-b", "Show the body."),
        Option("-h", "Show the header."),
        Option("-e", "Show the envelope."),
        Option("-d", "Show the type of each record as a number."),
        Option("-o", "Show the offset of each record."),
        Option("-r", "Show records in the order in which they lie in the file; pointers are not followed."),
        Option("-v", "Show more."),
    ),
    operands=Kind.FILE,
    status=(("0", "Done."), ("1", "No such message, or a damaged file.")),
    files=FILES,
    see=("postqueue(1)", "postsuper(1)", "mta(8)"),
)

QSHAPE = Page(
    name="qshape",
    section=1,
    about="show queued mail by domain and age",
    synopsis=("[-c directory] [-lps] [-b count] [-m count] [-N count] [-n count] [-t minutes] [-w width] [queue...]",),
    description="""\
`qshape` counts the messages in queue directories (incoming and active unless named) by domain of the recipient and by
age, so that the domain that stops the mail is seen at a glance. The first column of numbers is the total; the others
are ages, the header naming the upper limit of each in minutes. It reads the queue itself, for root and `mail_owner`;
the mail system need not run.""",
    options=(
        CONFIG,
        Option("-s", "By domain of the sender."),
        Option("-p", "Count parent domains as well, shown with a dot in front."),
        Option("-m", "Only parent domains with at least this many subdomains, 5 by default.", "count"),
        Option("-l", "Columns of the same length in time, instead of each twice as long as the one before."),
        Option("-b", "Number of age columns, 10 by default.", "count"),
        Option("-t", "Upper limit of the first column, 5 by default.", "minutes"),
        Option("-w", "Width of the table, 80 by default.", "width"),
        Option("-N", "On a terminal, show the table again after so many messages.", "count"),
        Option("-n", "Domains shown then.", "count"),
        Option("-h", "Print a summary."),
    ),
    operands=Kind.QUEUE,
    status=(("0", "Done."), ("1", "The queue cannot be read."), ("255", "Wrong usage.")),
    files=FILES,
    see=("mailq(1)", "postqueue(1)", "mta(8)"),
)

POSTKICK = Page(
    name="postkick",
    section=1,
    about="wake a service of the mail system",
    synopsis=("[-c directory] [-v] class service request",),
    description="""\
`postkick` asks a service to look for work now, for scripts that call Postfix's command: `postkick public pickup W`
for maildrop; `postkick public qmgr D` and any other request to public/qmgr or public/flush for deferred mail.""",
    options=(CONFIG, VERBOSE),
    status=(("0", "The service was told."), ("1", "It does not run.")),
    files=FILES,
    see=("postqueue(1)", "mta(8)"),
)

POSTLOG = Page(
    name="postlog",
    section=1,
    about="write lines to the mail log",
    synopsis=("[-i] [-c directory] [-p priority] [-t tag] [-v] [text...]",),
    description="""\
`postlog` writes its arguments, or each line of standard input, to the mail log: the file `maillog_file`, or syslog; and
to standard error when that is a terminal.""",
    options=(
        CONFIG,
        Option("-i", "Ignored: the process id is always written."),
        Option("-p", "Severity.", "priority", words=("info", "warn", "error", "fatal", "panic")),
        Option("-t", "Name in front of the process id instead of postfix/postlog.", "tag"),
        VERBOSE,
    ),
    status=(("0", "Written."), ("1", "It could not be written.")),
    files=FILES,
    see=("mta(8)",),
)

PAGES = (POSTQUEUE, POSTSUPER, POSTCAT, QSHAPE, POSTKICK, POSTLOG)
