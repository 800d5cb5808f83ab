"""Parameters of local delivery: aliases, mailboxes, forwarding."""

from mta.config.declare import changed, count, items, not_yet, path, size, tables, text, time, yes_no
from mta.config.param import Param

_FILTER = "1234567890!@%-_=+:,./abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WAYS = ("alias", "forward", "include")

PARAMS: tuple[Param, ...] = (
    changed(tables("alias_maps", "hash:/etc/aliases, nis:mail.aliases", "Aliases for local delivery, see aliases(5)."),
            "hash:/etc/aliases"),
    path("mail_spool_directory", "/var/mail", "Mailboxes by user name; with a / at the end: Maildirs."),
    path("home_mailbox", "", "Mailbox below the home directory; with a / at the end: a Maildir."),
    items("mailbox_delivery_lock", "fcntl, dotlock", "How a mailbox file is locked.", "fcntl", "flock", "dotlock"),
    count("deliver_lock_attempts", "20", "Tries to lock a mailbox.", 1),
    time("deliver_lock_delay", "1s", "Between two tries."),
    size("mailbox_size_limit", "51200000",
         "Most bytes of a mailbox file; 0: no limit. Not less than message_size_limit."),
    yes_no("strict_mailbox_ownership", "yes", "Refuse a mailbox file that belongs to somebody else."),
    yes_no("require_home_directory", "no", "Deliver only when the home directory exists."),
    text("luser_relay", "", "Address for mail to local users that do not exist; $user, $local ... are filled in.\n"
         "Not built yet: when it is set, such mail is deferred."),
    text("fallback_transport", "", "transport:nexthop for local users that do not exist.\n"
         "Not built yet: when it is set, such mail is deferred."),
    tables("fallback_transport_maps", "", "The same by user name. Mail for users in it is deferred."),
    text("mailbox_transport", "", "transport:nexthop that delivers to mailboxes instead of local.\n"
         "Not built yet: when it is set, such mail is deferred."),
    tables("mailbox_transport_maps", "", "The same by user name. Mail for users in it is deferred."),
    text("mailbox_command", "", "Command that delivers to mailboxes.\n"
         "Not built yet: when it is set, such mail is deferred."),
    tables("mailbox_command_maps", "", "The same by user name. Mail for users in it is deferred."),
    items("forward_path", "$home/.forward${recipient_delimiter}${extension}, $home/.forward",
          "Files with forwarding addresses, the first that exists counts.\n"
          "Until forwarding is built, mail to a user who has one is deferred."),
    text("forward_expansion_filter", _FILTER, "Characters left alone in values filled in to forward_path."),
    time("command_time_limit", "1000s", "Longest run of a command."),
    items("prepend_delivered_header", "command, file, forward", "Deliveries that get a Delivered-To: header.",
          "command", "file", "forward"),
    yes_no("owner_request_special", "yes", "LIST is sent on by owner-LIST; both it and LIST-request are whole names."),
    yes_no("expand_owner_alias", "no", "Use the expansion of owner-LIST as sender, not its name."),
    *not_yet(
        text("command_expansion_filter", _FILTER, "Characters left alone in values filled in to commands."),
        text("local_command_shell", "", "Shell for commands from aliases; empty: only where it is needed."),
        text("default_privs", "nobody", "User that commands and files of root-owned aliases are run and written as."),
        items("allow_mail_to_commands", "alias, forward", "Where |command is allowed.", *_WAYS),
        items("allow_mail_to_files", "alias, forward", "Where /file is allowed.", *_WAYS),
        yes_no("reset_owner_alias", "no", "An alias without owner- takes over the owner of the list that led to it."),
        yes_no("frozen_delivered_to", "yes", "Update Delivered-To: only at the end of forwarding."),
    ),
)  # fmt: skip
