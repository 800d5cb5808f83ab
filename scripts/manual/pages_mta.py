"""The manual pages of the mail system itself."""

from scripts.manual.model import Kind, Option, Page, Verb

CONFIG = Option("-c", "Directory with `main.cf` and `master.cf`; otherwise $MAIL_CONFIG, otherwise `/etc/mta`.",
                "directory", Kind.DIRECTORY)  # fmt: skip
CONFIG_FILES = (
    ("/etc/mta/main.cf", "settings, see mta-main.cf(5)"),
    ("/etc/mta/master.cf", "services, see mta-master.cf(5)"),
)
SPOOL = ("/var/spool/mta", "the queue")

FILTERS = (
    Option("--sender", "Sender like this; `*` and `?` are wild.", "glob"),
    Option("--recipient", "A recipient like this.", "glob"),
    Option("--domain", "The sender or a recipient in a domain like this.", "glob"),
    Option("--reason", "Part of the reason of the last delay, or a glob.", "text"),
    Option("--age", "Age, such as `>2h`, `<30m`, `>=5d`; without a sign: at least.", "age"),
    Option("--size", "Size, such as `>10k` or `<1m`; without a sign: at least.", "size"),
    Option("--queue", "Only in these queues, separated by commas.", "names", Kind.QUEUE),
    Option("--json", "Print JSON: an object per message, or one in all for what was done."),
)
DRY = (Option("--dry-run", "Say what would be done. Also `-n`."), Option("-n", "The same as `--dry-run`."))
QUEUE = Verb(
    "queue", "Look at queued messages and act on them. Queue ids and filters say which; ALL stands for every message. "
    "It works through the mail system while that runs, and on the directories while it does not. Acting is for root "
    "and `mail_owner`.",
    (*FILTERS, *DRY),
    verbs=(
        Verb("list", "List messages, as mailq(1) does.",
             (*FILTERS, Option("--table", "One line per message.")), operands=Kind.QUEUE_ID),
        Verb("show", "Show messages: times, recipients, reasons, header.", FILTERS, operands=Kind.QUEUE_ID),
        Verb("hold", "Put on hold.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
        Verb("release", "Release from hold.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
        Verb("requeue", "Rewrite and route addresses anew.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
        Verb("expire", "Return to the sender, now.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
        Verb("delete", "Delete.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
        Verb("flush", "Try now; without ids and filters, everything.", (*FILTERS, *DRY), operands=Kind.QUEUE_ID),
    ),
)  # fmt: skip
PREFIX = Option("--prefix", "Where the programs are, otherwise that of the running Python.", "directory",
                Kind.DIRECTORY)  # fmt: skip
INSTALL = Verb(
    "install", "Put an installation that was not made by a package into the place of the machine's mail system: links, "
    "units, account, directories. Ends with a check that sendmail, mailq and newaliases lead to one mail system, or "
    "undoes everything. For root.",
    (
        PREFIX,
        Option("--alternatives", "Register us and the present mail system as two choices of one group: the default."),
        Option("--divert", "Only move the files of the present mail system aside."),
        Option("--sockets", "Only write which ports systemd opens, from main.cf and master.cf; for a package, too."),
        Option("--dry-run", "Say what would be done."),
    ),
)
UNINSTALL = Verb("uninstall", "Undo exactly what `mta install` did; a daemon that works on its queue is stopped first.",
                 (PREFIX, Option("--dry-run", "Say what would be done.")))  # fmt: skip

MTA = Page(
    name="mta",
    section=8,
    about="start, stop and look after the mail system and its queue",
    synopsis=("[-c directory] command", "[-c directory] `queue` command [option...] [queue_id...]",
              "`install` [option...]", "`uninstall` [option...]"),
    description="""\
`mta` controls the mail system: a server that accepts mail by SMTP and from local programs, keeps it in a queue on
disk and delivers it. The verbs, their messages and their exit statuses are those of postfix(1).

With systemd, `systemctl start mta` and the others are the usual way; `mta` talks to the same processes.""",
    options=(CONFIG, Option("-v", "Ignored, for the sake of callers of postfix(1)."),
             Option("-D", "Ignored as well.")),
    verbs=(
        Verb("start", "Start the mail system and go to the background. Ends with 0 when it serves."),
        Verb("start-fg", "Start it in the foreground; the log goes to standard output when there is no /dev/log and "
             "`maillog_file` is empty. Ends when the mail system is stopped."),
        Verb("stop", "Stop it: no new connections, transactions and deliveries under way may end, for at most 20 "
             "seconds. What was not delivered stays in the queue."),
        Verb("abort", "Kill it. Nothing that was accepted is lost."),
        Verb("reload", "Read the configuration again. A broken one is refused, and the running instance goes on."),
        Verb("flush", "Try everything that is deferred now."),
        Verb("check", "Report everything that is wrong with the configuration, with file and line, and with the "
             "directories of the queue."),
        Verb("logrotate", "Give `maillog_file` a new name and begin a new one."),
        Verb("status", "Say whether it runs; and whether mail waits in maildrop while it does not."),
        Verb("version", "Print the version."),
        QUEUE, INSTALL, UNINSTALL,
    ),
    sections=(
        ("Signals", """\
The first process, whose id is in `pid/master.pid` below the queue directory, stops the mail system on SIGTERM, reloads
on SIGHUP and opens its log again on SIGUSR1."""),
        ("Environment", """\
`MAIL_CONFIG` names the configuration directory. `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `LISTEN_FDS` and `LISTEN_PID` are
systemd's, see sd_notify(3) and sd_listen_fds(3). With `JOURNAL_STREAM`, and no `maillog_file`, the log goes to the
journal with fields of its own."""),
    ),
    status=(("0", "Done."), ("1", "It could not be done: already running, or not running."), ("64", "Wrong usage."),
            ("69", "The queue cannot be reached."), ("71", "A system call failed, for example a port is taken."),
            ("75", "Try again later."), ("78", "The configuration is broken; every error is on standard error.")),
    files=(*CONFIG_FILES, SPOOL),
    see=("mta-main.cf(5)", "mta-master.cf(5)", "mta-local(8)", "sendmail(1)", "mailq(1)", "postqueue(1)",
         "postsuper(1)"),
)  # fmt: skip

MTA_LOCAL = Page(
    name="mta-local",
    section=8,
    about="deliver to local users; started by the mail system",
    synopsis=("[-c directory]",),
    description="""\
`mta-local` puts mail into mailboxes: mbox files, Maildir directories, and what aliases and ~/.forward files say. It
is the only process that keeps the right to become another user, and it listens on a socket that only `mail_owner`
can reach. It is told a recipient and given the open message; configuration, aliases and .forward files it reads
itself, and believes none that `mail_owner` could have written. It delivers neither as root nor as `mail_owner`.

It is not meant to be called by hand: systemd starts it for `mta-local.socket`, and without systemd the first process
forks it. With mail delivered by LMTP only, it is not needed.""",
    options=(CONFIG,),
    status=(("0", "It had nothing to do any more, or was told to stop."), ("78", "The configuration is broken.")),
    files=(*CONFIG_FILES, ("/var/spool/mta/private/local", "its socket"), ("/etc/aliases", "aliases of local users")),
    see=("mta(8)", "mta-main.cf(5)"),
)

MASTER_CF = Page(
    name="mta-master.cf",
    section=5,
    about="services of the mail system",
    synopsis=(),
    description="""\
`master.cf` in the configuration directory has a line per service, in the syntax of Postfix's master(5): eight fields
and a command with arguments. `-` is the default of a field. A line that begins with white space continues the one
before; `#` begins a comment line. Of two services with one name and type the later one counts.

    smtp         inet  n  -  n  -  -  smtpd
    submissions  inet  n  -  n  -  -  smtpd
        -o syslog_name=postfix/smtps
        -o smtpd_tls_wrappermode=yes
    smtp         unix  -  -  n  -  -  smtp""",
    terms=(("Fields", (
        ("service", "For type inet a port, or host:port, by name or number; without a host, `inet_interfaces` says "
         "where to listen. For type unix the name that `default_transport`, `transport_maps` and the others use."),
        ("type", "`inet`, `unix`; `fifo`, `pass` and `unix-dgram` are accepted."),
        ("private, unpriv, chroot, wakeup", "Read, checked and not used: there is no process per service."),
        ("maxproc", "For a transport: deliveries at once; 0: no limit; -: `default_process_limit`."),
        ("command", "`smtpd` for a service that listens; for transports `smtp`, `lmtp`, `local`, `error`, `discard`. "
         "Others are accepted, so that a file of Postfix can be used, and do nothing."),
    )), ("Arguments", (
        ("-o name=value", "Override a parameter of `main.cf` for this service."),
        ("-o { name = value }", "The same, with blanks in the value."),
    ))),
    files=(("/etc/mta/master.cf", "the services of this machine"),),
    see=("mta(8)", "mta-main.cf(5)"),
    command=False,
)  # fmt: skip

PAGES = (MTA, MTA_LOCAL, MASTER_CF)
