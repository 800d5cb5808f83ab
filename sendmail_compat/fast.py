"""The common case of `sendmail`, in as few system calls and imports as possible: stdin to the submit socket.

Only modules that the interpreter has loaded when it starts (`sys`, `posix`, `time`), and `_socket`, which is built in
on Debian: a bare interpreter takes 5.4 ms to start, importing argparse alone doubles that.  Whatever is not
the common case goes to sendmail_compat/slow.py with what has been read so far.  The installed sendmail imports this
file by itself, outside of its package, because it is compiled then, and nothing else is.

Order that makes exit 0 mean "durable" and 75 mean "nothing queued": all of stdin is read first (cron's jobs
write for hours; a file, which does not wait, while the daemon looks at who is there), then the daemon is asked; before
its first answer nothing has been sent, so maildrop is still
open to us; after that a lost connection is followed by the question what became of our key.

See also: mta/submit/wire.py (protocol)
"""

import _socket
import posix
import sys
from time import monotonic, sleep

TYPE_CHECKING = False  # typing is not imported at run time
if TYPE_CHECKING:
    from collections.abc import Iterator

RAM_LIMIT = 1 << 20  # bytes of stdin kept in memory; more goes to a memfd
CHUNK = 65536
FIRST_ANSWER = 12.0  # seconds from the end of input to the daemon's first answer
AT_ONCE = 0.1  # seconds for a daemon that is asked before stdin is read
FINAL_ANSWER = 300.0  # seconds after the body
BUSY_PAUSE = 0.2  # seconds before a busy daemon is asked again
ASK_AGAIN = 10.0  # seconds of asking what became of the message
MAX_FRAME = 65536
KEY_AND_MODE = 17  # bytes of an H frame before the arguments
MAX_CONFIG = 1 << 20  # bytes of main.cf
DEFAULT_DIRECTORY = "/etc/mta"
DEFAULT_QUEUE = "/var/spool/mta"
DEFAULT_LIMIT = 10_240_000  # message_size_limit
ENVIRONMENT = (b"NAME", b"LOGNAME", b"USER", b"TZ", b"LANG", b"LC_ALL", b"MAIL_CONFIG")
EX_OK, EX_DATAERR, EX_NOINPUT, EX_OSERR, EX_TEMPFAIL = 0, 65, 66, 71, 75
MAX_VARIABLE = 4096  # bytes of an environment entry that the daemon is told
_ENOMEM, _ENFILE, _EMFILE, _EFBIG, _ENOSPC = 12, 23, 24, 27, 28

_SLOW_NAMES = (
    *("mailq", "newaliases", "rmail", "runq", "rsmtp", "makemap", "smtpd", "hoststat", "purgestat"),
    *("postqueue", "postsuper", "postcat", "qshape", "postdrop", "postlog", "postkick"),
)
_WITH_ARGUMENT = "ABCFLNORVXbefhopr"
_OPTIONAL_ARGUMENT = "EJ"
_SLOW_ARGUMENT = "Qdq"  # the rest of the word is theirs, whatever letters it has
_FLAGS = "GUcimnstvx"


class Settings:
    """What the fast path takes from main.cf."""

    __slots__ = ("limit", "queue", "socket")

    def __init__(self, queue: str, socket: str, limit: int) -> None:
        self.queue, self.socket, self.limit = queue, socket, limit


class Input:
    """All of stdin.  size: bytes.  memory: the bytes, or b"" when they are in the memfd `fd`."""

    __slots__ = ("fd", "memory", "size")

    def __init__(self, memory: bytes, fd: int, size: int) -> None:
        self.memory, self.fd, self.size = memory, fd, size

    def chunks(self) -> "Iterator[bytes]":
        """Yield pieces of at most CHUNK bytes."""
        if self.fd < 0:
            for at in range(0, self.size, CHUNK):
                yield self.memory[at : at + CHUNK]
            return
        at = 0
        while at < self.size:
            piece = posix.pread(self.fd, CHUNK, at)
            if not piece:
                raise OSError("memfd ended early")
            at += len(piece)
            yield piece


NOTHING = Input(b"", -1, 0)


def say(text: str) -> None:
    """One line on stderr; nobody listening is no error."""
    data = text.encode("utf-8", "surrogateescape") + b"\n"
    try:  # noqa: SIM105  contextlib is not imported here
        posix.write(2, data)
    except OSError:
        pass


