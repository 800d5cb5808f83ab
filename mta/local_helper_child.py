"""The children of mta-local: processes that have become a user for good, and deliver for as long as mail comes.

A fork costs more than ten deliveries, and mail for one user comes in runs.  So a child stays for IDLE seconds after
a delivery, and the next one for the same user, with the same groups and settings, is given to it.  Nobody else's
mail ever is: the way back is closed, and it holds no descriptor but its own end of the socket.

State: idle children by what they are, and whose turn it is at an mbox.  A child has one delivery at a time; when
another comes meanwhile, that gets a child of its own.  Only for an mbox it waits for its turn first: two children
would meet at the lock, where the second one sleeps for deliver_lock_delay (1 s).  When a step fails:
- it cannot become the user, or the delivery fails: it answers, and ends; so does one that ran out of time
  (command_time_limit, its own alarm: we have no right to kill it);
- the request cannot be handed over: it had been killed while idle; another is forked;
- it dies without an answer: 4.3.0, what it did is unknown (window W3);
- we die, or the daemon does not wait any more: it sees the end of the socket, writes nothing from then on, and ends.

See also: mta/local_helper.py, credentials(7), unix(7) SCM_RIGHTS
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from typing import NoReturn
from weakref import WeakValueDictionary

from mta.clock import Clock
from mta.deadlines import Deadlines
from mta.deliver.local import user_delivery
from mta.deliver.local_plan import LocalSettings, ToUser
from mta.deliver.local_user import deliver_to_user, mailbox_path
from mta.deliver.local_wire import ANSWER_LIMIT, Answer, Ask, WireError, decode_answer, encode_answer
from mta.deliver.mailbox import System
from mta.fsio.linux_writeback import Journals
from mta.lookup.unix import User
from mta.maillog.maillog import Maillog
from mta.record import dataclass
from mta.smtp.reply import Reply

IDLE = 2.0  # seconds a child waits for more mail for its user
MAX_IDLE = 20  # children
GRACE = 30.0  # seconds beyond command_time_limit for the answer
TURN = 10.0  # seconds to wait for one's turn; well below the GRACE of mta/deliver/local_client.py, which waits for us
REQUEST_SIZE = 65536  # bytes of a request; addresses are limited to much less
SERVICE = "local"
FAILED = Reply(451, "4.3.0", "local delivery failed, will try again")
OUT_OF_TIME = Reply(451, "4.3.0", "local delivery took too long")

Become = Callable[[User, Iterable[int], int], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One delivery.  groups, gid: to become the user with.  content: descriptor."""

    plan: ToUser
    ask: Ask
    content: int
    groups: tuple[int, ...]
    gid: int
    settings: LocalSettings


@dataclass(slots=True)
class _Child:
    """Our end of its socket, and what it may be used for."""

    sock: socket.socket
    kind: tuple[object, ...]
    settings: LocalSettings  # kept alive: its identity is part of `kind`
    timer: asyncio.TimerHandle | None = None


