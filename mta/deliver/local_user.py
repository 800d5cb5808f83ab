"""Delivery to one user, synchronous, with that user's rights: .forward, then the mailbox.

Who runs this has become the user (the child of mta-local), or is the one user that the whole MTA runs as.

A .forward that exists and is not empty makes the recipient wait, 4.3.5, until forwarding for users is built: the
user has said that the mailbox is the wrong place.  One that is empty or all comments means "do not forward"
(local(8)), also when a later file of forward_path says more; so does one that local(8) would not believe: a link,
others can write it, it is somebody else's, the user may not read it.  Where the user may not look there is none.

See also: mta/deliver/mbox.py, mta/deliver/maildir.py
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace

from mta.config.macro import MacroError, expand
from mta.deliver.local_plan import LocalSettings, ToUser
from mta.deliver.mailbox import FLAGS, MailboxError, MailboxSettings, Message, System, failure
from mta.deliver.maildir import Maildir
from mta.deliver.mbox import Mbox
from mta.lookup.unix import User
from mta.record import dataclass
from mta.smtp.reply import Reply

COMMENTS = 8192  # bytes of a .forward that are looked through for something that is no comment
_SAFE = frozenset(
    "1234567890!@%-_=+:,./abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)  # forward_expansion_filter


@dataclass(frozen=True, slots=True)
class UserDelivery:
    """One delivery.  recipient: final address.  message.delivered_to is taken from it."""

    plan: ToUser
    recipient: str
    message: Message
    settings: LocalSettings


def deliver_to_user(delivery: UserDelivery, system: System) -> Reply:
    """Deliver, or say why not; OSError and worse are for the caller (temporary)."""
    settings, user = delivery.settings, delivery.plan.user
    if "/" in user.name or user.name in ("", ".", ".."):
        return Reply(451, "4.3.5", "user name cannot be the name of a mailbox")
    try:
        if settings.require_home_directory:
            os.stat(user.home)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        return Reply(451, "4.3.0", f"cannot access home directory {user.home}: {reason}")
    try:
        forward = _forward_file(delivery, user, system.uid)
    except MailboxError as error:
        return error.reply
    if forward:
        return Reply(451, "4.3.5", f"{forward} exists, but forwarding by users is not available yet")
    path = mailbox_path(settings, user)
    message = delivery.message
    if "file" not in settings.prepend_delivered_header:
        message = replace(message, delivered_to="")
    try:
        return Reply(250, "2.0.0", deliver_into(path, message, settings.mailbox, system))
    except MailboxError as error:
        reply = error.reply
        if path.endswith("/"):
            return reply
        text = f"cannot update mailbox {path} for user {user.name}. {reply.text}"
        return Reply(reply.code, reply.enhanced, text)


def deliver_into(path: str, message: Message, settings: MailboxSettings, system: System) -> str:
    """Deliver into a mailbox; a path that ends in "/" is a Maildir.  Return what the log says; MailboxError."""
    if path.endswith("/"):
        Maildir(path, message, settings, system).deliver()
        return "delivered to maildir"
    Mbox(path, message, settings, system).deliver()
    return "delivered to mailbox"


def mailbox_path(settings: LocalSettings, user: User) -> str:
    """Where the user's mail goes; ends in "/" for a Maildir."""
    if settings.home_mailbox:
        return f"{user.home}/{settings.home_mailbox}"
    directory = settings.mail_spool_directory
    return f"{directory}{user.name}/" if directory.endswith("/") else f"{directory}/{user.name}"


def _forward_file(delivery: UserDelivery, user: User, uid: int) -> str:
    """The first file of forward_path that exists, "" when that says nothing or none exists.  uid: of this process."""
    if not user.home:
        return ""
    for path in forward_paths(delivery.settings, delivery.plan, delivery.recipient):
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if isinstance(error, PermissionError) and user.uid == uid:  # else the user could, and we cannot tell
                continue
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # a long extension, no home: there is no such file
                continue
            raise failure(error, f"cannot look for {path}") from error
        regular, owned = stat.S_ISREG(found.st_mode), found.st_uid in (0, user.uid, uid)
        if not regular or not owned or found.st_mode & stat.S_IWOTH:
            return ""
        return "" if _says_nothing(path, found, own=user.uid == uid) else path
    return ""


def _says_nothing(path: str, found: os.stat_result, *, own: bool) -> bool:
    """Is this file empty, all comments, or closed to its user (own: who we are)?  False when that cannot be told."""
    if not found.st_size:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | FLAGS)
        try:
            text = os.read(fd, COMMENTS) if os.path.samestat(os.fstat(fd), found) else b""
        finally:
            os.close(fd)
    except OSError as error:
        return own and isinstance(error, PermissionError)
    return len(text) == found.st_size and all(line[:1] == b"#" or not line.strip() for line in text.split(b"\n"))


def forward_paths(settings: LocalSettings, plan: ToUser, recipient: str) -> list[str]:
    """forward_path for this recipient; a part that needs a missing value ($extension) repeats another one."""
    user = plan.user
    values = {
        "user": user.name,
        "home": user.home,
        "shell": user.shell,
        "recipient": recipient,
        "extension": plan.extension,
        "domain": recipient.rpartition("@")[2],
        "local": plan.local,
        "recipient_delimiter": settings.recipient_delimiter[:1] if plan.extension else "",
    }
    lookup = _filtered(values)
    paths = []
    for part in settings.forward_path:
        if part.startswith("/."):  # "$home/.forward" from which an expansion as main.cf text has taken $home
            part = "$home" + part
        try:
            path = expand(part, lookup)
        except MacroError:
            continue
        if path.startswith("/") and path not in paths:
            paths.append(path)
    return paths


def _filtered(values: dict[str, str]) -> Callable[[str], str | None]:
    """What mail brings along cannot walk through directories; what passwd says is not touched."""

    def lookup(name: str) -> str | None:
        value = values.get(name)
        if value is None or name in ("home", "user", "shell"):
            return value
        return "".join(c if c in _SAFE and c != "/" else "_" for c in value)

    return lookup