def program(argv: list[str]) -> str:
    """Name for messages."""
    return (argv[0] if argv else "").rpartition("/")[2] or "sendmail"


class Command:
    """What the fast path must know of the command line.

    slow: an option asks for anything but submitting stdin, or is wrong.  dot_ends: no -i.
    """

    __slots__ = ("config", "dot_ends", "slow")

    def __init__(self, argv: list[str]) -> None:
        self.slow = program(argv) in _SLOW_NAMES
        self.dot_ends = True
        self.config = ""
        extract, i = False, 1
        while i < len(argv) and len(argv[i]) > 1 and argv[i][0] == "-":
            word = argv[i]
            i += 1
            if word[1] == "-":
                self.slow = self.slow or word != "--"
                break
            if "t" in word:
                extract = True  # or part of an argument: then the daemon complains
            pos = 1
            while pos < len(word):
                letter, rest = word[pos], word[pos + 1 :]
                pos += 1
                if letter in _WITH_ARGUMENT:
                    if not rest and i < len(argv):
                        rest = argv[i]
                        i += 1
                    if letter == "C":
                        self.config = rest
                    elif letter == "o" and rest[:1] == "i":
                        self.dot_ends = False
                    elif letter == "b" and rest != "m":
                        self.slow = True
                    break
                if letter in _SLOW_ARGUMENT:
                    self.slow = True
                if letter in _OPTIONAL_ARGUMENT or letter in _SLOW_ARGUMENT:
                    break
                if letter == "i":
                    self.dot_ends = False
                elif letter not in _FLAGS:
                    self.slow = True
        if i >= len(argv) and not extract:
            self.slow = True  # no recipients: said before anything is read


def config_directory(option: str) -> str:
    """-C, else $MAIL_CONFIG, else the default; the name of a main.cf stands for its directory."""
    directory = option or posix.environ.get(b"MAIL_CONFIG", b"").decode("utf-8", "surrogateescape")
    return directory.removesuffix("/main.cf") or DEFAULT_DIRECTORY


def read_settings(directory: str) -> "Settings | None":
    """Read main.cf for the few settings needed; None when it takes the real parser ("$", odd values)."""
    values: dict[str, str] = {}
    try:
        fd = posix.open(directory + "/main.cf", posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = b""
        while piece := posix.read(fd, CHUNK):
            data += piece
            if len(data) > MAX_CONFIG:
                return None
    except OSError:
        return None
    finally:
        posix.close(fd)
    if not data:
        return None  # or a FIFO
    name = ""
    if not (b"queue_directory" in data or b"submit_socket" in data or b"message_size_limit" in data):
        data = b""
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        stripped = line.strip()
        if not stripped or stripped[0] == "#":
            continue
        if line[0] in " \t":
            if name in values:
                values[name] += " " + stripped
            continue
        name, _, value = line.partition("=")
        name = name.strip()
        if name in ("queue_directory", "submit_socket", "message_size_limit"):
            values[name] = value.strip()
        else:
            name = ""
    queue = values.get("queue_directory", DEFAULT_QUEUE)
    socket = values.get("submit_socket", "$queue_directory/public/submit").replace("$queue_directory", queue)
    limit = values.get("message_size_limit", str(DEFAULT_LIMIT))
    if "$" in queue + socket + limit or not limit.isdigit():
        return None
    return Settings(queue, socket, int(limit))


def ensure_standard_files() -> None:
    """Descriptors 0 to 2 are open, so that no file of ours can become one of them; two more can be had.

    Later, with the whole message read, is too late to learn that there is no descriptor for a socket.
    """
    while True:
        fd = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
        if fd > 2:
            break
        posix.set_inheritable(fd, True)
    spare = posix.dup(fd)
    posix.close(spare)
    posix.close(fd)


def read_input(limit: int, until_dot: bool) -> "Input | None":
    """Read stdin to its end, or to a "." line; None when it exceeds the limit (0 = none).

    A terminal or a pipe may stay open after the dot, so the dot is looked for here too.
    """
    parts: list[bytes] = []
    size, fd = 0, -1
    tail = b"\n"
    try:
        while piece := posix.read(0, CHUNK):
            size += len(piece)
            if limit and size > limit + CHUNK:
                if fd >= 0:
                    posix.close(fd)
                return None
            if fd >= 0:
                _write(fd, piece)
            else:
                parts.append(piece)
                if size > RAM_LIMIT:
                    fd = posix.memfd_create("sendmail", 0)
                    for part in parts:
                        _write(fd, part)
                    parts = []
            if until_dot:
                seen = tail + piece
                if b"\n.\n" in seen or b"\n.\r\n" in seen:
                    break
                tail = seen[-3:]
    except OSError:
        if fd >= 0:
            posix.close(fd)
        raise
    return Input(b"".join(parts), fd, size)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]