class Children:
    """Owned by one Helper."""

    def __init__(self, fsync: Callable[[int], None], clock: Clock, log: Maillog, become: Become) -> None:
        self._fsync, self._clock, self._log, self._become = fsync, clock, log, become
        self._deadlines = Deadlines(clock)
        self._idle: list[_Child] = []
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by mbox

    async def deliver(self, work: Work) -> Reply:
        """Have it delivered; what is not known to have gone well is a temporary failure."""
        async with self._turn(mailbox_path(work.settings, work.plan.user)):
            return await self._deliver_now(work)

    @contextlib.asynccontextmanager
    async def _turn(self, path: str) -> AsyncIterator[None]:
        """One delivery after the other; one that takes long (somebody else holds the lock) lets the others try, too."""
        turn = self._turns.setdefault(path, asyncio.Lock())
        mine = False
        if not path.endswith("/"):
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(TURN):
                    mine = await turn.acquire()
        try:
            yield
        finally:
            if mine:
                turn.release()

    async def _deliver_now(self, work: Work) -> Reply:
        kind = (work.plan.user, work.groups, work.gid, id(work.settings))
        while True:
            child = self._take(kind)
            fresh = child is None
            try:
                child = child or self._fork(kind, work)
                socket.send_fds(child.sock, [_request(work)], [work.content])
            except OSError as error:
                if child is not None:
                    child.sock.close()
                if not fresh:
                    continue
                self._log.warning(SERVICE, f"fork: {error}")
                return FAILED
            return await self._answer(child, work)

    def close(self) -> None:
        """Let go of the idle ones."""
        while self._idle:
            self._end(self._idle[0])

    async def _answer(self, child: _Child, work: Work) -> Reply:
        reply = FAILED
        try:
            async with self._deadlines.timeout(work.settings.command_time_limit + GRACE):
                line = await asyncio.get_running_loop().sock_recv(child.sock, ANSWER_LIMIT)
            reply = decode_answer(line).reply
        except (WireError, TimeoutError, OSError):
            self._log.warning(SERVICE, f"the delivery to {work.ask.recipient} ended without an answer")
        finally:
            if reply.is_positive:
                self._keep(child)
            else:
                child.sock.close()
        return reply

    def _take(self, kind: tuple[object, ...]) -> _Child | None:
        for child in self._idle:
            if child.kind == kind:
                self._idle.remove(child)
                if child.timer is not None:
                    child.timer.cancel()
                return child
        return None

    def _keep(self, child: _Child) -> None:
        child.timer = self._clock.call_later(IDLE, lambda: self._end(child))
        self._idle.append(child)
        if len(self._idle) > MAX_IDLE:
            self._end(self._idle[0])

    def _end(self, child: _Child) -> None:
        self._idle.remove(child)
        if child.timer is not None:
            child.timer.cancel()
        child.sock.close()

    def _fork(self, kind: tuple[object, ...], work: Work) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            self._live(theirs, work)
        theirs.close()
        ours.setblocking(False)
        return _Child(ours, kind, work.settings)

    # -- in the child -------------------------------------------------------------------------------------

    def _live(self, sock: socket.socket, first: Work) -> NoReturn:
        """The child's whole life; never returns into the loop of the parent."""
        try:
            signal.set_wakeup_fd(-1)
            close_others({0, 1, 2, sock.fileno()})
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            sock.setblocking(True)
            journals = Journals()
            become: Callable[[], None] | None = lambda: self._become(first.plan.user, first.groups, first.gid)  # noqa: E731
            while True:
                data, fds, _, _ = socket.recv_fds(sock, REQUEST_SIZE, 1)
                if not data:
                    break
                reply = self._perform(data, fds[0], first, become, journals, lambda: not _hung_up(sock))
                sock.sendall(encode_answer(Answer(reply)))
                become = None
                os.close(fds[0])
                if not reply.is_positive:
                    break
        finally:
            os._exit(0)

    def _perform(
        self,
        data: bytes,
        content: int,
        first: Work,
        become: Callable[[], None] | None,
        journals: Journals,
        wanted: Callable[[], bool],
    ) -> Reply:
        user, settings = first.plan.user, first.settings
        try:
            with time_limit(settings.command_time_limit):
                if become is not None:
                    become()
                found = json.loads(data)
                plan = replace(first.plan, local=found["local"], extension=found["extension"])
                delivery = user_delivery(plan, Ask(**found["ask"]), content, settings, self._clock.now())
                clock = self._clock
                system = System(self._fsync, clock.block, clock.now, user.uid, journals.written_out, wanted)
                return deliver_to_user(delivery, system)
        except TimeUpError:
            return OUT_OF_TIME
        except BaseException:
            return FAILED


def _request(work: Work) -> bytes:
    """What a child is told; it knows the user and the settings.  From root to the user, so taken as it is."""
    ask = work.ask
    fields = {name: getattr(ask, name) for name in ("queue_id", "recipient", "original", "sender", "transport")}
    return json.dumps({"ask": fields, "local": work.plan.local, "extension": work.plan.extension}).encode()


def _hung_up(sock: socket.socket) -> bool:
    """Is there nobody at the other end any more?"""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


class TimeUpError(BaseException):
    """Not an Exception, so that nothing on the way takes it for its own; the mailbox is cut back as it passes."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUpError in the block after so many seconds, whatever system call it is in."""

    def up(_number: int, _frame: object) -> None:
        raise TimeUpError

    signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def become_user(user: User, groups: Iterable[int], gid: int) -> None:
    """Become a user for good: groups, then all three gids, then all three uids; make sure there is no way back."""
    if user.uid == 0:
        raise PermissionError("never as root")
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(user.uid, user.uid, user.uid)
    try:
        os.setuid(0)
    except PermissionError:
        pass
    else:
        raise PermissionError("still root")
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError("not the user")
    os.umask(0o077)
    os.chdir("/")


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor but these: a child holds no other client's connection open."""
    start = 0
    for fd in (*sorted(keep), os.sysconf("SC_OPEN_MAX")):
        if fd > start:  # closerange(0, 0) closes everything: its end becomes the largest number there is
            os.closerange(start, fd)
        start = fd + 1
