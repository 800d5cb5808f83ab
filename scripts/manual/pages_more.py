"""The manual pages of the commands that other programs call."""

from scripts.manual.model import Kind, Option, Page
from scripts.manual.pages_mta import CONFIG, CONFIG_FILES, SPOOL

RMAIL = Page(
    name="rmail",
    section=8,
    about="hand in mail that came by UUCP",
    synopsis=("recipient...",),
    description="""\
`rmail` takes a message that begins with `From sender ... remote from host` lines from standard input, as uucico(8)
delivers it, makes the sender of these lines (`host!sender`), and hands it to sendmail(1). It has no options: a
recipient that begins with a dash is refused.""",
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
    description="""\
`rsmtp` reads SMTP commands with their messages from standard input and hands them to the mail system one by one. The
first refusal ends the batch, and is said on standard error.""",
    options=tuple(Option(flag, "Ignored, for callers of Exim.") for flag in ("-bS", "-i", "-oi", "-oee")),
    status=(("0", "Everything was taken."), ("1", "A message was taken before the refusal."),
            ("2", "Nothing was taken."), ("75", "The mail system does not run.")),
    see=("sendmail(1)",),
)  # fmt: skip

MAKEMAP = Page(
    name="makemap",
    section=8,
    about="check a lookup table and write it in cdb form",
    synopsis=("[-C file] [-N] [-c cachesize] [-D commentchar] [-d] [-e] [-f] [-i type] [-l] [-o] [-r] [-s] "
              "[-t delimiter] [-u] [-v] type mapname",),
    description="""\
`makemap` reads a table from standard input, a key and a value per line, reports what is wrong in it as Sendmail's
command does, and writes it to `mapname.cdb`, which `cdb:mapname` in main.cf reads. Types are `cdb`, `hash`, `btree`,
`dbm` and `implicit`; all are written in this form. The file is replaced at once. The text is never touched, and
`hash:mapname` and the like go on reading the text.""",
    options=(
        Option("-d", "Allow duplicate keys."),
        Option("-e", "Allow empty values."),
        Option("-f", "Do not fold keys to lower case."),
        Option("-N", "Include the final NUL in keys and values."),
        Option("-o", "Begin with what the file has."),
        Option("-r", "Replace existing keys."),
        Option("-t", "What separates key and value, instead of white space: one character.", "delimiter"),
        Option("-D", "What begins a comment, instead of #: one character.", "commentchar"),
        Option("-u", "Print the map."),
        Option("-l", "List the map types."),
        Option("-s", "Do not warn about a directory that others may write to."),
        Option("-v", "Print each pair."),
        Option("-c", "Ignored.", "cachesize"),
        Option("-i", "Ignored.", "type"),
        Option("-C", "Ignored.", "file", Kind.FILE),
    ),
    operands=Kind.FILE,
    status=(("0", "Written."), ("64", "Wrong usage."), ("65", "The input has errors; what is right was written."),
            ("73", "It cannot be written."), ("74", "It cannot be read.")),
    see=("newaliases(1)", "mta(8)"),
)  # fmt: skip

POSTDROP = Page(
    name="postdrop",
    section=1,
    about="put a message in queue file form into maildrop",
    synopsis=("[-c directory] [-rv]",),
    description="""\
`postdrop` takes a message in the form of a maildrop file from standard input and leaves it in `maildrop`, for programs
that call Postfix's command, and answers in its attribute protocol on standard output. Programs with a message in
Internet form call sendmail(1).""",
    options=(CONFIG, Option("-r", "Ignored."), Option("-v", "Ignored.")),
    status=(("0", "The message is in the queue, on disk; or standard input ended early, and nothing was queued."),
            ("1", "It is no maildrop file, or it cannot be written.")),
    files=(*CONFIG_FILES, SPOOL),
    see=("sendmail(1)", "mta(8)"),
)  # fmt: skip

PAGES = (RMAIL, RUNQ, RSMTP, MAKEMAP, POSTDROP)