def frame(kind: bytes, data: bytes) -> bytes:
    """See mta/submit/wire.py."""
    return kind + len(data).to_bytes(4, "big") + data


def words(argv: list[str]) -> bytes:
    """Arguments and environment of an H frame."""
    encoding = sys.getfilesystemencoding()
    out = [len(argv).to_bytes(4, "big")]
    out += [arg.encode(encoding, "surrogateescape") + b"\0" for arg in argv]
    for name in ENVIRONMENT:
        value = posix.environ.get(name)
        if value is not None and len(value) <= MAX_VARIABLE:
            out.append(name + b"=" + value + b"\0")
    return b"".join(out)


class Unavailable(Exception):
    """Nothing of the message was queued by the daemon: maildrop may take it."""


class Submitter:
    """One message to the daemon."""

    def __init__(self, path: str, argv: list[str], stdin: Input, key: bytes) -> None:
        """path: of the submit socket.  key: 16 random bytes."""
        self.path, self.argv, self.stdin, self.key = path, argv, stdin, key
        self._run_id = b""
        self._begun: _socket.socket | None = None
        self._read = b""  # received, not yet used

    def begin(self) -> None:
        """Say who is there before `stdin` is known; submit() goes on with it, or begins again when nobody listens."""
        try:  # noqa: SIM105
            self._begun = self._introduced(b"m", monotonic() + AT_ONCE)
        except Unavailable:
            pass

    def submit(self) -> int:
        """Return the exit status; raises Unavailable."""
        end = monotonic() + FIRST_ANSWER
        while True:
            sock = self._begun or self._introduced(b"m", end)
            self._begun = None
            try:
                kind, data = self._receive(sock, end)
            except OSError:
                sock.close()
                raise Unavailable from None  # silent, or gone before it said anything
            if kind != b"B" or monotonic() > end - BUSY_PAUSE:
                break
            sock.close()
            sleep(BUSY_PAUSE)  # as many connections as this user, or all, may have
        try:
            if kind != b"G":
                return self._final(sock, kind, data, monotonic() + FINAL_ANSWER)
            self._run_id = data
            try:
                sock.settimeout(FINAL_ANSWER)
                last = b""
                for piece in self.stdin.chunks():
                    if last:
                        sock.sendall(last)
                    last = frame(b"D", piece)
                sock.sendall(last + frame(b"E", self.stdin.size.to_bytes(8, "big")))
            except OSError:
                pass  # there may be an answer all the same
            try:
                return self._final(sock, *self._receive(sock, monotonic() + FINAL_ANSWER), monotonic() + FINAL_ANSWER)
            except OSError:
                pass
        finally:
            sock.close()
        return self._what_became()

    def _what_became(self) -> int:
        """The connection broke: ask with our key; raises Unavailable when it was surely not queued."""
        end = monotonic() + ASK_AGAIN
        while monotonic() < end:
            try:
                sock = self._introduced(b"a", end)
            except Unavailable:
                sleep(0.2)
                continue
            try:
                kind, data = self._receive(sock, end)
                if kind == b"U":
                    if data == self._run_id:
                        raise Unavailable
                    break  # the daemon was started again and does not know: the message may be out already
                if kind != b"B":
                    return self._final(sock, kind, data, end)
            except OSError:
                pass
            finally:
                sock.close()
            sleep(0.2)
        say(f"{program(self.argv)}: fatal: connection to the mail system lost; the message may have been queued")
        return EX_TEMPFAIL

    def _connect(self, end: float) -> "_socket.socket":
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        except OSError:
            raise Unavailable from None
        try:
            sock.settimeout(max(0.1, end - monotonic()))
            sock.connect(self.path)
        except (OSError, ValueError):
            sock.close()
            raise Unavailable from None
        return sock

    def _introduced(self, mode: bytes, end: float) -> "_socket.socket":
        """Connect and send an H frame."""
        head = self.key + mode + words(self.argv)
        if len(head) > MAX_FRAME:
            raise Unavailable  # more arguments than the protocol takes
        sock = self._connect(end)
        self._read = b""
        sock.settimeout(max(0.1, end - monotonic()))
        try:  # noqa: SIM105
            sock.sendall(frame(b"H", head))
        except OSError:
            pass  # the answer of a daemon that is busy comes before the question
        return sock

    def _receive(self, sock: "_socket.socket", end: float) -> "tuple[bytes, bytes]":
        """The next frame; text frames are shown; OSError when there is none."""
        while True:
            head = self._exactly(sock, 5, end)
            data = self._exactly(sock, int.from_bytes(head[1:], "big"), end)
            kind = head[:1]
            if kind == b"W":
                write_all(2, data)
            elif kind == b"O":
                write_all(1, data)
            else:
                return kind, data

    def _exactly(self, sock: "_socket.socket", size: int, end: float) -> bytes:
        while len(self._read) < size:
            sock.settimeout(max(0.1, end - monotonic()))
            piece = sock.recv(CHUNK)
            if not piece:
                raise OSError("connection closed")
            self._read += piece
        data, self._read = self._read[:size], self._read[size:]
        return data

    def _final(self, sock: "_socket.socket", kind: bytes, data: bytes, end: float) -> int:
        if kind == b"B":
            raise Unavailable
        if kind != b"R" or not data:
            raise OSError("unexpected answer")
        return data[0]


