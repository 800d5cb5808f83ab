"""The daemon's side of `sendmail`: the submit socket.

Whoever connects is known by SO_PEERCRED.  Nothing that comes over the socket is believed beyond that, every
connection is bounded in number per uid, in frame size and in time, and its errors end only itself.  A message is
answered when it is durable.  Its key is kept for an hour, and in the queue file, so that a caller whose
connection broke can ask what became of it.

See also: mta/submit/wire.py (protocol), mta/submit/prepare.py (what is made of stdin), sendmail(1)
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from mta.cleanup.intake import TOO_BIG, WRITE_ERROR
from mta.clock import Clock
from mta.lookup.table import TableError
from mta.maillog.maillog import Maillog
from mta.queue.api import QueueError
from mta.record import dataclass
from mta.smtp.reply import Reply
from mta.submit.connection import Connection, LostError
from mta.submit.intake import Delivery, Opener
from mta.submit.limits import UserLimits, UserLimitSettings
from mta.submit.options import EX_DATAERR, EX_NOPERM, Mode, UsageError, parse_command, program_name
from mta.submit.prepare import Caller, Submission, VerpSettings
from mta.submit.results import PATIENCE, Results
from mta.submit.users import Access, Users
from mta.submit.wire import Hello, WireError, decode_hello, decode_total, encode

KEY_LIFETIME = 3600.0  # seconds an answer is remembered
MAX_KEYS = 10_000  # answers remembered
MAX_CONNECTIONS = 500  # at once, of everybody
RESERVED_FOR_ROOT = 20
IDLE_TIMEOUT = 30.0  # seconds without a frame; sendmail has all of its input before it connects
EX_TEMPFAIL = 75
EX_OK = 0


@dataclass(frozen=True, slots=True)
class SubmitSettings:
    """postconf(5)."""

    authorized_submit_users: tuple[str, ...]
    hopcount_limit: int
    default_verp_delimiters: str = "+="
    verp_delimiter_filter: str = "-=+"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller is told.  status: exit status.  lines: for stderr.  results: for -v, to be closed."""

    status: int
    lines: tuple[str, ...] = ()
    queue_id: str = ""
    results: Results | None = None


ServeSmtp = Callable[[asyncio.Transport, int, Callable[[], None]], Awaitable[None]]
"""Takes the transport over; calls the function when the session has ended."""


