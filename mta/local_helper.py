"""mta-local: the process that stays root, so that each mailbox is written with its user's rights.

The daemon names a recipient and hands over a descriptor with the message; who that recipient is, where the
mailbox lies and what aliases say is decided here, from files the daemon cannot write.  Whoever has taken over
the daemon can send mail to users, which the daemon could before, and nothing else.

A child is forked, becomes the user for good, delivers and answers (mta/local_helper_child.py).  uid 0 and
mail_owner are nobody's mailbox: root's mail waits (4.3.5) until /etc/aliases names a person.  Postfix appends it
to /var/mail/root as root; a process that never writes as root cannot be made to.

State: connections in progress.  When a step fails:
- a connection sends nonsense, or nothing for READ_LIMIT: it is closed, the others go on;
- the child dies or runs out of time: 4.3.0;
- the daemon closes before it has its answer: what is not being written is not delivered;
- main.cf cannot be read or believed: every recipient 4.3.5.

One thread, no threads even for blocking work, because it forks.

See also: mta/deliver/local_wire.py (protocol), credentials(7), unix(7) SCM_RIGHTS
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable, Coroutine, Iterable
from typing import ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

from mta.clock import Clock
from mta.deliver.local_plan import USER_LOOKUP_FAILED, LocalSettings, Planner, ToOthers, ToUser
from mta.deliver.local_wire import (
    REQUEST_LIMIT,
    Answer,
    Ask,
    WireError,
    decode_ask,
    encode_answer,
)
from mta.fsio.fsio import fsync_now
from mta.local_helper_child import Become, Children, Work, become_user
from mta.lookup.table import TableError
from mta.lookup.unix import User
from mta.maillog.maillog import Maillog
from mta.record import dataclass
from mta.smtp.reply import Reply

P = ParamSpec("P")
T = TypeVar("T")

READ_LIMIT = 30.0  # seconds for a request to arrive
DRAIN_LIMIT = 30.0  # seconds for deliveries to end at shutdown
MAX_CONNECTIONS = 256
MAX_CHILDREN = 50
MAX_OF_ONE_USER = 5  # of them: he may stop his, or have a program hold the lock of his mailbox
SERVICE = "local"
BAD_SETUP = Reply(451, "4.3.5", "local delivery is not configured correctly")


class InlineWorker:
    """In place of Fsio.run: blocking calls are made at once, in the only thread."""

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it."""
        return fn(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a reading of the configuration gave for one transport.  owner_uid: of mail_owner."""

    settings: LocalSettings
    planner: Planner
    owner_uid: int


class SetupError(Exception):
    """The configuration cannot be read or must not be believed; str() is for the log."""


class Groups(Protocol):
    """The part of mta/lookup/unix.py used here."""

    async def groups(self, user: User) -> tuple[int, ...]:
        """All groups; TableError."""


class Doorway(Protocol):
    """Where connections come from."""

    def fileno(self) -> int:
        """For the selector."""

    def next(self) -> socket.socket | None:
        """The next connection, None when there is none; EOFError when there will be none any more."""

    def close(self) -> None:
        """No more."""


class Listener:
    """Connections to a unix socket, from mail_owner and root only."""

    def __init__(self, sock: socket.socket, allowed: Callable[[int], bool]) -> None:
        sock.setblocking(False)
        self._sock, self._allowed = sock, allowed

    def fileno(self) -> int:
        """See Doorway."""
        return self._sock.fileno()

    def next(self) -> socket.socket | None:
        """See Doorway."""
        try:
            connection, _ = self._sock.accept()
        except OSError:  # gone already, or no descriptor left: the next readiness tries again
            return None
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if self._allowed(struct.unpack("3i", peer)[1]):
            return connection
        connection.close()
        return None

    def close(self) -> None:
        """See Doorway."""
        self._sock.close()


class Channel:
    """Connections handed over a socket pair by the process that forked us; its end is our end.

    A packet without a descriptor means that the log is to be opened again: rotate.
    """

    def __init__(self, sock: socket.socket, rotate: Callable[[], None] = lambda: None) -> None:
        sock.setblocking(False)
        self._sock, self._rotate = sock, rotate

    def fileno(self) -> int:
        """See Doorway."""
        return self._sock.fileno()

    def next(self) -> socket.socket | None:
        """See Doorway."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 16, 1)
        except BlockingIOError:
            return None
        if not data:
            _close_all(fds)
            raise EOFError
        if not fds:
            self._rotate()
            return None
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """See Doorway."""
        self._sock.close()


class Helper:
    """Serves until its doorway ends or stop() is called."""

    def __init__(
        self,
        doorway: Doorway,
        setup: Callable[[str], Setup],
        users: Groups,
        clock: Clock,
        log: Maillog,
        fsync: Callable[[int], None] = fsync_now,
        become: Become | None = None,
    ) -> None:
        """setup: called with the transport for each request; SetupError.  become: see become_user."""
        self._doorway, self._setup, self._users = doorway, setup, users
        self._clock, self._log = clock, log
        self._children = Children(fsync, clock, log, become or become_user)
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CHILDREN)
        self._slots_of: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()  # by uid
        self._stopped = asyncio.Event()
        self._accepted = 0

    async def run(self) -> None:
        """Serve."""
        loop = asyncio.get_running_loop()
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for, only their answers
        loop.add_reader(self._doorway.fileno(), self._accept)
        try:
            await self._stopped.wait()
        finally:
            loop.remove_reader(self._doorway.fileno())
            self._doorway.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_LIMIT)
        self._children.close()
        signal.signal(signal.SIGCHLD, before)

    def stop(self) -> None:
        """Take nothing new; run() returns when deliveries have ended."""
        self._stopped.set()

    async def stop_when_idle(self, seconds: float) -> None:
        """Stop after so many seconds without a request; what comes then waits for a successor."""
        seen = -1
        while self._tasks or seen != self._accepted:
            seen = self._accepted
            await self._clock.sleep(seconds)
        self.stop()

    def _accept(self) -> None:
        try:
            connection = self._doorway.next()
        except (EOFError, OSError):
            self.stop()
            return
        if connection is None:
            return
        if len(self._tasks) >= MAX_CONNECTIONS:
            connection.close()
            return
        self._accepted += 1
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """One request, one answer; whatever goes wrong ends here."""
        content = -1
        try:
            async with self._clock.timeout(READ_LIMIT):
                line, content = await _receive(connection)
            ask = decode_ask(line)
            answer = await self._while_waited_for(connection, self._answer(ask, content))
            async with self._clock.timeout(READ_LIMIT):
                await asyncio.get_running_loop().sock_sendall(connection, encode_answer(answer))
        except (WireError, TimeoutError, OSError) as error:
            self._log.warning(SERVICE, f"request refused: {type(error).__name__} {error}".rstrip())
        except Exception as error:  # a bug of ours ends one request
            self._log.warning(SERVICE, f"request failed: {error!r}")
        finally:
            _close_all([content] if content >= 0 else [])
            connection.close()

    @staticmethod
    async def _while_waited_for(connection: socket.socket, answer: Coroutine[object, None, Answer]) -> Answer:
        """The answer; WireError when the daemon has closed meanwhile: it asks again, so nothing may be delivered."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(answer)

        def gone() -> None:  # it has nothing to say after its request
            loop.remove_reader(connection.fileno())
            task.cancel()

        loop.add_reader(connection.fileno(), gone)
        try:
            await asyncio.wait([task])
        finally:
            loop.remove_reader(connection.fileno())
            task.cancel()
        if task.cancelled():
            raise WireError("the daemon does not wait any more")
        return task.result()

    async def _answer(self, ask: Ask, content: int) -> Answer:
        try:
            setup = self._setup(ask.transport)
        except SetupError as error:
            self._log.warning(SERVICE, f"{ask.queue_id}: {error}")
            return Answer(BAD_SETUP)
        plan = await setup.planner.plan(ask.recipient, ask.sender)
        if isinstance(plan, ToOthers):
            return Answer(Reply(250, "2.0.0", "forwarded"), plan.recipients, plan.sender)
        if isinstance(plan, ToUser):
            return Answer(await self._mailbox(setup, ask, plan, content))
        return Answer(plan)

    async def _mailbox(self, setup: Setup, ask: Ask, plan: ToUser, content: int) -> Reply:
        user, settings = plan.user, setup.settings
        if user.uid in (0, setup.owner_uid):
            hint = f"mail for {user.name} is not written into a mailbox; add an alias for {user.name} to the alias file"
            self._log.warning(SERVICE, f"{ask.queue_id}: {hint}")
            return Reply(451, "4.3.5", hint)
        try:
            groups = await self._users.groups(user)
        except TableError as error:
            self._log.warning(SERVICE, f"{ask.queue_id}: {error}")
            return USER_LOOKUP_FAILED
        work = Work(plan, ask, content, groups, mailbox_group(settings, user), settings)
        slots = self._slots_of.setdefault(user.uid, asyncio.Semaphore(MAX_OF_ONE_USER))
        async with slots, self._slots:
            return await self._children.deliver(work)


def mailbox_group(settings: LocalSettings, user: User) -> int:
    """The group to write with: that of the spool where it is what lets users create files (Debian: 2775 mail)."""
    if not settings.home_mailbox:
        with contextlib.suppress(OSError):
            spool = os.stat(settings.mail_spool_directory)
            if spool.st_mode & stat.S_IWGRP and not spool.st_mode & stat.S_IWOTH:
                return spool.st_gid
    return user.gid


# -- sockets ----------------------------------------------------------------------------------------------


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def _receive(sock: socket.socket) -> tuple[bytes, int]:
    """A request line and its descriptor, which must be a regular file that can be read by position."""
    line, content = b"", -1
    try:
        while not line.endswith(b"\n"):
            await _readable(sock)
            data, fds, _, _ = socket.recv_fds(sock, REQUEST_LIMIT + 1, 4)
            if content < 0 and fds:
                content, fds = fds[0], fds[1:]
            _close_all(fds)
            line += data
            if not data or len(line) > REQUEST_LIMIT:
                raise WireError("no request")
        if content < 0 or not stat.S_ISREG(os.fstat(content).st_mode):
            raise WireError("no content")
    except BaseException:
        _close_all([content] if content >= 0 else [])
        raise
    return line, content


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
