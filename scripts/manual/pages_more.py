"""The manual pages of the commands that other programs call."""

from scripts.manual.model import Kind, Option, Page
from scripts.manual.pages_mta import CONFIG, CONFIG_FILES, SPOOL

RMAIL = Page(
    name="rmail",
    section=8,
    about="hand in mail that came by UUCP",
    synopsis=("[-D domain] [-T] recipient...",),
    description="""\
`rmail` takes a message with `From sender ... remote from host` lines from standard input, as uucico(8) delivers it,
makes the sender of these lines, and hands it to sendmail(1).""",
    options=(Option("-D", "Use this domain instead of UUCP.", "domain"), Option("-T", "Ignored.")),
    status=(("0", "The message is in the queue."), ("64", "Wrong usage."), ("65", "No From line.")),
    see=("sendmail(1)",),
)

RUNQ = Page(
    name="runq",
    section=8,
    about="deliver what is queued now",
    synopsis=("",),
    description="`runq` is sendmail(1) with `-q`: everything that is deferred is tried now.",
    status=(("0", "The mail system was told."), ("69", "It does not run."), ("77", "You are not allowed to.")),
    see=("sendmail(1)", "postqueue(1)"),
)

RSMTP = Page(
    name="rsmtp",
    section=8,
    about="hand in a batch of SMTP commands",
    synopsis=("",),
    description="`rsmtp` reads SMTP commands with their messages from standard input, as sendmail(1) with `-bs`.",
    status=(("0", "Everything was taken."), ("75", "Something was not.")),
    see=("sendmail(1)",),
)

MAKEMAP = Page(
    name="makemap",
    section=8,
    about="check a lookup table and write it in cdb form",
    synopsis=("[-c cachesize] [-C file] [-d] [-D commentchar] [-e] [-f] [-l] [-N] [-o] [-r] [-s] [-t delim] [-u] [-v] "
              "type mapname",),
    description="""\
`makemap` reads a table from standard input, a key and a value per line, reports what is wrong in it as Sendmail's
command does, and writes `mapname.cdb`. The text file of that name is never touched: the mail system reads it itself,
whatever the type says.""",
    options=(
        Option("-d", "Allow duplicate keys."),
        Option("-e", "Allow empty values."),
        Option("-f", "Do not fold keys to lower case."),
        Option("-N", "Include the final NUL in keys and values."),
        Option("-o", "Append to the map."),
        Option("-r", "Replace existing keys."),
        Option("-t", "What separates key and value, instead of white space.", "delim"),
        Option("-D", "What begins a comment, instead of #.", "commentchar"),
        Option("-u", "Print the map."),
        Option("-l", "List the map types."),
        Option("-s", "Ignored."),
        Option("-v", "Print each pair."),
        Option("-c", "Ignored.", "cachesize"),
        Option("-C", "Ignored.", "file", Kind.FILE),
    ),
    operands=Kind.FILE,
    status=(("0", "Written."), ("64", "Wrong usage."), ("65", "The input has errors."),
            ("73", "It cannot be written.")),
    see=("newaliases(1)", "mta(8)"),
)

POSTDROP = Page(
    name="postdrop",
    section=1,
    about="put a message in queue file form into maildrop",
    synopsis=("[-c directory] [-rv]",),
    description="""\
`postdrop` takes a message in the form of a maildrop file from standard input and leaves it in `maildrop`, for programs
that call Postfix's command. Programs with a message in Internet form call sendmail(1).""",
    options=(CONFIG, Option("-r", "Read the request from standard input: the default."), Option("-v", "Ignored.")),
    status=(("0", "The message is in the queue, on disk."), ("65", "It is no maildrop file."),
            ("75", "Try again later.")),
    files=(*CONFIG_FILES, SPOOL),
    see=("sendmail(1)", "mta(8)"),
)

PAGES = (RMAIL, RUNQ, RSMTP, MAKEMAP, POSTDROP)