class SubmitServer:
    """Serves the submit socket; give `factory` to loop.create_unix_server or create_server(sock=...)."""

    def __init__(
        self,
        settings: SubmitSettings,
        cleanup: Opener,
        users: Users,
        access: Access,
        log: Maillog,
        clock: Clock,
        run_id: bytes,
        *,
        serve_smtp: ServeSmtp | None = None,
        find_key: Callable[[str], str | None] = lambda _: None,
        limits: UserLimits | None = None,
        results: bool = False,
    ) -> None:
        """run_id: 8 random bytes, new at each start.  find_key: submit key (hex) -> queue id found at start, or None.

        serve_smtp: runs an SMTP dialogue on a transport for this uid (`sendmail -bs`); None = not offered.
        results: messages are delivered in this process, so -v can be told what becomes of them.
        """
        self._settings, self._cleanup, self._users, self._access = settings, cleanup, users, access
        self._verp = VerpSettings(settings.default_verp_delimiters, settings.verp_delimiter_filter)
        self._log, self._clock, self._run_id = log, clock, run_id[:8].ljust(8, b"\0")
        self._serve_smtp, self._find_key = serve_smtp, find_key
        self._limits, self._results = limits or UserLimits(UserLimitSettings(), clock), results
        self._answers: OrderedDict[bytes, tuple[float, asyncio.Future[Answer]]] = OrderedDict()
        self._open: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def factory(self) -> Connection:
        """The protocol of one connection."""
        return Connection(self._started, self._clock, IDLE_TIMEOUT)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and wait so long for what is under way."""
        self._closing = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _started(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        try:
            uid = _peer_uid(connection)
            if uid is None or self._closing or not self._room(uid):
                connection.send(b"B")
                return
            self._open[uid] += 1
            try:
                await self._dialogue(connection, uid)
            finally:
                connection.close()
                await connection.closed()
                self._ended(uid)
        except (WireError, LostError, TimeoutError, OSError):
            pass  # sendmail asks again, or gives up; nothing was accepted or it is remembered by its key
        except Exception as error:
            self._log.warning("pickup", f"submit: internal error: {type(error).__name__}: {error}")
        finally:
            connection.close()
            await connection.closed()

    def _ended(self, uid: int) -> None:
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]

    def _room(self, uid: int) -> bool:
        limit = MAX_CONNECTIONS if uid == 0 else MAX_CONNECTIONS - RESERVED_FOR_ROOT
        most = self._limits.settings.submit_user_connection_limit
        return self._open.total() < limit and (not most or self._limits.exempt(uid) or self._open[uid] < most)

    async def _dialogue(self, connection: Connection, uid: int) -> None:
        kind, data = await connection.frame()
        if kind != b"H":
            raise WireError("no H frame")
        hello = decode_hello(data)
        if hello.mode == "a":
            await self._what_became(connection, hello.key)
            return
        program = program_name(hello.arguments[0])
        refusal = None if self._remembered(hello.key) else await self._refusal(program, uid)
        if refusal is not None:
            _answer(connection, refusal)
        elif hello.mode == "s":
            await self._smtp(connection, uid, program)
        else:
            await self._submit(connection, uid, hello)

    async def _refusal(self, program: str, uid: int) -> Answer | None:
        """authorized_submit_users; a table that fails says try later."""
        try:
            denied = await self._access.denied(self._settings.authorized_submit_users, uid)
        except TableError as error:
            self._log.warning("pickup", f"authorized_submit_users: {error}")
            return Answer(EX_TEMPFAIL, (f"{program}: fatal: cannot look up who may submit mail, try again later",))
        if not denied and (limited := self._limits.refusal(uid)):
            self._log.warning("pickup", f"uid={uid}: {limited}")
            return Answer(EX_TEMPFAIL, (f"{program}: fatal: uid={uid}: {limited}",))
        if denied:
            return Answer(EX_NOPERM, (f"{program}: fatal: User {denied}({uid}) is not allowed to submit mail",))
        return None

    async def _smtp(self, connection: Connection, uid: int, program: str) -> None:
        if self._serve_smtp is None:
            _answer(connection, Answer(EX_TEMPFAIL, (f"{program}: fatal: stand-alone mode is not available",)))
            return
        transport = connection.detach()
        transport.write(encode(b"G", self._run_id))
        self._open[uid] += 1  # also when we have handed it over
        try:
            await self._serve_smtp(transport, uid, partial(self._ended, uid))
        except BaseException:
            self._ended(uid)
            raise

    # -- one message ---------------------------------------------------------------------------------

    async def _submit(self, connection: Connection, uid: int, hello: Hello) -> None:
        known = self._remembered(hello.key)
        if known is not None:  # the same message again
            _answer(connection, await asyncio.shield(known))
            return
        outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._remember(hello.key, outcome)
        try:
            answer = await self._accept(connection, uid, hello)
        except BaseException:
            self._answers.pop(hello.key, None)  # nothing was queued
            outcome.cancel()
            raise
        outcome.set_result(answer)
        if answer.status != EX_OK:
            self._answers.pop(hello.key, None)
        if answer.results is not None:
            await self._tell(connection, answer.queue_id, answer.results)
        _answer(connection, answer)

    async def _tell(self, connection: Connection, queue_id: str, results: Results) -> None:
        """-v: the queue id, then what becomes of the message for some seconds; its exit status is certain already."""
        try:
            connection.send(b"O", f"{queue_id}\n".encode())
            until = self._clock.monotonic() + PATIENCE
            while self._results and not self._closing:
                lines = await results.next(queue_id, self._clock, until)
                if lines is None:
                    break
                connection.send(b"O", "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")[:60000])
        finally:
            results.close()

    async def _accept(self, connection: Connection, uid: int, hello: Hello) -> Answer:
        program = program_name(hello.arguments[0])
        try:
            invocation = parse_command(hello.arguments, uid=uid)
            if invocation.mode is not Mode.SUBMIT:
                raise WireError("not a submission")
            caller = await self._caller(uid, hello.environment)
            connection.send(b"G", self._run_id)  # now, so that the message travels while we go on
            submission = Submission(invocation, caller, self._verp)
        except UsageError as error:
            return Answer(error.status, error.lines)
        except TableError as error:
            self._log.warning("pickup", f"uid={uid}: {error}")
            return Answer(EX_TEMPFAIL, (f"{program}: fatal: cannot look up user {uid}, try again later",))
        return await self._content(connection, submission, hello.key)

    async def _caller(self, uid: int, environment: dict[str, str]) -> Caller:
        user = await self._users.by_uid(uid)
        if user is None:
            return Caller(uid, environment=environment)
        return Caller(uid, user.name, user.gecos, environment)

    async def _content(self, connection: Connection, submission: Submission, key: bytes) -> Answer:
        """Read D frames to E, feeding the queue as soon as the header is complete."""
        delivery = Delivery(
            self._cleanup,
            submission,
            self._log,
            self._clock,
            hop_limit=self._settings.hopcount_limit,
            key=key.hex(),
        )
        try:
            total = 0
            while True:
                kind, data = await connection.frame()
                if kind == b"E":
                    break
                if kind != b"D":
                    raise WireError("unexpected frame")
                total += len(data)
                await delivery.feed(data)
            if decode_total(data) != total:
                raise WireError("bytes missing")
            if not submission.invocation.verbose:
                return _outcome(submission, await delivery.finish(), delivery.queue_id)
            return await self._verbose(submission, delivery)
        except UsageError as error:
            return Answer(error.status, error.lines)
        except QueueError as error:
            self._log.warning("pickup", f"{error}")
            return _outcome(submission, WRITE_ERROR, "")
        finally:
            delivery.close()

    async def _verbose(self, submission: Submission, delivery: Delivery) -> Answer:
        results = Results(self._log)
        try:
            answer = _outcome(submission, await delivery.finish(), delivery.queue_id)
            if answer.status == EX_OK:
                return replace(answer, results=results)
        except BaseException:
            results.close()
            raise
        results.close()
        return answer

    # -- keys ----------------------------------------------------------------------------------------

    def _remember(self, key: bytes, outcome: asyncio.Future[Answer]) -> None:
        now = self._clock.monotonic()
        self._answers[key] = (now, outcome)
        for _ in range(len(self._answers)):
            oldest, (since, future) = next(iter(self._answers.items()))
            if len(self._answers) <= MAX_KEYS and now - since < KEY_LIFETIME:
                break
            del self._answers[oldest]
            if not future.done():  # there are never more of these than connections
                self._answers[oldest] = (now, future)

    def _remembered(self, key: bytes) -> asyncio.Future[Answer] | None:
        entry = self._answers.get(key)
        return entry[1] if entry is not None else None

    async def _what_became(self, connection: Connection, key: bytes) -> None:
        outcome = self._remembered(key)
        if outcome is not None:
            with contextlib.suppress(asyncio.CancelledError):
                _answer(connection, await asyncio.shield(outcome))
                return
        queue_id = self._find_key(key.hex())
        if queue_id:
            _answer(connection, Answer(EX_OK, queue_id=queue_id))
        else:
            connection.send(b"U", self._run_id)


def _outcome(submission: Submission, reply: Reply, queue_id: str) -> Answer:
    """Exit status and text for cleanup's reply."""
    invocation = submission.invocation
    warnings = tuple(invocation.warnings)
    if reply.is_positive:
        return Answer(EX_OK, warnings, queue_id)
    if reply == TOO_BIG:
        return Answer(EX_DATAERR, invocation.fatal(EX_DATAERR, f"{submission.who}: message file too big").lines)
    status = EX_TEMPFAIL if reply.is_temporary else EX_DATAERR
    return Answer(status, invocation.fatal(status, f"{submission.who}: {reply.text}").lines)


def _answer(connection: Connection, answer: Answer) -> None:
    if answer.lines:
        connection.send(b"W", ("\n".join(answer.lines) + "\n").encode("utf-8", "surrogateescape")[:60000])
    connection.send(b"R", bytes([answer.status]))


def _peer_uid(connection: Connection) -> int | None:
    sock = connection.socket()
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