def write_all(fd: int, data: bytes) -> None:
    """Show text from the daemon; nobody listening is no error."""
    try:  # noqa: SIM105
        _write(fd, data)
    except OSError:
        pass


def too_big(argv: list[str]) -> int:
    """Say it in Postfix's words; return the exit status."""
    uid = posix.getuid()
    login = posix.environ.get(b"LOGNAME", b"").decode("utf-8", "replace")
    say(f"{program(argv)}: fatal: {login if login.isidentifier() else uid}({uid}): message file too big")
    return EX_DATAERR


def unread(argv: list[str], errno: "int | None") -> int:
    """The message could not be read or kept: say which; return the exit status."""
    if errno == _EFBIG:
        return too_big(argv)  # the caller's RLIMIT_FSIZE, which a memfd obeys too
    kept = errno in (_ENOMEM, _ENFILE, _EMFILE, _ENOSPC)
    say(f"{program(argv)}: fatal: cannot {'keep' if kept else 'read'} the message; nothing was queued")
    return EX_TEMPFAIL if kept else EX_NOINPUT


def slow(argv: list[str], config: str, library: str, stdin: "Input | None") -> int:
    """Hand over to the part that may import what it likes."""
    sys.path.insert(0, library)
    from sendmail_compat import slow as module

    return module.run(argv, config, stdin)


def main(argv: list[str], library: str) -> int:
    """Do it; return the exit status.  library: directory that holds sendmail_compat and mta."""
    try:
        ensure_standard_files()
    except OSError:
        say(f"{program(argv)}: fatal: no file descriptors left; nothing was queued")
        return EX_TEMPFAIL
    command = Command(argv)
    directory = config_directory(command.config)
    settings = None if command.slow else read_settings(directory)
    if settings is None:
        return slow(argv, directory, library, None)
    submitter = Submitter(settings.socket, argv, NOTHING, posix.urandom(16))
    try:
        if posix.fstat(0).st_mode & 0o170000 == 0o100000:  # S_ISREG
            submitter.begin()
        stdin = read_input(settings.limit, command.dot_ends)
    except OSError as error:
        return unread(argv, error.errno)
    if stdin is None:
        return too_big(argv)
    try:
        submitter.stdin = stdin
        return submitter.submit()
    except Unavailable:
        return slow(argv, directory, library, stdin)


def start() -> None:
    """Entry of the stub: never returns, never shows a traceback.

    Takes out again what the stub has put in front of sys.path: no module here is to hide one of the library.
    """
    sys.path = [path for path in sys.path if not path.endswith("/sendmail_compat")]
    library = __file__.rpartition("/")[0].rpartition("/")[0]
    status = EX_TEMPFAIL
    try:
        status = main(sys.argv, library)
    except KeyboardInterrupt:
        status = 130
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else 70
    except MemoryError:
        say(f"{program(sys.argv)}: fatal: out of memory; nothing was queued")
    except ImportError:  # nothing is imported once a message is on its way
        say(f"{program(sys.argv)}: fatal: installation incomplete: a module cannot be read; nothing was queued")
    except BaseException as error:
        say(f"{program(sys.argv)}: fatal: internal error: {type(error).__name__}")  # to be tried again, never a bounce
    posix._exit(status)
